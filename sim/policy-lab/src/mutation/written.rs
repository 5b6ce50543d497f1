//! Mistakes in writing, planted on transactions.

use std::sync::Arc;

use nft_wire::change::Change;
use nft_wire::expr::{CmpOp, CtKey, Expr, MetaKey, PayloadBase, Register};
use nft_wire::rule::Rule;
use nft_wire::verdict::Verdict;

use crate::mutation::Mistake;

type Rewrite = fn(Vec<Change>) -> Vec<Change>;

/// The transaction as somebody writes it who makes the mistake.
pub fn changes(mistake: Mistake, changes: Vec<Change>) -> Vec<Change> {
    let rewrite: [(Mistake, Rewrite); 5] = [
        (Mistake::IngressV6Forgotten, accept_v6_on_arrival),
        (Mistake::EstablishedBeforeMark, established_first),
        (Mistake::ResetsEaten, resets_eaten),
        (Mistake::DiscoveryWithoutHopLimit, any_hop_limit),
        (Mistake::NoteAndDropInOneRule, one_rule),
    ];
    match rewrite.iter().find(|(of, _)| *of == mistake) {
        Some((_, rewrite)) => rewrite(changes),
        None => changes,
    }
}

fn rules_of(changes: &mut [Change]) -> impl Iterator<Item = &mut Rule> {
    changes.iter_mut().filter_map(|change| {
        if let Change::AddRule(rule) = change {
            Some(rule)
        } else {
            None
        }
    })
}

fn loads(rule: &Rule, wanted: CtKey) -> bool {
    rule.exprs
        .iter()
        .any(|expr| matches!(expr, Expr::Ct { key, .. } if *key == wanted))
}

fn accepts(rule: &Rule) -> bool {
    rule.exprs.contains(&Expr::Verdict(Verdict::Accept))
}

/// The chain that judges arrivals begins with a rule that accepts IPv6.
fn accept_v6_on_arrival(changes: Vec<Change>) -> Vec<Change> {
    let mut out = Vec::with_capacity(changes.len());
    let mut done = false;
    for change in changes {
        if let Change::AddRule(rule) = &change
            && &*rule.chain == "ing"
            && !done
        {
            done = true;
            let exprs = vec![
                Expr::Meta {
                    key: MetaKey::Nfproto,
                    to: Register::FIRST,
                },
                Expr::Cmp {
                    op: CmpOp::Eq,
                    from: Register::FIRST,
                    data: vec![10],
                },
                Expr::Verdict(Verdict::Accept),
            ];
            out.push(Change::AddRule(Rule::new(&rule.table, "ing", exprs)));
        }
        out.push(change);
    }
    out
}

/// In each base chain the rule that accepts established flows comes before the one that looks at the mark.
fn established_first(changes: Vec<Change>) -> Vec<Change> {
    let mut out: Vec<Change> = Vec::with_capacity(changes.len());
    for change in changes {
        let Change::AddRule(rule) = &change else {
            out.push(change);
            continue;
        };
        // Where the mark is looked at, established flows are gone already.
        if loads(rule, CtKey::Mark) {
            let exprs = vec![
                Expr::Ct {
                    key: CtKey::State,
                    direction: None,
                    to: Register::FIRST,
                },
                Expr::Bitwise {
                    from: Register::FIRST,
                    to: Register::FIRST,
                    mask: 6_u32.to_ne_bytes().to_vec(),
                    xor: vec![0; 4],
                },
                Expr::Cmp {
                    op: CmpOp::Neq,
                    from: Register::FIRST,
                    data: vec![0; 4],
                },
                Expr::Verdict(Verdict::Accept),
            ];
            out.push(Change::AddRule(Rule::new(&rule.table, &rule.chain, exprs)));
        }
        out.push(change);
    }
    out
}

/// The output chain judges resets of revoked flows like everything else of them.
fn resets_eaten(mut changes: Vec<Change>) -> Vec<Change> {
    // The exemption is a rule that accepts, or a condition on the flags in front of the jump.
    changes.retain(|change| {
        !matches!(change, Change::AddRule(rule)
            if &*rule.chain == "out" && reads_flags(rule) && accepts(rule))
    });
    for rule in rules_of(&mut changes).filter(|rule| &*rule.chain == "out") {
        while let Some(at) = rule.exprs.iter().position(is_flags) {
            // The load, what it is masked with, and the comparison.
            let end = rule
                .exprs
                .iter()
                .skip(at)
                .position(|e| matches!(e, Expr::Cmp { .. }))
                .map_or(at, |cmp| at + cmp);
            rule.exprs.drain(at..=end);
        }
    }
    changes
}

fn is_flags(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::Payload {
            base: PayloadBase::Transport,
            offset: 13,
            ..
        }
    )
}

fn reads_flags(rule: &Rule) -> bool {
    rule.exprs.iter().any(is_flags)
}

/// Conditions on the hop limit of IPv6 are left out.
fn any_hop_limit(mut changes: Vec<Change>) -> Vec<Change> {
    for rule in rules_of(&mut changes) {
        let at = rule.exprs.iter().position(|expr| {
            matches!(
                expr,
                Expr::Payload {
                    base: PayloadBase::Network,
                    offset: 7,
                    len: 1,
                    ..
                }
            )
        });
        if let Some(at) = at {
            rule.exprs.drain(at..(at + 2).min(rule.exprs.len()));
        }
    }
    changes
}

/// The drop stands behind the note of the denied flow, in the same rule.
fn one_rule(changes: Vec<Change>) -> Vec<Change> {
    let mut out = Vec::with_capacity(changes.len());
    let mut drop_of: Option<Arc<str>> = None;
    for change in changes {
        let Change::AddRule(mut rule) = change else {
            out.push(change);
            continue;
        };
        let drops = rule.exprs.contains(&Expr::Verdict(Verdict::Drop));
        if rule.exprs.iter().any(|e| matches!(e, Expr::Dynset { .. })) {
            rule.exprs.push(Expr::Verdict(Verdict::Drop));
            drop_of = Some(Arc::clone(&rule.chain));
        } else if drops && drop_of.as_ref() == Some(&rule.chain) {
            continue;
        }
        out.push(Change::AddRule(rule));
    }
    out
}
