//! One rule of a Calico policy.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::Value;

use super::calico_policy::selector;
use super::field::{Broken, Fields, Notes, Place, port_number, present};
use super::port::networks_or_addresses;
use crate::flow::{Direction, Protocol};
use crate::policy::{Action, NamespaceScope, Peer, Peers, PodScope, Port, Ports};
use crate::selector::{SERVICE_ACCOUNT, Selector};

/// What a rule does, to whom, on which ports.
pub(super) type Parts = (Action, Peers, Ports);

/// Reads a rule; otherwise what it would have done, if that is known.
pub(super) fn read(
    value: &Value,
    (direction, own): (Direction, Option<&Arc<str>>),
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Parts, Option<Action>> {
    let fields = notes.as_object(value, at).map_err(|Broken| None)?;
    let action = match fields.get("action").and_then(Value::as_str) {
        Some("Allow") => Action::Accept,
        Some("Deny") => Action::Deny,
        Some("Pass") => Action::Pass,
        Some("Log") => Action::Log,
        Some(_) | None => {
            _ = notes.broken(&at.key("action"), "is not one of Allow, Deny, Pass, Log");
            return Err(None);
        }
    };
    let known = [
        "action",
        "metadata",
        "ipVersion",
        "protocol",
        "notProtocol",
        "source",
        "destination",
    ];
    let clear = notes.only(fields, &known, at);
    let (near, far) = match direction {
        Direction::Ingress => ("destination", "source"),
        Direction::Egress => ("source", "destination"),
    };
    let near = side(fields, near, at, notes, |side, at, notes| {
        // The pods that the policy selects are this side; only their ports are told apart.
        let ports: &[&str] = match direction {
            Direction::Ingress => &["ports", "notPorts"],
            Direction::Egress => &[],
        };
        notes.only(side, ports, at)?;
        Ok(())
    });
    let peers = side(fields, far, at, notes, |side, at, notes| {
        peers(side, (direction, own), at, notes)
    });
    let ports = ports(fields, at, notes);
    let version = version(fields, at, notes);
    match (clear, near, peers, ports, version) {
        (Ok(()), Ok(()), Ok(peer), Ok(ports), Ok(version)) => {
            Ok((action, narrowed(peer, version), ports))
        }
        _ => Err(Some(action)),
    }
}

fn side<'v, T>(
    fields: &'v Fields,
    key: &str,
    at: &Place<'_>,
    notes: &mut Notes,
    read: impl FnOnce(&'v Fields, &Place<'_>, &mut Notes) -> Result<T, Broken>,
) -> Result<T, Broken> {
    static EMPTY: std::sync::LazyLock<Fields> = std::sync::LazyLock::new(Fields::new);
    let side = notes.object(fields, key, at)?.unwrap_or(&EMPTY);
    read(side, &at.key(key), notes)
}

/// A family, as the network that holds all of it.
fn version(fields: &Fields, at: &Place<'_>, notes: &mut Notes) -> Result<Option<IpNet>, Broken> {
    match present(fields, "ipVersion").map(Value::as_u64) {
        None => Ok(None),
        Some(Some(4)) => Ok(Some(every_v4())),
        Some(Some(6)) => Ok(Some(every_v6())),
        Some(_) => Err(notes.broken(&at.key("ipVersion"), "is not 4 or 6")),
    }
}

fn every_v4() -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0))
}

fn every_v6() -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0))
}

/// Conditions on the far end.
#[derive(Debug, Default)]
struct Far {
    pods: Option<PodScope>,
    not_pods: Option<PodScope>,
    within: Vec<IpNet>,
    outside: Vec<IpNet>,
}

/// The far end, narrowed to a family.
fn narrowed(mut far: Far, version: Option<IpNet>) -> Peers {
    if let Some(family) = version {
        if far.within.is_empty() {
            far.within.push(family);
        } else {
            far.within.retain(|net| family.contains(net));
            if far.within.is_empty() {
                return Peers::OneOf(Vec::new());
            }
        }
    }
    let unbound = far.within.is_empty() && far.outside.is_empty() && far.not_pods.is_none();
    match (far.pods, unbound) {
        (None, true) => Peers::Anybody,
        (Some(pods), true) => Peers::OneOf(vec![Peer::Pods(pods)]),
        (pods, false) => Peers::OneOf(vec![Peer::Meet {
            pods,
            within: far.within,
            outside: far.outside,
            not_pods: far.not_pods,
        }]),
    }
}

fn peers(
    side: &Fields,
    (direction, own): (Direction, Option<&Arc<str>>),
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Far, Broken> {
    let ports: &[&str] = match direction {
        // Ports of a source are not told apart.
        Direction::Ingress => &[],
        Direction::Egress => &["ports", "notPorts"],
    };
    let known: Vec<&str> = [
        "nets",
        "notNets",
        "selector",
        "notSelector",
        "namespaceSelector",
        "serviceAccounts",
    ]
    .iter()
    .chain(ports)
    .copied()
    .collect();
    notes.only(side, &known, at)?;
    let pods = selector(side, "selector", at, notes)?;
    let excluded = selector(side, "notSelector", at, notes)?;
    let namespaces = selector(side, "namespaceSelector", at, notes)?;
    let (names, accounts) = service_accounts(side, at, notes)?;
    // In a policy with a namespace each of these means its own pods, an exclusion too.
    let means_pods = pods.is_some()
        || namespaces.is_some()
        || accounts.is_some()
        || names.is_some()
        || (own.is_some() && excluded.is_some());
    let scope = |namespaces, pods, accounts| PodScope {
        namespaces,
        pods: Arc::new(pods),
        accounts: Arc::new(accounts),
    };
    let home = own.map_or(NamespaceScope::Any, |own| {
        NamespaceScope::Own(Arc::clone(own))
    });
    Ok(Far {
        pods: means_pods.then(|| {
            scope(
                namespaces.map_or(home, |selector| {
                    NamespaceScope::Matching(Arc::new(selector))
                }),
                Selector::all(pods.into_iter().chain(names)),
                accounts.unwrap_or(Selector::Everything),
            )
        }),
        not_pods: excluded.map(|pods| scope(NamespaceScope::Any, pods, Selector::Everything)),
        within: networks_or_addresses(side, "nets", at, notes)?,
        outside: networks_or_addresses(side, "notNets", at, notes)?,
    })
}

/// Names and labels of service accounts; the names as a condition on the label that Calico gives to pods.
fn service_accounts(
    side: &Fields,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<(Option<Selector>, Option<Selector>), Broken> {
    let Some(fields) = notes.object(side, "serviceAccounts", at)? else {
        return Ok((None, None));
    };
    let at = at.key("serviceAccounts");
    notes.only(fields, &["names", "selector"], &at)?;
    let list = notes.list(fields, "names", &at)?.unwrap_or_default();
    let mut names: Vec<Arc<str>> = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        match value.as_str() {
            Some(name) => names.push(Arc::from(name)),
            None => return Err(notes.broken(&at.key("names").item(index), "is not a text")),
        }
    }
    names.sort();
    names.dedup();
    let names = (!names.is_empty()).then(|| Selector::In(Arc::from(SERVICE_ACCOUNT), names.into()));
    Ok((names, selector(fields, "selector", &at, notes)?))
}

/// A protocol by name or number.
fn protocol(
    fields: &Fields,
    key: &str,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Option<Protocol>, Broken> {
    let Some(value) = present(fields, key) else {
        return Ok(None);
    };
    let number = match value.as_str() {
        Some("TCP") => Some(Protocol::TCP.0),
        Some("UDP") => Some(Protocol::UDP.0),
        Some("SCTP") => Some(Protocol::SCTP.0),
        Some("ICMP") => Some(Protocol::ICMP.0),
        Some("ICMPv6") => Some(Protocol::ICMPV6.0),
        Some("UDPLite") => Some(136),
        Some(text) => text.parse().ok(),
        None => value.as_u64().and_then(|number| u8::try_from(number).ok()),
    };
    number
        .filter(|number| *number != 0)
        .map(|number| Some(Protocol(number)))
        .ok_or_else(|| notes.broken(&at.key(key), format!("{value} is not a protocol")))
}

/// Protocol and ports of the destination.
fn ports(fields: &Fields, at: &Place<'_>, notes: &mut Notes) -> Result<Ports, Broken> {
    let wanted = protocol(fields, "protocol", at, notes)?;
    let unwanted = protocol(fields, "notProtocol", at, notes)?;
    let here = at.key("destination");
    let (with, without) = match notes.object(fields, "destination", at)? {
        None => (Vec::new(), Vec::new()),
        Some(side) => (
            port_list(side, "ports", wanted, &here, notes)?,
            port_list(side, "notPorts", wanted, &here, notes)?,
        ),
    };
    Ok(match (wanted, unwanted) {
        (None, None) => Ports::Every,
        // No protocol is left out of the others.
        (None, Some(unwanted)) => Ports::OneOf(
            (0..=u8::MAX)
                .map(Protocol)
                .filter(|protocol| *protocol != unwanted)
                .map(Port::All)
                .collect(),
        ),
        (Some(wanted), Some(unwanted)) if wanted == unwanted => Ports::OneOf(Vec::new()),
        (Some(wanted), _) => {
            let with = if with.is_empty() {
                vec![Port::All(wanted)]
            } else {
                with
            };
            if without.is_empty() {
                Ports::OneOf(with)
            } else {
                Ports::Except(with, without)
            }
        }
    })
}

fn port_list(
    side: &Fields,
    key: &str,
    protocol: Option<Protocol>,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Vec<Port>, Broken> {
    let list = notes.list(side, key, at)?.unwrap_or_default();
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let at = at.key(key);
    let Some(protocol) = protocol.filter(|protocol| protocol.has_ports()) else {
        return Err(notes.broken(&at, "stands without a protocol that has ports"));
    };
    let read = |(index, value)| {
        port(value, protocol)
            .ok_or_else(|| notes.broken(&at.item(index), format!("{value} is not a port")))
    };
    let mut ports = list
        .iter()
        .enumerate()
        .map(read)
        .collect::<Result<Vec<_>, _>>()?;
    ports.sort();
    ports.dedup();
    Ok(ports)
}

/// A number, "80", "80:90", or a name.
fn port(value: &Value, protocol: Protocol) -> Option<Port> {
    let number = |text: &str| text.parse().ok().filter(|number: &u16| *number != 0);
    let Some(text) = value.as_str() else {
        return port_number(value).map(|number| Port::Range(protocol, number, number));
    };
    if let Some((first, last)) = text.split_once(':') {
        let (first, last) = (number(first)?, number(last)?);
        return (first <= last).then_some(Port::Range(protocol, first, last));
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        let number = number(text)?;
        return Some(Port::Range(protocol, number, number));
    }
    Some(Port::Named(Some(protocol), Arc::from(text)))
}
