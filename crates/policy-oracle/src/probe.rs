//! The question put to the oracle, and its answer.

use std::fmt;
use std::net::IpAddr;

/// One attempt to open a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Who sends.
    pub source: End,
    /// Who receives, as policy sees it: the pod behind a Service, never the Service's own address.
    pub destination: End,
    /// What is sent.
    pub protocol: Protocol,
    /// Destination port, 0–65535. Ignored for protocols without ports.
    pub port: u16,
    /// Source port, looked at by Calico's rules alone; `None` means some port that no rule names.
    pub source_port: Option<u16>,
    /// The packet left for a Service and was translated. Makes a difference only when a pod reaches
    /// itself: through a Service the packet leaves the pod, otherwise it never does.
    pub through_service: bool,
}

impl Probe {
    /// A direct connection from an unnamed source port.
    pub fn new(source: End, destination: End, protocol: Protocol, port: u16) -> Self {
        Self {
            source,
            destination,
            protocol,
            port,
            source_port: None,
            through_service: false,
        }
    }

    /// The same through a Service's address.
    #[must_use]
    pub fn through_service(mut self) -> Self {
        self.through_service = true;
        self
    }

    /// The same from a known source port.
    #[must_use]
    pub fn from_port(mut self, port: u16) -> Self {
        self.source_port = Some(port);
        self
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} -> {} {}",
            self.source, self.destination, self.protocol
        )?;
        if self.protocol.has_ports() {
            write!(f, " {}", self.port)?;
        }
        if self.through_service {
            write!(f, " through a service")?;
        }
        Ok(())
    }
}

/// One end of a connection.
///
/// The address is what peers are judged by; the rest says whose policies apply.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    /// A pod, by name. A pod of the host network counts as its node.
    Pod {
        /// Namespace of the pod.
        namespace: String,
        /// Name of the pod.
        name: String,
        /// The address it uses; need not be one that the world knows for it.
        address: IpAddr,
    },
    /// A process of the node itself (as a source: locally generated there).
    Node {
        /// Name of the node.
        name: String,
        /// The address it uses.
        address: IpAddr,
    },
    /// Somebody known only by address. If live pods hold the address, their policies apply, all of
    /// them; a node's address gives no exemption, since it was not seen to be generated there.
    Address(IpAddr),
}

impl End {
    /// A pod's end.
    pub fn pod(namespace: &str, name: &str, address: IpAddr) -> Self {
        Self::Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            address,
        }
    }

    /// A node's end.
    pub fn node(name: &str, address: IpAddr) -> Self {
        Self::Node {
            name: name.to_owned(),
            address,
        }
    }

    /// The address in the packet.
    pub fn address(&self) -> IpAddr {
        match self {
            Self::Pod { address, .. } | Self::Node { address, .. } | Self::Address(address) => {
                *address
            }
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod {
                namespace,
                name,
                address,
            } => write!(f, "{namespace}/{name} ({address})"),
            Self::Node { name, address } => write!(f, "node {name} ({address})"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, protocol 6.
    Tcp,
    /// UDP, protocol 17.
    Udp,
    /// SCTP, protocol 132.
    Sctp,
    /// An echo request: ICMP (protocol 1, type 8) or ICMPv6 (58, type 128), by the address family.
    Icmp,
    /// ICMPv6 types 133–137 with a hop limit of 255. Always allowed.
    NeighbourDiscovery,
    /// Any other protocol, by its number.
    Other(u8),
}

impl Protocol {
    /// Whether the port of a probe means anything.
    pub fn has_ports(self) -> bool {
        match self {
            Self::Tcp | Self::Udp | Self::Sctp => true,
            Self::Icmp | Self::NeighbourDiscovery | Self::Other(_) => false,
        }
    }

    /// The protocol's number in a packet to `address`.
    pub fn number(self, address: IpAddr) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::Icmp if address.is_ipv4() => 1,
            Self::Icmp | Self::NeighbourDiscovery => 58,
            Self::Other(number) => number,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("TCP"),
            Self::Udp => f.write_str("UDP"),
            Self::Sctp => f.write_str("SCTP"),
            Self::Icmp => f.write_str("ICMP echo"),
            Self::NeighbourDiscovery => f.write_str("neighbour discovery"),
            Self::Other(number) => write!(f, "protocol {number}"),
        }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether the connection opens: both sides must allow it.
    pub allowed: bool,
    /// The source's side.
    pub egress: Side,
    /// The destination's side, judged even when egress already denied.
    pub ingress: Side,
}

/// One direction of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// Whether this side allows it.
    pub allowed: bool,
    /// Sentences for a person, in the order of evaluation; never empty.
    pub reasons: Vec<String>,
}
