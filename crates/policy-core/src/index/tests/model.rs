//! The same questions answered without an index: everything is looked at, nothing is remembered but the objects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use types::pod::PodKey;

use super::super::{LocalPod, Member, PeerKey, Subject};
use super::HERE;
use crate::labels::Labels;
use crate::object::{Event, Node, Object, ObjectKey, Pod};
use crate::policy::{NamespaceScope, PodScope, Policy, PolicyId};
use crate::selector::Selector;

/// The objects, and the attachments.
#[derive(Debug, Default, Clone)]
pub(super) struct Model {
    pods: BTreeMap<PodKey, Pod>,
    /// Objects that were deleted while attachments of theirs stood.
    gone: BTreeMap<PodKey, Pod>,
    placements: Vec<LocalPod>,
    namespaces: BTreeMap<Arc<str>, Labels>,
    accounts: BTreeMap<(Arc<str>, Arc<str>), Labels>,
    nodes: BTreeMap<Arc<str>, Node>,
    policies: BTreeMap<PolicyId, Policy>,
}

fn fits(placement: &LocalPod, pod: &Pod) -> bool {
    placement.key == pod.key
        && (placement.uid.is_empty() || pod.uid.is_empty() || placement.uid == pod.uid)
}

impl Model {
    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::Upsert(Object::Pod(pod)) => {
                self.gone.remove(&pod.key);
                self.pods.remove(&pod.key);
                if !pod.finished {
                    self.pods.insert(pod.key.clone(), pod.clone());
                }
            }
            Event::Delete(ObjectKey::Pod(key)) => {
                if let Some(pod) = self.pods.remove(key)
                    && &*pod.node == HERE
                {
                    self.gone.insert(key.clone(), pod);
                }
            }
            Event::Upsert(Object::Namespace(n)) => {
                self.namespaces
                    .insert(Arc::clone(&n.name), n.labels.clone());
            }
            Event::Delete(ObjectKey::Namespace(name)) => {
                self.namespaces.remove(name);
            }
            Event::Upsert(Object::ServiceAccount(a)) => {
                let key = (Arc::clone(&a.namespace), Arc::clone(&a.name));
                self.accounts.insert(key, a.labels.clone());
            }
            Event::Delete(ObjectKey::ServiceAccount(namespace, name)) => {
                self.accounts
                    .remove(&(Arc::clone(namespace), Arc::clone(name)));
            }
            Event::Upsert(Object::Node(node)) => {
                self.nodes.insert(Arc::clone(&node.name), node.clone());
            }
            Event::Delete(ObjectKey::Node(name)) => {
                self.nodes.remove(name);
            }
            Event::Upsert(Object::Policy(policy)) => {
                self.policies.insert(policy.id.clone(), policy.clone());
            }
            Event::Delete(ObjectKey::Policy(id)) => {
                self.policies.remove(id);
            }
        }
        self.bury();
    }

    pub(super) fn place(&mut self, placed: &LocalPod) {
        self.placements
            .retain(|other| other.attachment != placed.attachment);
        self.placements.push(placed.clone());
        self.placements
            .sort_by(|a, b| a.attachment.cmp(&b.attachment));
        self.bury();
    }

    pub(super) fn unplace(&mut self, placed: &LocalPod) {
        self.placements
            .retain(|other| other.attachment != placed.attachment);
        self.bury();
    }

    fn bury(&mut self) {
        let placements = &self.placements;
        self.gone
            .retain(|_, pod| placements.iter().any(|placement| fits(placement, pod)));
    }

    /// Pods with the addresses they count with.
    fn pods(&self) -> impl Iterator<Item = (&Pod, BTreeSet<IpAddr>)> {
        self.pods.values().chain(self.gone.values()).map(|pod| {
            let mut ips: BTreeSet<IpAddr> = pod.ips.iter().copied().collect();
            if &*pod.node == HERE {
                let own = self
                    .placements
                    .iter()
                    .filter(|placement| fits(placement, pod));
                ips.extend(own.flat_map(|placement| &placement.ips));
            }
            (pod, ips)
        })
    }

    fn selects(&self, scope: &PodScope, pod: &Pod) -> bool {
        let namespace: Arc<str> = Arc::from(pod.key.namespace.as_str());
        let here = match &scope.namespaces {
            NamespaceScope::Any => true,
            NamespaceScope::Own(own) => *own == namespace,
            NamespaceScope::Matching(selector) => self
                .namespaces
                .get(&namespace)
                .is_some_and(|labels| selector.matches(labels)),
        };
        let account = *scope.accounts == Selector::Everything
            || self
                .accounts
                .get(&(namespace, Arc::clone(&pod.service_account)))
                .is_some_and(|labels| scope.accounts.matches(labels));
        here && account && scope.pods.matches(&pod.labels)
    }

    pub(super) fn members(&self, key: &PeerKey) -> Vec<Member> {
        let mut members = BTreeSet::new();
        match key {
            PeerKey::Nodes(selector) => {
                for node in self
                    .nodes
                    .values()
                    .filter(|node| selector.matches(&node.labels))
                {
                    members.extend(node.ips.iter().map(|ip| Member {
                        ip: *ip,
                        port: None,
                    }));
                }
            }
            PeerKey::Pods(scope, name) => {
                for (pod, ips) in self.pods() {
                    if pod.host_network || !self.selects(scope, pod) {
                        continue;
                    }
                    let ports: Vec<_> = match name {
                        None => vec![None],
                        Some(name) => pod
                            .ports
                            .iter()
                            .filter(|port| {
                                port.name == name.name
                                    && name.protocol.is_none_or(|p| p == port.protocol)
                            })
                            .map(|port| Some((port.protocol, port.number)))
                            .collect(),
                    };
                    for ip in ips {
                        members.extend(ports.iter().map(|port| Member { ip, port: *port }));
                    }
                }
            }
        }
        members.into_iter().collect()
    }

    pub(super) fn subjects(&self) -> Vec<Subject> {
        let mut subjects = BTreeMap::new();
        for (pod, ips) in self.pods().filter(|(pod, _)| &*pod.node == HERE) {
            let mut policies: Vec<&Policy> = self
                .policies
                .values()
                .filter(|policy| self.selects(&policy.subject, pod))
                .collect();
            policies.sort_by(|a, b| a.place().cmp(&b.place()));
            let own = self
                .placements
                .iter()
                .filter(|placement| fits(placement, pod));
            let subject = Subject {
                key: pod.key.clone(),
                pod: Some(Arc::new(pod.clone())),
                namespace_known: self.namespaces.contains_key(pod.key.namespace.as_str()),
                placements: own.map(|placement| Arc::new(placement.clone())).collect(),
                ips: ips.into_iter().collect(),
                policies: policies.into_iter().map(|p| Arc::new(p.clone())).collect(),
            };
            subjects.insert(pod.key.clone(), (pod.host_network, subject));
        }
        for placement in &self.placements {
            let (_, subject) = subjects.entry(placement.key.clone()).or_insert_with(|| {
                let subject = Subject {
                    key: placement.key.clone(),
                    pod: None,
                    namespace_known: self
                        .namespaces
                        .contains_key(placement.key.namespace.as_str()),
                    placements: Vec::new(),
                    ips: Vec::new(),
                    policies: Vec::new(),
                };
                (false, subject)
            });
            if subject.pod.is_none() {
                subject.placements.push(Arc::new(placement.clone()));
                subject.ips.extend(&placement.ips);
                subject.ips.sort();
                subject.ips.dedup();
            }
        }
        subjects
            .into_values()
            .filter(|(host, _)| !host)
            .map(|(_, subject)| subject)
            .collect()
    }
}
