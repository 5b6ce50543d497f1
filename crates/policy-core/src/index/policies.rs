//! Policies by id, and which of them select a pod.
//!
//! A policy of a namespace is kept packed and is whole only while a local pod holds it: most namespaces have no pod
//! on this node, and a policy as it is judged takes ten times the room.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use super::peers::{Peers, Who};
use crate::policy::{Policy, PolicyId, PolicyKind, Problem};

/// Kinds whose policies are about the pods of their own namespace.
const NAMESPACED: [PolicyKind; 2] = [PolicyKind::NetworkPolicy, PolicyKind::CalicoNamespaced];

/// Kinds whose policies are about pods of any namespace.
const GLOBAL: [PolicyKind; 5] = [
    PolicyKind::AckGlobal,
    PolicyKind::AdminNetworkPolicy,
    PolicyKind::ClusterNetworkPolicy,
    PolicyKind::BaselineAdminNetworkPolicy,
    PolicyKind::CalicoGlobal,
];

#[derive(Debug)]
enum Kept {
    Whole(Arc<Policy>),
    Packed(Box<[u8]>, Weak<Policy>),
}

impl Kept {
    /// Keeps a policy; packed when it is of a namespace and can be read again as it was.
    fn new(policy: &Arc<Policy>) -> Self {
        let whole = || Self::Whole(Arc::clone(policy));
        if !is_namespaced(policy.id.kind) {
            return whole();
        }
        let packed: Option<Box<[u8]>> = postcard::to_allocvec(&**policy).ok().map(Into::into);
        packed
            .filter(|bytes| unpack(bytes).as_ref() == Some(&**policy))
            .map_or_else(whole, |bytes| Self::Packed(bytes, Weak::new()))
    }

    /// The policy. `None` does not occur: what is packed was read before.
    fn policy(&self) -> Option<Arc<Policy>> {
        match self {
            Self::Whole(policy) => Some(Arc::clone(policy)),
            Self::Packed(bytes, weak) => weak.upgrade().or_else(|| unpack(bytes).map(Arc::new)),
        }
    }
}

fn unpack(bytes: &[u8]) -> Option<Policy> {
    postcard::from_bytes(bytes).ok()
}

/// What became of a policy: what it is, and what it was.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) new: Option<Arc<Policy>>,
    pub(super) old: Option<Arc<Policy>>,
}

/// Every policy.
#[derive(Debug, Default)]
pub(super) struct Policies {
    /// In the order of ids: kind, namespace, name.
    by_id: BTreeMap<PolicyId, Kept>,
    problems: BTreeMap<PolicyId, Vec<Problem>>,
}

impl Policies {
    /// The policy is now so. `None` when it was so before.
    pub(super) fn set(&mut self, policy: Policy) -> Option<Turn> {
        let old = self.get(&policy.id);
        if old.as_deref() == Some(&policy) {
            return None;
        }
        let id = PolicyId {
            kind: policy.id.kind,
            namespace: self.shared_namespace(&policy.id),
            name: Arc::clone(&policy.id.name),
        };
        if policy.problems.is_empty() {
            self.problems.remove(&id);
        } else {
            self.problems.insert(id.clone(), policy.problems.clone());
        }
        let new = Arc::new(policy);
        self.by_id.insert(id, Kept::new(&new));
        Some(Turn {
            new: Some(new),
            old,
        })
    }

    /// The policy is not there. `None` when it was not there before.
    pub(super) fn remove(&mut self, id: &PolicyId) -> Option<Turn> {
        self.problems.remove(id);
        let old = self.by_id.remove(id)?.policy();
        Some(Turn { new: None, old })
    }

    pub(super) fn get(&self, id: &PolicyId) -> Option<Arc<Policy>> {
        self.by_id.get(id)?.policy()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = Arc<Policy>> {
        self.by_id.values().filter_map(Kept::policy)
    }

    pub(super) const fn problems(&self) -> &BTreeMap<PolicyId, Vec<Problem>> {
        &self.problems
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The name of the namespace as another policy has it.
    fn shared_namespace(&self, id: &PolicyId) -> Arc<str> {
        let first = first(id.kind, &id.namespace);
        self.by_id
            .range(first..)
            .next()
            .map(|(other, _)| &other.namespace)
            .filter(|namespace| **namespace == id.namespace)
            .map_or_else(|| Arc::clone(&id.namespace), Arc::clone)
    }

    /// Policies that select a pod, in the order of judgement.
    pub(super) fn selecting(&self, peers: &Peers, who: Who<'_>) -> Vec<Arc<Policy>> {
        let namespace: Arc<str> = Arc::from(who.namespace);
        let empty: Arc<str> = Arc::from("");
        let own = NAMESPACED.iter().map(|kind| (*kind, &namespace));
        let global = GLOBAL.iter().map(|kind| (*kind, &empty));
        let mut found: Vec<Arc<Policy>> = own
            .chain(global)
            .flat_map(|(kind, namespace)| {
                self.by_id
                    .range(first(kind, namespace)..)
                    .take_while(move |(id, _)| id.kind == kind && id.namespace == *namespace)
            })
            .filter_map(|(_, kept)| kept.policy())
            .filter(|policy| peers.selects(&policy.subject, who))
            .collect();
        found.sort_by(|a, b| a.place().cmp(&b.place()));
        found
    }

    /// Local pods hold these now: the next one that asks is given the same.
    pub(super) fn hold(&mut self, held: &[Arc<Policy>]) {
        for policy in held {
            if let Some(Kept::Packed(_, weak)) = self.by_id.get_mut(&policy.id)
                && weak.strong_count() == 0
            {
                *weak = Arc::downgrade(policy);
            }
        }
    }
}

/// The first id that a policy of the kind and namespace could have.
fn first(kind: PolicyKind, namespace: &Arc<str>) -> PolicyId {
    PolicyId {
        kind,
        namespace: Arc::clone(namespace),
        name: Arc::from(""),
    }
}

/// Whether policies of this kind are about pods of one namespace alone.
pub(super) fn is_namespaced(kind: PolicyKind) -> bool {
    NAMESPACED.contains(&kind)
}
