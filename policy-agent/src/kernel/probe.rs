//! What this kernel can do: throw-away tables with everything that the agent uses.

use nft_wire::build::{Ip, Line, Load, STATE_ESTABLISHED, STATE_RELATED};
use nft_wire::chain::{Base, Chain, Hook, Kind, Policy};
use nft_wire::change::Change;
use nft_wire::element::{Element, Elements};
use nft_wire::key::{Field, Key, Part};
use nft_wire::name::{Family, TableRef};
use nft_wire::set::Set;
use nft_wire::table::Table;
use nft_wire::verdict::Verdict;
use std::time::Duration;

use super::nft::{CommitError, Socket};

const TABLE: &str = "terway_probe";
/// No packet comes in by an interface of this name, so the rules behind it judge none.
const NOWHERE: &str = "terway_probe";

/// Which flags of a table the kernel knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ownership {
    /// A table may belong to a socket (kernel 5.12).
    pub owner: bool,
    /// Such a table may outlive it (kernel 6.9).
    pub persist: bool,
}

/// The kernel lacks something that the agent can not do without.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// This feature is missing.
    #[error("this kernel lacks {feature}: {error}")]
    Missing {
        /// What it is, in words.
        feature: &'static str,
        /// What the kernel said.
        error: CommitError,
    },
    /// The probe itself could not be done.
    #[error("probe of the kernel's abilities: {0}")]
    Failed(CommitError),
}

/// Commits and removes a table with every feature, all in one transaction each.
///
/// # Errors
/// [`ProbeError::Missing`] names the first feature that the kernel refuses.
pub fn features(socket: &mut Socket) -> Result<(), ProbeError> {
    let features = all();
    let mut owners = Vec::new();
    let mut changes = Vec::new();
    for (feature, some) in features {
        owners.resize(owners.len() + some.len(), feature);
        changes.extend(some);
    }
    for family in [Family::Inet, Family::Netdev] {
        remove(socket, family)?;
    }
    let committed = socket.commit(&changes);
    if let Err(error) = committed {
        let index = match &error {
            CommitError::Encode(error) => Some(error.index),
            CommitError::Refused { index, .. } => *index,
            CommitError::Owned { index, .. } => Some(*index),
            CommitError::Forbidden | CommitError::NotSent(_) | CommitError::Unknown(_) => None,
        };
        return Err(match index.and_then(|at| owners.get(at)).copied() {
            Some(feature) => ProbeError::Missing { feature, error },
            None => ProbeError::Failed(error),
        });
    }
    for family in [Family::Inet, Family::Netdev] {
        remove(socket, family)?;
    }
    Ok(())
}

/// Finds out which flags of a table the kernel knows.
///
/// # Errors
/// [`ProbeError::Failed`] when even a plain table is refused.
pub fn ownership(socket: &mut Socket) -> Result<Ownership, ProbeError> {
    remove(socket, Family::Inet)?;
    let mut table = Table::new(TableRef::new(Family::Inet, TABLE));
    for (owner, persist) in [(true, true), (true, false), (false, false)] {
        table.flags.owner = owner;
        table.flags.persist = persist;
        match socket.commit(&[Change::CreateTable(table.clone())]) {
            Ok(_) => {
                // An older kernel might take a flag without a meaning to it.
                let kept = socket.table(&table.at).ok().flatten();
                remove(socket, Family::Inet)?;
                let flags = kept.map_or(table.flags, |table| table.flags);
                return Ok(Ownership {
                    owner: owner && flags.owner,
                    persist: persist && flags.persist,
                });
            }
            Err(CommitError::Refused { .. }) if owner => {}
            Err(error) => return Err(ProbeError::Failed(error)),
        }
    }
    Ok(Ownership::default())
}

fn remove(socket: &mut Socket, family: Family) -> Result<(), ProbeError> {
    socket
        .remove(&TableRef::new(family, TABLE))
        .map_err(ProbeError::Failed)
}

type Feature = (&'static str, Vec<Change>);

fn all() -> Vec<Feature> {
    let at = TableRef::new(Family::Inet, TABLE);
    let mut features = vec![(
        "tables of family inet",
        vec![Change::CreateTable(Table::new(at.clone()))],
    )];
    features.extend(sets(&at));
    features.extend(chains(&at));
    features.extend(spoof());
    features
}

fn sets(at: &TableRef) -> Vec<Feature> {
    let mut record = Set::plain(
        at,
        "record",
        &[
            Field::Ifname,
            Field::Ipv6,
            Field::Ipv6,
            Field::Proto,
            Field::Service,
        ],
    );
    record.flags.dynamic = true;
    record.timeout = Some(Duration::from_mins(1));
    record.size = Some(16);
    record.counter = true;
    let mut ports = Set::verdicts(at, "ports", &[Field::Proto, Field::Service]);
    ports.flags.interval = true;
    let port = |number| Key::of(&[Part::Proto(6), Part::Service(number)]);
    let mut range = Element::box_of(port(80), port(90));
    range.verdict = Some(Verdict::Accept);
    vec![
        (
            "sets of addresses",
            vec![
                Change::CreateSet(Set::plain(at, "v4", &[Field::Ipv4])),
                Change::CreateSet(Set::plain(at, "v6", &[Field::Ipv6])),
            ],
        ),
        (
            "sets of address ranges",
            vec![
                Change::CreateSet(Set::intervals(at, "blocks", &[Field::Ipv4])),
                elements(
                    at,
                    "blocks",
                    Element::addresses([10, 0, 0, 0].into(), [10, 0, 0, 9].into()),
                ),
            ],
        ),
        (
            "concatenated sets",
            vec![Change::CreateSet(Set::plain(
                at,
                "pairs",
                &[Field::Ifname, Field::Ifname],
            ))],
        ),
        (
            "verdict maps by interface name",
            vec![Change::CreateSet(Set::verdicts(
                at,
                "links",
                &[Field::Ifname],
            ))],
        ),
        (
            "maps of concatenated ranges (kernel 5.6)",
            vec![Change::CreateSet(ports), elements(at, "ports", vec![range])],
        ),
        (
            "dynamic sets with timeout and counters",
            vec![Change::CreateSet(record)],
        ),
    ]
}

fn elements(at: &TableRef, set: &str, elements: Vec<Element>) -> Change {
    Change::CreateElements(Elements {
        table: at.clone(),
        set: set.into(),
        elements,
    })
}

fn chains(at: &TableRef) -> Vec<Feature> {
    const R: u32 = 0x0800_0000;
    let line = || Line::new(Family::Inet);
    let rule = |line: Line, chain: &str| Change::AddRule(line.rule(at, chain));
    let source = Load::Source(Ip::V6);
    let record = [
        Load::Iifname,
        source,
        Load::Destination(Ip::V6),
        Load::Protocol,
        Load::DestinationPort,
    ];
    let key = [Load::Protocol, Load::DestinationPort];
    let enter = |chain: &str, to: &str| rule(line().iifname(NOWHERE).jump(to), chain);
    vec![
        (
            "rules and jumps",
            vec![
                Change::CreateChain(Chain::regular(at, "body")),
                Change::CreateChain(Chain::regular(at, "revoked")),
                Change::CreateChain(Chain::filter(at, "late", Hook::Postrouting, 88)),
                Change::CreateChain(Chain::filter(at, "mid", Hook::Forward, 0)),
                enter("late", "body"),
                enter("mid", "revoked"),
            ],
        ),
        (
            "connection tracking state and mark in rules",
            vec![
                rule(
                    line().ct_state(STATE_ESTABLISHED | STATE_RELATED).accept(),
                    "body",
                ),
                rule(line().ct_mark(R).jump("revoked"), "mid"),
            ],
        ),
        (
            "lookups by address, port and interface",
            vec![
                rule(line().iif(0).not_member(&[source], "v6").accept(), "body"),
                rule(line().vmap(&[Load::Iifname], "links"), "body"),
                rule(line().vmap(&key, "ports"), "body"),
                rule(
                    line()
                        .member(&[Load::Iifname, Load::Oifname], "pairs")
                        .accept(),
                    "body",
                ),
                rule(line().protocol(6).dports(1..=2).accept(), "body"),
            ],
        ),
        (
            "neighbour discovery rules",
            vec![rule(
                line().icmpv6(133..=137).hop_limit(255).accept(),
                "body",
            )],
        ),
        (
            "rules that add to a set",
            vec![rule(line().record(&record, "record"), "body")],
        ),
        (
            "reject with TCP reset",
            vec![rule(line().reset(), "revoked")],
        ),
        ("counters", vec![rule(line().counter().drop(), "revoked")]),
    ]
}

fn spoof() -> Vec<Feature> {
    let at = TableRef::new(Family::Netdev, TABLE);
    let chain = Chain {
        table: at.clone(),
        name: "ingress".into(),
        base: Some(Base {
            kind: Kind::Filter,
            hook: Hook::Ingress,
            priority: 0,
            policy: Policy::Accept,
            device: Some("lo".into()),
        }),
    };
    let guarded = Line::new(Family::Netdev)
        .iifname(NOWHERE)
        .source([192, 0, 2, 1].into())
        .drop();
    vec![(
        "ingress chains of family netdev",
        vec![
            Change::CreateTable(Table::new(at.clone())),
            Change::CreateChain(chain),
            Change::AddRule(guarded.rule(&at, "ingress")),
        ],
    )]
}
