//! Answers to flows that entered by an address of the node itself leave by the node's own link.
//!
//! A connection to a NodePort or a hostPort is translated to a pod. The pod's answers would leave by its ENI, as all
//! it sends does, with the node's address as their source, and the VPC drops what an ENI sends with an address that
//! is not its own. So such flows are marked as they enter, their answers take the mark over, and a rule of routing
//! sends marked packets by the main table. The bit, and the rule's priority, are Terway's of its symmetric routing.

use std::net::IpAddr;

use nft_wire::chain::{Chain, Hook};
use nft_wire::change::Change;
use nft_wire::expr::{CmpOp, CtKey, Expr, MetaKey, PayloadBase, Register};
use nft_wire::name::{Family, TableRef};
use nft_wire::rule::Rule;
use nft_wire::table::Table;

use super::MARK as COMMENT;
use super::firewall::{Firewall, Refused};
use crate::desired::HostDesired;
use crate::error::DatapathError;

/// The bit of both marks, of the flow and of the packet.
pub(crate) const BIT: u32 = 0x10;
/// Priority of the rule of routing: behind traffic to pods, before traffic from them.
pub(crate) const PRIORITY: u32 = 600;

const TABLE: &str = "terway_return";
const CHAIN: &str = "prerouting";
/// Behind connection tracking (-200), before any translation of destinations (-100).
///
/// Source: `NF_IP_PRI_MANGLE`.
const HOOK_PRIORITY: i32 = -150;
/// The state "new" among connection tracking's.
///
/// Source: linux/netfilter/nf_conntrack_common.h, `NF_CT_STATE_BIT(IP_CT_NEW)`.
const NEW: u32 = 1 << 3;
/// Source: linux/netfilter.h, `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// Makes table and rules as they should be. Returns what was changed, in words.
pub(crate) fn ensure(host: &HostDesired) -> Result<Vec<String>, DatapathError> {
    let Some(mut firewall) = Firewall::open()? else {
        return Ok(Vec::new());
    };
    let chain = chain();
    let wanted = wanted(&chain, host);
    let mut done = Vec::new();
    let there: Vec<_> = firewall
        .rules(&chain)?
        .into_iter()
        .map(|rule| rule.comment)
        .collect();
    if there
        == wanted
            .iter()
            .map(|rule| rule.comment.clone())
            .collect::<Vec<_>>()
    {
        return Ok(done);
    }
    // Whatever is there is not ours any more: addresses changed, or somebody flushed a part.
    let mut changes = vec![
        Change::AddTable(Table::new(chain.table.clone())),
        Change::DeleteTable(chain.table.clone()),
    ];
    if !wanted.is_empty() {
        changes.push(Change::AddTable(Table::new(chain.table.clone())));
        changes.push(Change::AddChain(chain));
        changes.extend(wanted.into_iter().map(Change::AddRule));
    }
    for change in &changes {
        commit(&mut firewall, change)?;
        if !matches!(change, Change::DeleteTable(_)) {
            done.push(format!("node: {}", super::words(change)));
        }
    }
    Ok(done)
}

/// Takes the table back; that there is none is fine.
pub(crate) fn leave() -> Result<Vec<String>, DatapathError> {
    ensure(&HostDesired {
        v6: false,
        veth_prefixes: Vec::new(),
        node_addresses: Vec::new(),
    })
}

fn commit(firewall: &mut Firewall, change: &Change) -> Result<(), DatapathError> {
    firewall.commit(change).map_err(|refused| match refused {
        Refused::Not(why) => DatapathError::Garbled(format!("{}: {why}", change.label())),
        Refused::Broken(error) => error,
    })
}

fn chain() -> Chain {
    let table = TableRef::new(Family::Inet, TABLE);
    Chain::filter(&table, CHAIN, Hook::Prerouting, HOOK_PRIORITY)
}

fn wanted(chain: &Chain, host: &HostDesired) -> Vec<Rule> {
    if host.node_addresses.is_empty() {
        return Vec::new();
    }
    let enter = host.node_addresses.iter().map(|ip| enters(chain, *ip));
    let answer = host.veth_prefixes.iter().map(|p| answers(chain, p));
    enter.chain(answer).collect()
}

/// The first packet of a flow to the node's address marks the flow.
fn enters(chain: &Chain, ip: IpAddr) -> Rule {
    let (protocol, offset, bytes) = match ip {
        IpAddr::V4(ip) => (IPV4, 16, ip.octets().to_vec()),
        IpAddr::V6(ip) => (IPV6, 24, ip.octets().to_vec()),
    };
    let len = if ip.is_ipv4() { 4 } else { 16 };
    let mut exprs = vec![
        Expr::Meta {
            key: MetaKey::Nfproto,
            to: Register::FIRST,
        },
        equal(vec![protocol]),
        Expr::Payload {
            base: PayloadBase::Network,
            offset,
            len,
            to: Register::FIRST,
        },
        equal(bytes),
    ];
    exprs.extend(has_bit(CtKey::State, NEW));
    exprs.extend([
        ct(CtKey::Mark),
        set_bit(),
        Expr::CtSet {
            key: CtKey::Mark,
            from: Register::FIRST,
        },
    ]);
    rule(chain, format!("{COMMENT} enters {ip}"), exprs)
}

/// A packet from a pod that belongs to such a flow is marked as well.
fn answers(chain: &Chain, prefix: &str) -> Rule {
    let mut exprs = vec![
        Expr::Meta {
            key: MetaKey::Iifname,
            to: Register::FIRST,
        },
        // As many bytes take part as there are: a prefix.
        equal(prefix.as_bytes().to_vec()),
    ];
    exprs.extend(has_bit(CtKey::Mark, BIT));
    exprs.extend([
        Expr::Meta {
            key: MetaKey::Mark,
            to: Register::FIRST,
        },
        set_bit(),
        Expr::MetaSet {
            key: MetaKey::Mark,
            from: Register::FIRST,
        },
    ]);
    rule(chain, format!("{COMMENT} answers {prefix}"), exprs)
}

fn rule(chain: &Chain, comment: String, exprs: Vec<Expr>) -> Rule {
    Rule {
        comment: Some(comment.into()),
        ..Rule::new(&chain.table, &chain.name, exprs)
    }
}

fn ct(key: CtKey) -> Expr {
    Expr::Ct {
        key,
        direction: None,
        to: Register::FIRST,
    }
}

fn equal(data: Vec<u8>) -> Expr {
    Expr::Cmp {
        op: CmpOp::Eq,
        from: Register::FIRST,
        data,
    }
}

fn has_bit(key: CtKey, bit: u32) -> [Expr; 3] {
    [
        ct(key),
        Expr::Bitwise {
            from: Register::FIRST,
            to: Register::FIRST,
            mask: bit.to_ne_bytes().to_vec(),
            xor: vec![0; 4],
        },
        Expr::Cmp {
            op: CmpOp::Neq,
            from: Register::FIRST,
            data: vec![0; 4],
        },
    ]
}

fn set_bit() -> Expr {
    Expr::Bitwise {
        from: Register::FIRST,
        to: Register::FIRST,
        mask: (!BIT).to_ne_bytes().to_vec(),
        xor: BIT.to_ne_bytes().to_vec(),
    }
}
