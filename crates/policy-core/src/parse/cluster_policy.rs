//! ClusterNetworkPolicy, AdminNetworkPolicy and BaselineAdminNetworkPolicy.
//!
//! A rule with a part that cannot be read is, as the API demands, a rule that matches nothing when it accepts, and a
//! rule that denies everything when it denies or passes. A list of rules, or a whole spec, that cannot be read denies
//! everything. A policy whose subject, tier or priority cannot be read can only deny; what can be read of its place
//! is kept, and the rest is the place where it is heard first.

use std::sync::Arc;

use serde_json::Value;

use super::closed::{deny_all, mute, stand_in, widened};
use super::field::{Broken, Fields, Meta, Notes, Place, present, wrong};
use super::label_selector;
use super::network_policy::spec_fields;
use super::port::{self, single};
use crate::flow::Direction;
use crate::policy::{
    Action, Block, NamespaceScope, Order, Peer, Peers, PodScope, Policy, PolicyId, PolicyKind,
    Port, Ports, Rule, Tier,
};
use crate::selector::Selector;

/// Highest `priority`.
///
/// Source: ClusterNetworkPolicy v1alpha2, AdminNetworkPolicy v1alpha1.
const LAST_PRIORITY: i64 = 1000;

/// Which of the three kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// ClusterNetworkPolicy.
    V1Alpha2,
    /// AdminNetworkPolicy.
    Admin,
    /// BaselineAdminNetworkPolicy.
    BaselineAdmin,
}

impl Dialect {
    const fn kind(self) -> PolicyKind {
        match self {
            Self::V1Alpha2 => PolicyKind::ClusterNetworkPolicy,
            Self::Admin => PolicyKind::AdminNetworkPolicy,
            Self::BaselineAdmin => PolicyKind::BaselineAdminNetworkPolicy,
        }
    }

    /// The word for [`Action::Accept`]; v1alpha1 says Allow (F3).
    const fn accept(self) -> &'static str {
        match self {
            Self::V1Alpha2 => "Accept",
            Self::Admin | Self::BaselineAdmin => "Allow",
        }
    }

    const fn can_pass(self) -> bool {
        !matches!(self, Self::BaselineAdmin)
    }

    const fn ports(self) -> &'static str {
        match self {
            Self::V1Alpha2 => "protocols",
            Self::Admin | Self::BaselineAdmin => "ports",
        }
    }
}

/// Reads a policy.
pub(super) fn read(meta: &Meta<'_>, spec: &Value, at: &Place<'_>, dialect: Dialect) -> Policy {
    let mut notes = Notes::default();
    let fields = spec_fields(spec, at, &mut notes);
    let tier = tier(fields, dialect, at, &mut notes);
    let order = order(fields, dialect, at, &mut notes);
    let (subject, readable) = subject(fields, at, &mut notes);
    let mut lists = [Direction::Ingress, Direction::Egress]
        .map(|direction| rules(fields, direction, dialect, at, &mut notes));
    if !readable || tier.is_err() || order.is_err() {
        // Whom it is about, or before what it stands, is not known: it must not let anything through.
        lists.iter_mut().flatten().for_each(|rules| mute(rules));
    }
    let [ingress, egress] = lists;
    Policy {
        id: PolicyId {
            kind: dialect.kind(),
            namespace: Arc::from(""),
            name: Arc::clone(&meta.name),
        },
        // What is known of the place is kept; the rest is where a denial counts most.
        tier: tier.unwrap_or(Tier::Admin),
        order: order.unwrap_or(Order::FIRST),
        subject,
        ingress,
        egress,
        problems: notes.into_problems(),
    }
}

fn tier(
    fields: Option<&Fields>,
    dialect: Dialect,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Tier, Broken> {
    match dialect {
        Dialect::BaselineAdmin => Ok(Tier::Baseline),
        Dialect::Admin => Ok(Tier::Admin),
        Dialect::V1Alpha2 => match notes.text(fields.ok_or(Broken)?, "tier", at)? {
            Some("Admin") => Ok(Tier::Admin),
            Some("Baseline") => Ok(Tier::Baseline),
            Some(other) => {
                let why = format!("{other:?} is not Admin or Baseline");
                Err(notes.broken(&at.key("tier"), why))
            }
            None => Err(notes.broken(&at.key("tier"), "is missing")),
        },
    }
}

fn order(
    fields: Option<&Fields>,
    dialect: Dialect,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Order, Broken> {
    if dialect == Dialect::BaselineAdmin {
        // The only baseline of v1alpha1 comes after those of v1alpha2, which have priorities.
        return Ok(Order::LAST);
    }
    fields
        .ok_or(Broken)?
        .get("priority")
        .and_then(Value::as_i64)
        .filter(|priority| (0..=LAST_PRIORITY).contains(priority))
        .map(Order)
        .ok_or_else(|| notes.broken(&at.key("priority"), "is not a number from 0 to 1000"))
}

fn subject(fields: Option<&Fields>, at: &Place<'_>, notes: &mut Notes) -> (PodScope, bool) {
    let everywhere = || widened(Err(Broken), Err(Broken), Ok(Selector::Everything));
    let Some(fields) = fields else {
        return everywhere();
    };
    let here = at.key("subject");
    let Some(value) = present(fields, "subject") else {
        _ = notes.broken(&here, "is missing");
        return everywhere();
    };
    let Ok((key, inner)) = single(value, &here, notes) else {
        return everywhere();
    };
    match pods(key, inner, &here, notes) {
        Ok(scope) => (scope, true),
        Err(Broken) => everywhere(),
    }
}

/// Pods of `namespaces: …` or `pods: {namespaceSelector, podSelector}`.
fn pods(key: &str, inner: &Value, at: &Place<'_>, notes: &mut Notes) -> Result<PodScope, Broken> {
    let here = at.key(key);
    let (namespaces, pods) = match key {
        "namespaces" => (
            label_selector::read(inner, &here, notes)?,
            Selector::Everything,
        ),
        "pods" => {
            let fields = notes.as_object(inner, &here)?;
            let known = notes.only(fields, &["namespaceSelector", "podSelector"], &here);
            let namespaces = label_selector::optional(fields, "namespaceSelector", &here, notes);
            let pods = label_selector::optional(fields, "podSelector", &here, notes);
            known?;
            let Some(pods) = pods? else {
                return Err(notes.broken(&here.key("podSelector"), "is missing"));
            };
            (namespaces?.unwrap_or(Selector::Everything), pods)
        }
        _ => return Err(notes.broken(&here, "is not known here")),
    };
    Ok(PodScope {
        namespaces: NamespaceScope::Matching(Arc::new(namespaces)),
        pods: Arc::new(pods),
        accounts: Arc::new(Selector::Everything),
    })
}

fn rules(
    fields: Option<&Fields>,
    direction: Direction,
    dialect: Dialect,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Option<Vec<Rule>> {
    let key = match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    let list = match fields
        .ok_or(Broken)
        .and_then(|fields| notes.list(fields, key, at))
    {
        Ok(list) => list?,
        Err(Broken) => return Some(vec![deny_all(Arc::from("0"))]),
    };
    if list.is_empty() {
        return None;
    }
    let at = at.key(key);
    let read = |(index, value)| rule(value, index, (direction, dialect), &at.item(index), notes);
    Some(list.iter().enumerate().map(read).collect())
}

fn rule(
    value: &Value,
    index: usize,
    (direction, dialect): (Direction, Dialect),
    at: &Place<'_>,
    notes: &mut Notes,
) -> Rule {
    let unnamed = || Arc::from(index.to_string());
    let Ok(fields) = notes.as_object(value, at) else {
        return deny_all(unnamed());
    };
    let name = fields
        .get("name")
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty())
        .map_or_else(unnamed, Arc::from);
    let action = action(fields, dialect, at, notes);
    let both = parts(fields, action, (direction, dialect), at, notes);
    match (action, both) {
        (Ok(action), Ok((peers, ports))) => Rule {
            name,
            action,
            peers,
            ports,
        },
        (action, _) => stand_in(name, action.ok()),
    }
}

fn action(
    fields: &Fields,
    dialect: Dialect,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Action, Broken> {
    match notes.text(fields, "action", at)? {
        Some(word) if word == dialect.accept() => Ok(Action::Accept),
        Some("Deny") => Ok(Action::Deny),
        Some("Pass") if dialect.can_pass() => Ok(Action::Pass),
        Some(other) => Err(notes.broken(
            &at.key("action"),
            format!("{other:?} is not an action here"),
        )),
        None => Err(notes.broken(&at.key("action"), "is missing")),
    }
}

fn parts(
    fields: &Fields,
    action: Result<Action, Broken>,
    (direction, dialect): (Direction, Dialect),
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<(Peers, Ports), Broken> {
    let key = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    // Everything that is wrong is named, hence no early end.
    let mut whole = notes.only(fields, &["name", "action", key, dialect.ports()], at);
    let ports = ports(fields, dialect, at, notes);
    let list = match notes.list(fields, key, at)? {
        None | Some([]) => return Err(notes.broken(&at.key(key), "is missing or empty")),
        Some(list) => list,
    };
    let mut peers = Vec::new();
    for (index, value) in list.iter().enumerate() {
        match peer(value, (action, direction), &at.key(key).item(index), notes) {
            Ok(some) => peers.extend(some),
            Err(broken) => whole = Err(broken),
        }
    }
    whole?;
    let ports = ports?;
    let named = match &ports {
        Ports::OneOf(list) => list.iter().any(|port| matches!(port, Port::Named(..))),
        Ports::Every | Ports::Except(..) => false,
    };
    let pods_alone =
        list.len() == peers.len() && peers.iter().all(|peer| matches!(peer, Peer::Pods(_)));
    if named && !pods_alone {
        return Err(notes.broken(
            &at.key(dialect.ports()),
            "names a port beside peers that are no pods",
        ));
    }
    peers.sort();
    peers.dedup();
    Ok((Peers::OneOf(peers), ports))
}

fn ports(
    fields: &Fields,
    dialect: Dialect,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Ports, Broken> {
    let list = match notes.list(fields, dialect.ports(), at)? {
        None | Some([]) => return Ok(Ports::Every),
        Some(list) => list,
    };
    let at = at.key(dialect.ports());
    let mut ports = Vec::with_capacity(list.len());
    let mut whole = Ok(());
    for (index, value) in list.iter().enumerate() {
        let port = match dialect {
            Dialect::V1Alpha2 => port::cluster_policy(value, &at.item(index), notes),
            Dialect::Admin | Dialect::BaselineAdmin => {
                port::admin_policy(value, &at.item(index), notes)
            }
        };
        match port {
            Ok(port) => ports.push(port),
            Err(broken) => whole = Err(broken),
        }
    }
    ports.sort();
    ports.dedup();
    whole.map(|()| Ports::OneOf(ports))
}

fn peer(
    value: &Value,
    (action, direction): (Result<Action, Broken>, Direction),
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Vec<Peer>, Broken> {
    let (key, inner) = single(value, at, notes)?;
    let here = at.key(key);
    match (key, direction) {
        ("namespaces" | "pods", _) => Ok(vec![Peer::Pods(pods(key, inner, at, notes)?)]),
        ("nodes", Direction::Egress) => {
            let selector = label_selector::read(inner, &here, notes)?;
            Ok(vec![Peer::Nodes(Arc::new(selector))])
        }
        ("networks", Direction::Egress) => {
            let Value::Array(list) = inner else {
                return Err(notes.broken(&here, wrong("a list", inner)));
            };
            let network = |(index, value)| {
                port::network(value, &here.item(index), notes).map(|cidr| {
                    Peer::Block(Block {
                        cidr,
                        except: Vec::new(),
                    })
                })
            };
            list.iter().enumerate().map(network).collect()
        }
        ("domainNames", Direction::Egress) => {
            let broken = notes.broken(&here, "is not supported: matches nothing in an Accept");
            if action == Ok(Action::Accept) {
                Ok(Vec::new())
            } else {
                Err(broken)
            }
        }
        _ => Err(notes.broken(&here, "is not known here")),
    }
}
