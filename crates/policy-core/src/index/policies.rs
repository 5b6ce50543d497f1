//! Policies by id, and which of them select a pod.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::peers::{Peers, Who};
use crate::policy::{Policy, PolicyId, PolicyKind};

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

/// Every policy.
#[derive(Debug, Default)]
pub(super) struct Policies {
    /// In the order of ids: kind, namespace, name.
    by_id: BTreeMap<PolicyId, Arc<Policy>>,
}

impl Policies {
    /// The policy is now so. Answers it with what it was before, if it is another one.
    pub(super) fn set(&mut self, policy: Policy) -> Option<(Arc<Policy>, Option<Arc<Policy>>)> {
        if self
            .by_id
            .get(&policy.id)
            .is_some_and(|old| **old == policy)
        {
            return None;
        }
        let policy = Arc::new(policy);
        let old = self.by_id.insert(policy.id.clone(), Arc::clone(&policy));
        Some((policy, old))
    }

    /// The policy is not there. Answers what it was.
    pub(super) fn remove(&mut self, id: &PolicyId) -> Option<Arc<Policy>> {
        self.by_id.remove(id)
    }

    pub(super) fn get(&self, id: &PolicyId) -> Option<&Arc<Policy>> {
        self.by_id.get(id)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.by_id.values()
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
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
                let first = PolicyId {
                    kind,
                    namespace: Arc::clone(namespace),
                    name: Arc::clone(&empty),
                };
                self.by_id
                    .range(first..)
                    .take_while(move |(id, _)| id.kind == kind && id.namespace == *namespace)
            })
            .filter(|(_, policy)| peers.selects(&policy.subject, who))
            .map(|(_, policy)| Arc::clone(policy))
            .collect();
        found.sort_by(|a, b| a.place().cmp(&b.place()));
        found
    }
}

/// Whether policies of this kind are about pods of one namespace alone.
pub(super) fn is_namespaced(kind: PolicyKind) -> bool {
    NAMESPACED.contains(&kind)
}
