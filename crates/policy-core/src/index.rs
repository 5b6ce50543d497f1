//! Who is a member of what, kept up with events.
//!
//! Two consumers: *subjects*, the local pods with the policies that select them, and *sets*, the far ends that rules
//! name. Policies are matched against local pods alone; sets are kept for acquired [`PeerKey`]s alone.

use std::net::IpAddr;
use std::sync::Arc;

use types::pod::{AttachmentKey, PodKey};

use crate::flow::Protocol;
use crate::object::{Event, Pod};
use crate::policy::{Policy, PolicyId};

mod vocabulary;

pub use vocabulary::{
    Changes, Counts, LocalPod, Member, PeerKey, PortName, SetDelta, SetId, Subject,
};

/// The index of one node.
#[derive(Debug)]
pub struct Index {}

impl Index {
    /// An empty index that counts the pods of `node` as local.
    pub fn new(node: &str) -> Self {
        _ = node;
        Self {}
    }

    /// Takes one event. Compared with the state: events may come twice, late, or in another order (E10).
    pub fn apply(&mut self, event: Event) {
        _ = event;
    }

    /// Notes an attachment; a second call for the same attachment replaces the first.
    pub fn place(&mut self, pod: LocalPod) {
        _ = pod;
    }

    /// Forgets an attachment; others of the same pod or name stay. Unknown ones do no harm.
    pub fn unplace(&mut self, attachment: &AttachmentKey) {
        _ = attachment;
    }

    /// Keeps a set of these far ends from now on; the same key gives the same set, counted.
    pub fn acquire(&mut self, key: &PeerKey) -> SetId {
        _ = key;
        SetId(0)
    }

    /// Gives one `acquire` back; with the last one the set is gone, and so are its changes not taken.
    pub fn release(&mut self, id: SetId) {
        _ = id;
    }

    /// The set of a key, if it is acquired.
    pub fn set(&self, key: &PeerKey) -> Option<SetId> {
        _ = key;
        None
    }

    /// The key of an acquired set.
    pub fn key(&self, id: SetId) -> Option<&PeerKey> {
        _ = id;
        None
    }

    /// All members of a set now; sorted, each once. Empty for a set that is not acquired.
    pub fn members(&self, id: SetId) -> Vec<Member> {
        _ = id;
        Vec::new()
    }

    /// Whether a set has the member; `port` counts only for sets with a port name.
    pub fn contains(&self, id: SetId, ip: IpAddr, port: Option<(Protocol, u16)>) -> bool {
        _ = (id, ip, port);
        false
    }

    /// Whether a set of this key would have the member; needs no acquired set.
    pub fn matches(&self, key: &PeerKey, ip: IpAddr, port: Option<(Protocol, u16)>) -> bool {
        _ = (key, ip, port);
        false
    }

    /// Takes what changed since the last call, coalesced.
    pub fn take_changes(&mut self) -> Changes {
        Changes::default()
    }

    /// All local pods that can be subjects, by key.
    pub fn subjects(&self) -> Vec<Subject> {
        Vec::new()
    }

    /// One local pod; `None` when it is not here, is of the host network, or is finished without an attachment.
    pub fn subject(&self, key: &PodKey) -> Option<Subject> {
        _ = key;
        None
    }

    /// A pod of any node; `uid` is empty for those of other nodes.
    pub fn pod(&self, key: &PodKey) -> Option<Pod> {
        _ = key;
        None
    }

    /// Pods that have the address, those of the host network left out; by key.
    pub fn pods_by_ip(&self, ip: IpAddr) -> Vec<PodKey> {
        _ = ip;
        Vec::new()
    }

    /// Names of the nodes that have the address; sorted.
    pub fn nodes_by_ip(&self, ip: IpAddr) -> Vec<Arc<str>> {
        _ = ip;
        Vec::new()
    }

    /// Every policy, by id.
    pub fn policies(&self) -> Vec<Arc<Policy>> {
        Vec::new()
    }

    /// One policy.
    pub fn policy(&self, id: &PolicyId) -> Option<Arc<Policy>> {
        _ = id;
        None
    }

    /// Policies that would select a pod of any node, in the order of judgement; for `explain`.
    pub fn policies_of(&self, pod: &Pod) -> Vec<Arc<Policy>> {
        _ = pod;
        Vec::new()
    }

    /// How much there is.
    pub fn counts(&self) -> Counts {
        Counts::default()
    }
}
