//! NetworkPolicy, and the form of rules that it shares with ACK's GlobalNetworkPolicy.

use std::sync::Arc;

use serde_json::Value;

use super::closed::{void, widened};
use super::field::{Broken, Fields, Meta, Notes, Place};
use super::{label_selector, port};
use crate::flow::Direction;
use crate::policy::{
    Action, Block, NamespaceScope, Peer, Peers, PodScope, Policy, PolicyId, PolicyKind, Ports,
    Rule, Tier,
};
use crate::selector::Selector;

/// Where a policy stands whose rules only add.
#[derive(Debug, Clone)]
pub(super) struct Home {
    /// Namespaces of a peer that names pods alone.
    pub(super) namespaces: NamespaceScope,
}

/// Reads a NetworkPolicy.
pub(super) fn read(meta: &Meta<'_>, spec: &Value, at: &Place<'_>) -> Policy {
    let mut notes = Notes::default();
    let fields = spec_fields(spec, at, &mut notes);
    let own = NamespaceScope::Own(Arc::clone(&meta.namespace));
    let pods = subject_pods(fields, at, &mut notes);
    let (subject, readable) = widened(Ok(own.clone()), pods, Ok(Selector::Everything));
    if let Some(fields) = fields {
        // Such a field would be cut off by an API server, so that what is known is all that counts.
        let known = ["podSelector", "policyTypes", "ingress", "egress"];
        _ = notes.only(fields, &known, at);
    }
    let home = Home { namespaces: own };
    let (ingress, egress) = directions(fields, readable, &home, at, &mut notes);
    Policy {
        id: PolicyId {
            kind: PolicyKind::NetworkPolicy,
            namespace: Arc::clone(&meta.namespace),
            name: Arc::clone(&meta.name),
        },
        tier: Tier::Namespaced,
        order: Policy::KUBERNETES_ORDER,
        subject,
        ingress,
        egress,
        problems: notes.into_problems(),
    }
}

/// The fields of a spec; `None` when it is not an object, which is noted. A missing spec is an empty one.
pub(super) fn spec_fields<'v>(
    spec: &'v Value,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Option<&'v Fields> {
    static EMPTY: std::sync::LazyLock<Fields> = std::sync::LazyLock::new(Fields::new);
    if spec.is_null() {
        return Some(&EMPTY);
    }
    notes.as_object(spec, at).ok()
}

/// `podSelector` of the subject; absent is everything (A7).
pub(super) fn subject_pods(
    fields: Option<&Fields>,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Selector, Broken> {
    let selector = label_selector::optional(fields.ok_or(Broken)?, "podSelector", at, notes)?;
    Ok(selector.unwrap_or(Selector::Everything))
}

/// The rules of both directions.
pub(super) type Directions = (Option<Vec<Rule>>, Option<Vec<Rule>>);

/// Reads `policyTypes`, `ingress` and `egress`. With a subject that could not be read, isolates and allows nothing.
pub(super) fn directions(
    fields: Option<&Fields>,
    readable: bool,
    home: &Home,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Directions {
    let Some(fields) = fields else {
        return (Some(Vec::new()), Some(Vec::new()));
    };
    let ingress = rules(fields, Direction::Ingress, home, at, notes);
    let egress = rules(fields, Direction::Egress, home, at, notes);
    let isolated = isolated(fields, &egress, at, notes);
    let settle = |isolated: bool, rules: Result<Vec<Rule>, Broken>| {
        isolated.then(|| {
            if readable {
                rules.unwrap_or_default()
            } else {
                Vec::new()
            }
        })
    };
    (settle(isolated.0, ingress), settle(isolated.1, egress))
}

/// Whether the policy is about ingress and about egress; about both when that cannot be read.
fn isolated(
    fields: &Fields,
    egress: &Result<Vec<Rule>, Broken>,
    at: &Place<'_>,
    notes: &mut Notes,
) -> (bool, bool) {
    let Ok(types) = notes.list(fields, "policyTypes", at) else {
        return (true, true);
    };
    // A4: an empty list is as good as none. A list of egress rules that cannot be read may have had one.
    let Some(types) = types.filter(|types| !types.is_empty()) else {
        return (
            true,
            egress.as_ref().map_or(true, |rules| !rules.is_empty()),
        );
    };
    let (mut to, mut from) = (false, false);
    let at = at.key("policyTypes");
    for (index, value) in types.iter().enumerate() {
        match value.as_str() {
            Some("Ingress") => to = true,
            Some("Egress") => from = true,
            Some(_) | None => {
                _ = notes.broken(&at.item(index), format!("{value} is not Ingress or Egress"));
                (to, from) = (true, true);
            }
        }
    }
    (to, from)
}

fn rules(
    fields: &Fields,
    direction: Direction,
    home: &Home,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Vec<Rule>, Broken> {
    let key = match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    let list = notes.list(fields, key, at)?.unwrap_or_default();
    let at = at.key(key);
    Ok(list
        .iter()
        .enumerate()
        .map(|(index, value)| {
            let name: Arc<str> = Arc::from(index.to_string());
            rule(value, direction, home, &at.item(index), notes).map_or_else(
                |Broken| void(Arc::clone(&name), Action::Accept),
                |(peers, ports)| Rule {
                    name: Arc::clone(&name),
                    action: Action::Accept,
                    peers,
                    ports,
                },
            )
        })
        .collect())
}

fn rule(
    value: &Value,
    direction: Direction,
    home: &Home,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<(Peers, Ports), Broken> {
    let fields = notes.as_object(value, at)?;
    let key = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    notes.only(fields, &[key, "ports"], at)?;
    // A6: an empty list is no condition.
    let peers = match notes.list(fields, key, at)? {
        None | Some([]) => Peers::Anybody,
        Some(items) => {
            let at = at.key(key);
            let mut peers: Vec<Peer> = items
                .iter()
                .enumerate()
                .filter_map(|(index, value)| peer(value, home, &at.item(index), notes).ok())
                .collect();
            peers.sort();
            peers.dedup();
            Peers::OneOf(peers)
        }
    };
    let ports = match notes.list(fields, "ports", at)? {
        None | Some([]) => Ports::Every,
        Some(items) => {
            let at = at.key("ports");
            let mut ports: Vec<_> = items
                .iter()
                .enumerate()
                .filter_map(|(index, value)| {
                    port::network_policy(value, &at.item(index), notes).ok()
                })
                .collect();
            ports.sort();
            ports.dedup();
            Ports::OneOf(ports)
        }
    };
    Ok((peers, ports))
}

fn peer(value: &Value, home: &Home, at: &Place<'_>, notes: &mut Notes) -> Result<Peer, Broken> {
    let fields = notes.as_object(value, at)?;
    notes.only(fields, &["podSelector", "namespaceSelector", "ipBlock"], at)?;
    let pods = label_selector::optional(fields, "podSelector", at, notes)?;
    let namespaces = label_selector::optional(fields, "namespaceSelector", at, notes)?;
    let block = notes.object(fields, "ipBlock", at)?;
    match (pods, namespaces, block) {
        (None, None, None) => Err(notes.broken(at, "has no field that is known")),
        (None, None, Some(block)) => ip_block(block, &at.key("ipBlock"), notes).map(Peer::Block),
        (_, _, Some(_)) => Err(notes.broken(
            &at.key("ipBlock"),
            "stands with a selector of pods or namespaces",
        )),
        (pods, namespaces, None) => Ok(Peer::Pods(PodScope {
            namespaces: namespaces.map_or_else(
                || home.namespaces.clone(),
                |selector| NamespaceScope::Matching(Arc::new(selector)),
            ),
            pods: Arc::new(pods.unwrap_or(Selector::Everything)),
            accounts: Arc::new(Selector::Everything),
        })),
    }
}

fn ip_block(fields: &Fields, at: &Place<'_>, notes: &mut Notes) -> Result<Block, Broken> {
    notes.only(fields, &["cidr", "except"], at)?;
    let Some(cidr) = fields.get("cidr") else {
        return Err(notes.broken(&at.key("cidr"), "is missing"));
    };
    let cidr = port::network(cidr, &at.key("cidr"), notes)?;
    let mut except = port::networks(fields, "except", at, notes)?;
    // C3: families never cross, and what lies outside takes nothing away.
    except.retain(|net| net.contains(&cidr) || cidr.contains(net));
    Ok(Block { cidr, except })
}
