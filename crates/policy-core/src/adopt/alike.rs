//! Whether what the kernel lists is what was sent: counters count on, and some defaults come back filled in.

use nft_wire::expr::Expr;
use nft_wire::rule::Rule;
use nft_wire::set::Set;

use crate::layout::frame::Exprs;

fn expr_alike(a: &Expr, b: &Expr) -> bool {
    match (a, b) {
        (Expr::Counter { .. }, Expr::Counter { .. }) => true,
        (
            Expr::Dynset {
                set: a_set,
                op: a_op,
                key: a_key,
                inverted: a_not,
                ..
            },
            Expr::Dynset {
                set: b_set,
                op: b_op,
                key: b_key,
                inverted: b_not,
                ..
            },
        ) => a_set == b_set && a_op == b_op && a_key == b_key && a_not == b_not,
        _ => a == b,
    }
}

/// Whether two rules are alike.
pub fn exprs_alike(a: &[Expr], b: &[Expr]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| expr_alike(a, b))
}

/// Whether a chain's rules are those that it should have.
pub fn rules_alike(listed: &[Rule], wanted: &[Exprs]) -> bool {
    listed.len() == wanted.len()
        && listed
            .iter()
            .zip(wanted)
            .all(|(a, b)| exprs_alike(&a.exprs, b))
}

/// Whether a set is of the kind that it should be. Size and timeout may be those of an earlier configuration.
pub fn set_alike(listed: &Set, wanted: &Set) -> bool {
    listed.key == wanted.key
        && listed.kind == wanted.kind
        && listed.flags.interval == wanted.flags.interval
        && listed.flags.dynamic == wanted.flags.dynamic
        && listed.timeout.is_some() == wanted.timeout.is_some()
        && listed.counter == wanted.counter
}
