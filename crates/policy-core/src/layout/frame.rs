//! What stands in every table of ours: base chains, the ends of denied and revoked packets.

use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use nft_wire::build::{Ip, Line, Load, STATE_ESTABLISHED, STATE_RELATED};
use nft_wire::chain::{Chain, Hook};
use nft_wire::element::Element;
use nft_wire::expr::{CmpOp, DynsetOp, Expr, Register};
use nft_wire::key::Field;
use nft_wire::name::Family;
use nft_wire::set::Set;

use super::names::{
    DENIED4, DENIED6, DENY_EG, DENY_IN, EG, FWD, ING, INP, OUT, REVOKED, Table, inet,
};
use super::settings::{Place, Settings};
use crate::hash::{Sip, name};
use crate::profile::Blocks;

/// Expressions of one rule.
pub type Exprs = Vec<Expr>;

/// A chain and its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainSpec {
    /// The chain.
    pub chain: Chain,
    /// Its rules in order.
    pub rules: Vec<Exprs>,
}

/// A set and its elements, which never change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetSpec {
    /// The set.
    pub set: Set,
    /// Its elements, as the kernel lists them but in any order.
    pub elements: Vec<Element>,
}

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const TCP: u8 = 6;
const RST: u8 = 4;
/// Router and neighbour solicitation and advertisement, redirect.
const ND: RangeInclusive<u8> = 133..=137;
/// Multicast listener queries, reports and done messages.
const MLD: [RangeInclusive<u8>; 2] = [130..=132, 143..=143];

const PRIORITY_FILTER: i32 = 0;
/// Behind IPVS' own hooks of local input.
const PRIORITY_INPUT: i32 = 101;
/// Before srcnat (100): addresses of sources are still their own.
const PRIORITY_EGRESS: i32 = 88;
const PRIORITY_INGRESS: i32 = 90;

/// A rule of the table with policies.
pub const fn line() -> Line {
    Line::new(Family::Inet)
}

/// The IP version of a family.
pub const fn ip(v4: bool) -> Ip {
    if v4 { Ip::V4 } else { Ip::V6 }
}

/// The end of a denied packet: what notes the flow, and, on its own, what drops it. The set of denied flows may be
/// full, and a rule ends where an element cannot be added.
fn deny(settings: &Settings, place: Place, chain: &str, ingress: bool) -> ChainSpec {
    // In the pod's own namespace its interface is on the other side of the packet.
    let link = match (place, ingress) {
        (Place::Host, true) | (Place::PodNamespace, false) => Load::Oifname,
        (Place::Host, false) | (Place::PodNamespace, true) => Load::Iifname,
    };
    let mut rules = Vec::new();
    for (ip, set, icmp) in [(Ip::V4, DENIED4, ICMP), (Ip::V6, DENIED6, ICMPV6)] {
        // Where ICMP has its checksum others have a port: without this each packet would be a flow of its own.
        rules.push(note_without_port(
            line().version(ip).protocol(icmp),
            link,
            ip,
            set,
        ));
        let others = line()
            .version(ip)
            .with(Load::Protocol.into_register(Register::FIRST))
            .with(Expr::Cmp {
                op: CmpOp::Neq,
                from: Register::FIRST,
                data: vec![icmp],
            });
        let key = [
            link,
            Load::Source(ip),
            Load::Destination(ip),
            Load::Protocol,
            Load::DestinationPort,
        ];
        rules.push(others.record(&key, set).exprs());
    }
    rules.push(line().counter().drop().exprs());
    ChainSpec {
        chain: Chain::regular(&inet(settings), chain),
        rules,
    }
}

/// Notes a denied flow with port 0.
fn note_without_port(line: Line, interface: Load, ip: Ip, set: &str) -> Exprs {
    let width = match ip {
        Ip::V4 => 1,
        Ip::V6 => 4,
    };
    // The interface takes four words, the addresses `width` each, protocol and port one each: at most 14 of 16.
    let word = |at: u8| Register::new(at).unwrap_or_default();
    line.with(interface.into_register(word(0)))
        .with(Load::Source(ip).into_register(word(4)))
        .with(Load::Destination(ip).into_register(word(4 + width)))
        .with(Load::Protocol.into_register(word(4 + 2 * width)))
        .with(Expr::Immediate {
            data: vec![0; 2],
            to: word(5 + 2 * width),
        })
        .with(Expr::Dynset {
            set: set.into(),
            op: DynsetOp::Add,
            key: word(0),
            timeout: None,
            exprs: vec![Expr::Counter {
                packets: 0,
                bytes: 0,
            }],
            inverted: false,
        })
        .exprs()
}

/// The chains of fixed name that are no base chains.
pub fn ends(settings: &Settings, place: Place) -> Vec<ChainSpec> {
    let revoked = ChainSpec {
        chain: Chain::regular(&inet(settings), REVOKED),
        rules: vec![
            line().protocol(TCP).counter().reset().exprs(),
            line().counter().drop().exprs(),
        ],
    };
    vec![
        deny(settings, place, DENY_IN, true),
        deny(settings, place, DENY_EG, false),
        revoked,
    ]
}

/// Flows that the revoker marked end before anything accepts established ones.
fn revoke(settings: &Settings) -> Vec<Exprs> {
    if settings.revoke_bit == 0 {
        return Vec::new();
    }
    vec![line().ct_mark(settings.revoke_bit).goto(REVOKED).exprs()]
}

/// The reset that answers a revoked flow carries the flow's own mark: without this nobody would ever get it.
fn revoke_but_resets(settings: &Settings) -> Vec<Exprs> {
    let mut rules = revoke(settings);
    if !rules.is_empty() {
        rules.insert(0, line().tcp_flags(RST).accept().exprs());
    }
    rules
}

fn known() -> Exprs {
    line()
        .ct_state(STATE_ESTABLISHED | STATE_RELATED)
        .accept()
        .exprs()
}

/// Neighbour discovery: with the hop limit that nobody can forge from beyond the link.
fn neighbours() -> Exprs {
    line().hop_limit(255).icmpv6(ND).accept().exprs()
}

/// Multicast listener messages, to multicast groups alone: a forwarded packet can arrive here with any hop limit, but
/// not to a group.
fn listeners() -> Vec<Exprs> {
    let groups = IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0));
    MLD.into_iter()
        .map(|types| {
            let line = line().destination_prefix(groups, 8).hop_limit(1);
            line.icmpv6(types).accept().exprs()
        })
        .collect()
}

/// Links of pods that are in no map pass nothing.
fn unknown_links(settings: &Settings, end: Load) -> Vec<Exprs> {
    settings
        .veth_prefixes
        .iter()
        .filter(|p| !p.is_empty())
        .map(|p| {
            let line = if end == Load::Oifname {
                line().oifname_prefix(p)
            } else {
                line().iifname_prefix(p)
            };
            line.counter().drop().exprs()
        })
        .collect()
}

/// Destinations that egress policies never judge, as sets of ranges per family.
pub fn allowed_sets(settings: &Settings) -> Vec<SetSpec> {
    let blocks = Blocks::of(&settings.always_allowed);
    [true, false]
        .into_iter()
        .filter(|v4| !blocks.family(*v4).is_empty())
        .map(|v4| block_set(settings, &blocks, v4))
        .collect()
}

/// The immutable set of a family's ranges.
pub fn block_set(settings: &Settings, blocks: &Blocks, v4: bool) -> SetSpec {
    use std::hash::{Hash, Hasher};
    let mut sip = Sip::new();
    (v4, blocks.family(v4)).hash(&mut sip);
    let (prefix, field) = if v4 {
        ("b4", Field::Ipv4)
    } else {
        ("b6", Field::Ipv6)
    };
    SetSpec {
        set: Set::intervals(&inet(settings), &name(prefix, sip.finish()), &[field]),
        elements: blocks
            .family(v4)
            .iter()
            .flat_map(|range| {
                let (first, last) = range.ends(v4);
                Element::addresses(first, last)
            })
            .collect(),
    }
}

/// On the node the allowance is for links of known pods alone: one that is in no map passes nothing.
fn always_allowed(settings: &Settings, place: Place) -> Vec<Exprs> {
    allowed_sets(settings)
        .iter()
        .map(|spec| {
            let v4 = spec.set.key.first() == Some(&Field::Ipv4);
            let line = line().member(&[Load::Destination(ip(v4))], &spec.set.name);
            match place {
                Place::Host => line.member(&[Load::Iifname, Load::Iifname], Table::Hair.name()),
                Place::PodNamespace => line,
            }
            .accept()
            .exprs()
        })
        .collect()
}

/// Whether egress policies never judge a destination.
pub fn is_always_allowed(settings: &Settings, ip: IpAddr) -> bool {
    settings
        .always_allowed
        .iter()
        .any(|net: &IpNet| net.contains(&ip))
}

fn base(
    settings: &Settings,
    chain: &str,
    hook: Hook,
    priority: i32,
    rules: Vec<Exprs>,
) -> ChainSpec {
    ChainSpec {
        chain: Chain::filter(&inet(settings), chain, hook, priority),
        rules,
    }
}

/// The base chains of a place.
pub fn bases(settings: &Settings, place: Place) -> Vec<ChainSpec> {
    match place {
        Place::Host => host(settings),
        Place::PodNamespace => pod_namespace(settings),
    }
}

fn host(settings: &Settings) -> Vec<ChainSpec> {
    let from_pod = || line().vmap(&[Load::Iifname], Table::FromPod.name()).exprs();

    let mut inp = vec![line().iifname("lo").accept().exprs()];
    inp.extend(revoke(settings));
    inp.push(known());
    inp.push(neighbours());
    inp.extend(always_allowed(settings, Place::Host));
    inp.push(from_pod());
    inp.extend(unknown_links(settings, Load::Iifname));

    let mut eg = vec![known(), neighbours()];
    eg.extend(listeners());
    eg.extend(always_allowed(settings, Place::Host));
    eg.push(from_pod());
    eg.extend(unknown_links(settings, Load::Iifname));
    // IPVS sends a pod's packet anew; should it lose the link on the way, the address says whose it is.
    for (ip, map) in [(Ip::V4, Table::FromIp4), (Ip::V6, Table::FromIp6)] {
        eg.push(line().iif(0).vmap(&[Load::Source(ip)], map.name()).exprs());
    }

    let mut ing = vec![known(), neighbours()];
    ing.extend(listeners());
    for (ip, pods) in [(Ip::V4, Table::Pods4), (Ip::V6, Table::Pods6)] {
        let here = line().iif(0).not_member(&[Load::Source(ip)], pods.name());
        ing.push(here.accept().exprs());
    }
    ing.push(line().vmap(&[Load::Oifname], Table::ToPod.name()).exprs());
    ing.extend(unknown_links(settings, Load::Oifname));

    let base = |chain, hook, priority, rules| base(settings, chain, hook, priority, rules);
    vec![
        base(FWD, Hook::Forward, PRIORITY_FILTER, revoke(settings)),
        base(INP, Hook::Input, PRIORITY_INPUT, inp),
        base(
            OUT,
            Hook::Output,
            PRIORITY_FILTER,
            revoke_but_resets(settings),
        ),
        base(EG, Hook::Postrouting, PRIORITY_EGRESS, eg),
        base(ING, Hook::Postrouting, PRIORITY_INGRESS, ing),
    ]
}

fn pod_namespace(settings: &Settings) -> Vec<ChainSpec> {
    let mut inp = vec![line().iifname("lo").accept().exprs()];
    inp.extend(revoke(settings));
    inp.push(known());
    inp.push(neighbours());
    inp.extend(listeners());
    for (ip, node) in [(Ip::V4, Table::Node4), (Ip::V6, Table::Node6)] {
        inp.push(
            line()
                .member(&[Load::Source(ip)], node.name())
                .accept()
                .exprs(),
        );
    }
    inp.push(line().vmap(&[Load::Iifname], Table::ToPod.name()).exprs());

    let mut out = vec![line().oifname("lo").accept().exprs()];
    out.extend(revoke_but_resets(settings));
    out.push(known());
    out.push(neighbours());
    out.extend(listeners());
    out.extend(always_allowed(settings, Place::PodNamespace));
    out.push(line().vmap(&[Load::Oifname], Table::FromPod.name()).exprs());

    vec![
        base(settings, INP, Hook::Input, PRIORITY_FILTER, inp),
        base(settings, OUT, Hook::Output, PRIORITY_FILTER, out),
    ]
}
