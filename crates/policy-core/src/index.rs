//! Who is a member of what, kept up with events.
//!
//! Two consumers: *subjects*, the local pods with the policies that select them, and *sets*, the far ends that rules
//! name. Policies are matched against local pods alone; sets are kept for acquired [`PeerKey`]s alone.
//!
//! Pods of the host network are neither (B9); finished ones are not kept at all (B6); terminating ones count until
//! their object, and on this node the last attachment of their UID, is gone (B7).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use types::pod::{AttachmentKey, PodKey};

use crate::flow::Protocol;
use crate::object::{Event, Object, ObjectKey, Pod};
use crate::policy::{Policy, PolicyId, Problem};

mod locals;
mod peers;
mod policies;
mod roster;
mod slab;
mod strings;
mod tally;
mod vocabulary;

pub use vocabulary::{
    Changes, Counts, LocalPod, Member, PeerKey, PortName, SetDelta, SetId, Subject,
};

use locals::{Local, Locals};
use peers::{Peers, Tags, Who};
use policies::{Policies, is_namespaced};

/// What an allocation of so many bytes takes, roughly.
fn block(bytes: usize) -> usize {
    if bytes == 0 {
        0
    } else {
        bytes.saturating_add(8).next_multiple_of(16).max(32)
    }
}

/// The index of one node.
#[derive(Debug)]
pub struct Index {
    node: Arc<str>,
    peers: Peers,
    locals: Locals,
    policies: Policies,
    subjects_changed: BTreeSet<PodKey>,
    policies_changed: BTreeSet<PolicyId>,
    problems_changed: BTreeSet<PolicyId>,
}

impl Index {
    /// An empty index that counts the pods of `node` as local.
    pub fn new(node: &str) -> Self {
        Self {
            node: Arc::from(node),
            peers: Peers::default(),
            locals: Locals::default(),
            policies: Policies::default(),
            subjects_changed: BTreeSet::new(),
            policies_changed: BTreeSet::new(),
            problems_changed: BTreeSet::new(),
        }
    }

    /// Takes one event. Compared with the state: events may come twice, late, or in another order (E10).
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Upsert(Object::Pod(pod)) => self.set_pod(pod),
            Event::Upsert(Object::Namespace(namespace)) => {
                if self.peers.set_namespace(&namespace) {
                    self.judge_namespace_again(&namespace.name);
                }
            }
            Event::Upsert(Object::Node(node)) => self.peers.set_node(&node),
            Event::Upsert(Object::ServiceAccount(account)) => {
                if self.peers.set_account(&account) {
                    self.judge_namespace_again(&account.namespace);
                }
            }
            Event::Upsert(Object::Policy(policy)) => {
                if let Some(turn) = self.policies.set(policy) {
                    self.policy_changed(turn.old.as_ref(), turn.new.as_ref());
                }
            }
            Event::Delete(ObjectKey::Pod(key)) => self.remove_pod(&key, true),
            Event::Delete(ObjectKey::Namespace(name)) => {
                if self.peers.remove_namespace(&name) {
                    self.judge_namespace_again(&name);
                }
            }
            Event::Delete(ObjectKey::Node(name)) => self.peers.remove_node(&name),
            Event::Delete(ObjectKey::ServiceAccount(namespace, name)) => {
                if self.peers.remove_account(&namespace, &name) {
                    self.judge_namespace_again(&namespace);
                }
            }
            Event::Delete(ObjectKey::Policy(id)) => {
                if let Some(turn) = self.policies.remove(&id) {
                    self.policy_changed(turn.old.as_ref(), turn.new.as_ref());
                }
            }
        }
    }

    /// Notes an attachment; a second call for the same attachment replaces the first.
    ///
    /// Until the pod's object is known, it is a subject without an object. An attachment of another UID than the
    /// object's counts for nobody: it is what a pod of the same name left behind, or is of one that is yet to be seen.
    pub fn place(&mut self, pod: LocalPod) {
        let key = pod.key.clone();
        let (other, changed) = self.locals.place(pod);
        if let Some(other) = other {
            self.settle(&other);
        }
        if changed {
            self.settle(&key);
        }
    }

    /// Forgets an attachment; others of the same pod or name stay. Unknown ones do no harm.
    pub fn unplace(&mut self, attachment: &AttachmentKey) {
        if let Some(key) = self.locals.unplace(attachment) {
            self.settle(&key);
        }
    }

    /// Keeps a set of these far ends from now on; the same key gives the same set, counted.
    pub fn acquire(&mut self, key: &PeerKey) -> SetId {
        self.peers.acquire(key)
    }

    /// Gives one `acquire` back; with the last one the set is gone, and so are its changes not taken.
    pub fn release(&mut self, id: SetId) {
        self.peers.release(id);
    }

    /// The set of a key, if it is acquired.
    pub fn set(&self, key: &PeerKey) -> Option<SetId> {
        self.peers.set(key)
    }

    /// The key of an acquired set.
    pub fn key(&self, id: SetId) -> Option<&PeerKey> {
        self.peers.key(id)
    }

    /// All members of a set now; sorted, each once. Empty for a set that is not acquired.
    pub fn members(&self, id: SetId) -> Vec<Member> {
        self.peers.members(id)
    }

    /// All members of a set now with addresses of one family; sorted, each once.
    pub fn members_of(&self, id: SetId, v4: bool) -> Vec<Member> {
        self.peers.members_of(id, v4)
    }

    /// How many members a set has now; 0 for one that is not acquired. Nothing is listed for it.
    pub fn size(&self, id: SetId) -> usize {
        self.peers.size(id)
    }

    /// Whether a set has the member; `port` counts only for sets with a port name.
    pub fn contains(&self, id: SetId, ip: IpAddr, port: Option<(Protocol, u16)>) -> bool {
        self.peers.has(id.0, &Member { ip, port })
    }

    /// Whether a set of this key would have the member; needs no acquired set.
    pub fn matches(&self, key: &PeerKey, ip: IpAddr, port: Option<(Protocol, u16)>) -> bool {
        self.peers.matches(key, ip, port)
    }

    /// Takes what changed since the last call, coalesced.
    pub fn take_changes(&mut self) -> Changes {
        self.peers.tidy();
        let take = |set: &mut BTreeSet<PolicyId>| std::mem::take(set).into_iter().collect();
        Changes {
            sets: self.peers.tally.take(),
            subjects: std::mem::take(&mut self.subjects_changed)
                .into_iter()
                .collect(),
            policies: take(&mut self.policies_changed),
            problems: take(&mut self.problems_changed),
        }
    }

    /// All local pods that can be subjects, by key.
    pub fn subjects(&self) -> Vec<Subject> {
        self.locals
            .pods
            .iter()
            .filter_map(|(key, local)| self.subject_of(key, local))
            .collect()
    }

    /// One local pod; `None` when it is not here, is of the host network, or is finished without an attachment.
    pub fn subject(&self, key: &PodKey) -> Option<Subject> {
        self.subject_of(key, self.locals.pods.get(key)?)
    }

    /// A pod of any node; `uid` is empty and `spoofs` false for those of other nodes.
    pub fn pod(&self, key: &PodKey) -> Option<Pod> {
        let local = self.locals.pods.get(key).and_then(|local| {
            let mut pod = Pod::clone(local.object.as_ref()?);
            pod.ips = local.ips();
            Some(pod)
        });
        local.or_else(|| self.peers.pod(key))
    }

    /// Pods that have the address, those of the host network left out; by key.
    pub fn pods_by_ip(&self, ip: IpAddr) -> Vec<PodKey> {
        self.peers.pods_by_ip(ip)
    }

    /// Names of the nodes that have the address; sorted.
    pub fn nodes_by_ip(&self, ip: IpAddr) -> Vec<Arc<str>> {
        self.peers.nodes_by_ip(ip)
    }

    /// Every policy, by id.
    pub fn policies(&self) -> Vec<Arc<Policy>> {
        self.policies.all().collect()
    }

    /// One policy.
    pub fn policy(&self, id: &PolicyId) -> Option<Arc<Policy>> {
        self.policies.get(id)
    }

    /// Policies in which something could not be read, by id.
    pub const fn problems(&self) -> &BTreeMap<PolicyId, Vec<Problem>> {
        self.policies.problems()
    }

    /// Policies that would select a pod of any node, in the order of judgement; for `explain`.
    pub fn policies_of(&self, pod: &Pod) -> Vec<Arc<Policy>> {
        if pod.host_network || pod.finished {
            return Vec::new();
        }
        self.policies.selecting(&self.peers, who(pod))
    }

    /// How much there is.
    pub fn counts(&self) -> Counts {
        Counts {
            policies: self.policies.len(),
            ..self.peers.counts()
        }
    }

    /// Estimate of the memory held, bytes; policies are not in it. Looks at every object.
    pub fn bytes(&self) -> usize {
        self.peers.bytes()
    }

    /// Whether nothing is kept but strings.
    #[cfg(test)]
    fn is_bare(&self) -> bool {
        self.peers.is_bare() && self.locals.is_bare() && self.policies.len() == 0
    }

    fn subject_of(&self, key: &PodKey, local: &Local) -> Option<Subject> {
        if local.object.as_ref().is_some_and(|pod| pod.host_network) || local.is_empty() {
            return None;
        }
        Some(Subject {
            key: key.clone(),
            pod: local.object.as_ref().map(Arc::clone),
            namespace_known: self.peers.is_known(&key.namespace),
            placements: local.own().map(Arc::clone).collect(),
            ips: local.ips(),
            policies: local.policies.clone(),
        })
    }

    fn set_pod(&mut self, mut pod: Pod) {
        if pod.finished {
            // The object stays, its address may be another's already (B6).
            self.remove_pod(&pod.key, false);
            return;
        }
        pod.ips.sort();
        pod.ips.dedup();
        let key = pod.key.clone();
        if pod.node == self.node {
            let local = self.locals.pods.entry(key.clone()).or_default();
            if local.live && local.object.as_deref() == Some(&pod) {
                return;
            }
            local.live = true;
            local.object = Some(Arc::new(pod));
            self.settle(&key);
            return;
        }
        if let Some(local) = self.locals.pods.get_mut(&key) {
            local.live = false;
            local.object = None;
            self.settle(&key);
        }
        let ips = pod.ips.clone();
        self.peers.set_pod(&pod, ips);
    }

    /// The object is not there, or is finished, when nothing may stand in for it.
    fn remove_pod(&mut self, key: &PodKey, may_linger: bool) {
        match self.locals.pods.get_mut(key) {
            None => self.peers.remove_pod(key),
            Some(local) => {
                local.live = false;
                if !may_linger {
                    local.object = None;
                }
                if local.object.is_none() {
                    self.peers.remove_pod(key);
                }
                self.settle(key);
            }
        }
    }

    /// Brings everything in line with what is known of a local pod.
    fn settle(&mut self, key: &PodKey) {
        let Some(local) = self.locals.pods.get_mut(key) else {
            return;
        };
        let had_object = local.object.is_some();
        local.settle();
        self.subjects_changed.insert(key.clone());
        local.policies = Vec::new();
        if let Some(pod) = &local.object {
            self.peers.set_pod(pod, local.ips());
            if !pod.host_network {
                local.policies = self.policies.selecting(&self.peers, who(pod));
                self.policies.hold(&local.policies);
            }
        } else if had_object {
            self.peers.remove_pod(key);
        }
        if local.is_empty() {
            self.locals.pods.remove(key);
        }
    }

    /// Labels of a namespace, or of a service account in it, changed.
    fn judge_namespace_again(&mut self, namespace: &str) {
        for key in self.locals.of_namespace(namespace) {
            let Some(local) = self.locals.pods.get_mut(&key) else {
                continue;
            };
            if let Some(pod) = local.object.as_ref().filter(|pod| !pod.host_network) {
                local.policies = self.policies.selecting(&self.peers, who(pod));
                self.policies.hold(&local.policies);
            }
            self.subjects_changed.insert(key);
        }
    }

    fn policy_changed(&mut self, old: Option<&Arc<Policy>>, new: Option<&Arc<Policy>>) {
        let Some(id) = new.or(old).map(|policy| &policy.id) else {
            return;
        };
        self.policies_changed.insert(id.clone());
        let problems = |policy: Option<&Arc<Policy>>| {
            policy.map_or_else(Vec::new, |policy| policy.problems.clone())
        };
        if problems(old) != problems(new) {
            self.problems_changed.insert(id.clone());
        }
        let keys: Vec<PodKey> = if is_namespaced(id.kind) {
            self.locals.of_namespace(&id.namespace)
        } else {
            self.locals.pods.keys().cloned().collect()
        };
        for key in keys {
            let Some(local) = self.locals.pods.get_mut(&key) else {
                continue;
            };
            let Some(pod) = local.object.as_ref().filter(|pod| !pod.host_network) else {
                continue;
            };
            let place = |list: &[Arc<Policy>], policy: &Arc<Policy>| {
                list.binary_search_by(|other| other.place().cmp(&policy.place()))
            };
            let mut changed = false;
            if let Some(old) = old
                && let Ok(found) = place(&local.policies, old)
            {
                local.policies.remove(found);
                changed = true;
            }
            if let Some(new) = new
                && self.peers.selects(&new.subject, who(pod))
            {
                let found = place(&local.policies, new).unwrap_or_else(|found| found);
                local.policies.insert(found, Arc::clone(new));
                changed = true;
            }
            if changed {
                self.subjects_changed.insert(key);
            }
        }
        if let Some(new) = new.filter(|new| Arc::strong_count(new) > 1) {
            self.policies.hold(std::slice::from_ref(new));
        }
    }
}

fn who(pod: &Pod) -> Who<'_> {
    Who {
        namespace: &pod.key.namespace,
        account: &pod.service_account,
        tags: Tags::Map(&pod.labels),
    }
}

#[cfg(test)]
mod tests;
