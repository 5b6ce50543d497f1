//! Chains that drop what is forwarded by default, as Docker leaves them, and the two rules that let pods through.
//!
//! Accepting in a table of our own would not help: a packet must pass every chain of the hook. So the rules go into
//! each such chain itself, at its end, where they stand in for the policy and for nothing that its owner refuses by a
//! rule. They are known by their comment. It is done by netlink alone; what netlink can not reach is said.

mod firewall;
mod legacy;
pub(crate) mod masquerade;
pub(crate) mod returns;

use nft_wire::chain::{Base, Chain, Hook, Kind, Policy};
use nft_wire::change::Change;
use nft_wire::expr::{CmpOp, Expr, MetaKey, Register};
use nft_wire::name::{Family, Name};
use nft_wire::rule::Rule;
use nft_wire::verdict::Verdict;

use crate::desired::HostDesired;
use crate::error::DatapathError;
use crate::forward::firewall::{Firewall, Refused};

/// What comments of our rules begin with.
const MARK: &str = "terway-pods";

/// What a rule looks at.
const SIDES: [(MetaKey, &str); 2] = [(MetaKey::Iifname, "iifname"), (MetaKey::Oifname, "oifname")];

/// What was done about chains that drop, and what could not be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settled {
    /// Changes that were made, in words.
    pub(crate) done: Vec<String>,
    /// Chains that may drop pods' traffic and that were not changed, each with the reason and what a person can do.
    pub(crate) complaints: Vec<String>,
}

/// Lets traffic of pods through each chain at the forward hook whose policy is DROP, and takes back what is not needed
/// any more.
pub(crate) fn ensure(host: &HostDesired) -> Result<Settled, DatapathError> {
    let mut settled = settle(host.v6, |chain| wanted(chain, host))?;
    legacy::ensure(host, &mut settled)?;
    Ok(settled)
}

/// Takes all our rules back.
pub(crate) fn leave() -> Result<Settled, DatapathError> {
    settle(true, |_| Vec::new())
}

fn settle(v6: bool, wanted: impl Fn(&Chain) -> Vec<Rule>) -> Result<Settled, DatapathError> {
    let mut settled = Settled::default();
    let Some(mut firewall) = Firewall::open()? else {
        return Ok(settled);
    };
    let dormant = firewall.dormant()?;
    for chain in firewall.chains()? {
        let known = match chain.table.family {
            Family::Ipv4 | Family::Inet => true,
            Family::Ipv6 => v6,
            Family::Unspecified | Family::Arp | Family::Netdev | Family::Bridge => false,
        };
        if !known || !is_forward(&chain) || dormant.contains(&chain.table) {
            continue;
        }
        let rules = firewall.rules(&chain)?;
        for change in changes(&rules, wanted(&chain)) {
            match firewall.commit(&change) {
                Ok(()) => settled.done.push(format!("node: {}", words(&change))),
                Err(Refused::Not(why)) => {
                    settled.complaints.push(complaint(&chain, &change, &why));
                    break;
                }
                Err(Refused::Broken(error)) => return Err(error),
            }
        }
    }
    Ok(settled)
}

fn complaint(chain: &Chain, change: &Change, why: &str) -> String {
    format!(
        "chain {} of table {} drops what is forwarded, and pods with it: {} was refused: {why}; \
         let its owner accept links of pods",
        chain.name,
        chain.table,
        words(change)
    )
}

fn is_forward(chain: &Chain) -> bool {
    matches!(
        chain.base,
        Some(Base {
            kind: Kind::Filter,
            hook: Hook::Forward,
            ..
        })
    )
}

/// The rules that a chain should end with.
fn wanted(chain: &Chain, host: &HostDesired) -> Vec<Rule> {
    let drops = chain
        .base
        .as_ref()
        .is_some_and(|base| base.policy == Policy::Drop);
    if !drops {
        return Vec::new();
    }
    let prefixes = host.veth_prefixes.iter();
    prefixes
        .flat_map(|prefix| SIDES.map(|(key, side)| accept(chain, key, side, prefix)))
        .collect()
}

/// As `iptables` writes it too, so that it can read it: interface, counter, verdict.
fn accept(chain: &Chain, key: MetaKey, side: &str, prefix: &str) -> Rule {
    let exprs = vec![
        Expr::Meta {
            key,
            to: Register::FIRST,
        },
        // As many bytes take part as there are: a prefix.
        Expr::Cmp {
            op: CmpOp::Eq,
            from: Register::FIRST,
            data: prefix.as_bytes().to_vec(),
        },
        Expr::Counter {
            packets: 0,
            bytes: 0,
        },
        Expr::Verdict(Verdict::Accept),
    ];
    Rule {
        comment: Some(format!("{MARK} {side} {prefix}").into()),
        ..Rule::new(&chain.table, &chain.name, exprs)
    }
}

/// From the rules that are there to those that should be; rules of others are not looked at.
fn changes(there: &[Rule], wanted: Vec<Rule>) -> Vec<Change> {
    let comment = |rule: &Rule| rule.comment.clone().unwrap_or_default();
    let ours = there.iter().filter(|rule| comment(rule).starts_with(MARK));
    let stale = ours.filter_map(|rule| {
        let kept = wanted.iter().any(|want| want.comment == rule.comment);
        (!kept).then_some(())?;
        Some(Change::DeleteRule {
            table: rule.table.clone(),
            chain: Name::clone(&rule.chain),
            handle: rule.handle?,
        })
    });
    let mut changes: Vec<Change> = stale.collect();
    let missing = wanted
        .into_iter()
        .filter(|want| !there.iter().any(|rule| rule.comment == want.comment));
    changes.extend(missing.map(Change::AddRule));
    changes
}

fn words(change: &Change) -> String {
    let label = change.label();
    if let Change::AddRule(rule) = change {
        let comment = rule.comment.as_deref().unwrap_or_default();
        return format!("{label} {comment:?}");
    }
    label
}

#[cfg(test)]
mod tests {
    use nft_wire::name::TableRef;

    use super::*;

    fn chain(policy: Policy) -> Chain {
        let table = TableRef::new(Family::Ipv4, "filter");
        let mut chain = Chain::filter(&table, "FORWARD", Hook::Forward, 0);
        if let Some(base) = &mut chain.base {
            base.policy = policy;
        }
        chain
    }

    fn host(prefixes: &[&str]) -> HostDesired {
        HostDesired {
            v6: true,
            veth_prefixes: prefixes.iter().map(ToString::to_string).collect(),
            node_addresses: Vec::new(),
        }
    }

    /// As the kernel gives them back.
    fn there(chain: &Chain, host: &HostDesired) -> Vec<Rule> {
        let handles = 1..;
        wanted(chain, host)
            .into_iter()
            .zip(handles)
            .map(|(rule, handle)| Rule {
                handle: Some(handle),
                ..rule
            })
            .collect()
    }

    #[test]
    fn chain_that_drops_gets_two_rules_for_each_prefix_once() {
        let (chain, host) = (chain(Policy::Drop), host(&["cali", "eth"]));

        let first = changes(&[], wanted(&chain, &host));
        let second = changes(&there(&chain, &host), wanted(&chain, &host));

        assert_eq!(first.len(), 4);
        assert!(second.is_empty(), "{second:?}");
    }

    #[test]
    fn rules_of_an_older_prefix_go_and_those_of_others_stay() {
        let chain = chain(Policy::Drop);
        let mut rules = there(&chain, &host(&["old"]));
        let mut other = Rule::new(&chain.table, "FORWARD", Vec::new());
        other.handle = Some(9);
        rules.push(other);

        let changes = changes(&rules, wanted(&chain, &host(&["cali"])));

        let gone: Vec<String> = changes.iter().map(words).collect();
        assert_eq!(
            gone,
            [
                "delete rule from ip filter FORWARD",
                "delete rule from ip filter FORWARD",
                "add rule to ip filter FORWARD \"terway-pods iifname cali\"",
                "add rule to ip filter FORWARD \"terway-pods oifname cali\"",
            ]
        );
        assert!(
            changes
                .iter()
                .all(|change| !matches!(change, Change::DeleteRule { handle: 9, .. }))
        );
    }

    #[test]
    fn chain_that_accepts_again_loses_our_rules() {
        let rules = there(&chain(Policy::Drop), &host(&["cali"]));

        let changes = changes(&rules, wanted(&chain(Policy::Accept), &host(&["cali"])));

        assert_eq!(changes.len(), 2);
    }
}
