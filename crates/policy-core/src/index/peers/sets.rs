//! Sets: keeping and giving back.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::super::roster::{Likeness, Roster};
use super::super::vocabulary::{Member, PeerKey, PortName, SetId};
use super::{Peers, Scope, Set, narrowest, posts};
use crate::flow::Protocol;
use crate::policy::{NamespaceScope, PodScope};
use crate::selector::Selector;

/// With more namespaces than this, the classes of a set are looked for by their label. Tests take both ways.
const FEW: usize = if cfg!(test) { 2 } else { 64 };

impl Peers {
    /// Keeps a set from now on.
    pub(in super::super) fn acquire(&mut self, key: &PeerKey) -> SetId {
        if let Some(id) = self.by_key.get(key) {
            if let Some(set) = self.sets.get_mut(*id) {
                set.count = set.count.saturating_add(1);
            }
            return SetId(*id);
        }
        let key = Arc::new(key.clone());
        let (scope, buckets) = match &*key {
            PeerKey::Pods(scope, _) => (self.acquire_scope(scope), self.buckets_of(scope)),
            PeerKey::Nodes(_) => (None, Vec::new()),
        };
        let id = self.sets.insert(Set {
            key: Arc::clone(&key),
            count: 1,
            size: 0,
            classes: HashSet::new(),
            scope,
            buckets: buckets.clone(),
        });
        self.by_key.insert(Arc::clone(&key), id);
        for bucket in buckets {
            self.buckets.entry(bucket).or_default().push(id);
        }
        match &*key {
            PeerKey::Pods(scope, _) => self.fill(id, scope),
            PeerKey::Nodes(selector) => {
                self.node_sets.push(id);
                for node in self.nodes.values_mut() {
                    if selector.matches(&node.labels) {
                        insert(&mut node.sets, id);
                    }
                }
            }
        }
        let size = self.count(SetId(id));
        if let Some(set) = self.sets.get_mut(id) {
            set.size = size;
        }
        SetId(id)
    }

    /// Gives a set back.
    pub(in super::super) fn release(&mut self, SetId(id): SetId) {
        let Some(set) = self.sets.get_mut(id) else {
            return;
        };
        set.count = set.count.saturating_sub(1);
        if set.count > 0 {
            return;
        }
        let Some(set) = self.sets.remove(id) else {
            return;
        };
        self.by_key.remove(&set.key);
        self.tally.forget(id);
        for bucket in &set.buckets {
            if let Some(sets) = self.buckets.get_mut(bucket) {
                sets.retain(|other| *other != id);
                if sets.is_empty() {
                    self.buckets.remove(bucket);
                }
            }
        }
        if let Some(scope) = set.scope {
            self.release_scope(scope);
        }
        for class in &set.classes {
            without(&mut self.roster, *class, id);
        }
        if let PeerKey::Nodes(_) = &*set.key {
            self.node_sets.retain(|other| *other != id);
            for node in self.nodes.values_mut() {
                node.sets.retain(|other| *other != id);
            }
        }
    }

    fn acquire_scope(&mut self, scope: &PodScope) -> Option<u32> {
        let NamespaceScope::Matching(selector) = &scope.namespaces else {
            return None;
        };
        if let Some(id) = self.by_selector.get(selector) {
            if let Some(scope) = self.scopes.get_mut(*id) {
                scope.count = scope.count.saturating_add(1);
            }
            return Some(*id);
        }
        let spaces = self
            .spaces
            .iter()
            .filter(|(_, space)| self.space_matches(space, selector))
            .map(|(id, _)| id)
            .collect();
        let id = self.scopes.insert(Scope {
            selector: Arc::clone(selector),
            count: 1,
            spaces,
        });
        self.by_selector.insert(Arc::clone(selector), id);
        Some(id)
    }

    fn release_scope(&mut self, id: u32) {
        let Some(scope) = self.scopes.get_mut(id) else {
            return;
        };
        scope.count = scope.count.saturating_sub(1);
        if scope.count == 0 {
            self.by_selector.remove(&scope.selector);
            self.scopes.remove(id);
        }
    }

    fn buckets_of(&self, scope: &PodScope) -> Vec<u64> {
        let namespace = match &scope.namespaces {
            NamespaceScope::Own(name) => Some(&**name),
            NamespaceScope::Any | NamespaceScope::Matching(_) => None,
        };
        match narrowest(&scope.pods) {
            Some((key, values)) => values
                .iter()
                .map(|value| self.bucket(namespace, Some((key, value))))
                .collect(),
            None => vec![self.bucket(namespace, None)],
        }
    }

    /// Puts the classes into a new set that belong there.
    fn fill(&mut self, id: u32, scope: &PodScope) {
        let label = self.label_of(&scope.pods);
        let by_label = self.is_wide(id, scope);
        if let (true, Label::OneOf(key, _)) = (by_label, &label) {
            let classes = self.roster.classes();
            self.posts
                .ensure(*key, classes.map(|(id, class)| (id, &*class.like.labels)));
        }
        let Some(set) = self.sets.get(id) else {
            return;
        };
        let fits = |class: u32| {
            let like = &self.roster.class(class)?.like;
            let quick = match &label {
                Label::Any => true,
                Label::Nobody => false,
                Label::OneOf(key, values) => {
                    posts::value(&like.labels, *key).is_some_and(|value| values.contains(&value))
                }
            };
            (quick && !like.host && self.has_class(set, like, self.who(like))).then_some(class)
        };
        let in_space = |space: u32| {
            let classes = self.spaces.get(space).map(|space| space.classes.as_slice());
            let classes = classes.unwrap_or_default().iter().copied();
            classes.filter_map(fits)
        };
        let classes: HashSet<u32> = match (&label, &scope.namespaces, set.scope) {
            (Label::Nobody, _, _) => HashSet::new(),
            (Label::OneOf(key, values), _, _) if by_label => {
                self.posts.find(*key, values).filter_map(fits).collect()
            }
            (_, NamespaceScope::Own(name), _) => self
                .by_space
                .get(name)
                .into_iter()
                .flat_map(|space| in_space(*space))
                .collect(),
            (_, NamespaceScope::Matching(_), Some(scope)) => self
                .scopes
                .get(scope)
                .into_iter()
                .flat_map(|scope| scope.spaces.iter().flat_map(|space| in_space(*space)))
                .collect(),
            (_, NamespaceScope::Matching(_), None) => HashSet::new(),
            (_, NamespaceScope::Any, _) => {
                let all = self.roster.classes().map(|(class, _)| class);
                all.filter_map(fits).collect()
            }
        };
        for class in &classes {
            with(&mut self.roster, *class, id);
        }
        if let Some(set) = self.sets.get_mut(id) {
            set.classes = classes;
        }
    }

    /// Whether a set is about so many namespaces that its label says more than they do.
    fn is_wide(&self, id: u32, scope: &PodScope) -> bool {
        match &scope.namespaces {
            NamespaceScope::Any => true,
            NamespaceScope::Own(_) => false,
            NamespaceScope::Matching(_) => self
                .sets
                .get(id)
                .and_then(|set| self.scopes.get(set.scope?))
                .is_some_and(|scope| scope.spaces.len() > FEW),
        }
    }

    /// A quick test for most of what a selector refuses.
    fn label_of(&self, selector: &Selector) -> Label {
        let Some((key, values)) = narrowest(selector) else {
            return Label::Any;
        };
        match self.strings.get(key) {
            None => Label::Nobody,
            Some(key) => Label::OneOf(
                key,
                values
                    .iter()
                    .filter_map(|value| self.strings.get(value))
                    .collect(),
            ),
        }
    }

    /// Whether a set has a member.
    pub(in super::super) fn has(&self, id: u32, member: &Member) -> bool {
        let Some(set) = self.sets.get(id) else {
            return false;
        };
        match &*set.key {
            PeerKey::Nodes(_) => self
                .nodes_at(member.ip)
                .any(|(_, node)| node.sets.contains(&id)),
            PeerKey::Pods(_, port) => self.roster.holders(member.ip).any(|pod| {
                self.roster.class_of(pod).is_some_and(|class| {
                    class.sets.binary_search(&id).is_ok()
                        && self.names(&class.like, port.as_ref(), member.port)
                })
            }),
        }
    }

    /// Whether pods of a class give a port that name; without a name, yes.
    pub(super) fn names(
        &self,
        like: &Likeness,
        name: Option<&PortName>,
        port: Option<(Protocol, u16)>,
    ) -> bool {
        name.is_none_or(|name| self.ports(like, name).any(|found| Some(found) == port))
    }

    /// Ports that pods of a class give a name.
    pub(super) fn ports(
        &self,
        like: &Likeness,
        name: &PortName,
    ) -> impl Iterator<Item = (Protocol, u16)> {
        let wanted = self.strings.get(&name.name);
        let protocol = name.protocol;
        like.ports
            .iter()
            .filter(move |port| {
                Some(port.name) == wanted && protocol.is_none_or(|p| p == port.protocol)
            })
            .map(|port| (port.protocol, port.number))
    }

    /// What a pod of a class with these addresses adds to a set.
    pub(super) fn contribution(
        &self,
        id: u32,
        like: &Likeness,
        ips: impl Iterator<Item = IpAddr>,
    ) -> Vec<Member> {
        let ports: Option<Vec<_>> = match self.sets.get(id).map(|set| &*set.key) {
            Some(PeerKey::Pods(_, Some(name))) => Some(self.ports(like, name).collect()),
            Some(PeerKey::Pods(_, None) | PeerKey::Nodes(_)) | None => None,
        };
        let mut members = Vec::new();
        for ip in ips {
            match &ports {
                None => members.push(Member { ip, port: None }),
                Some(ports) => members.extend(ports.iter().map(|port| Member {
                    ip,
                    port: Some(*port),
                })),
            }
        }
        members
    }

    /// How many members a set has, counted.
    fn count(&self, id: SetId) -> usize {
        let set = self.sets.get(id.0);
        match set.map(|set| (&*set.key, &set.classes)) {
            // No two pods have one address: nothing has to be listed to count each once.
            Some((PeerKey::Pods(_, port), classes)) if self.roster.shared() == 0 => classes
                .iter()
                .filter_map(|class| self.roster.class(*class))
                .map(|class| {
                    let ports = port
                        .as_ref()
                        .map_or(1, |port| self.ports(&class.like, port).count());
                    let [v4, v6] = class.addresses;
                    usize::try_from(v4.saturating_add(v6))
                        .map_or(usize::MAX, |n| n.saturating_mul(ports))
                })
                .sum(),
            Some(_) => [true, false]
                .map(|v4| self.members_of(id, v4).len())
                .iter()
                .sum(),
            None => 0,
        }
    }

    /// All members of a set; sorted, each once.
    pub(in super::super) fn members(&self, id: SetId) -> Vec<Member> {
        let mut members = self.members_of(id, true);
        members.append(&mut self.members_of(id, false));
        members
    }

    /// All members of a set with addresses of one family; sorted, each once.
    pub(in super::super) fn members_of(&self, SetId(id): SetId, v4: bool) -> Vec<Member> {
        let Some(set) = self.sets.get(id) else {
            return Vec::new();
        };
        let mut members = Vec::new();
        if let PeerKey::Nodes(_) = &*set.key {
            let nodes = self.nodes.values().filter(|node| node.sets.contains(&id));
            let ips = nodes.flat_map(|node| &node.ips).copied();
            members.extend(
                ips.filter(|ip| ip.is_ipv4() == v4)
                    .map(|ip| Member { ip, port: None }),
            );
        }
        for class in set.classes.iter().filter_map(|id| self.roster.class(*id)) {
            let [of_v4, of_v6] = class.addresses;
            if (if v4 { of_v4 } else { of_v6 }) == 0 {
                continue;
            }
            let pods = class.pods.iter().filter_map(|pod| self.roster.pod(*pod));
            let ips = pods.flat_map(|pod| pod.ips.iter().map(|(_, ip)| ip));
            let ips = ips.filter(|ip| ip.is_ipv4() == v4);
            if matches!(&*set.key, PeerKey::Pods(_, Some(_))) {
                members.extend(self.contribution(id, &class.like, ips));
            } else {
                members.extend(ips.map(|ip| Member { ip, port: None }));
            }
        }
        members.sort_unstable();
        members.dedup();
        members
    }

    /// How many members a set has.
    pub(in super::super) fn size(&self, SetId(id): SetId) -> usize {
        self.sets.get(id).map_or(0, |set| set.size)
    }

    /// Notes a member that came.
    pub(super) fn came(&mut self, id: u32, member: Member) {
        if let Some(set) = self.sets.get_mut(id) {
            set.size = set.size.saturating_add(1);
        }
        self.tally.came(id, member);
    }

    /// Notes a member that went.
    pub(super) fn went(&mut self, id: u32, member: Member) {
        if let Some(set) = self.sets.get_mut(id) {
            set.size = set.size.saturating_sub(1);
        }
        self.tally.went(id, member);
    }

    /// The key of a set.
    pub(in super::super) fn key(&self, SetId(id): SetId) -> Option<&PeerKey> {
        self.sets.get(id).map(|set| &*set.key)
    }

    /// The set of a key.
    pub(in super::super) fn set(&self, key: &PeerKey) -> Option<SetId> {
        self.by_key.get(key).copied().map(SetId)
    }
}

enum Label {
    Any,
    Nobody,
    OneOf(u32, Vec<u32>),
}

fn insert(sets: &mut Vec<u32>, id: u32) {
    if let Err(place) = sets.binary_search(&id) {
        sets.insert(place, id);
    }
}

fn with(roster: &mut Roster, class: u32, id: u32) {
    let Some(entry) = roster.class(class) else {
        return;
    };
    let mut sets = Vec::with_capacity(entry.sets.len().saturating_add(1));
    sets.extend_from_slice(&entry.sets);
    insert(&mut sets, id);
    roster.set_sets(class, sets.into());
}

fn without(roster: &mut Roster, class: u32, id: u32) {
    let Some(entry) = roster.class(class) else {
        return;
    };
    let sets = entry
        .sets
        .iter()
        .copied()
        .filter(|other| *other != id)
        .collect();
    roster.set_sets(class, sets);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_numbers_stay_sorted_without_repetition() {
        let mut sets = vec![1, 5];
        for id in [3, 5, 0, 9] {
            insert(&mut sets, id);
        }
        assert_eq!(sets, [0, 1, 3, 5, 9]);
    }
}
