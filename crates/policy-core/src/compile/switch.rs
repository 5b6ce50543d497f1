//! The size switch: where a profile has many policies, a map from port to the few that speak of it.
//!
//! Without it the first packet of a flow walks through all of them, 40 ns each.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use nft_wire::key::Field;
use nft_wire::set::Set;
use nft_wire::verdict::Verdict;

use super::{Compiler, Content, Rank, Unit};
use crate::flow::{Direction, Protocol};
use crate::hash::{Sip, name};
use crate::layout::frame::{Exprs, SetSpec};
use crate::layout::names::inet;
use crate::layout::rules::{by_port, port_element};
use crate::profile::{Body, Profile};

/// Protocol, first and last port, and the places of the bodies that concern them.
type Piece = ((Protocol, u16, u16), BTreeSet<usize>);

const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];

/// Which bodies concern which ports.
#[derive(Debug)]
struct Pieces {
    /// Ports that are named, disjoint.
    list: Vec<Piece>,
    /// Bodies for every other packet.
    rest: BTreeSet<usize>,
}

impl Compiler {
    /// The rules of a profile chain, with a switch in front where the profile is large.
    pub(super) fn profile_rules(&mut self, profile: &Profile) -> (Vec<Exprs>, Vec<Arc<Unit>>) {
        if profile.len() <= self.settings.switch_above {
            return self.structure(profile, None);
        }
        let pieces = cut(profile);
        if pieces.list.is_empty() {
            return self.structure(profile, None);
        }
        let mut chains: BTreeMap<BTreeSet<usize>, Arc<Unit>> = BTreeMap::new();
        let exact = pieces
            .list
            .iter()
            .all(|((_, first, last), _)| first == last);
        let mut elements = Vec::new();
        for (ports, subset) in &pieces.list {
            let unit = if let Some(unit) = chains.get(subset) {
                Arc::clone(unit)
            } else {
                let unit = self.subset_chain(profile, subset);
                chains.insert(subset.clone(), Arc::clone(&unit));
                unit
            };
            let verdict = Verdict::Goto(Arc::clone(&unit.name));
            elements.push(port_element(ports, exact, Some(verdict)));
        }
        let mut sip = Sip::new();
        elements.hash(&mut sip);
        let fields = [Field::Proto, Field::Service];
        let mut set = Set::verdicts(&inet(&self.settings), &name("pm", sip.finish()), &fields);
        set.flags.interval = !exact;
        let mut needs: Vec<Arc<Unit>> = chains.into_values().collect();
        needs.sort_by(|a, b| a.name.cmp(&b.name));
        needs.dedup_by(|a, b| a.name == b.name);
        let map = self.fixed(SetSpec { set, elements }, needs);
        let (mut rules, mut needs) = self.structure(profile, Some(&pieces.rest));
        rules.insert(0, by_port(&map.name));
        needs.push(map);
        (rules, needs)
    }

    fn subset_chain(&mut self, profile: &Profile, subset: &BTreeSet<usize>) -> Arc<Unit> {
        let (rules, needs) = self.structure(profile, Some(subset));
        let mut sip = Sip::new();
        let ingress = profile.direction == Direction::Ingress;
        (ingress, &rules).hash(&mut sip);
        self.intern(
            Rank::Subset,
            &name("s", sip.finish()),
            Content::rules(rules),
            needs,
        )
    }
}

/// Whether a body has a rule for every port of a protocol (`None`: for protocols without ports).
fn is_general(body: &Body, protocol: Option<Protocol>) -> bool {
    body.clauses
        .iter()
        .flat_map(|c| &c.matches)
        .any(|m| match protocol {
            Some(p) => (m.ports.every || m.ports.protocols.contains(&p)) && m.speaks_of(body, p),
            None => {
                m.ports.every && m.tuple.is_none()
                    || m.ports.protocols.iter().any(|p| !PROTOCOLS.contains(p))
            }
        })
}

fn cut(profile: &Profile) -> Pieces {
    let bodies: Vec<&Arc<Body>> = profile.bodies().collect();
    let places = |protocol| -> BTreeSet<usize> {
        let all = bodies.iter().enumerate();
        all.filter(|(_, b)| is_general(b, protocol))
            .map(|(at, _)| at)
            .collect()
    };
    let mut list = Vec::new();
    let mut rest = places(None);
    for protocol in PROTOCOLS {
        let general = places(Some(protocol));
        list.extend(cut_protocol(&bodies, protocol, &general));
        rest.extend(general);
    }
    Pieces { list, rest }
}

/// The named ports of one protocol, cut wherever a rule begins or ends.
fn cut_protocol(
    bodies: &[&Arc<Body>],
    protocol: Protocol,
    general: &BTreeSet<usize>,
) -> Vec<Piece> {
    // At a port: the bodies that begin there, and those that ended just before.
    let mut edges: BTreeMap<u32, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
    for (at, body) in bodies
        .iter()
        .enumerate()
        .filter(|(at, _)| !general.contains(at))
    {
        for m in body.clauses.iter().flat_map(|c| &c.matches) {
            for (_, first, last) in m.ports.ranges.iter().filter(|r| r.0 == protocol) {
                edges.entry(u32::from(*first)).or_default().0.push(at);
                edges.entry(u32::from(*last) + 1).or_default().1.push(at);
            }
        }
    }
    let mut out: Vec<Piece> = Vec::new();
    // A body may name overlapping ranges: it is active while any of them is open.
    let mut active: BTreeMap<usize, usize> = BTreeMap::new();
    let mut edges = edges.into_iter().peekable();
    while let Some((start, (begin, end))) = edges.next() {
        for at in begin {
            *active.entry(at).or_default() += 1;
        }
        for at in end {
            if let Some(open) = active.get_mut(&at) {
                *open -= 1;
                if *open == 0 {
                    active.remove(&at);
                }
            }
        }
        let Some((next, _)) = edges.peek() else { break };
        let (Ok(first), Ok(last)) = (u16::try_from(start), u16::try_from(next - 1)) else {
            continue;
        };
        if active.is_empty() {
            continue;
        }
        let subset: BTreeSet<usize> = active.keys().chain(general).copied().collect();
        match out.last_mut() {
            Some(((_, _, end), same)) if end.checked_add(1) == Some(first) && *same == subset => {
                *end = last;
            }
            _ => out.push(((protocol, first, last), subset)),
        }
    }
    out
}
