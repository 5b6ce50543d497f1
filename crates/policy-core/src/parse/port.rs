//! Ports and networks.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::Value;

use super::field::{Broken, Fields, Notes, Place, port_number, present};
use crate::flow::Protocol;
use crate::policy::Port;

/// A network in CIDR notation, host bits cleared.
pub(super) fn network(value: &Value, at: &Place<'_>, notes: &mut Notes) -> Result<IpNet, Broken> {
    value
        .as_str()
        .and_then(|text| text.parse::<IpNet>().ok())
        .map(|net| net.trunc())
        .ok_or_else(|| notes.broken(at, format!("{value} is not a network such as 10.0.0.0/8")))
}

/// Networks of the list at `key`; absent is empty.
pub(super) fn networks(
    fields: &Fields,
    key: &str,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Vec<IpNet>, Broken> {
    let list = notes.list(fields, key, at)?.unwrap_or_default();
    let at = at.key(key);
    let mut nets = list
        .iter()
        .enumerate()
        .map(|(index, value)| network(value, &at.item(index), notes))
        .collect::<Result<Vec<_>, _>>()?;
    nets.sort();
    nets.dedup();
    Ok(nets)
}

/// Networks of the list at `key`, where an address alone is the network of that address.
pub(super) fn networks_or_addresses(
    fields: &Fields,
    key: &str,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Vec<IpNet>, Broken> {
    let list = notes.list(fields, key, at)?.unwrap_or_default();
    let at = at.key(key);
    let mut nets = list
        .iter()
        .enumerate()
        .map(
            |(index, value)| match value.as_str().map(str::parse::<IpAddr>) {
                Some(Ok(address)) => Ok(IpNet::from(address)),
                Some(Err(_)) | None => network(value, &at.item(index), notes),
            },
        )
        .collect::<Result<Vec<_>, _>>()?;
    nets.sort();
    nets.dedup();
    Ok(nets)
}

/// `protocol` of a port; TCP when absent (D1).
fn protocol(fields: &Fields, at: &Place<'_>, notes: &mut Notes) -> Result<Protocol, Broken> {
    let Some(name) = notes.text(fields, "protocol", at)? else {
        return Ok(Protocol::TCP);
    };
    Protocol::from_name(name).ok_or_else(|| {
        notes.broken(
            &at.key("protocol"),
            format!("{name:?} is not one of TCP, UDP, SCTP"),
        )
    })
}

/// A range of ports with both ends in it.
fn range(
    protocol: Protocol,
    ends: (u16, u16),
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Port, Broken> {
    if ends.1 < ends.0 {
        return Err(notes.broken(at, format!("{} is less than {}", ends.1, ends.0)));
    }
    Ok(Port::Range(protocol, ends.0, ends.1))
}

/// A port of a NetworkPolicy.
pub(super) fn network_policy(
    value: &Value,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Port, Broken> {
    let fields = notes.as_object(value, at)?;
    notes.only(fields, &["protocol", "port", "endPort"], at)?;
    let protocol = protocol(fields, at, notes)?;
    let end = notes.port(fields, "endPort", at)?;
    match (present(fields, "port"), end) {
        (None, None) => Ok(Port::All(protocol)),
        (None, Some(_)) => Err(notes.broken(&at.key("endPort"), "stands without port")),
        (Some(Value::String(_)), Some(_)) => {
            Err(notes.broken(&at.key("endPort"), "stands with a port name"))
        }
        (Some(Value::String(name)), None) => named(Some(protocol), name, &at.key("port"), notes),
        (Some(number), end) => {
            let first = port_number(number).ok_or_else(|| {
                notes.broken(
                    &at.key("port"),
                    format!("{number} is neither a port number from 1 to 65535 nor a name"),
                )
            })?;
            range(
                protocol,
                (first, end.unwrap_or(first)),
                &at.key("endPort"),
                notes,
            )
        }
    }
}

/// A port name: up to 15 letters, digits and hyphens, with a letter in it.
pub(super) fn named(
    protocol: Option<Protocol>,
    name: &str,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Port, Broken> {
    if name.is_empty() {
        return Err(notes.broken(at, "is an empty name"));
    }
    let plain = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let lettered = name.bytes().any(|b| b.is_ascii_lowercase());
    if !(plain && lettered && name.len() <= 15) {
        // Such as "80" for 80. It stays a name, which no pod can give to a port.
        _ = notes.broken(at, format!("{name:?} can not be the name of a port"));
    }
    Ok(Port::Named(protocol, Arc::from(name)))
}

/// An entry of `protocols` of a ClusterNetworkPolicy.
pub(super) fn cluster_policy(
    value: &Value,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Port, Broken> {
    let (key, inner) = single(value, at, notes)?;
    let here = at.key(key);
    let protocol = match key {
        "tcp" => Protocol::TCP,
        "udp" => Protocol::UDP,
        "sctp" => Protocol::SCTP,
        "destinationNamedPort" => {
            let Value::String(name) = inner else {
                return Err(notes.broken(&here, "is not a text"));
            };
            return named(None, name, &here, notes);
        }
        _ => return Err(notes.broken(&here, "is not known here")),
    };
    let fields = notes.as_object(inner, &here)?;
    notes.only(fields, &["destinationPort"], &here)?;
    let Some(port) = present(fields, "destinationPort") else {
        return Ok(Port::All(protocol));
    };
    let port_at = here.key("destinationPort");
    let (key, value) = single(port, &port_at, notes)?;
    let here = port_at.key(key);
    match key {
        "number" => port_number(value)
            .map(|number| Port::Range(protocol, number, number))
            .ok_or_else(|| notes.broken(&here, "is not a port number from 1 to 65535")),
        "range" => {
            let fields = notes.as_object(value, &here)?;
            notes.only(fields, &["start", "end"], &here)?;
            start_to_end(protocol, fields, &here, notes)
        }
        _ => Err(notes.broken(&here, "is not known here")),
    }
}

/// An entry of `ports` of the v1alpha1 kinds.
pub(super) fn admin_policy(
    value: &Value,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Port, Broken> {
    let (key, inner) = single(value, at, notes)?;
    let here = at.key(key);
    match key {
        "namedPort" => {
            let Value::String(name) = inner else {
                return Err(notes.broken(&here, "is not a text"));
            };
            named(None, name, &here, notes)
        }
        "portNumber" => {
            let fields = notes.as_object(inner, &here)?;
            notes.only(fields, &["protocol", "port"], &here)?;
            let protocol = protocol(fields, &here, notes)?;
            match notes.port(fields, "port", &here)? {
                Some(number) => Ok(Port::Range(protocol, number, number)),
                None => Err(notes.broken(&here.key("port"), "is missing")),
            }
        }
        "portRange" => {
            let fields = notes.as_object(inner, &here)?;
            notes.only(fields, &["protocol", "start", "end"], &here)?;
            let protocol = protocol(fields, &here, notes)?;
            start_to_end(protocol, fields, &here, notes)
        }
        _ => Err(notes.broken(&here, "is not known here")),
    }
}

fn start_to_end(
    protocol: Protocol,
    fields: &Fields,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<Port, Broken> {
    let start = notes.port(fields, "start", at)?;
    let end = notes.port(fields, "end", at)?;
    match (start, end) {
        (Some(start), Some(end)) => range(protocol, (start, end), &at.key("end"), notes),
        (None, _) => Err(notes.broken(&at.key("start"), "is missing")),
        (_, None) => Err(notes.broken(&at.key("end"), "is missing")),
    }
}

/// The only field of an object that must have exactly one.
pub(super) fn single<'v>(
    value: &'v Value,
    at: &Place<'_>,
    notes: &mut Notes,
) -> Result<(&'v str, &'v Value), Broken> {
    let fields = notes.as_object(value, at)?;
    let mut entries = fields.iter().filter(|(_, value)| !value.is_null());
    match (entries.next(), entries.next()) {
        (Some((key, value)), None) => Ok((key, value)),
        (None, _) => Err(notes.broken(at, "has no field that is known")),
        (Some(_), Some(_)) => Err(notes.broken(at, "has more than one field")),
    }
}
