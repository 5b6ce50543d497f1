//! Calico's GlobalNetworkPolicy and NetworkPolicy, the part that is about pods.
//!
//! Refused with a problem and without effect, since they are about hosts: policies with `doNotTrack`, `preDNAT` or
//! `applyOnForward`. A policy with another tier than `default`, or with fields that are not known, can only deny.
//! Rules with `http`, `icmp`, a port of the source, or conditions on the selected pod's own side are not supported:
//! such an Allow matches nothing, such a Deny or Pass denies everything.

use std::sync::Arc;

use serde_json::Value;

use super::calico_rule;
use super::closed::{deny_all, mute, stand_in, widened};
use super::field::{Broken, Fields, Meta, Notes, Place, present};
use super::network_policy::spec_fields;
use crate::calico;
use crate::flow::Direction;
use crate::policy::{NamespaceScope, Order, PodScope, Policy, PolicyId, PolicyKind, Rule, Tier};
use crate::selector::Selector;

/// What turns a policy into one about hosts.
const ABOUT_HOSTS: [&str; 3] = ["doNotTrack", "preDNAT", "applyOnForward"];

/// Everything else that a spec may hold.
const KNOWN: [&str; 9] = [
    "tier",
    "order",
    "selector",
    "namespaceSelector",
    "serviceAccountSelector",
    "types",
    "ingress",
    "egress",
    "performanceHints",
];

/// Millionths of Calico's `order`.
const ORDER_UNIT: f64 = 1_000_000.0;

/// Reads a policy; a namespaced one when it has a namespace.
pub(super) fn read(meta: &Meta<'_>, spec: &Value, at: &Place<'_>) -> Policy {
    let mut notes = Notes::default();
    let own = Some(&meta.namespace).filter(|namespace| !namespace.is_empty());
    let fields = spec_fields(spec, at, &mut notes);
    let hosts = fields.is_some_and(|fields| about_hosts(fields, at, &mut notes));
    let mut policy = match fields {
        Some(fields) => about_pods(fields, own, at, &mut notes),
        None => Body {
            order: Ok(Order::FIRST),
            subject: widened(Ok(home(own)), Err(Broken), Ok(Selector::Everything)).0,
            ingress: Some(vec![deny_all(Arc::from("0"))]),
            egress: Some(vec![deny_all(Arc::from("0"))]),
        },
    };
    if hosts {
        (policy.ingress, policy.egress) = (None, None);
    }
    Policy {
        id: PolicyId {
            kind: match own {
                None => PolicyKind::CalicoGlobal,
                Some(_) => PolicyKind::CalicoNamespaced,
            },
            namespace: Arc::clone(&meta.namespace),
            name: Arc::clone(&meta.name),
        },
        tier: Tier::Namespaced,
        order: policy.order.unwrap_or(Order::FIRST),
        subject: policy.subject,
        ingress: policy.ingress,
        egress: policy.egress,
        problems: notes.into_problems(),
    }
}

struct Body {
    order: Result<Order, Broken>,
    subject: PodScope,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

fn about_hosts(fields: &Fields, at: &Place<'_>, notes: &mut Notes) -> bool {
    let mut hosts = false;
    for key in ABOUT_HOSTS {
        if present(fields, key).is_some_and(|value| *value != Value::Bool(false)) {
            _ = notes.broken(
                &at.key(key),
                "is about hosts, which is not supported: the policy has no effect",
            );
            hosts = true;
        }
    }
    hosts
}

/// Namespaces of a subject without a condition on them.
fn home(own: Option<&Arc<str>>) -> NamespaceScope {
    own.map_or(NamespaceScope::Any, |own| {
        NamespaceScope::Own(Arc::clone(own))
    })
}

fn about_pods(fields: &Fields, own: Option<&Arc<str>>, at: &Place<'_>, notes: &mut Notes) -> Body {
    let known: Vec<&str> = KNOWN.into_iter().chain(ABOUT_HOSTS).collect();
    let mut clear = notes.only(fields, &known, at).is_ok();
    clear &= match notes.text(fields, "tier", at) {
        Ok(None | Some("" | "default")) => true,
        Ok(Some(_)) => {
            _ = notes.broken(
                &at.key("tier"),
                "is not default, the only tier that is supported",
            );
            false
        }
        Err(Broken) => false,
    };
    let order = order(fields, at, notes);
    let (subject, readable) = subject(fields, own, at, notes);
    let types = types(fields, at, notes);
    let (to, from) = types.unwrap_or((true, true));
    clear &= order.is_ok() && readable && types.is_ok();
    let mut read = |direction, wanted: bool| {
        let mut rules = rules(fields, direction, own, at, notes);
        if !clear {
            mute(&mut rules);
        }
        wanted.then_some(rules)
    };
    let ingress = read(Direction::Ingress, to);
    let egress = read(Direction::Egress, from);
    Body {
        order,
        subject,
        ingress,
        egress,
    }
}

/// `order` in millionths; absent is last.
fn order(fields: &Fields, at: &Place<'_>, notes: &mut Notes) -> Result<Order, Broken> {
    let Some(value) = present(fields, "order") else {
        return Ok(Order::LAST);
    };
    let Some(order) = value.as_f64().filter(|order| order.is_finite()) else {
        return Err(notes.broken(&at.key("order"), "is not a number"));
    };
    let millionths = format!("{:.0}", order * ORDER_UNIT);
    Ok(Order(millionths.parse().unwrap_or(if order < 0.0 {
        i64::MIN
    } else {
        i64::MAX
    })))
}

/// Whom the policy selects, and whether that could be read. What cannot be read selects every pod of the namespace,
/// of the cluster when global.
fn subject(
    fields: &Fields,
    own: Option<&Arc<str>>,
    at: &Place<'_>,
    notes: &mut Notes,
) -> (PodScope, bool) {
    let pods = selector(fields, "selector", at, notes);
    let accounts = selector(fields, "serviceAccountSelector", at, notes);
    let namespaces = selector(fields, "namespaceSelector", at, notes).and_then(|selector| {
        match (selector, own) {
            (None, _) => Ok(home(own)),
            (Some(selector), None) => Ok(NamespaceScope::Matching(Arc::new(selector))),
            (Some(_), Some(_)) => Err(notes.broken(
                &at.key("namespaceSelector"),
                "stands in a policy that has a namespace",
            )),
        }
    });
    let whole = |part: Result<Option<Selector>, Broken>| {
        part.map(|selector| selector.unwrap_or(Selector::Everything))
    };
    match (namespaces, whole(pods), whole(accounts)) {
        (Ok(namespaces), Ok(pods), Ok(accounts)) => widened(Ok(namespaces), Ok(pods), Ok(accounts)),
        _ => (
            widened(Ok(home(own)), Err(Broken), Ok(Selector::Everything)).0,
            false,
        ),
    }
}

/// A selector in Calico's language; absent and empty are the same.
pub(super) fn selector(
    fields: &Fields,
    key: &str,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Option<Selector>, Broken> {
    notes
        .text(fields, key, at)?
        .filter(|text| !text.trim().is_empty())
        .map(calico::selector)
        .transpose()
        .map_err(|why| notes.broken(&at.key(key), why.to_string()))
}

/// Which directions the policy is about; when it does not say, those that it has rules for, or ingress.
fn types(fields: &Fields, at: &Place<'_>, notes: &mut Notes) -> Result<(bool, bool), Broken> {
    let has = |key| match present(fields, key) {
        None => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(_) => true,
    };
    let types = match notes.list(fields, "types", at)? {
        None | Some([]) => return Ok((has("ingress") || !has("egress"), has("egress"))),
        Some(types) => types,
    };
    let (mut to, mut from) = (false, false);
    for (index, value) in types.iter().enumerate() {
        match value.as_str() {
            Some("Ingress") => to = true,
            Some("Egress") => from = true,
            Some(_) | None => {
                let why = format!("{value} is not Ingress or Egress");
                return Err(notes.broken(&at.key("types").item(index), why));
            }
        }
    }
    Ok((to, from))
}

/// The rules of one direction; a list that cannot be read denies everything, since it may have denied anything.
fn rules(
    fields: &Fields,
    direction: Direction,
    own: Option<&Arc<str>>,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Vec<Rule> {
    let key = match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    let list = match notes.list(fields, key, at) {
        Ok(list) => list.unwrap_or_default(),
        Err(Broken) => return vec![deny_all(Arc::from("0"))],
    };
    let at = at.key(key);
    let read = |(index, value): (usize, &Value)| {
        let name: Arc<str> = Arc::from(index.to_string());
        calico_rule::read(value, (direction, own), &at.item(index), notes).map_or_else(
            |action| stand_in(Arc::clone(&name), action),
            |(action, peers, ports)| Rule {
                name: Arc::clone(&name),
                action,
                peers,
                ports,
            },
        )
    };
    list.iter().enumerate().map(read).collect()
}
