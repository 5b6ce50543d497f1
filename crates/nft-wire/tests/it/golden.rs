//! Bytes that `nft` 1.0.6 sent for `golden/sent.nft`, and what Linux 6.18 then answered to dumps.

use nft_wire::change::Change;
use nft_wire::element::Element;
use nft_wire::expr::{CmpOp, Expr};
use nft_wire::message::{Message, decode_all};
use nft_wire::rule::Rule;

use crate::sample;

pub(crate) const SENT: &str = include_str!("../golden/sent.hex");
pub(crate) const DUMPED: &str = include_str!("../golden/dump.hex");

/// One message per line.
pub(crate) fn messages(hex: &str) -> Vec<Vec<u8>> {
    hex.lines()
        .map(|line| {
            (0..line.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap())
                .collect()
        })
        .collect()
}

fn changes(hex: &str) -> Vec<Change> {
    let all = messages(hex).concat();
    let all = decode_all(&all).unwrap();
    all.into_iter()
        .filter_map(|(_, message)| match message {
            Message::Change(change) => Some(change),
            _ => None,
        })
        .collect()
}

/// Where `nft` and we say the same thing differently, brought into one form: a range is two
/// comparisons there and one expression here, and a key of one byte is turned around there for nothing.
fn normal(mut rule: Rule) -> Rule {
    rule.handle = None;
    let mut exprs: Vec<Expr> = Vec::new();
    for expr in rule.exprs {
        match expr {
            Expr::Range {
                inverted: false,
                from,
                low,
                high,
            } => {
                let (gte, lte) = (CmpOp::Gte, CmpOp::Lte);
                exprs.push(Expr::Cmp {
                    op: gte,
                    from,
                    data: low,
                });
                exprs.push(Expr::Cmp {
                    op: lte,
                    from,
                    data: high,
                });
            }
            // A superfluous conversion of one byte.
            Expr::Byteorder { .. } => {}
            other => exprs.push(other),
        }
    }
    rule.exprs = exprs;
    rule
}

fn rules(changes: &[Change]) -> Vec<Rule> {
    changes
        .iter()
        .filter_map(|change| match change {
            Change::AddRule(rule) => Some(normal(rule.clone())),
            _ => None,
        })
        .collect()
}

fn sorted(changes: &[Change], set: &str) -> Vec<Element> {
    let mut all: Vec<Element> = changes
        .iter()
        .filter_map(|change| match change {
            Change::AddElements(elements) if &*elements.set == set => Some(&elements.elements),
            _ => None,
        })
        .flatten()
        .cloned()
        .collect();
    for element in &mut all {
        if let Some(life) = element.life.as_mut() {
            life.expiration = None;
            life.counter = None;
        }
    }
    // `nft` closes the gap before the first range; it means nothing.
    all.retain(|e| !(e.interval_end && e.key.as_bytes() == [0; 4]));
    all.sort();
    // It also sends ranges twice.
    all.dedup();
    all
}

fn compare(hex: &str) {
    let theirs = changes(hex);
    let ours = sample::transaction();
    let (their_rules, our_rules) = (rules(&theirs), rules(&ours));
    assert_eq!(their_rules.len(), our_rules.len());
    for (at, (theirs, ours)) in their_rules.iter().zip(&our_rules).enumerate() {
        assert_eq!(theirs, ours, "rule {at}");
    }
    for set in sample::sets() {
        let found = theirs.iter().find_map(|change| match change {
            Change::AddSet(theirs) if theirs.name == set.name => Some(theirs),
            _ => None,
        });
        assert_eq!(found, Some(&set));
        assert_eq!(
            sorted(&theirs, &set.name),
            sorted(&ours, &set.name),
            "{}",
            set.name
        );
    }
    for chain in sample::chains()
        .into_iter()
        .chain([sample::ingress_chain()])
    {
        let found = theirs.iter().find_map(|change| match change {
            Change::AddChain(theirs) if theirs.name == chain.name => Some(theirs),
            _ => None,
        });
        assert_eq!(found, Some(&chain));
    }
}

#[test]
fn what_nft_sends_means_what_our_builder_says() {
    compare(SENT);
}

#[test]
fn what_the_kernel_dumps_means_what_our_builder_says() {
    compare(DUMPED);
}

#[test]
fn sets_that_we_send_carry_the_same_attributes_as_those_of_nft() {
    let ours: Vec<Change> = sample::sets().into_iter().map(Change::AddSet).collect();
    let batch = nft_wire::batch::encode_batch(&ours, 0).unwrap();
    let mut ours = split(&batch.bytes);
    ours.retain(|m| is_set(m));
    let mut theirs = messages(SENT);
    theirs.retain(|m| is_set(m));
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(attributes(ours), attributes(theirs));
    }
}

fn split(datagram: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = datagram;
    let mut out = Vec::new();
    while let Some(len) = rest.first_chunk::<4>() {
        let len = usize::try_from(u32::from_ne_bytes(*len)).unwrap();
        out.push(rest[..len].to_vec());
        rest = &rest[len.next_multiple_of(4).min(rest.len())..];
    }
    out
}

fn is_set(message: &[u8]) -> bool {
    message[4..6] == [9, 10]
}

/// Type and value of each attribute but the transaction's own number for a set, and the notes that
/// `nft` leaves for itself.
fn attributes(message: &[u8]) -> std::collections::BTreeMap<u16, Vec<u8>> {
    const ID: u16 = 10;
    const USERDATA: u16 = 13;
    let mut rest = &message[20..];
    let mut out = std::collections::BTreeMap::new();
    while let [l0, l1, k0, k1, ..] = *rest {
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let kind = u16::from_ne_bytes([k0, k1]) & 0x3fff;
        if kind != ID && kind != USERDATA {
            out.insert(kind, rest[4..len].to_vec());
        }
        rest = &rest[len.next_multiple_of(4).min(rest.len())..];
    }
    out
}
