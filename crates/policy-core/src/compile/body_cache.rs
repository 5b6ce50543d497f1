//! Bodies by policy, so that a pod that changes does not make all of its policies anew.

use std::collections::HashMap;
use std::sync::Arc;

use crate::flow::Direction;
use crate::object::NamedPort;
use crate::policy::{Policy, PolicyId};
use crate::profile::{Body, own_names};

#[derive(Debug)]
struct Entry {
    policy: Arc<Policy>,
    /// Names of ports that ingress rules resolve on the subject.
    names: Vec<Arc<str>>,
    /// `None`: it says nothing about egress.
    egress: Option<Arc<Body>>,
    /// By the subject's ports of those names.
    ingress: HashMap<Vec<NamedPort>, Option<Arc<Body>>>,
}

/// Bodies of policies.
#[derive(Debug, Default)]
pub(super) struct BodyCache {
    entries: HashMap<PolicyId, Entry>,
}

impl BodyCache {
    /// The body of a policy for a pod with these ports.
    pub(super) fn body(
        &mut self,
        policy: &Arc<Policy>,
        direction: Direction,
        ports: &[NamedPort],
    ) -> Option<Arc<Body>> {
        let stale = self
            .entries
            .get(&policy.id)
            .is_none_or(|e| !Arc::ptr_eq(&e.policy, policy));
        if stale {
            let entry = Entry {
                policy: Arc::clone(policy),
                names: own_names(policy).into_iter().map(Arc::from).collect(),
                egress: Body::of(policy, Direction::Egress, &[]).map(Arc::new),
                ingress: HashMap::new(),
            };
            self.entries.insert(policy.id.clone(), entry);
        }
        let entry = self.entries.get_mut(&policy.id)?;
        match direction {
            Direction::Egress => entry.egress.clone(),
            Direction::Ingress => {
                let names = &entry.names;
                let mut own: Vec<NamedPort> = ports
                    .iter()
                    .filter(|p| names.contains(&p.name))
                    .cloned()
                    .collect();
                own.sort_unstable();
                own.dedup();
                if let Some(known) = entry.ingress.get(&own) {
                    return known.clone();
                }
                let body = Body::of(policy, direction, &own).map(Arc::new);
                entry.ingress.insert(own, body.clone());
                body
            }
        }
    }

    pub(super) fn forget(&mut self, policy: &PolicyId) {
        self.entries.remove(policy);
    }

    /// Drops bodies that no profile uses.
    pub(super) fn sweep(&mut self) {
        for entry in self.entries.values_mut() {
            entry
                .ingress
                .retain(|_, body| body.as_ref().is_some_and(|b| Arc::strong_count(b) > 1));
        }
        self.entries.retain(|_, entry| {
            let egress = entry.egress.as_ref();
            !entry.ingress.is_empty() || egress.is_some_and(|b| Arc::strong_count(b) > 1)
        });
    }

    pub(super) fn len(&self) -> usize {
        self.entries.values().map(|e| 1 + e.ingress.len()).sum()
    }
}
