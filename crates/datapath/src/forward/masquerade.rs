//! What pods with an ENI of their own send by way of the node leaves it under the node's address.
//!
//! Such a pod reaches Services by way of the node, where their addresses are translated. The answer must come back the
//! same way, and no ENI of the node may send with the address of a pod that has its own. All else such a pod sends by
//! its own ENI, and never comes here.

use nft_wire::chain::{Base, Chain, Hook, Kind, Policy};
use nft_wire::change::Change;
use nft_wire::expr::{CmpOp, Expr, MetaKey, Register};
use nft_wire::name::{Family, TableRef};
use nft_wire::rule::Rule;
use nft_wire::table::Table;

use super::MARK;
use super::firewall::{Firewall, Refused};
use crate::error::DatapathError;

/// Our table, in both families.
const TABLE: &str = "terway_whole";
const CHAIN: &str = "postrouting";

/// Behind the chains of kube-proxy and of others, which may know better: the first translation of a flow stands.
///
/// Source: `NF_IP_PRI_NAT_SRC` is 100.
const PRIORITY: i32 = 101;

/// Length of a link's name in a register, filled up with zeros.
///
/// Source: `IFNAMSIZ`.
const NAME_LEN: usize = 16;

/// Has what comes in by this link leave under the node's address. Returns what was added.
pub(crate) fn add(link: &str, v6: bool) -> Result<Vec<String>, DatapathError> {
    let Some(mut firewall) = Firewall::open()? else {
        return Ok(Vec::new());
    };
    let mut done = Vec::new();
    for chain in chains().into_iter().take(if v6 { 2 } else { 1 }) {
        if find(&mut firewall, &chain, link)?.is_some() {
            continue;
        }
        let rule = rule(&chain, link);
        let changes = [
            Change::AddTable(Table::new(chain.table.clone())),
            Change::AddChain(chain),
            Change::AddRule(rule),
        ];
        for change in &changes {
            commit(&mut firewall, change)?;
            done.push(format!("node: {}", super::words(change)));
        }
    }
    Ok(done)
}

/// Takes that back; what is not there is fine.
pub(crate) fn remove(link: &str) -> Result<(), DatapathError> {
    let Some(mut firewall) = Firewall::open()? else {
        return Ok(());
    };
    for chain in chains() {
        let Some(rule) = find(&mut firewall, &chain, link)? else {
            continue;
        };
        if let Some(handle) = rule.handle {
            let change = Change::DeleteRule {
                table: rule.table,
                chain: rule.chain,
                handle,
            };
            commit(&mut firewall, &change)?;
        }
        if firewall.rules(&chain)?.is_empty() {
            commit(&mut firewall, &Change::DeleteTable(chain.table))?;
        }
    }
    Ok(())
}

fn find(firewall: &mut Firewall, chain: &Chain, link: &str) -> Result<Option<Rule>, DatapathError> {
    let comment = comment(link);
    let rules = firewall.rules(chain)?;
    Ok(rules
        .into_iter()
        .find(|rule| rule.comment.as_deref() == Some(comment.as_str())))
}

fn commit(firewall: &mut Firewall, change: &Change) -> Result<(), DatapathError> {
    firewall.commit(change).map_err(|refused| match refused {
        Refused::Not(why) => DatapathError::Garbled(format!("{}: {why}", change.label())),
        Refused::Broken(error) => error,
    })
}

fn chains() -> [Chain; 2] {
    [Family::Ipv4, Family::Ipv6].map(|family| Chain {
        table: TableRef::new(family, TABLE),
        name: CHAIN.into(),
        base: Some(Base {
            kind: Kind::Nat,
            hook: Hook::Postrouting,
            priority: PRIORITY,
            policy: Policy::Accept,
            device: None,
        }),
    })
}

fn comment(link: &str) -> String {
    format!("{MARK} masquerade {link}")
}

fn rule(chain: &Chain, link: &str) -> Rule {
    let mut name = link.as_bytes().to_vec();
    name.resize(NAME_LEN, 0);
    let exprs = vec![
        // Known behind the routing too, since kernel 5.7.
        Expr::Meta {
            key: MetaKey::Iifname,
            to: Register::FIRST,
        },
        Expr::Cmp {
            op: CmpOp::Eq,
            from: Register::FIRST,
            data: name,
        },
        Expr::Other {
            name: "masq".into(),
            data: Vec::new(),
        },
    ];
    Rule {
        comment: Some(comment(link).into()),
        ..Rule::new(&chain.table, &chain.name, exprs)
    }
}
