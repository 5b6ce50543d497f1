//! What the index is asked with and what it answers.

use std::net::IpAddr;
use std::sync::Arc;

use types::pod::{AttachmentKey, PodKey};

use crate::flow::Protocol;
use crate::object::Pod;
use crate::policy::{PodScope, Policy, PolicyId};
use crate::selector::Selector;

/// A port by name, to be resolved at each destination pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortName {
    /// The port's protocol; `None`: any.
    pub protocol: Option<Protocol>,
    /// The port's name.
    pub name: Arc<str>,
}

/// What a set of far ends holds. Equal keys share one set; make the parts canonical, as [`Selector::all`] does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerKey {
    /// Addresses of pods; with a port name, address, protocol and port of those that name it.
    Pods(PodScope, Option<PortName>),
    /// Addresses of nodes by label.
    Nodes(Arc<Selector>),
}

/// A set while it is acquired. Numbers of released sets are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SetId(pub u32);

/// One member of a set. A set holds both families; the kernel's sets are made per family from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    /// Address.
    pub ip: IpAddr,
    /// Protocol and port, in sets with a port name alone.
    pub port: Option<(Protocol, u16)>,
}

/// What became of the members of one set since the last time; sorted, nothing stands in both lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetDelta {
    /// The set.
    pub id: SetId,
    /// Members that came.
    pub added: Vec<Member>,
    /// Members that went.
    pub removed: Vec<Member>,
}

/// What changed since the last time it was taken. Each list is sorted and names a thing once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Sets. The first members of a set that was acquired in between are read with `Index::members`, and need not
    /// stand here.
    pub sets: Vec<SetDelta>,
    /// Local pods to look at again with `Index::subject`, which answers `None` for those that are gone.
    pub subjects: Vec<PodKey>,
    /// Policies that came, changed or went.
    pub policies: Vec<PolicyId>,
    /// Policies whose problems are others than before, those without any left included.
    pub problems: Vec<PolicyId>,
}

impl Changes {
    /// Whether nothing changed.
    pub const fn is_empty(&self) -> bool {
        self.sets.is_empty()
            && self.subjects.is_empty()
            && self.policies.is_empty()
            && self.problems.is_empty()
    }
}

/// A pod that has, or is about to have, a link on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPod {
    /// Namespace and name.
    pub key: PodKey,
    /// UID of the pod; empty when the caller does not know it.
    pub uid: Arc<str>,
    /// The sandbox and its interface.
    pub attachment: AttachmentKey,
    /// Host-side link; `None`: the pod's link is in its own namespace alone.
    pub host_link: Option<Arc<str>>,
    /// Path of the pod's network namespace, where its rules have to stand there.
    pub netns: Option<Arc<str>>,
    /// Addresses of the attachment; they count for the pod before its object has them.
    pub ips: Vec<IpAddr>,
}

/// A local pod with the policies that select it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Namespace and name.
    pub key: PodKey,
    /// The object; after its deletion the last one, while an attachment of it stands. `None`: attached, but its
    /// object is not known or is finished: nothing may pass.
    pub pod: Option<Arc<Pod>>,
    /// Whether the namespace's object is known; before it is, selectors of namespaces match nothing of it.
    pub namespace_known: bool,
    /// Attachments of this pod's UID, by attachment.
    pub placements: Vec<Arc<LocalPod>>,
    /// Addresses of the object and of the attachments; sorted, each once.
    pub ips: Vec<IpAddr>,
    /// Policies that select it, in the order of judgement.
    pub policies: Vec<Arc<Policy>>,
}

/// How much the index holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pods, host network included, finished ones not.
    pub pods: usize,
    /// Groups of pods that are alike to every selector.
    pub classes: usize,
    /// Namespaces with an object.
    pub namespaces: usize,
    /// Nodes.
    pub nodes: usize,
    /// Service accounts.
    pub accounts: usize,
    /// Policies.
    pub policies: usize,
    /// Acquired sets.
    pub sets: usize,
    /// Distinct strings kept.
    pub strings: usize,
}
