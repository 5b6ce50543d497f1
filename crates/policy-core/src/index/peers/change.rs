//! What events do to sets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use types::pod::PodKey;

use super::super::roster::{Addresses, ClassPort, Likeness};
use super::super::strings::Marks;
use super::super::vocabulary::{Member, PeerKey};
use super::{NodeEntry, Pairs, Peers, Space};
use crate::object::{Namespace, Node, Pod, ServiceAccount};

impl Peers {
    /// The pod is now so, with these addresses.
    pub(in super::super) fn set_pod(&mut self, pod: &Pod, ips: Vec<std::net::IpAddr>) {
        let space = self.ensure_space(&pod.key.namespace);
        let like = self.likeness(space, pod);
        let node = self.strings.intern(&pod.node);
        let ips = Addresses::of(ips);
        let class = self.ensure_class(like);
        let old = self.roster.find(space, &pod.key.name);
        if let Some(entry) = old.and_then(|id| self.roster.pod(id))
            && entry.class == class
            && entry.ips == ips
            && entry.node == node
        {
            return;
        }
        let old_class = old.and_then(|id| self.take_out(id));
        self.put_in(&pod.key.name, class, node, ips);
        if let Some(old) = old_class {
            self.drop_class_if_empty(old);
        }
    }

    /// The pod is not there.
    pub(in super::super) fn remove_pod(&mut self, key: &PodKey) {
        let Some(space) = self.by_space.get(key.namespace.as_str()).copied() else {
            return;
        };
        if let Some(class) = self
            .roster
            .find(space, &key.name)
            .and_then(|id| self.take_out(id))
        {
            self.drop_class_if_empty(class);
        }
    }

    fn likeness(&mut self, space: u32, pod: &Pod) -> Likeness {
        let mut ports: Vec<ClassPort> = pod
            .ports
            .iter()
            .map(|port| ClassPort {
                name: self.strings.intern(&port.name),
                protocol: port.protocol,
                number: port.number,
            })
            .collect();
        ports.sort_unstable();
        ports.dedup();
        Likeness {
            space,
            account: self.strings.intern(&pod.service_account),
            host: pod.host_network,
            labels: self.pairs(&pod.labels),
            ports: ports.into(),
        }
    }

    fn ensure_space(&mut self, name: &str) -> u32 {
        if let Some(id) = self.by_space.get(name) {
            return *id;
        }
        let name: Arc<str> = Arc::from(name);
        let id = self.spaces.insert(Space {
            name: Arc::clone(&name),
            labels: None,
            classes: Vec::new(),
            accounts: BTreeMap::new(),
        });
        self.by_space.insert(name, id);
        id
    }

    fn drop_space_if_empty(&mut self, id: u32) {
        let Some(space) = self.spaces.get(id) else {
            return;
        };
        if space.labels.is_none() && space.classes.is_empty() && space.accounts.is_empty() {
            self.by_space.remove(&space.name);
            self.spaces.remove(id);
        }
    }

    fn ensure_class(&mut self, like: Likeness) -> u32 {
        if let Some(id) = self.roster.find_class(&like) {
            return id;
        }
        let sets = self.sets_of(&like);
        let space = like.space;
        let labels = like.labels.clone();
        let id = self.roster.add_class(like, sets.clone());
        self.posts.add(id, &labels);
        if let Some(space) = self.spaces.get_mut(space) {
            space.classes.push(id);
        }
        for set in &sets {
            if let Some(set) = self.sets.get_mut(*set) {
                set.classes.insert(id);
            }
        }
        id
    }

    fn drop_class_if_empty(&mut self, id: u32) {
        if !self
            .roster
            .class(id)
            .is_some_and(|class| class.pods.is_empty())
        {
            return;
        }
        let Some(class) = self.roster.remove_class(id) else {
            return;
        };
        self.posts.remove(id, &class.like.labels);
        for set in &class.sets {
            if let Some(set) = self.sets.get_mut(*set) {
                set.classes.remove(&id);
            }
        }
        if let Some(space) = self.spaces.get_mut(class.like.space)
            && let Some(place) = space.classes.iter().position(|other| *other == id)
        {
            space.classes.swap_remove(place);
        }
        self.drop_space_if_empty(class.like.space);
    }

    fn put_in(&mut self, name: &str, class: u32, node: u32, ips: Addresses) {
        if let Some(entry) = self.roster.class(class) {
            let mut came = Vec::new();
            for set in &entry.sets {
                let ips = ips.iter().map(|(_, ip)| ip);
                for member in self.contribution(*set, &entry.like, ips) {
                    if !self.has(*set, &member) {
                        came.push((*set, member));
                    }
                }
            }
            for (set, member) in came {
                self.came(set, member);
            }
        }
        self.roster.add(name, class, node, ips);
    }

    /// Takes a pod out of its sets; answers its class, which may be empty now.
    fn take_out(&mut self, id: u32) -> Option<u32> {
        let pod = self.roster.remove(id)?;
        let class = self.roster.class(pod.class)?;
        let mut went = Vec::new();
        for set in &class.sets {
            let ips = pod.ips.iter().map(|(_, ip)| ip);
            for member in self.contribution(*set, &class.like, ips) {
                if !self.has(*set, &member) {
                    went.push((*set, member));
                }
            }
        }
        for (set, member) in went {
            self.went(set, member);
        }
        Some(pod.class)
    }

    /// Looks again which sets a class is in.
    fn judge_again(&mut self, id: u32) {
        let Some(class) = self.roster.class(id) else {
            return;
        };
        let now = self.sets_of(&class.like);
        if now == class.sets {
            return;
        }
        let before = class.sets.clone();
        let only = |one: &[u32], other: &[u32]| -> Vec<u32> {
            one.iter()
                .copied()
                .filter(|set| other.binary_search(set).is_err())
                .collect()
        };
        let (lost, gained) = (only(&before, &now), only(&now, &before));
        let of_class = |peers: &Self, sets: &[u32]| -> BTreeSet<(u32, Member)> {
            let Some(class) = peers.roster.class(id) else {
                return BTreeSet::new();
            };
            let pods = || class.pods.iter().filter_map(|pod| peers.roster.pod(*pod));
            sets.iter()
                .flat_map(|set| {
                    let ips = pods().flat_map(|pod| pod.ips.iter().map(|(_, ip)| ip));
                    let members = peers.contribution(*set, &class.like, ips);
                    members.into_iter().map(|member| (*set, member))
                })
                .filter(|(set, member)| !peers.has(*set, member))
                .collect()
        };
        // Before the class is in a set, others alone can have what it brings; after it left, likewise.
        let came = of_class(self, &gained);
        self.roster.set_sets(id, now);
        let went = of_class(self, &lost);
        for (set, member) in came {
            self.came(set, member);
        }
        for (set, member) in went {
            self.went(set, member);
        }
        for (sets, is_in) in [(lost, false), (gained, true)] {
            for set in sets {
                let Some(set) = self.sets.get_mut(set) else {
                    continue;
                };
                if is_in {
                    set.classes.insert(id);
                } else {
                    set.classes.remove(&id);
                }
            }
        }
    }

    /// The namespace is now so. Answers whether its labels are others than before.
    pub(in super::super) fn set_namespace(&mut self, namespace: &Namespace) -> bool {
        let id = self.ensure_space(&namespace.name);
        let labels = self.pairs(&namespace.labels);
        self.label_space(id, Some(labels))
    }

    /// The namespace is not there. Answers whether it was known.
    pub(in super::super) fn remove_namespace(&mut self, name: &str) -> bool {
        let Some(id) = self.by_space.get(name).copied() else {
            return false;
        };
        let changed = self.label_space(id, None);
        self.drop_space_if_empty(id);
        changed
    }

    fn label_space(&mut self, id: u32, labels: Option<Pairs>) -> bool {
        let Some(space) = self.spaces.get_mut(id) else {
            return false;
        };
        if space.labels == labels {
            return false;
        }
        space.labels = labels;
        let classes = space.classes.clone();
        let mut flipped = false;
        let scopes: Vec<u32> = self.scopes.iter().map(|(id, _)| id).collect();
        for scope_id in scopes {
            let matches = self
                .spaces
                .get(id)
                .zip(self.scopes.get(scope_id))
                .is_some_and(|(space, scope)| self.space_matches(space, &scope.selector));
            if let Some(scope) = self.scopes.get_mut(scope_id) {
                flipped |= if matches {
                    scope.spaces.insert(id)
                } else {
                    scope.spaces.remove(&id)
                };
            }
        }
        if flipped {
            for class in classes {
                self.judge_again(class);
            }
        }
        true
    }

    /// The service account is now so. Answers whether its labels are others than before.
    pub(in super::super) fn set_account(&mut self, account: &ServiceAccount) -> bool {
        let id = self.ensure_space(&account.namespace);
        let name = self.strings.intern(&account.name);
        let labels = self.pairs(&account.labels);
        let Some(space) = self.spaces.get_mut(id) else {
            return false;
        };
        if space.accounts.get(&name) == Some(&labels) {
            return false;
        }
        space.accounts.insert(name, labels);
        self.judge_account_again(id, name);
        true
    }

    /// The service account is not there. Answers whether it was known.
    pub(in super::super) fn remove_account(&mut self, namespace: &str, name: &str) -> bool {
        let Some((id, name)) = self
            .by_space
            .get(namespace)
            .copied()
            .zip(self.strings.get(name))
        else {
            return false;
        };
        let known = self
            .spaces
            .get_mut(id)
            .is_some_and(|space| space.accounts.remove(&name).is_some());
        if known {
            self.judge_account_again(id, name);
            self.drop_space_if_empty(id);
        }
        known
    }

    fn judge_account_again(&mut self, space: u32, account: u32) {
        let classes: Vec<u32> = self
            .spaces
            .get(space)
            .into_iter()
            .flat_map(|space| space.classes.iter().copied())
            .filter(|class| {
                self.roster
                    .class(*class)
                    .is_some_and(|class| class.like.account == account)
            })
            .collect();
        for class in classes {
            self.judge_again(class);
        }
    }

    /// The node is now so.
    pub(in super::super) fn set_node(&mut self, node: &Node) {
        let mut ips = node.ips.clone();
        ips.sort();
        ips.dedup();
        if self
            .nodes
            .get(&node.name)
            .is_some_and(|old| old.labels == node.labels && old.ips == ips)
        {
            return;
        }
        self.remove_node(&node.name);
        let mut sets: Vec<u32> = self
            .node_sets
            .iter()
            .copied()
            .filter(|id| {
                self.sets.get(*id).is_some_and(|set| match &*set.key {
                    PeerKey::Nodes(selector) => selector.matches(&node.labels),
                    PeerKey::Pods(..) => false,
                })
            })
            .collect();
        sets.sort_unstable();
        for set in &sets {
            for ip in &ips {
                let member = Member {
                    ip: *ip,
                    port: None,
                };
                if !self.has(*set, &member) {
                    self.came(*set, member);
                }
            }
        }
        for ip in &ips {
            let names = self.nodes_by_ip.entry(*ip).or_default();
            names.push(Arc::clone(&node.name));
        }
        let entry = NodeEntry {
            labels: node.labels.clone(),
            ips,
            sets,
        };
        self.nodes.insert(Arc::clone(&node.name), entry);
    }

    /// The node is not there.
    pub(in super::super) fn remove_node(&mut self, name: &str) {
        let Some(node) = self.nodes.remove(name) else {
            return;
        };
        for ip in &node.ips {
            if let Some(names) = self.nodes_by_ip.get_mut(ip) {
                names.retain(|other| **other != *name);
                if names.is_empty() {
                    self.nodes_by_ip.remove(ip);
                }
            }
        }
        for set in node.sets {
            for ip in &node.ips {
                let member = Member {
                    ip: *ip,
                    port: None,
                };
                if !self.has(set, &member) {
                    self.went(set, member);
                }
            }
        }
    }

    /// Lets strings go that nothing uses any more, when there are many.
    pub(in super::super) fn tidy(&mut self) {
        if !self.strings.is_due() {
            return;
        }
        // Numbers may mean other strings afterwards.
        self.posts.clear();
        let mut marks = Marks::default();
        for (_, pod) in self.roster.pods() {
            marks.set(pod.node);
        }
        for (_, class) in self.roster.classes() {
            marks.set(class.like.account);
            for port in &class.like.ports {
                marks.set(port.name);
            }
            mark_pairs(&mut marks, &class.like.labels);
        }
        for (_, space) in self.spaces.iter() {
            mark_pairs(&mut marks, space.labels.as_deref().unwrap_or_default());
            for (name, labels) in &space.accounts {
                marks.set(*name);
                mark_pairs(&mut marks, labels);
            }
        }
        self.strings.retain(&marks);
    }
}

fn mark_pairs(marks: &mut Marks, pairs: &[(u32, u32)]) {
    for (key, value) in pairs {
        marks.set(*key);
        marks.set(*value);
    }
}
