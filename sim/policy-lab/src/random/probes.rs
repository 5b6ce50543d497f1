//! Connections to try in a world.

use std::fmt;
use std::net::IpAddr;

use serde_json::Value;

use crate::random::dice::Dice;
use crate::random::objects::NODES;

/// Ports that policies name and probes try.
pub const PORTS: [u16; 7] = [53, 79, 80, 81, 443, 8080, 9090];

/// One end of a probe: a thing that is really there, or an address outside.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// A pod with a network of its own that has a sandbox.
    Pod {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// Its node.
        node: String,
        /// The address it uses.
        address: IpAddr,
    },
    /// A process in the node's own network.
    Node {
        /// The node.
        node: String,
        /// The address it uses.
        address: IpAddr,
    },
    /// An address that is no pod's and no node's.
    Outside(IpAddr),
}

impl Place {
    /// The address in the packet.
    pub const fn address(&self) -> IpAddr {
        match self {
            Self::Pod { address, .. } | Self::Node { address, .. } | Self::Outside(address) => {
                *address
            }
        }
    }

    /// The node it is on, if on any.
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Pod { node, .. } | Self::Node { node, .. } => Some(node),
            Self::Outside(_) => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod {
                namespace,
                name,
                node,
                address,
            } => write!(f, "{namespace}/{name}@{node} ({address})"),
            Self::Node { node, address } => write!(f, "node {node} ({address})"),
            Self::Outside(address) => write!(f, "{address}"),
        }
    }
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Payload {
    /// TCP's first packet to a port.
    Tcp(u16),
    /// A UDP datagram to a port.
    Udp(u16),
    /// SCTP's INIT to a port.
    Sctp(u16),
    /// An echo request.
    Echo,
    /// A neighbour solicitation between addresses that are no neighbours, with this hop limit.
    Neighbour(u8),
    /// Another protocol by number.
    Other(u8),
}

/// One connection to try.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Probe {
    /// Who sends.
    pub source: Place,
    /// Who receives.
    pub destination: Place,
    /// What.
    pub payload: Payload,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} -> {} {:?}",
            self.source, self.destination, self.payload
        )
    }
}

fn text<'a>(document: &'a Value, pointer: &str) -> Option<&'a str> {
    document.pointer(pointer).and_then(Value::as_str)
}

/// Whether the document is of this kind.
pub fn is_kind(document: &Value, kind: &str) -> bool {
    text(document, "/kind") == Some(kind)
}

/// The places of a world's documents: pods that run, nodes, and some addresses outside.
pub fn places(documents: &[Value]) -> Vec<Place> {
    let mut out = Vec::new();
    for document in documents.iter().filter(|d| is_kind(d, "Pod")) {
        out.extend(pod_places(document));
    }
    for document in documents.iter().filter(|d| is_kind(d, "Node")) {
        let Some(node) = text(document, "/metadata/name") else {
            continue;
        };
        let list = document
            .pointer("/status/addresses")
            .and_then(Value::as_array);
        for entry in list.into_iter().flatten() {
            if let Some(address) = text(entry, "/address").and_then(|a| a.parse().ok()) {
                let node = node.to_owned();
                out.push(Place::Node { node, address });
            }
        }
    }
    let taken: Vec<IpAddr> = out.iter().map(Place::address).collect();
    for address in [
        "203.0.113.7",
        "203.0.113.200",
        "10.0.1.200",
        "192.168.0.99",
        "2001:db8::7",
        "2001:db8:8000::7",
        "fd00:10:1::c8",
    ] {
        if let Ok(address) = address.parse()
            && !taken.contains(&address)
        {
            out.push(Place::Outside(address));
        }
    }
    out
}

fn pod_places(document: &Value) -> Vec<Place> {
    let finished = matches!(
        text(document, "/status/phase"),
        Some("Succeeded" | "Failed")
    );
    let host = document.pointer("/spec/hostNetwork") == Some(&Value::Bool(true));
    let (Some(namespace), Some(name), Some(node)) = (
        text(document, "/metadata/namespace"),
        text(document, "/metadata/name"),
        text(document, "/spec/nodeName"),
    ) else {
        return Vec::new();
    };
    if finished || host {
        return Vec::new();
    }
    addresses(document)
        .into_iter()
        .map(|address| Place::Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: node.to_owned(),
            address,
        })
        .collect()
}

/// The addresses that a pod's document gives it.
pub fn addresses(document: &Value) -> Vec<IpAddr> {
    let list = document.pointer("/status/podIPs").and_then(Value::as_array);
    let early = document
        .pointer("/metadata/annotations")
        .and_then(|all| text(all, "/k8s.aliyun.com~1pod-ips"))
        .unwrap_or("");
    let mut found: Vec<IpAddr> = list
        .into_iter()
        .flatten()
        .filter_map(|entry| text(entry, "/ip"))
        .chain(text(document, "/status/podIP"))
        .chain(early.split(','))
        .filter_map(|ip| ip.parse().ok())
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Whether the pod at this place has the address as well.
fn holds(places: &[Place], at: &Place, address: IpAddr) -> bool {
    let who = |place: &Place| match place {
        Place::Pod {
            namespace, name, ..
        } => Some((namespace.clone(), name.clone())),
        Place::Node { .. } | Place::Outside(_) => None,
    };
    at.address() == address
        || places.iter().any(|place| {
            place.address() == address && who(place).is_some() && who(place) == who(at)
        })
}

/// Some probes among the places: pairs of one family of which at least one end is a pod.
pub fn some(dice: &mut Dice, places: &[Place], count: usize) -> Vec<Probe> {
    let mut out = Vec::with_capacity(count);
    let pods: Vec<&Place> = places
        .iter()
        .filter(|place| matches!(place, Place::Pod { .. }))
        .collect();
    for _ in 0..count.saturating_mul(4) {
        if out.len() == count {
            break;
        }
        let Some(near) = dice.pick(&pods).copied() else {
            break;
        };
        let far = if dice.chance(75) {
            dice.pick(&pods).copied()
        } else {
            dice.pick(places)
        };
        let Some(far) = far else { break };
        // A pod that reaches its own address never leaves its namespace.
        // Nor can anybody tell it from another pod that holds one of its addresses.
        if near.address().is_ipv4() != far.address().is_ipv4()
            || holds(places, near, far.address())
            || holds(places, far, near.address())
        {
            continue;
        }
        let port = dice.pick(&PORTS).copied().unwrap_or(80);
        let payload = match dice.below(20) {
            0..=9 => Payload::Tcp(port),
            10..=14 => Payload::Udp(port),
            15..=17 => Payload::Sctp(port),
            18 if near.address().is_ipv6() && dice.chance(50) => {
                Payload::Neighbour(if dice.chance(70) { 64 } else { 255 })
            }
            18 => Payload::Echo,
            _ => Payload::Other(47),
        };
        let (source, destination) = if dice.chance(50) {
            (near, far)
        } else {
            (far, near)
        };
        out.push(Probe {
            source: source.clone(),
            destination: destination.clone(),
            payload,
        });
    }
    out
}

/// The node whose router a packet from outside comes through: the destination's.
pub fn node_names() -> [&'static str; 2] {
    NODES
}
