//! The ruleset of `golden/sent.nft`, built with our own types.

use std::time::Duration;

use nft_wire::build::{Ip, Line, Load, STATE_ESTABLISHED, STATE_RELATED};
use nft_wire::chain::{Base, Chain, Hook, Kind, Policy};
use nft_wire::change::Change;
use nft_wire::element::{Element, Elements, Life};
use nft_wire::expr::{CmpOp, CtKey, Expr, Register, Reject};
use nft_wire::key::{Field, Key, Part};
use nft_wire::name::{Family, TableRef};
use nft_wire::rule::Rule;
use nft_wire::set::Set;
use nft_wire::table::Table;
use nft_wire::verdict::Verdict;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
const REVOKED: u32 = 0x0800_0000;
const S4: Load = Load::Source(Ip::V4);
const D4: Load = Load::Destination(Ip::V4);
const S6: Load = Load::Source(Ip::V6);
const D6: Load = Load::Destination(Ip::V6);

pub(crate) fn golden() -> TableRef {
    TableRef::new(Family::Inet, "golden")
}

fn spoof() -> TableRef {
    TableRef::new(Family::Netdev, "spoof")
}

fn denied(name: &str, address: Field) -> Set {
    let key = [
        Field::Ifname,
        address,
        address,
        Field::Proto,
        Field::Service,
    ];
    let mut set = Set::plain(&golden(), name, &key);
    set.flags.dynamic = true;
    set.timeout = Some(Duration::from_mins(1));
    set.size = Some(8192);
    set.counter = true;
    set
}

pub(crate) fn sets() -> Vec<Set> {
    let at = golden();
    let mut pm = Set::verdicts(&at, "pm", &[Field::Proto, Field::Service]);
    pm.flags.interval = true;
    vec![
        Set::plain(&at, "p4", &[Field::Ipv4]),
        Set::plain(&at, "p6", &[Field::Ipv6]),
        Set::plain(&at, "n4", &[Field::Ipv4, Field::Proto, Field::Service]),
        Set::intervals(&at, "b4", &[Field::Ipv4]),
        Set::plain(&at, "hair", &[Field::Ifname, Field::Ifname]),
        denied("denied4", Field::Ipv4),
        denied("denied6", Field::Ipv6),
        Set::plain(&at, "marks", &[Field::Mark]),
        Set::verdicts(&at, "from_pod", &[Field::Ifname]),
        pm,
        Set::verdicts(&at, "from_ip4", &[Field::Ipv4]),
    ]
}

pub(crate) fn chains() -> Vec<Chain> {
    let at = golden();
    let mut inbound = Chain::filter(&at, "inbound", Hook::Input, 101);
    inbound.base.as_mut().unwrap().policy = Policy::Drop;
    vec![
        Chain::regular(&at, "r2"),
        Chain::regular(&at, "r3"),
        Chain::regular(&at, "r"),
        Chain::filter(&at, "forwarded", Hook::Forward, 0),
        inbound,
    ]
}

pub(crate) fn ingress_chain() -> Chain {
    Chain {
        table: spoof(),
        name: "lo".into(),
        base: Some(Base {
            kind: Kind::Filter,
            hook: Hook::Ingress,
            priority: -500,
            policy: Policy::Accept,
            device: Some("lo".into()),
        }),
    }
}

/// The rules of chain `r`, in the order of the text.
pub(crate) fn rules() -> Vec<Rule> {
    let at = golden();
    let record = |to: Load, s: Load, d: Load| [to, s, d, Load::Protocol, Load::DestinationPort];
    let first = Register::FIRST;
    let line = || Line::new(Family::Inet);
    let lines = vec![
        line().member(&[S4], "p4").protocol(TCP).dport(80).accept(),
        line()
            .member(&[S6], "p6")
            .protocol(UDP)
            .dports(1000..=2000)
            .accept(),
        line()
            .member(&[D4, Load::Protocol, Load::DestinationPort], "n4")
            .accept(),
        line().member(&[S4], "b4").ret(),
        line()
            .member(&[Load::Iifname, Load::Oifname], "hair")
            .accept(),
        line().record(&record(Load::Oifname, S4, D4), "denied4"),
        line().record(&record(Load::Iifname, S6, D6), "denied6"),
        line().counter().drop(),
        line().ct_mark(REVOKED).reset(),
        line().icmpv6(133..=137).hop_limit(255).accept(),
        line().icmpv6(133..=133).accept(),
        line().iifname_prefix("cali").drop(),
        line().oifname_prefix("cali").drop(),
        line().iifname("eth0").drop(),
        line().iif(0).vmap(&[S4], "from_ip4"),
        line().iif(0).not_member(&[S4], "p4").accept(),
        line().vmap(&[Load::Iifname], "from_pod"),
        line().vmap(&[Load::Protocol, Load::DestinationPort], "pm"),
        line().source_prefix([10, 128, 0, 0].into(), 9).accept(),
        line()
            .destination_prefix("fe80::".parse().unwrap(), 10)
            .accept(),
        line().destination([169, 254, 20, 10].into()).accept(),
        line().tcp_flags(4).accept(),
        line().limit(5, Duration::from_secs(1), 7).accept(),
        line().trace(),
        line().ct_state(STATE_ESTABLISHED | STATE_RELATED).accept(),
        line().with(Expr::Reject(Reject::IcmpX(3))),
        line().iifname("lo").jump("r2"),
        line().oifname("eth1").goto("r3"),
        line()
            .with(Expr::Immediate {
                data: 1_u32.to_ne_bytes().to_vec(),
                to: first,
            })
            .with(Expr::CtSet {
                key: CtKey::Mark,
                from: first,
            }),
        line()
            .with(Expr::Ct {
                key: CtKey::Direction,
                direction: None,
                to: first,
            })
            .with(Expr::Cmp {
                op: CmpOp::Eq,
                from: first,
                data: vec![1],
            })
            .accept(),
        line().member(&[Load::Mark], "marks").accept(),
    ];
    let commented = 24;
    let mut rules: Vec<Rule> = lines.into_iter().map(|line| line.rule(&at, "r")).collect();
    rules[commented].comment = Some("hello".into());
    rules.push(line().jump("r").rule(&at, "forwarded"));
    rules.push(line().accept().rule(&at, "inbound"));
    rules
}

pub(crate) fn ingress_rule() -> Rule {
    let loopback = vec![127, 0, 0, 1];
    Line::new(Family::Netdev)
        .version(Ip::V4)
        .with(S4.into_register(Register::FIRST))
        .with(Expr::Cmp {
            op: CmpOp::Neq,
            from: Register::FIRST,
            data: loopback,
        })
        .counter()
        .drop()
        .rule(&spoof(), "lo")
}

fn of(set: &str, elements: Vec<Element>) -> Elements {
    Elements {
        table: golden(),
        set: set.into(),
        elements,
    }
}

fn member(parts: &[Part<'_>]) -> Element {
    Element::member(Key::of(parts))
}

/// The elements, sorted as `nft` sends ranges.
pub(crate) fn elements() -> Vec<Elements> {
    let ip = |last: u8| Part::Ipv4([10, 0, 0, last].into());
    let go = || Verdict::Goto("r3".into());
    let mut denied = member(&[
        Part::Ifname("cali0"),
        ip(1),
        ip(2),
        Part::Proto(TCP),
        Part::Service(443),
    ]);
    denied.life = Some(Box::new(Life {
        timeout: Some(Duration::from_secs(30)),
        ..Life::default()
    }));
    let ports = |proto, from, to, verdict| {
        let key = |port| Key::of(&[Part::Proto(proto), Part::Service(port)]);
        let mut element = Element::box_of(key(from), key(to));
        element.verdict = Some(verdict);
        element
    };
    let ranges = [
        ([10, 0, 0, 0], [10, 255, 255, 255]),
        ([192, 168, 0, 0], [192, 168, 0, 10]),
        ([255, 255, 255, 0], [255, 255, 255, 255]),
    ];
    let ranges = ranges
        .into_iter()
        .flat_map(|(first, last)| Element::addresses(first.into(), last.into()));
    vec![
        of("p4", vec![member(&[ip(1)]), member(&[ip(2)])]),
        of(
            "p6",
            vec![member(&[Part::Ipv6("fd00::1".parse().unwrap())])],
        ),
        of(
            "n4",
            vec![member(&[ip(1), Part::Proto(TCP), Part::Service(80)])],
        ),
        of("b4", ranges.collect()),
        of(
            "hair",
            vec![member(&[Part::Ifname("a"), Part::Ifname("a")])],
        ),
        of("denied4", vec![denied]),
        of(
            "from_pod",
            vec![
                Element::leading(Key::ifname("cali0"), go()),
                Element::leading(Key::ifname("cali1"), Verdict::Accept),
            ],
        ),
        of(
            "pm",
            vec![ports(TCP, 80, 90, go()), ports(UDP, 53, 53, Verdict::Drop)],
        ),
        of(
            "from_ip4",
            vec![Element::leading(
                Key::of(&[ip(1)]),
                Verdict::Jump("r3".into()),
            )],
        ),
        of("marks", vec![member(&[Part::Mark(REVOKED)])]),
    ]
}

/// All of it as one transaction.
pub(crate) fn transaction() -> Vec<Change> {
    let mut changes = vec![
        Change::AddTable(Table::new(golden())),
        Change::CreateTable(Table::new(spoof())),
    ];
    changes.extend(sets().into_iter().map(Change::AddSet));
    changes.extend(chains().into_iter().map(Change::CreateChain));
    changes.push(Change::AddChain(ingress_chain()));
    changes.extend(rules().into_iter().map(Change::AddRule));
    changes.push(Change::AddRule(ingress_rule()));
    changes.extend(elements().into_iter().map(Change::AddElements));
    changes
}
