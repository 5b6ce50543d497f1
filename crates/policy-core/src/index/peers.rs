//! Sets of far ends and the objects that they are made of.
//!
//! Membership is not counted but derived: an address is in a set as long as one of the pods that hold it is in a class
//! of the set. Two pods with one address therefore cannot leak (B8).

mod change;
mod lookup;
mod posts;
mod sets;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::quality::RandomState;

use super::roster::{Likeness, Roster};
use super::slab::Slab;
use super::strings::Strings;
use super::tally::Tally;
use super::vocabulary::PeerKey;
use crate::labels::Labels;
use crate::policy::{NamespaceScope, PodScope};
use crate::selector::{NAME, NAMESPACE, ORCHESTRATOR, SERVICE_ACCOUNT, Selector};
use posts::Posts;

/// Labels as numbers of strings, by key.
type Pairs = Box<[(u32, u32)]>;

/// A namespace that has an object, or pods, or service accounts.
#[derive(Debug)]
struct Space {
    name: Arc<str>,
    /// Labels of the object, once it is known.
    labels: Option<Pairs>,
    classes: Vec<u32>,
    /// Labels of service accounts, by the number of their name.
    accounts: BTreeMap<u32, Pairs>,
}

#[derive(Debug)]
struct NodeEntry {
    labels: Labels,
    ips: Vec<IpAddr>,
    /// Sets that have its addresses; sorted.
    sets: Vec<u32>,
}

#[derive(Debug)]
struct Set {
    key: Arc<PeerKey>,
    count: usize,
    /// How many members it has.
    size: usize,
    classes: HashSet<u32>,
    /// Selector of namespaces.
    scope: Option<u32>,
    /// Where it is found from labels of pods.
    buckets: Vec<u64>,
}

/// A selector of namespaces that sets use, and the namespaces that match.
#[derive(Debug)]
struct Scope {
    selector: Arc<Selector>,
    count: usize,
    spaces: HashSet<u32>,
}

/// Sets, pods, namespaces, nodes, service accounts.
#[derive(Debug, Default)]
pub(super) struct Peers {
    strings: Strings,
    roster: Roster,
    spaces: Slab<Space>,
    by_space: HashMap<Arc<str>, u32>,
    nodes: BTreeMap<Arc<str>, NodeEntry>,
    nodes_by_ip: HashMap<IpAddr, Vec<Arc<str>>>,
    sets: Slab<Set>,
    by_key: HashMap<Arc<PeerKey>, u32>,
    node_sets: Vec<u32>,
    scopes: Slab<Scope>,
    by_selector: HashMap<Arc<Selector>, u32>,
    buckets: HashMap<u64, Vec<u32>>,
    posts: Posts,
    hasher: RandomState,
    pub(super) tally: Tally,
}

/// Labels of a pod, in either form.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tags<'a> {
    Map(&'a Labels),
    Pairs(&'a [(u32, u32)]),
}

/// What selectors look at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who<'a> {
    pub(super) namespace: &'a str,
    pub(super) account: &'a str,
    pub(super) tags: Tags<'a>,
}

impl Peers {
    /// Whether a scope selects a pod.
    pub(super) fn selects(&self, scope: &PodScope, who: Who<'_>) -> bool {
        let here = match &scope.namespaces {
            NamespaceScope::Any => true,
            NamespaceScope::Own(name) => **name == *who.namespace,
            // B4: nothing by labels that are not known.
            NamespaceScope::Matching(selector) => self
                .space(who.namespace)
                .is_some_and(|space| self.space_matches(space, selector)),
        };
        here && self.pod_matches(&scope.pods, who) && self.account_matches(&scope.accounts, who)
    }

    /// Whether the object of a namespace is known.
    pub(super) fn is_known(&self, namespace: &str) -> bool {
        self.space(namespace)
            .is_some_and(|space| space.labels.is_some())
    }

    fn space(&self, name: &str) -> Option<&Space> {
        self.spaces.get(*self.by_space.get(name)?)
    }

    fn space_matches(&self, space: &Space, selector: &Selector) -> bool {
        space.labels.as_deref().is_some_and(|pairs| {
            selector.matches_by(&|key| {
                if key == NAME {
                    Some(&*space.name)
                } else {
                    self.value(pairs, key)
                }
            })
        })
    }

    fn pod_matches(&self, selector: &Selector, who: Who<'_>) -> bool {
        selector.matches_by(&|key| match key {
            NAMESPACE => Some(who.namespace),
            SERVICE_ACCOUNT => Some(who.account),
            ORCHESTRATOR => Some("k8s"),
            _ => match who.tags {
                Tags::Map(labels) => labels.get(key).map(AsRef::as_ref),
                Tags::Pairs(pairs) => self.value(pairs, key),
            },
        })
    }

    fn account_matches(&self, selector: &Selector, who: Who<'_>) -> bool {
        if *selector == Selector::Everything {
            return true;
        }
        let pairs = self.space(who.namespace).and_then(|space| {
            let name = self.strings.get(who.account)?;
            space.accounts.get(&name)
        });
        pairs.is_some_and(|pairs| {
            selector.matches_by(&|key| {
                if key == NAME {
                    Some(who.account)
                } else {
                    self.value(pairs, key)
                }
            })
        })
    }

    /// The value of a label.
    fn value<'a>(&'a self, pairs: &[(u32, u32)], key: &str) -> Option<&'a str> {
        let key = self.strings.get(key)?;
        let place = pairs.binary_search_by_key(&key, |pair| pair.0).ok()?;
        pairs.get(place).map(|pair| self.strings.text(pair.1))
    }

    fn who<'a>(&'a self, like: &'a Likeness) -> Who<'a> {
        Who {
            namespace: self.spaces.get(like.space).map_or("", |space| &*space.name),
            account: self.strings.text(like.account),
            tags: Tags::Pairs(&like.labels),
        }
    }

    fn pairs(&mut self, labels: &Labels) -> Pairs {
        let mut pairs: Vec<(u32, u32)> = labels
            .iter()
            .map(|(key, value)| (self.strings.intern(key), self.strings.intern(value)))
            .collect();
        pairs.sort_unstable();
        pairs.into()
    }

    /// The bucket of sets that ask for a namespace and a label; `None`: that do not.
    fn bucket(&self, namespace: Option<&str>, label: Option<(&str, &str)>) -> u64 {
        self.hasher.hash_one((namespace, label))
    }

    /// The sets that a class of pods is in; sorted.
    fn sets_of(&self, like: &Likeness) -> Box<[u32]> {
        if like.host {
            return Box::default();
        }
        let who = self.who(like);
        let mut sets = Vec::new();
        for namespace in [None, Some(who.namespace)] {
            let labels = like
                .labels
                .iter()
                .map(|(key, value)| Some((self.strings.text(*key), self.strings.text(*value))));
            for label in labels.chain([None]) {
                let found = self.buckets.get(&self.bucket(namespace, label));
                sets.extend(found.into_iter().flatten());
            }
        }
        sets.sort_unstable();
        sets.dedup();
        sets.retain(|id| {
            self.sets
                .get(*id)
                .is_some_and(|set| self.has_class(set, like, who))
        });
        sets.into()
    }

    /// Whether a class of pods is in a set.
    fn has_class(&self, set: &Set, like: &Likeness, who: Who<'_>) -> bool {
        let PeerKey::Pods(scope, port) = &*set.key else {
            return false;
        };
        let here = match (&scope.namespaces, set.scope) {
            (NamespaceScope::Any, _) => true,
            (NamespaceScope::Own(name), _) => **name == *who.namespace,
            // A selector of namespaces is looked at once per namespace, not once per class.
            (NamespaceScope::Matching(_), Some(id)) => self
                .scopes
                .get(id)
                .is_some_and(|scope| scope.spaces.contains(&like.space)),
            (NamespaceScope::Matching(_), None) => false,
        };
        here && self.pod_matches(&scope.pods, who)
            && self.account_matches(&scope.accounts, who)
            && port
                .as_ref()
                .is_none_or(|port| self.ports(like, port).next().is_some())
    }
}

/// The requirement of a selector that the fewest labels meet, as far as that can be told: a key, and its values.
fn narrowest(selector: &Selector) -> Option<(&Arc<str>, &[Arc<str>])> {
    let given = |key: &str| [NAMESPACE, SERVICE_ACCOUNT, ORCHESTRATOR].contains(&key);
    match selector {
        Selector::In(key, values) if !given(key) => Some((key, values)),
        Selector::All(parts) => parts
            .iter()
            .filter_map(|part| match part {
                Selector::In(..) => narrowest(part),
                Selector::Everything
                | Selector::Nothing
                | Selector::Has(_)
                | Selector::StartsWith(..)
                | Selector::EndsWith(..)
                | Selector::Contains(..)
                | Selector::Not(_)
                | Selector::All(_)
                | Selector::Any(_) => None,
            })
            .min_by_key(|(_, values)| values.len()),
        Selector::Everything
        | Selector::Nothing
        | Selector::Has(_)
        | Selector::In(..)
        | Selector::StartsWith(..)
        | Selector::EndsWith(..)
        | Selector::Contains(..)
        | Selector::Not(_)
        | Selector::Any(_) => None,
    }
}
