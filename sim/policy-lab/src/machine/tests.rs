use std::net::IpAddr;

use nft_wire::build::{Ip, Line, Load, STATE_ESTABLISHED};
use nft_wire::chain::{Chain, Hook};
use nft_wire::key::{Field, Part};
use nft_wire::rule::Rule;
use nft_wire::set::Set;
use nft_wire::table::Table;
use nft_wire::verdict::Verdict;

use super::*;
use crate::machine::refusal::Errno;

fn table() -> TableRef {
    TableRef::new(nft_wire::name::Family::Inet, "t")
}

fn line() -> Line {
    Line::new(nft_wire::name::Family::Inet)
}

fn chain(name: &str) -> Change {
    Change::CreateChain(Chain::regular(&table(), name))
}

fn rule(chain: &str, line: Line) -> Change {
    Change::AddRule(line.rule(&table(), chain))
}

fn leads(link: &str, chain: &str) -> Element {
    Element::leading(Key::ifname(link), Verdict::Goto(chain.into()))
}

fn elements(set: &str, elements: Vec<Element>) -> Elements {
    Elements {
        table: table(),
        set: set.into(),
        elements,
    }
}

/// A base chain in postrouting that dispatches by the outgoing link, and a set of peers.
fn base() -> Vec<Change> {
    vec![
        Change::AddTable(Table::new(table())),
        Change::CreateSet(Set::verdicts(&table(), "to_pod", &[Field::Ifname])),
        Change::CreateSet(Set::plain(&table(), "peers", &[Field::Ipv4])),
        Change::CreateChain(Chain::filter(&table(), "ing", Hook::Postrouting, 90)),
        rule("ing", line().ct_state(STATE_ESTABLISHED).accept()),
        rule("ing", line().vmap(&[Load::Oifname], "to_pod")),
    ]
}

/// A profile that lets peers in and nobody else.
fn profile(name: &str) -> Vec<Change> {
    vec![
        chain(name),
        rule(
            name,
            line().member(&[Load::Source(Ip::V4)], "peers").accept(),
        ),
        rule(name, line().counter().drop()),
    ]
}

fn ready() -> Machine {
    let mut machine = Machine::new();
    machine.transact(&base()).unwrap();
    machine.transact(&profile("old")).unwrap();
    machine
        .transact(&[Change::CreateElements(elements(
            "to_pod",
            vec![leads("cali1", "old")],
        ))])
        .unwrap();
    machine
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn syn() -> Packet {
    Packet::new(address("10.0.0.1"), address("10.0.0.2"), 6, 40_000, 80)
}

fn way() -> Path {
    Path::forward("eth0", "cali1")
}

fn errno(result: Result<(), Refusal>) -> Errno {
    match result.unwrap_err() {
        Refusal::Change { errno, .. } | Refusal::Whole { errno, .. } => errno,
        Refusal::Bytes(text) => panic!("{text}"),
    }
}

#[test]
fn packet_is_judged_by_the_chain_of_its_link_and_answers_pass() {
    let mut machine = ready();
    let dropped = machine.send(&syn(), &way());
    assert_eq!(
        dropped,
        Fate::Dropped {
            chain: "old".into()
        }
    );
    assert_eq!(machine.counters.values().sum::<u64>(), 1);
    let peer = Change::AddElements(elements(
        "peers",
        vec![Element::member(Key::address(syn().source))],
    ));
    machine.transact(&[peer]).unwrap();
    assert!(machine.send(&syn(), &way()).passed());
    assert!(
        machine
            .send(&syn().reply(), &Path::forward("cali1", "eth0"))
            .passed()
    );
    assert!(
        machine
            .send(&syn(), &Path::forward("eth0", "cali2"))
            .passed()
    );
}

#[test]
fn transaction_with_one_fault_changes_nothing() {
    let mut machine = ready();
    let before = machine.clone();
    let changes = [chain("new"), rule("absent", line().accept())];
    let refusal = machine.transact(&changes).unwrap_err();
    assert!(
        matches!(
            refusal,
            Refusal::Change {
                index: 1,
                errno: Errno::NoEntry,
                ..
            }
        ),
        "{refusal}"
    );
    assert_eq!(machine, before);
}

#[test]
fn transaction_that_the_kernel_refuses_is_refused() {
    let named = |name: &str| (table(), name.into());
    let delete_chain = |name: &str| {
        let (table, name) = named(name);
        Change::DeleteChain { table, name }
    };
    let delete_set = |name: &str| {
        let (table, name) = named(name);
        Change::DeleteSet { table, name }
    };
    let element = || vec![leads("cali1", "old")];
    let cases: Vec<(Vec<Change>, Errno)> = vec![
        (vec![chain("old")], Errno::Exists),
        (vec![delete_chain("old")], Errno::Busy),
        (vec![delete_chain("absent")], Errno::NoEntry),
        (vec![delete_set("peers")], Errno::Busy),
        (vec![delete_set("to_pod")], Errno::Busy),
        (
            vec![Change::CreateElements(elements("to_pod", element()))],
            Errno::Exists,
        ),
        (
            vec![
                chain("other"),
                Change::AddElements(elements("to_pod", vec![leads("cali1", "other")])),
            ],
            Errno::Exists,
        ),
        (
            vec![Change::AddElements(elements(
                "to_pod",
                vec![leads("cali9", "absent")],
            ))],
            Errno::NoEntry,
        ),
        (
            vec![Change::DeleteElements(elements(
                "to_pod",
                vec![leads("cali9", "old")],
            ))],
            Errno::NoEntry,
        ),
        (vec![rule("old", line().jump("ing"))], Errno::Unsupported),
        (
            vec![rule(
                "old",
                line().member(&[Load::Source(Ip::V4)], "absent"),
            )],
            Errno::NoEntry,
        ),
        (
            vec![rule("old", line().protocol(6).reset())],
            Errno::Unsupported,
        ),
        (
            vec![
                chain("a"),
                chain("b"),
                rule("a", line().jump("b")),
                rule("b", line().jump("a")),
                rule("old", line().jump("a")),
            ],
            Errno::Deep,
        ),
    ];
    for (changes, wanted) in cases {
        let labels: Vec<String> = changes.iter().map(Change::label).collect();
        assert_eq!(errno(ready().transact(&changes)), wanted, "{labels:?}");
    }
}

#[test]
fn element_deleted_and_added_in_one_transaction_leads_to_the_other_chain() {
    let mut machine = ready();
    machine.transact(&profile("new")).unwrap();
    machine
        .transact(&[
            Change::DeleteElements(elements("to_pod", vec![leads("cali1", "old")])),
            Change::AddElements(elements("to_pod", vec![leads("cali1", "new")])),
        ])
        .unwrap();
    assert_eq!(
        machine.send(&syn(), &way()),
        Fate::Dropped {
            chain: "new".into()
        }
    );
    let (table, name) = (table(), "old".into());
    machine
        .transact(&[Change::DeleteChain { table, name }])
        .unwrap();
}

#[test]
fn ranges_that_overlap_are_refused_and_others_are_found() {
    let mut machine = Machine::new();
    let set = |name: &str| Change::CreateSet(Set::intervals(&table(), name, &[Field::Ipv4]));
    machine
        .transact(&[Change::AddTable(Table::new(table())), set("b")])
        .unwrap();
    let range = |a: &str, b: &str| Element::addresses(address(a), address(b));
    let mut two = range("10.0.0.0", "10.0.0.255");
    two.extend(range("255.0.0.0", "255.255.255.255"));
    machine
        .transact(&[Change::AddElements(elements("b", two))])
        .unwrap();
    let overlap = range("10.0.0.128", "10.0.1.255");
    let refused = machine.transact(&[Change::AddElements(elements("b", overlap))]);
    assert_eq!(errno(refused), Errno::Exists);
    let state = machine.tables.sets().next().unwrap();
    let has = |text: &str| {
        let key = Key::address(address(text));
        state.members.find(&state.set, key.as_bytes()).is_some()
    };
    assert!(has("10.0.0.0") && has("10.0.0.255") && has("255.255.255.255"));
    assert!(!has("9.255.255.255") && !has("10.0.1.0") && !has("254.255.255.255"));
}

#[test]
fn boxes_of_protocol_and_ports_are_found_by_both_parts() {
    let mut machine = Machine::new();
    let mut set = Set::intervals(&table(), "pm", &[Field::Proto, Field::Service]);
    set.kind = nft_wire::set::Kind::Verdicts;
    machine
        .transact(&[
            Change::AddTable(Table::new(table())),
            Change::CreateSet(set),
            chain("c"),
        ])
        .unwrap();
    let key = |protocol, port| Key::of(&[Part::Proto(protocol), Part::Service(port)]);
    let entry = |first, last| {
        let mut element = Element::box_of(key(6, first), key(6, last));
        element.verdict = Some(Verdict::Jump("c".into()));
        element
    };
    machine
        .transact(&[Change::AddElements(elements(
            "pm",
            vec![entry(80, 90), entry(91, 91)],
        ))])
        .unwrap();
    let refused = machine.transact(&[Change::AddElements(elements("pm", vec![entry(90, 95)]))]);
    assert_eq!(errno(refused), Errno::Exists);
    let state = machine.tables.sets().next().unwrap();
    let has = |protocol, port| {
        state
            .members
            .find(&state.set, key(protocol, port).as_bytes())
            .is_some()
    };
    assert!(has(6, 80) && has(6, 90) && has(6, 91));
    assert!(!has(6, 92) && !has(17, 80));
}

#[test]
fn full_dynamic_set_ends_the_rule_so_that_a_drop_behind_it_never_happens() {
    let mut machine = Machine::new();
    let mut set = Set::plain(&table(), "denied", &[Field::Ipv4]);
    set.flags.dynamic = true;
    set.size = Some(2);
    let mut changes = base();
    changes.extend([
        Change::CreateSet(set),
        chain("deny"),
        rule(
            "deny",
            line().record(&[Load::Source(Ip::V4)], "denied").drop(),
        ),
        Change::AddElements(elements("to_pod", vec![leads("cali1", "deny")])),
    ]);
    machine.transact(&changes).unwrap();
    let from = |last: u8| {
        Packet::new(
            IpAddr::from([10, 0, 0, last]),
            address("10.0.0.9"),
            6,
            1,
            80,
        )
    };
    assert!(!machine.send(&from(1), &way()).passed());
    assert!(!machine.send(&from(2), &way()).passed());
    assert!(!machine.send(&from(1), &way()).passed());
    assert!(machine.send(&from(3), &way()).passed());
}

#[test]
fn dump_of_a_table_gives_back_what_was_put_in() {
    let machine = ready();
    let dump = machine.dump(&table()).unwrap().unwrap();
    assert_eq!(dump.chains.len(), 2);
    let ing: Vec<&Rule> = dump.chains["ing"].rules.iter().collect();
    assert_eq!(ing.len(), 2);
    assert!(ing.iter().all(|rule| rule.handle.is_some()));
    assert_eq!(dump.sets["to_pod"].elements, vec![leads("cali1", "old")]);
    let absent = TableRef::new(nft_wire::name::Family::Netdev, "t");
    assert_eq!(machine.dump(&absent).unwrap(), None);
}

fn moved(to: &str) -> [Change; 2] {
    [
        Change::DeleteElements(elements("to_pod", vec![leads("cali1", "old")])),
        Change::AddElements(elements("to_pod", vec![leads("cali1", to)])),
    ]
}

fn old_chain_gone() -> [Change; 1] {
    [Change::DeleteChain {
        table: table(),
        name: "old".into(),
    }]
}

/// The phases of several transactions, one after the other.
fn phases(mut machine: Machine, transactions: &[Vec<Change>]) -> Vec<Machine> {
    let mut out = vec![machine.clone()];
    for changes in transactions {
        out.extend(machine.phases(changes).unwrap());
        machine = out.last().unwrap().clone();
    }
    out
}

#[test]
fn chain_created_first_and_led_to_later_lets_nothing_through() {
    let plan = [
        profile("new"),
        moved("new").to_vec(),
        old_chain_gone().to_vec(),
    ];
    let phases = phases(ready(), &plan);
    assert_eq!(phases.len(), 13);
    assert_eq!(
        Machine::fates(&syn(), &way(), &phases),
        BTreeSet::from([false])
    );
}

#[test]
fn chain_created_and_led_to_in_one_transaction_leaks() {
    let mut at_once = profile("new");
    at_once.extend(moved("new"));
    let phases = phases(ready(), &[at_once]);
    assert_eq!(
        Machine::fates(&syn(), &way(), &phases),
        BTreeSet::from([false, true])
    );
}

#[test]
fn table_replaced_in_one_transaction_leaks() {
    let mut replacement = vec![Change::DeleteTable(table())];
    replacement.extend(base());
    replacement.extend(profile("old"));
    replacement.push(Change::AddElements(elements(
        "to_pod",
        vec![leads("cali1", "old")],
    )));
    let phases = phases(ready(), &[replacement]);
    assert_eq!(
        Machine::fates(&syn(), &way(), &phases),
        BTreeSet::from([false, true])
    );
}

#[test]
fn chain_whose_rules_are_replaced_in_one_transaction_lets_nothing_through() {
    let mut flush = vec![Change::FlushChain {
        table: table(),
        name: "old".into(),
    }];
    flush.push(rule(
        "old",
        line().member(&[Load::Source(Ip::V4)], "peers").accept(),
    ));
    flush.push(rule("old", line().drop()));
    let phases = phases(ready(), &[flush.clone(), flush]);
    assert_eq!(
        Machine::fates(&syn(), &way(), &phases),
        BTreeSet::from([false])
    );
}
