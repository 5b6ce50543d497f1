//! Questions of people and of judgement.

use std::net::IpAddr;
use std::sync::Arc;

use types::pod::PodKey;

use super::super::block;
use super::super::vocabulary::{Counts, PeerKey};
use super::{NodeEntry, Peers};
use crate::flow::Protocol;
use crate::labels::Labels;
use crate::object::{NamedPort, Pod};

impl Peers {
    /// Whether a set of this key would have the member.
    pub(in super::super) fn matches(
        &self,
        key: &PeerKey,
        ip: IpAddr,
        port: Option<(Protocol, u16)>,
    ) -> bool {
        match key {
            PeerKey::Nodes(selector) => self
                .nodes_at(ip)
                .any(|(_, node)| selector.matches(&node.labels)),
            PeerKey::Pods(scope, name) => self
                .roster
                .holders(ip)
                .filter_map(|pod| self.roster.class_of(pod))
                .any(|class| {
                    self.selects(scope, self.who(&class.like))
                        && self.names(&class.like, name.as_ref(), port)
                }),
        }
    }

    /// Nodes that have the address.
    pub(super) fn nodes_at(&self, ip: IpAddr) -> impl Iterator<Item = (&Arc<str>, &NodeEntry)> {
        let names = self.nodes_by_ip.get(&ip);
        names
            .into_iter()
            .flatten()
            .filter_map(|name| self.nodes.get_key_value(name))
    }

    /// Names of the nodes that have the address.
    pub(in super::super) fn nodes_by_ip(&self, ip: IpAddr) -> Vec<Arc<str>> {
        let mut names: Vec<_> = self
            .nodes_at(ip)
            .map(|(name, _)| Arc::clone(name))
            .collect();
        names.sort();
        names
    }

    /// Pods that have the address.
    pub(in super::super) fn pods_by_ip(&self, ip: IpAddr) -> Vec<PodKey> {
        let mut keys: Vec<PodKey> = self
            .roster
            .holders(ip)
            .filter_map(|id| {
                let space = self.roster.class_of(id)?.like.space;
                let name = &self.roster.pod(id)?.name;
                Some(PodKey::new(&*self.spaces.get(space)?.name, &**name))
            })
            .collect();
        keys.sort();
        keys
    }

    /// A pod as it is kept.
    pub(in super::super) fn pod(&self, key: &PodKey) -> Option<Pod> {
        let space = *self.by_space.get(key.namespace.as_str())?;
        let id = self.roster.find(space, &key.name)?;
        let (pod, class) = (self.roster.pod(id)?, self.roster.class_of(id)?);
        let text = |id: u32| Arc::from(self.strings.text(id));
        let mut ports: Vec<NamedPort> = class
            .like
            .ports
            .iter()
            .map(|port| NamedPort {
                name: text(port.name),
                protocol: port.protocol,
                number: port.number,
            })
            .collect();
        ports.sort();
        Some(Pod {
            key: key.clone(),
            uid: Arc::from(""),
            node: text(pod.node),
            labels: self.labels(&class.like.labels),
            ips: pod.ips.list(),
            host_network: class.like.host,
            finished: false,
            ports,
            service_account: text(class.like.account),
            spoofs: false,
        })
    }

    fn labels(&self, pairs: &[(u32, u32)]) -> Labels {
        let text = |id: u32| Arc::from(self.strings.text(id));
        pairs
            .iter()
            .map(|(key, value)| (text(*key), text(*value)))
            .collect()
    }

    /// Whether nothing is kept but strings.
    #[cfg(test)]
    pub(in super::super) fn is_bare(&self) -> bool {
        self.roster.is_bare()
            && self.spaces.len() == 0
            && self.by_space.is_empty()
            && self.nodes.is_empty()
            && self.nodes_by_ip.is_empty()
            && self.sets.len() == 0
            && self.by_key.is_empty()
            && self.node_sets.is_empty()
            && self.scopes.len() == 0
            && self.by_selector.is_empty()
            && self.buckets.is_empty()
    }

    /// How much there is.
    pub(in super::super) fn counts(&self) -> Counts {
        let known = |space: &&super::Space| space.labels.is_some();
        Counts {
            pods: self.roster.pod_count(),
            classes: self.roster.class_count(),
            namespaces: self
                .spaces
                .iter()
                .map(|(_, space)| space)
                .filter(known)
                .count(),
            nodes: self.nodes.len(),
            accounts: self
                .spaces
                .iter()
                .map(|(_, space)| space.accounts.len())
                .sum(),
            policies: 0,
            sets: self.sets.len(),
            strings: self.strings.len(),
        }
    }

    /// Estimate of the memory held, bytes. Looks at every object.
    pub(in super::super) fn bytes(&self) -> usize {
        let spaces: usize = self
            .spaces
            .iter()
            .map(|(_, space)| {
                block(space.name.len().saturating_add(16))
                    .saturating_add(space.labels.as_deref().map_or(0, |l| block(size_of_val(l))))
                    .saturating_add(block(space.classes.capacity().saturating_mul(4)))
                    .saturating_add(space.accounts.len().saturating_mul(64))
            })
            .sum();
        let sets: usize = self
            .sets
            .iter()
            .map(|(_, set)| set.classes.capacity().saturating_mul(6).saturating_add(512))
            .sum();
        self.strings
            .bytes()
            .saturating_add(self.roster.bytes())
            .saturating_add(self.spaces.bytes())
            .saturating_add(self.posts.bytes())
            .saturating_add(spaces)
            .saturating_add(sets)
            .saturating_add(self.nodes.len().saturating_mul(1024))
    }
}
