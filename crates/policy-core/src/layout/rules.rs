//! Clauses as rules, peers and ports as sets.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use nft_wire::build::Load;
use nft_wire::element::Element;
use nft_wire::key::{Field, Key, Part};
use nft_wire::name::Name;
use nft_wire::set::Set;
use nft_wire::verdict::Verdict;

use super::frame::{Exprs, SetSpec, ip, line};
use super::names::{DENY_EG, DENY_IN, Table, inet};
use super::settings::Settings;
use crate::flow::{Direction, Protocol};
use crate::hash::{Sip, name};
use crate::index::{Member, PeerKey};
use crate::policy::Action;
use crate::profile::{PortSet, Role};

/// The address of a packet that is far from the pod.
const fn far_address(direction: Direction, v4: bool) -> Load {
    match direction {
        Direction::Ingress => Load::Source(ip(v4)),
        Direction::Egress => Load::Destination(ip(v4)),
    }
}

/// Where denied packets of a direction end.
pub fn denied(direction: Direction) -> Verdict {
    Verdict::Goto(Name::from(match direction {
        Direction::Ingress => DENY_IN,
        Direction::Egress => DENY_EG,
    }))
}

/// One condition that looks into a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    /// The set.
    pub set: Name,
    /// Address, protocol and port instead of the address alone.
    pub tuple: bool,
    /// It must not be in the set.
    pub inverted: bool,
}

/// Conditions of one rule for one family.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    /// The family, where the rule is about one.
    pub v4: Option<bool>,
    /// Conditions on the far end.
    pub tests: Vec<Test>,
    /// Protocol, with ports first to last unless every port counts.
    pub port: PortTest,
}

/// A condition on protocol and port that one rule can hold.
#[derive(Debug, Clone, Default)]
pub enum PortTest {
    /// None.
    #[default]
    Every,
    /// A protocol.
    Protocol(Protocol),
    /// A protocol and ports.
    Range(Protocol, u16, u16),
    /// One of a set.
    Set(Name),
}

/// The rule.
pub fn rule(direction: Direction, conditions: &Conditions, action: Action) -> Exprs {
    // Ports first: one load tells most packets apart, whatever their family.
    let mut line = match &conditions.port {
        PortTest::Every => line(),
        PortTest::Protocol(p) => line().protocol(p.0),
        PortTest::Range(p, first, last) if first == last => line().protocol(p.0).dport(*first),
        PortTest::Range(p, first, last) => line().protocol(p.0).dports(*first..=*last),
        PortTest::Set(set) => line().member(&[Load::Protocol, Load::DestinationPort], set),
    };
    if let Some(v4) = conditions.v4 {
        line = line.version(ip(v4));
        for test in &conditions.tests {
            let address = far_address(direction, v4);
            let key = [address, Load::Protocol, Load::DestinationPort];
            let key = if test.tuple {
                key.as_slice()
            } else {
                &[address]
            };
            line = if test.inverted {
                line.not_member(key, &test.set)
            } else {
                line.member(key, &test.set)
            };
        }
    }
    let line = line.counter();
    match action {
        Action::Accept => line.accept(),
        Action::Deny => line.verdict(denied(direction)),
        Action::Pass => line.ret(),
        Action::Log => line,
    }
    .exprs()
}

/// A jump to a chain.
pub fn jump(chain: &str) -> Exprs {
    line().jump(chain).exprs()
}

/// Traffic of a pod with itself, through a Service.
pub fn hairpin() -> Exprs {
    line()
        .member(&[Load::Iifname, Load::Oifname], Table::Hair.name())
        .accept()
        .exprs()
}

/// The verdict of a map for protocol and destination port, where it has one.
pub fn by_port(map: &str) -> Exprs {
    line()
        .vmap(&[Load::Protocol, Load::DestinationPort], map)
        .exprs()
}

/// A rule that only decides.
pub fn always(verdict: Verdict) -> Exprs {
    line().verdict(verdict).exprs()
}

/// The name of the set of a key's members of a family, in a role.
pub fn peer_set_name(key: &PeerKey, v4: bool, role: Role) -> String {
    let mut sip = Sip::new();
    key.hash(&mut sip);
    let prefix = format!("{}{}", peer_prefix(key, v4), role.letter());
    name(&prefix, sip.finish())
}

const fn peer_prefix(key: &PeerKey, v4: bool) -> &'static str {
    match (key, v4) {
        (PeerKey::Pods(_, Some(_)), true) => "n4",
        (PeerKey::Pods(_, Some(_)), false) => "n6",
        (PeerKey::Pods(_, None) | PeerKey::Nodes(_), true) => "p4",
        (PeerKey::Pods(_, None) | PeerKey::Nodes(_), false) => "p6",
    }
}

/// The set of a key's members of a family.
pub fn peer_set(settings: &Settings, key: &PeerKey, v4: bool, set_name: &str) -> Set {
    let address = if v4 { Field::Ipv4 } else { Field::Ipv6 };
    let fields: &[Field] = match key {
        PeerKey::Pods(_, Some(_)) => &[address, Field::Proto, Field::Service],
        PeerKey::Pods(_, None) | PeerKey::Nodes(_) => &[address],
    };
    Set::plain(&inet(settings), set_name, fields)
}

/// A member as element key.
pub fn member_key(member: &Member) -> Key {
    match member.port {
        None => Key::address(member.ip),
        Some((protocol, port)) => Key::of(&[
            Part::from(member.ip),
            Part::Proto(protocol.0),
            Part::Service(port),
        ]),
    }
}

/// The member that a key means in a set with these fields.
pub fn member_of(key: &Key, fields: &[Field]) -> Option<Member> {
    use nft_wire::key::Value;
    match key.values(fields)?.as_slice() {
        [Value::Address(ip)] => Some(Member {
            ip: *ip,
            port: None,
        }),
        [Value::Address(ip), Value::Proto(p), Value::Service(s)] => Some(Member {
            ip: *ip,
            port: Some((Protocol(*p), *s)),
        }),
        _ => None,
    }
}

/// The immutable set of a list of port ranges.
pub fn port_set(settings: &Settings, ports: &PortSet) -> SetSpec {
    let mut sip = Sip::new();
    ports.ranges.hash(&mut sip);
    let fields = [Field::Proto, Field::Service];
    let exact = ports.ranges.iter().all(|r| r.1 == r.2);
    let set_name = name("t", sip.finish());
    let set = if exact {
        Set::plain(&inet(settings), &set_name, &fields)
    } else {
        Set::intervals(&inet(settings), &set_name, &fields)
    };
    SetSpec {
        set,
        elements: ports
            .ranges
            .iter()
            .map(|r| port_element(r, exact, None))
            .collect(),
    }
}

/// An element for ports first to last of a protocol.
pub fn port_element(
    (protocol, first, last): &(Protocol, u16, u16),
    exact: bool,
    verdict: Option<Verdict>,
) -> Element {
    let key = |port: u16| Key::of(&[Part::Proto(protocol.0), Part::Service(port)]);
    let mut element = if exact {
        Element::member(key(*first))
    } else {
        Element::box_of(key(*first), key(*last))
    };
    element.verdict = verdict;
    element
}

/// The key of a link.
pub fn link_key(link: &str) -> Key {
    Key::ifname(link)
}

/// The key of a link with itself.
pub fn hair_key(link: &str) -> Key {
    Key::of(&[Part::Ifname(link), Part::Ifname(link)])
}

/// The key of an address.
pub fn ip_key(ip: IpAddr) -> Key {
    Key::address(ip)
}
