//! Random changes survive their bytes.

use std::net::IpAddr;
use std::time::Duration;

use nft_wire::batch::{ELEMENTS_MAX, encode_batch, encoded_len};
use nft_wire::chain::{Base, Chain, Hook, Kind, Policy};
use nft_wire::change::Change;
use nft_wire::conntrack::{self, Mark, Ports, Tuple};
use nft_wire::element::{Count, Element, Elements, Life};
use nft_wire::expr::{
    ByteorderOp, CmpOp, CtKey, DynsetOp, Expr, FlowDirection, MetaKey, PayloadBase, Register,
    Reject,
};
use nft_wire::frame::Frames;
use nft_wire::key::{Field, Key};
use nft_wire::message::{Message, decode_all, decode_changes};
use nft_wire::name::{Family, Name, TableRef};
use nft_wire::rule::Rule;
use nft_wire::set::{self, Set, SetFlags};
use nft_wire::table::{Table, TableFlags};
use nft_wire::verdict::Verdict;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn name() -> impl Strategy<Value = Name> {
    "[a-z_0-9]{1,40}".prop_map(Name::from)
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![
        Just(Family::Inet),
        Just(Family::Ipv4),
        Just(Family::Ipv6),
        Just(Family::Netdev)
    ]
}

fn at() -> impl Strategy<Value = TableRef> {
    (family(), name()).prop_map(|(family, name)| TableRef { family, name })
}

fn table() -> impl Strategy<Value = Table> {
    (at(), any::<[bool; 3]>()).prop_map(|(at, [owner, persist, dormant])| Table {
        at,
        flags: TableFlags {
            owner,
            persist,
            dormant,
        },
        owner: None,
    })
}

fn chain() -> impl Strategy<Value = Chain> {
    let layer3 = prop_oneof![
        Just(Hook::Prerouting),
        Just(Hook::Input),
        Just(Hook::Forward),
        Just(Hook::Output),
        Just(Hook::Postrouting),
    ];
    let policy = prop_oneof![Just(Policy::Accept), Just(Policy::Drop)];
    let kind = prop_oneof![Just(Kind::Filter), Just(Kind::Nat), Just(Kind::Route)];
    let base = (
        layer3,
        any::<i32>(),
        policy,
        kind,
        option::of(name()),
        any::<bool>(),
    );
    (at(), name(), option::of(base)).prop_map(|(table, name, base)| {
        let netdev = table.family == Family::Netdev;
        let base = base.map(|(hook, priority, policy, kind, device, egress)| Base {
            kind,
            hook: match (netdev, egress) {
                (false, _) => hook,
                (true, true) => Hook::Egress,
                (true, false) => Hook::Ingress,
            },
            priority,
            policy,
            device,
        });
        Chain { table, name, base }
    })
}

fn field() -> impl Strategy<Value = Field> {
    prop_oneof![
        Just(Field::Ipv4),
        Just(Field::Ipv6),
        Just(Field::Ether),
        Just(Field::Proto),
        Just(Field::Service),
        Just(Field::Mark),
        Just(Field::Ifindex),
        Just(Field::Ifname),
    ]
}

fn milliseconds() -> impl Strategy<Value = Duration> {
    (1_u64..1 << 40).prop_map(Duration::from_millis)
}

fn any_set() -> impl Strategy<Value = Set> {
    let kind = prop_oneof![Just(set::Kind::Plain), Just(set::Kind::Verdicts)];
    let flags = any::<[bool; 4]>();
    let timeout = option::of(prop_oneof![Just(Duration::ZERO), milliseconds()]);
    (
        at(),
        name(),
        vec(field(), 1..=5),
        kind,
        flags,
        timeout,
        option::of(any::<u32>()),
    )
        .prop_map(
            |(table, name, key, kind, [interval, dynamic, constant, counter], timeout, size)| Set {
                table,
                name,
                key,
                kind,
                flags: SetFlags {
                    interval,
                    dynamic,
                    constant,
                },
                timeout,
                size,
                counter,
            },
        )
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Continue),
        Just(Verdict::Return),
        name().prop_map(Verdict::Jump),
        name().prop_map(Verdict::Goto),
    ]
}

fn key() -> impl Strategy<Value = Key> {
    vec(any::<u8>(), 1..=64).prop_map(|bytes| Key::new(&bytes))
}

fn life() -> impl Strategy<Value = Life> {
    let count = any::<(u64, u64)>().prop_map(|(packets, bytes)| Count { packets, bytes });
    (
        option::of(milliseconds()),
        option::of(milliseconds()),
        option::of(count),
    )
        .prop_map(|(timeout, expiration, counter)| Life {
            timeout,
            expiration,
            counter,
        })
}

fn element() -> impl Strategy<Value = Element> {
    (
        key(),
        option::of(key()),
        any::<bool>(),
        option::of(verdict()),
        option::of(life()),
    )
        .prop_map(|(key, end, interval_end, verdict, life)| Element {
            key,
            end,
            interval_end,
            verdict,
            life: life.filter(|l| *l != Life::default()).map(Box::new),
        })
}

fn elements() -> impl Strategy<Value = Elements> {
    (at(), name(), vec(element(), 1..20)).prop_map(|(table, set, elements)| Elements {
        table,
        set,
        elements,
    })
}

fn register() -> impl Strategy<Value = Register> {
    (0_u8..16).prop_map(|word| Register::new(word).unwrap())
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 1..=16)
}

fn simple() -> impl Strategy<Value = Expr> {
    let r = register;
    let meta = proptest::sample::select(MetaKey::ALL);
    let meta_set = proptest::sample::select(MetaKey::ALL);
    let ct = proptest::sample::select(CtKey::ALL);
    let ct_set = proptest::sample::select(CtKey::ALL);
    let direction = option::of(prop_oneof![
        Just(FlowDirection::Original),
        Just(FlowDirection::Reply)
    ]);
    let base = proptest::sample::select(PayloadBase::ALL);
    let cmp = proptest::sample::select(CmpOp::ALL);
    prop_oneof![
        (meta, r()).prop_map(|(key, to)| Expr::Meta { key, to }),
        (meta_set, r()).prop_map(|(key, from)| Expr::MetaSet { key, from }),
        (ct, direction, r()).prop_map(|(key, direction, to)| Expr::Ct { key, direction, to }),
        (ct_set, r()).prop_map(|(key, from)| Expr::CtSet { key, from }),
        (base, any::<u32>(), any::<u32>(), r()).prop_map(|(base, offset, len, to)| Expr::Payload {
            base,
            offset,
            len,
            to
        }),
        (cmp, r(), bytes()).prop_map(|(op, from, data)| Expr::Cmp { op, from, data }),
        (any::<bool>(), r(), bytes(), bytes()).prop_map(|(inverted, from, low, high)| {
            Expr::Range {
                inverted,
                from,
                low,
                high,
            }
        }),
        (r(), r(), bytes()).prop_map(|(from, to, mask)| {
            let xor = mask.iter().map(|b| !b).collect();
            Expr::Bitwise {
                from,
                to,
                mask,
                xor,
            }
        }),
        (r(), r(), any::<bool>(), any::<u32>(), any::<u32>()).prop_map(
            |(from, to, host, len, size)| {
                let op = if host {
                    ByteorderOp::ToHost
                } else {
                    ByteorderOp::ToNetwork
                };
                Expr::Byteorder {
                    from,
                    to,
                    op,
                    len,
                    size,
                }
            }
        ),
        (name(), r(), any::<bool>()).prop_map(|(set, from, inverted)| Expr::Lookup {
            set,
            from,
            inverted
        }),
        (name(), r()).prop_map(|(map, from)| Expr::Vmap { map, from }),
        (bytes(), r()).prop_map(|(data, to)| Expr::Immediate { data, to }),
        verdict().prop_map(Expr::Verdict),
        any::<(u64, u64)>().prop_map(|(packets, bytes)| Expr::Counter { packets, bytes }),
        name().prop_map(|name| Expr::CounterRef { name }),
        (name(), r()).prop_map(|(map, from)| Expr::CounterMap { map, from }),
        Just(Expr::Reject(Reject::TcpReset)),
        any::<u8>().prop_map(|code| Expr::Reject(Reject::IcmpX(code))),
        any::<u8>().prop_map(|code| Expr::Reject(Reject::Icmp(code))),
        (any::<u64>(), 0_u64..1 << 40, any::<u32>(), any::<bool>()).prop_map(
            |(rate, unit, burst, inverted)| Expr::Limit {
                rate,
                unit: Duration::from_secs(unit),
                burst,
                inverted,
            }
        ),
    ]
}

fn expr() -> impl Strategy<Value = Expr> {
    let op = prop_oneof![
        Just(DynsetOp::Add),
        Just(DynsetOp::Update),
        Just(DynsetOp::Delete)
    ];
    let inner = vec(simple(), 0..3);
    let dynset = (
        name(),
        op,
        register(),
        option::of(milliseconds()),
        inner,
        any::<bool>(),
    );
    prop_oneof![
        10 => simple(),
        1 => dynset.prop_map(|(set, op, key, timeout, exprs, inverted)| Expr::Dynset {
            set,
            op,
            key,
            timeout,
            exprs,
            inverted,
        }),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    (
        at(),
        name(),
        vec(expr(), 0..12),
        option::of("[a-zA-Z0-9 .:/]{1,127}"),
    )
        .prop_map(|(table, chain, exprs, comment)| Rule {
            table,
            chain,
            exprs,
            handle: None,
            comment: comment.map(Into::into),
        })
}

fn change() -> impl Strategy<Value = Change> {
    let named = || (at(), name());
    prop_oneof![
        table().prop_map(Change::AddTable),
        table().prop_map(Change::CreateTable),
        at().prop_map(Change::DeleteTable),
        chain().prop_map(Change::AddChain),
        chain().prop_map(Change::CreateChain),
        named().prop_map(|(table, name)| Change::DeleteChain { table, name }),
        named().prop_map(|(table, name)| Change::FlushChain { table, name }),
        rule().prop_map(Change::AddRule),
        rule().prop_map(Change::InsertRule),
        (at(), name(), any::<u64>()).prop_map(|(table, chain, handle)| Change::DeleteRule {
            table,
            chain,
            handle
        }),
        any_set().prop_map(Change::AddSet),
        any_set().prop_map(Change::CreateSet),
        named().prop_map(|(table, name)| Change::DeleteSet { table, name }),
        named().prop_map(|(table, name)| Change::FlushSet { table, name }),
        elements().prop_map(Change::AddElements),
        elements().prop_map(Change::CreateElements),
        elements().prop_map(Change::DeleteElements),
    ]
}

fn tuple() -> impl Strategy<Value = Tuple> {
    let ports = prop_oneof![
        any::<(u16, u16)>().prop_map(|(source, destination)| Ports::Ports {
            source,
            destination
        }),
        any::<(u16, u8, u8)>().prop_map(|(id, kind, code)| Ports::Icmp { id, kind, code }),
        Just(Ports::None),
    ];
    let v4 = any::<([u8; 4], [u8; 4])>().prop_map(|(s, d)| (IpAddr::from(s), IpAddr::from(d)));
    let v6 = any::<([u8; 16], [u8; 16])>().prop_map(|(s, d)| (IpAddr::from(s), IpAddr::from(d)));
    (prop_oneof![v4, v6], any::<u8>(), ports).prop_map(
        |((source, destination), protocol, ports)| Tuple {
            source,
            destination,
            protocol,
            ports,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changes_read_from_their_own_batch_are_the_same(changes in vec(change(), 0..8), seq in any::<u32>()) {
        let batch = encode_batch(&changes, seq).unwrap();
        prop_assert_eq!(decode_changes(&batch.bytes).unwrap(), changes.clone());
        let all = decode_all(&batch.bytes).unwrap();
        prop_assert_eq!(&all.first().unwrap().1, &Message::BatchBegin(None));
        prop_assert_eq!(&all.last().unwrap().1, &Message::BatchEnd);
        for (at, (header, _)) in all.iter().enumerate() {
            let offset = u32::try_from(at).unwrap();
            prop_assert_eq!(header.seq, seq.wrapping_add(offset));
            let expected = (at > 0 && at + 1 < all.len()).then(|| at - 1);
            prop_assert_eq!(batch.change_of(header.seq), expected);
            prop_assert_eq!(header.flags & nft_wire::frame::ACK != 0, Some(header.seq) == batch.ack_seq());
        }
        prop_assert_eq!(all.last().unwrap().0.seq.wrapping_add(1), batch.next_seq());
        let total: usize = changes.iter().map(encoded_len).sum();
        prop_assert_eq!(total + 40, batch.bytes.len());
    }

    #[test]
    fn flow_read_from_its_own_message_is_the_same(tuple in tuple(), mark in any::<u32>(), zone in any::<u16>()) {
        let mut out = Vec::new();
        conntrack::encode_mark(&tuple, zone, Mark { value: mark, mask: u32::MAX }, 9, &mut out);
        let start = out.len();
        conntrack::encode_delete(&tuple, zone, Some(5), 10, &mut out);
        conntrack::set_ack(&mut out, start);
        let frames: Vec<_> = Frames::new(&out).map(Result::unwrap).collect();
        prop_assert_eq!(frames.len(), 2);
        prop_assert_eq!((frames[0].header.flags, frames[1].header.flags), (1, 5));
        // A dump has both directions; our messages name a flow by its original one.
        let missing = nft_wire::error::DecodeError::Missing { what: "flow reply tuple" };
        prop_assert_eq!(conntrack::decode(&frames[0]).unwrap_err(), missing);
    }
}

#[test]
fn empty_list_of_elements_is_no_message_since_that_would_mean_all_of_them() {
    let elements = Elements {
        table: TableRef::new(Family::Inet, "t"),
        set: "s".into(),
        elements: Vec::new(),
    };
    let batch = encode_batch(&[Change::DeleteElements(elements)], 1).unwrap();
    assert!(batch.changes.is_empty());
    assert_eq!(batch.ack_seq(), None);
}

#[test]
fn rule_longer_than_an_attribute_is_refused_by_its_index() {
    let table = TableRef::new(Family::Inet, "t");
    let exprs = vec![Expr::Verdict(Verdict::Accept); 2_000];
    let long = Change::AddRule(Rule::new(&table, "c", exprs));
    let changes = [Change::DeleteTable(table), long];
    assert_eq!(encode_batch(&changes, 1).unwrap_err().index, 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn many_elements_become_messages_within_the_limits_and_stay_the_same(
        count in 1_usize..12_000,
        len in 1_usize..=64,
    ) {
        let elements = (0..count).map(|n| {
            let mut bytes = n.to_be_bytes().to_vec();
            bytes.resize(len.max(4), 7);
            bytes.rotate_left(len.min(4));
            Element::leading(Key::new(&bytes), Verdict::Accept)
        });
        let elements = Elements {
            table: TableRef::new(Family::Inet, "t"),
            set: "s".into(),
            elements: elements.collect(),
        };
        let wanted = elements.elements.clone();
        let batch = encode_batch(&[Change::DeleteElements(elements)], 1).unwrap();
        let mut found = Vec::new();
        for change in decode_changes(&batch.bytes).unwrap() {
            let Change::DeleteElements(some) = change else { panic!("{change:?}") };
            prop_assert!(some.elements.len() <= ELEMENTS_MAX);
            found.extend(some.elements);
        }
        prop_assert_eq!(found, wanted);
        for frame in Frames::new(&batch.bytes) {
            prop_assert!(frame.unwrap().payload.len() < 65_536);
        }
    }
}
