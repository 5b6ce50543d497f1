//! What one policy says in one direction.

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::ports::PortSet;
use super::ranges::Blocks;
use super::role::Role;
use crate::flow::{Direction, Protocol};
use crate::hash::Sip;
use crate::index::{PeerKey, PortName};
use crate::object::NamedPort;
use crate::policy::{
    Action, Block, NamespaceScope, Peer, Peers, PodScope, Policy, PolicyId, Port, Ports, Rule,
};
use crate::selector::Selector;

/// A set by its place in [`Body::keys`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyRef(pub usize);

/// Conditions on the far address; all of them hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Far<K = KeyRef> {
    /// It is in these sets.
    pub inside: Vec<K>,
    /// It is in none of these sets.
    pub outside: Vec<K>,
    /// It is in these ranges.
    pub within: Option<Arc<Blocks>>,
}

impl<K> Default for Far<K> {
    fn default() -> Self {
        Self {
            inside: Vec::new(),
            outside: Vec::new(),
            within: None,
        }
    }
}

/// One way to meet a rule: all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Match<K = KeyRef> {
    /// The far address.
    pub far: Far<K>,
    /// Protocol and destination port.
    pub ports: PortSet,
    /// Address, protocol and port of the destination are in this set (ports by name, egress).
    pub tuple: Option<K>,
    /// They are in none of these sets.
    pub no_tuple: Vec<K>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    /// The rule's name; no part of the hash.
    pub name: Arc<str>,
    /// What it does.
    pub action: Action,
    /// Ways to meet it; none: never.
    pub matches: Vec<Match>,
}

impl Clause {
    /// Whether any packet can meet it.
    pub const fn can_match(&self) -> bool {
        !self.matches.is_empty()
    }
}

/// What one policy says in one direction to one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// Whose; bodies of equal content share their chain all the same.
    pub policy: PolicyId,
    /// Direction.
    pub direction: Direction,
    /// Sets that conditions look in; sorted, each once.
    pub keys: Vec<PeerKey>,
    /// Rules in order.
    pub clauses: Vec<Clause>,
    /// Hash of direction, actions and conditions.
    pub hash: u64,
}

impl Body {
    /// The body of a policy; `None` when it says nothing about the direction. `named` are the ports that the subject
    /// pod itself names; they matter for ingress alone.
    pub fn of(policy: &Policy, direction: Direction, named: &[NamedPort]) -> Option<Self> {
        let rules = match direction {
            Direction::Ingress => policy.ingress.as_ref(),
            Direction::Egress => policy.egress.as_ref(),
        }?;
        let raw: Vec<Vec<Match<PeerKey>>> = rules
            .iter()
            .map(|rule| matches(rule, direction, named))
            .collect();
        let keys: BTreeSet<&PeerKey> = raw.iter().flatten().flat_map(Match::sets).collect();
        let keys: Vec<PeerKey> = keys.into_iter().cloned().collect();
        let clauses: Vec<Clause> = rules
            .iter()
            .zip(&raw)
            .map(|(rule, raw)| Clause {
                name: Arc::clone(&rule.name),
                action: rule.action,
                matches: raw.iter().map(|m| m.by_place(&keys)).collect(),
            })
            .collect();
        let mut sip = Sip::new();
        direction.hash(&mut sip);
        keys.hash(&mut sip);
        for clause in clauses.iter().filter(|c| c.can_match()) {
            clause.action.hash(&mut sip);
            clause.matches.hash(&mut sip);
        }
        Some(Self {
            policy: policy.id.clone(),
            direction,
            keys,
            clauses,
            hash: sip.finish(),
        })
    }

    /// Whether the two have the same rules for the kernel.
    pub fn same_content(&self, other: &Self) -> bool {
        let live = |body: &'_ Self| -> Vec<(Action, Vec<Match>)> {
            let live = body.clauses.iter().filter(|c| c.can_match());
            live.map(|c| (c.action, c.matches.clone())).collect()
        };
        self.direction == other.direction && self.keys == other.keys && live(self) == live(other)
    }

    /// Whether no packet can meet any rule.
    pub fn is_mute(&self) -> bool {
        !self.clauses.iter().any(Clause::can_match)
    }

    /// Whether a packet of this protocol and port can meet a rule.
    pub fn concerns(&self, protocol: Protocol, port: u16) -> bool {
        self.clauses
            .iter()
            .flat_map(|c| &c.matches)
            .any(|m| m.concerns(self, protocol, port))
    }

    /// The set at a place.
    pub fn key(&self, at: KeyRef) -> Option<&PeerKey> {
        self.keys.get(at.0)
    }

    /// The sets that its rules look in, each in all its roles; with repetitions.
    pub fn sets(&self) -> impl Iterator<Item = (&PeerKey, Role)> {
        self.clauses.iter().flat_map(move |clause| {
            let (inside, outside) = (
                Role::of(clause.action, false),
                Role::of(clause.action, true),
            );
            clause.matches.iter().flat_map(move |one| {
                let within = one.far.inside.iter().chain(&one.tuple);
                let without = one.far.outside.iter().chain(&one.no_tuple);
                let all = within
                    .map(move |at| (at, inside))
                    .chain(without.map(move |at| (at, outside)));
                all.filter_map(|(at, role)| Some((self.key(*at)?, role)))
            })
        })
    }
}

impl<K> Match<K> {
    fn sets(&self) -> impl Iterator<Item = &K> {
        let far = self.far.inside.iter().chain(&self.far.outside);
        far.chain(&self.tuple).chain(&self.no_tuple)
    }
}

impl Match<PeerKey> {
    fn by_place(&self, keys: &[PeerKey]) -> Match {
        // Every key of the match is among the keys by construction.
        let place = |key: &PeerKey| KeyRef(keys.partition_point(|k| k < key));
        let places = |list: &[PeerKey]| list.iter().map(place).collect();
        Match {
            far: Far {
                inside: places(&self.far.inside),
                outside: places(&self.far.outside),
                within: self.far.within.clone(),
            },
            ports: self.ports.clone(),
            tuple: self.tuple.as_ref().map(place),
            no_tuple: places(&self.no_tuple),
        }
    }
}

impl Match {
    /// Whether a packet of this protocol and port can meet it, addresses left out.
    pub fn concerns(&self, body: &Body, protocol: Protocol, port: u16) -> bool {
        self.speaks_of(body, protocol) && self.ports.contains(protocol, port)
    }

    /// Whether its tuple, if it has one, can have this protocol.
    pub fn speaks_of(&self, body: &Body, protocol: Protocol) -> bool {
        match self.tuple.and_then(|at| body.key(at)) {
            Some(PeerKey::Pods(_, Some(name))) => name.protocol.is_none_or(|p| p == protocol),
            Some(PeerKey::Pods(_, None) | PeerKey::Nodes(_)) | None => true,
        }
    }
}

/// Names of ports that the direction of the policy resolves on the subject: they decide which pods can share a body.
pub fn own_names(policy: &Policy) -> BTreeSet<&str> {
    let rules = policy.ingress.iter().flatten();
    rules
        .flat_map(|rule| -> Vec<&Port> {
            match &rule.ports {
                Ports::Every => Vec::new(),
                Ports::OneOf(list) => list.iter().collect(),
                Ports::Except(with, not) => with.iter().chain(not).collect(),
            }
        })
        .filter_map(|port| match port {
            Port::Named(_, name) => Some(&**name),
            Port::All(_) | Port::Range(..) => None,
        })
        .collect()
}

/// A condition on ports: either numbers alone, or one name (with holes in the numbers).
struct PortTerm {
    ports: PortSet,
    tuple: Option<PortName>,
}

fn matches(rule: &Rule, direction: Direction, named: &[NamedPort]) -> Vec<Match<PeerKey>> {
    let terms = port_terms(&rule.ports, direction, named);
    let no_tuple = excluded_names(&rule.ports, direction);
    let mut out = Vec::new();
    for term in &terms.list {
        for (far, pods) in fars(&rule.peers) {
            let tuple = match &term.tuple {
                None => None,
                Some(name) => match pods {
                    Named::Of(ref scope) => Some(PeerKey::Pods(scope.clone(), Some(name.clone()))),
                    // Nodes name no ports.
                    Named::Nobody => continue,
                },
            };
            let mut far = far.clone();
            if tuple.is_some() {
                // The tuple's own scope says which pods.
                far.inside.clear();
            }
            out.push(Match {
                far,
                ports: term.ports.clone(),
                tuple,
                no_tuple: no_tuple.clone(),
            });
        }
    }
    out.retain(|m| {
        m.far
            .within
            .as_ref()
            .is_none_or(|b| **b != Blocks::default())
    });
    out.sort();
    out.dedup();
    out
}

/// Whose names of ports count for a far end.
enum Named {
    Of(PodScope),
    Nobody,
}

/// Every pod of the cluster.
fn every_pod() -> PodScope {
    PodScope {
        namespaces: NamespaceScope::Any,
        pods: Arc::new(Selector::Everything),
        accounts: Arc::new(Selector::Everything),
    }
}

/// The alternatives of the far end. Blocks are merged into one, since any of them suffices.
fn fars(peers: &Peers) -> Vec<(Far<PeerKey>, Named)> {
    let Peers::OneOf(list) = peers else {
        return vec![(Far::default(), Named::Of(every_pod()))];
    };
    let mut out = Vec::new();
    let mut blocks: Option<Blocks> = None;
    for peer in list {
        match peer {
            Peer::Pods(scope) => {
                let far = Far {
                    inside: vec![PeerKey::Pods(scope.clone(), None)],
                    ..Far::default()
                };
                out.push((far, Named::Of(scope.clone())));
            }
            Peer::Nodes(selector) => {
                let far = Far {
                    inside: vec![PeerKey::Nodes(Arc::clone(selector))],
                    ..Far::default()
                };
                out.push((far, Named::Nobody));
            }
            Peer::Block(Block { cidr, except }) => {
                // C2: an exception subtracts from its own network alone.
                let block = Blocks::of([cidr]).minus(&Blocks::of(except));
                blocks = Some(blocks.unwrap_or_default().union(block));
            }
            Peer::Meet {
                pods,
                within,
                outside,
                not_pods,
            } => {
                let far = Far {
                    inside: pods
                        .iter()
                        .map(|p| PeerKey::Pods(p.clone(), None))
                        .collect(),
                    outside: not_pods
                        .iter()
                        .map(|p| PeerKey::Pods(p.clone(), None))
                        .collect(),
                    within: meet_blocks(within, outside).map(Arc::new),
                };
                out.push((far, Named::Of(pods.clone().unwrap_or_else(every_pod))));
            }
        }
    }
    if let Some(blocks) = blocks {
        let far = Far {
            within: Some(Arc::new(blocks)),
            ..Far::default()
        };
        out.push((far, Named::Of(every_pod())));
    }
    out
}

fn meet_blocks(within: &[ipnet::IpNet], outside: &[ipnet::IpNet]) -> Option<Blocks> {
    if within.is_empty() && outside.is_empty() {
        return None;
    }
    let base = if within.is_empty() {
        Blocks::everything()
    } else {
        Blocks::of(within)
    };
    Some(base.minus(&Blocks::of(outside)))
}

struct PortTerms {
    list: Vec<PortTerm>,
}

fn port_terms(ports: &Ports, direction: Direction, named: &[NamedPort]) -> PortTerms {
    let (with, not) = match ports {
        Ports::Every => return single(PortSet::every()),
        Ports::OneOf(list) => (list.as_slice(), [].as_slice()),
        Ports::Except(with, not) => (with.as_slice(), not.as_slice()),
    };
    let holes = numbers(not, direction, named);
    let mut base = numbers(with, direction, named);
    if with.is_empty() && matches!(ports, Ports::Except(..)) {
        base = PortSet::of(protocols_of(not), []);
    }
    let mut list = Vec::new();
    let base = if holes.is_empty() {
        base
    } else {
        base.minus(&holes)
    };
    if !base.is_empty() {
        list.push(PortTerm {
            ports: base,
            tuple: None,
        });
    }
    if direction == Direction::Egress {
        for name in names(with) {
            let ports = if holes.is_empty() {
                PortSet::every()
            } else {
                PortSet::every().minus(&holes)
            };
            list.push(PortTerm {
                ports,
                tuple: Some(name),
            });
        }
    }
    PortTerms { list }
}

fn single(ports: PortSet) -> PortTerms {
    let term = PortTerm { ports, tuple: None };
    PortTerms { list: vec![term] }
}

/// Ports by number, with those by name that the subject pod itself resolves (ingress).
fn numbers(ports: &[Port], direction: Direction, named: &[NamedPort]) -> PortSet {
    let mut whole = Vec::new();
    let mut ranges = Vec::new();
    for port in ports {
        match port {
            Port::All(protocol) => whole.push(*protocol),
            Port::Range(protocol, first, last) => ranges.push((*protocol, *first, *last)),
            Port::Named(protocol, name) if direction == Direction::Ingress => {
                // D6: name and protocol both match; a name on two containers means both.
                let own = named.iter().filter(|n| {
                    n.name == *name && protocol.is_none_or(|wanted| wanted == n.protocol)
                });
                ranges.extend(own.map(|n| (n.protocol, n.number, n.number)));
            }
            Port::Named(..) => {}
        }
    }
    PortSet::of(whole, ranges)
}

fn names(ports: &[Port]) -> impl Iterator<Item = PortName> {
    ports.iter().filter_map(|port| match port {
        Port::Named(protocol, name) => Some(PortName {
            protocol: *protocol,
            name: Arc::clone(name),
        }),
        Port::All(_) | Port::Range(..) => None,
    })
}

fn excluded_names(ports: &Ports, direction: Direction) -> Vec<PeerKey> {
    match (ports, direction) {
        (Ports::Except(_, not), Direction::Egress) => names(not)
            .map(|name| PeerKey::Pods(every_pod(), Some(name)))
            .collect(),
        (Ports::Every | Ports::OneOf(_) | Ports::Except(..), _) => Vec::new(),
    }
}

/// The protocols that the entries speak of; a name without a protocol speaks of the three with ports.
fn protocols_of(ports: &[Port]) -> BTreeSet<Protocol> {
    ports
        .iter()
        .flat_map(|port| match port {
            Port::All(p) | Port::Range(p, ..) | Port::Named(Some(p), _) => vec![*p],
            Port::Named(None, _) => vec![Protocol::TCP, Protocol::UDP, Protocol::SCTP],
        })
        .collect()
}
