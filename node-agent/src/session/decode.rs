//! Between ipam's wire and the agent's types. Decoding names the field.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use proto::ipam::v1::{EniAttached, NodeCommand, ShardState, Welcome, node_command};
use proto::types::v1::{GrantedAddress, Reason};
use types::address::Stack;
use types::op::{Generation, Seq};

use crate::pool::EniRecord;
use crate::standing::Shortage;

/// Shortest time that a shard is believed to be exhausted, when the replica names none.
const DEFAULT_RETRY: Duration = Duration::from_secs(5);

/// A message that can not be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field {field}: {why}")]
pub struct BadMessage {
    /// The field.
    pub field: &'static str,
    /// What is wrong.
    pub why: String,
}

/// Parses any of the newtypes.
///
/// # Errors
/// [`BadMessage`] naming the field.
pub fn id<T>(field: &'static str, text: &str) -> Result<T, BadMessage>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e: T::Err| BadMessage {
        field,
        why: format!("{text:?}: {e}"),
    })
}

/// Granted addresses with their generations.
///
/// # Errors
/// [`BadMessage`] when an address can not be read or has no generation.
pub fn granted(wire: &[GrantedAddress]) -> Result<BTreeMap<IpAddr, Generation>, BadMessage> {
    wire.iter()
        .map(|address| {
            if address.generation == 0 {
                let why = format!("{} has none", address.ip);
                return Err(BadMessage {
                    field: "generation",
                    why,
                });
            }
            Ok((id("ip", &address.ip)?, Seq(address.generation)))
        })
        .collect()
}

/// The same outwards.
pub fn to_granted(addresses: &BTreeMap<IpAddr, Generation>) -> Vec<GrantedAddress> {
    addresses
        .iter()
        .map(|(ip, generation)| GrantedAddress {
            ip: ip.to_string(),
            generation: generation.0,
        })
        .collect()
}

/// An attached ENI.
///
/// # Errors
/// [`BadMessage`] naming the field.
pub fn eni(wire: &EniAttached) -> Result<EniRecord, BadMessage> {
    let ipv6 = if wire.ipv6_cidr.is_empty() {
        None
    } else {
        Some((
            id("ipv6_cidr", &wire.ipv6_cidr)?,
            id("ipv6_gateway", &wire.ipv6_gateway)?,
        ))
    };
    Ok(EniRecord {
        shard: id("shard", &wire.shard)?,
        eni: id("eni_id", &wire.eni_id)?,
        mac: id("mac", &wire.mac)?,
        vswitch: id("vswitch_id", &wire.vswitch_id)?,
        ipv4_cidr: id("ipv4_cidr", &wire.ipv4_cidr)?,
        ipv4_gateway: id("ipv4_gateway", &wire.ipv4_gateway)?,
        ipv6,
        primary: id("primary_ip", &wire.primary_ip)?,
        addresses: granted(&wire.addresses)?,
        whole: wire.whole,
    })
}

/// Families of the cluster.
///
/// # Errors
/// [`BadMessage`] when there is no IPv4: a stack that is not supported.
pub fn stack(welcome: &Welcome) -> Result<Stack, BadMessage> {
    match (welcome.ipv4, welcome.ipv6) {
        (true, true) => Ok(Stack::Dual),
        (true, false) => Ok(Stack::Ipv4),
        (false, _) => Err(BadMessage {
            field: "ipv4",
            why: "IPv6 alone is not supported".into(),
        }),
    }
}

/// Why the shard can not give more and for how long that is believed; `None` when it can.
pub fn exhausted(state: &ShardState) -> Option<(String, Duration)> {
    let reason = state.reason();
    if reason == Reason::Unspecified || state.begun {
        return None;
    }
    let wait = match state.retry_after_ms {
        0 => DEFAULT_RETRY,
        ms => Duration::from_millis(ms.into()),
    };
    Some((format!("{}: {}", reason.as_str_name(), state.message), wait))
}

/// The same for people, for as long as the replica says nothing else.
pub fn shortage(state: &ShardState) -> Option<Shortage> {
    let reason = state.reason();
    (reason != Reason::Unspecified).then(|| Shortage {
        reason,
        message: state.message.clone(),
    })
}

/// Name of a command, for spans.
pub fn name(command: &NodeCommand) -> &'static str {
    match &command.body {
        None => "none",
        Some(node_command::Body::Welcome(_)) => "welcome",
        Some(node_command::Body::EniAttached(_)) => "eni_attached",
        Some(node_command::Body::Grant(_)) => "grant",
        Some(node_command::Body::Revoke(_)) => "revoke",
        Some(node_command::Body::RemoveEni(_)) => "remove_eni",
        Some(node_command::Body::ShardState(_)) => "shard_state",
        Some(node_command::Body::NotOwner(_)) => "not_owner",
        Some(node_command::Body::Drain(_)) => "drain",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_without_generation_is_refused() {
        let wire = [GrantedAddress {
            ip: "10.0.0.1".into(),
            generation: 0,
        }];

        assert_eq!(granted(&wire).unwrap_err().field, "generation");
    }

    #[test]
    fn shard_with_room_is_not_exhausted() {
        assert_eq!(exhausted(&ShardState::default()), None);
    }

    #[test]
    fn malformed_mac_names_its_field() {
        let wire = EniAttached {
            shard: "vsw-a.0".into(),
            eni_id: "eni-1".into(),
            mac: "zz".into(),
            ..EniAttached::default()
        };

        assert_eq!(eni(&wire).unwrap_err().field, "mac");
    }
}
