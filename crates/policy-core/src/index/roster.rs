//! Pods of the whole cluster, small: those that are alike to every selector share a class.

use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr};

use foldhash::quality::RandomState;
use hashbrown::HashTable;

use super::block;
use super::slab::Slab;
use crate::flow::Protocol;

/// Addresses of a pod; most have one of IPv4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Addresses {
    One(Ipv4Addr),
    Many(Box<[IpAddr]>),
}

impl Addresses {
    /// Sorted, each once.
    pub(super) fn of(mut ips: Vec<IpAddr>) -> Self {
        ips.sort();
        ips.dedup();
        match ips.as_slice() {
            [IpAddr::V4(ip)] => Self::One(*ip),
            _ => Self::Many(ips.into()),
        }
    }

    pub(super) fn get(&self, which: u32) -> Option<IpAddr> {
        match self {
            Self::One(ip) => (which == 0).then_some(IpAddr::V4(*ip)),
            Self::Many(ips) => ips.get(super::slab::at(which)).copied(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, IpAddr)> {
        (0..).map_while(|which| Some((which, self.get(which)?)))
    }

    pub(super) fn list(&self) -> Vec<IpAddr> {
        self.iter().map(|(_, ip)| ip).collect()
    }

    fn bytes(&self) -> usize {
        match self {
            Self::One(_) => 0,
            Self::Many(ips) => block(size_of_val(&**ips)),
        }
    }
}

/// One pod.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Box<str>,
    pub(super) class: u32,
    /// Its place among the pods of its class.
    slot: u32,
    pub(super) node: u32,
    pub(super) ips: Addresses,
}

/// A named port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ClassPort {
    pub(super) name: u32,
    pub(super) protocol: Protocol,
    pub(super) number: u16,
}

/// What makes pods alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Likeness {
    pub(super) space: u32,
    pub(super) account: u32,
    pub(super) host: bool,
    /// By key.
    pub(super) labels: Box<[(u32, u32)]>,
    /// Sorted.
    pub(super) ports: Box<[ClassPort]>,
}

/// Pods that are alike.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) like: Likeness,
    /// Sets that have its pods as members; sorted.
    pub(super) sets: Box<[u32]>,
    pub(super) pods: Vec<u32>,
    /// How many addresses of either family its pods have, IPv4 first; one that two of them have counts twice.
    pub(super) addresses: [u32; 2],
}

impl Class {
    /// Adds addresses to the counts, or takes them away.
    fn count(&mut self, ips: &Addresses, turn: fn(u32, u32) -> u32) {
        let [v4, v6] = &mut self.addresses;
        for (_, ip) in ips.iter() {
            let count = if ip.is_ipv4() { &mut *v4 } else { &mut *v6 };
            *count = turn(*count, 1);
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Holder {
    pod: u32,
    which: u32,
}

/// All pods.
#[derive(Debug, Default)]
pub(super) struct Roster {
    pods: Slab<Entry>,
    classes: Slab<Class>,
    by_name: HashTable<u32>,
    by_ip: HashTable<Holder>,
    by_likeness: HashTable<u32>,
    /// How often an address has one holder more than its first.
    shared: usize,
    hasher: RandomState,
}

impl Roster {
    pub(super) fn find(&self, space: u32, name: &str) -> Option<u32> {
        let hash = self.hasher.hash_one((space, name));
        self.by_name
            .find(hash, |id| {
                self.pods.get(*id).is_some_and(|pod| {
                    *pod.name == *name
                        && self
                            .classes
                            .get(pod.class)
                            .is_some_and(|class| class.like.space == space)
                })
            })
            .copied()
    }

    pub(super) fn pod(&self, id: u32) -> Option<&Entry> {
        self.pods.get(id)
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = (u32, &Entry)> {
        self.pods.iter()
    }

    pub(super) const fn pod_count(&self) -> usize {
        self.pods.len()
    }

    pub(super) fn class(&self, id: u32) -> Option<&Class> {
        self.classes.get(id)
    }

    pub(super) fn class_of(&self, pod: u32) -> Option<&Class> {
        self.classes.get(self.pods.get(pod)?.class)
    }

    pub(super) fn classes(&self) -> impl Iterator<Item = (u32, &Class)> {
        self.classes.iter()
    }

    pub(super) const fn class_count(&self) -> usize {
        self.classes.len()
    }

    /// Pods, those of the host network left out, that have the address.
    pub(super) fn holders(&self, ip: IpAddr) -> impl Iterator<Item = u32> {
        self.by_ip
            .iter_hash(self.hasher.hash_one(ip))
            .filter(move |holder| {
                self.pods
                    .get(holder.pod)
                    .is_some_and(|pod| pod.ips.get(holder.which) == Some(ip))
            })
            .map(|holder| holder.pod)
    }

    /// How often an address has one holder more than its first; 0: no two pods have the same.
    pub(super) const fn shared(&self) -> usize {
        self.shared
    }

    /// The class of such pods, if there is one.
    pub(super) fn find_class(&self, like: &Likeness) -> Option<u32> {
        self.by_likeness
            .find(self.hasher.hash_one(like), |id| {
                self.classes
                    .get(*id)
                    .is_some_and(|class| class.like == *like)
            })
            .copied()
    }

    /// A class without pods.
    pub(super) fn add_class(&mut self, like: Likeness, sets: Box<[u32]>) -> u32 {
        let hash = self.hasher.hash_one(&like);
        let id = self.classes.insert(Class {
            like,
            sets,
            pods: Vec::new(),
            addresses: [0; 2],
        });
        let (classes, hasher) = (&self.classes, &self.hasher);
        self.by_likeness.insert_unique(hash, id, |id| {
            classes
                .get(*id)
                .map_or(0, |class| hasher.hash_one(&class.like))
        });
        id
    }

    /// Takes a class away that has no pods any more.
    pub(super) fn remove_class(&mut self, id: u32) -> Option<Class> {
        let hash = self.hasher.hash_one(&self.classes.get(id)?.like);
        if let Ok(found) = self.by_likeness.find_entry(hash, |other| *other == id) {
            found.remove();
        }
        self.classes.remove(id)
    }

    pub(super) fn set_sets(&mut self, class: u32, sets: Box<[u32]>) {
        if let Some(class) = self.classes.get_mut(class) {
            class.sets = sets;
        }
    }

    /// Adds a pod to a class.
    pub(super) fn add(&mut self, name: &str, class: u32, node: u32, ips: Addresses) {
        let Some(home) = self.classes.get_mut(class) else {
            return;
        };
        let (space, host) = (home.like.space, home.like.host);
        let slot = u32::try_from(home.pods.len()).unwrap_or(u32::MAX);
        let id = self.pods.insert(Entry {
            name: Box::from(name),
            class,
            slot,
            node,
            ips,
        });
        home.pods.push(id);
        if let Some(pod) = self.pods.get(id) {
            home.count(&pod.ips, u32::saturating_add);
        }
        let (pods, classes, hasher) = (&self.pods, &self.classes, &self.hasher);
        self.by_name
            .insert_unique(hasher.hash_one((space, name)), id, |id| {
                pods.get(*id).map_or(0, |pod| {
                    let space = classes.get(pod.class).map_or(0, |class| class.like.space);
                    hasher.hash_one((space, &*pod.name))
                })
            });
        let addresses = pods.get(id).filter(|_| !host).into_iter();
        for (which, ip) in addresses.flat_map(|pod| pod.ips.iter()) {
            let holder = Holder { pod: id, which };
            let has_ip = |holder: &Holder| {
                let pod = pods.get(holder.pod);
                pod.and_then(|pod| pod.ips.get(holder.which)) == Some(ip)
            };
            let known = self.by_ip.find(hasher.hash_one(ip), has_ip).is_some();
            self.shared = self.shared.saturating_add(usize::from(known));
            self.by_ip
                .insert_unique(hasher.hash_one(ip), holder, |holder| {
                    pods.get(holder.pod)
                        .and_then(|pod| pod.ips.get(holder.which))
                        .map_or(0, |ip| hasher.hash_one(ip))
                });
        }
    }

    /// Takes a pod away; its class stays.
    pub(super) fn remove(&mut self, id: u32) -> Option<Entry> {
        let pod = self.pods.get(id)?;
        let class = self.classes.get_mut(pod.class)?;
        let hash = self.hasher.hash_one((class.like.space, &*pod.name));
        if let Ok(found) = self.by_name.find_entry(hash, |other| *other == id) {
            found.remove();
        }
        for (which, ip) in pod.ips.iter() {
            let same = |holder: &Holder| holder.pod == id && holder.which == which;
            let hash = self.hasher.hash_one(ip);
            let Ok(found) = self.by_ip.find_entry(hash, same) else {
                continue;
            };
            found.remove();
            let has_ip = |holder: &Holder| {
                let pod = self.pods.get(holder.pod);
                pod.and_then(|pod| pod.ips.get(holder.which)) == Some(ip)
            };
            let left = self.by_ip.find(hash, has_ip).is_some();
            self.shared = self.shared.saturating_sub(usize::from(left));
        }
        class.count(&pod.ips, u32::saturating_sub);
        let slot = pod.slot;
        let place = super::slab::at(slot);
        if class.pods.get(place) == Some(&id) {
            class.pods.swap_remove(place);
        }
        let moved = class.pods.get(place).copied();
        if class.pods.len() < class.pods.capacity() / 4 {
            class.pods.shrink_to(class.pods.len().saturating_mul(2));
        }
        if let Some(moved) = moved
            && let Some(other) = self.pods.get_mut(moved)
        {
            other.slot = slot;
        }
        self.pods.remove(id)
    }

    /// Whether nothing is kept.
    #[cfg(test)]
    pub(super) fn is_bare(&self) -> bool {
        self.pods.len() == 0
            && self.classes.len() == 0
            && self.by_name.is_empty()
            && self.by_ip.is_empty()
            && self.by_likeness.is_empty()
            && self.shared == 0
    }

    /// Memory held, bytes.
    pub(super) fn bytes(&self) -> usize {
        let pods: usize = self
            .pods
            .iter()
            .map(|(_, pod)| block(pod.name.len()).saturating_add(pod.ips.bytes()))
            .sum();
        let classes: usize = self
            .classes
            .iter()
            .map(|(_, class)| {
                block(size_of_val(&*class.like.labels))
                    .saturating_add(block(size_of_val(&*class.like.ports)))
                    .saturating_add(block(size_of_val(&*class.sets)))
                    .saturating_add(block(class.pods.capacity().saturating_mul(4)))
            })
            .sum();
        let tables = self
            .by_name
            .capacity()
            .saturating_mul(6)
            .saturating_add(self.by_ip.capacity().saturating_mul(10))
            .saturating_add(self.by_likeness.capacity().saturating_mul(6));
        pods.saturating_add(classes)
            .saturating_add(tables)
            .saturating_add(self.pods.bytes())
            .saturating_add(self.classes.bytes())
    }
}
