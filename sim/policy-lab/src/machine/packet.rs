//! Packets as hooks see them: headers in bytes, and the way they take.

use std::net::IpAddr;

/// TCP flag SYN.
pub const SYN: u8 = 0x02;
/// TCP flag RST.
pub const RST: u8 = 0x04;
/// TCP flag ACK.
pub const ACK: u8 = 0x10;

/// A packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// Transport protocol's number.
    pub protocol: u8,
    /// Source port; for ICMP the identifier.
    pub source_port: u16,
    /// Destination port; for ICMP type and code.
    pub destination_port: u16,
    /// TCP flags.
    pub flags: u8,
    /// Hop limit or time to live.
    pub hops: u8,
}

impl Packet {
    /// A packet of a protocol with ports (or, for others, with whatever the two numbers mean there). TCP is a SYN.
    pub fn new(source: IpAddr, destination: IpAddr, protocol: u8, from: u16, to: u16) -> Self {
        Self {
            source,
            destination,
            protocol,
            source_port: from,
            destination_port: to,
            flags: SYN,
            hops: 64,
        }
    }

    /// An ICMP or ICMPv6 message of a type, code 0.
    pub fn icmp(source: IpAddr, destination: IpAddr, kind: u8, id: u16) -> Self {
        let protocol = if source.is_ipv4() { 1 } else { 58 };
        Self::new(source, destination, protocol, id, u16::from(kind) << 8)
    }

    /// With these TCP flags.
    #[must_use]
    pub const fn with_flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// With this hop limit.
    #[must_use]
    pub const fn with_hops(mut self, hops: u8) -> Self {
        self.hops = hops;
        self
    }

    /// The packet that answers this one.
    #[must_use]
    pub fn reply(&self) -> Self {
        let mut out = self.clone();
        (out.source, out.destination) = (self.destination, self.source);
        if self.is_icmp() {
            let kind = match (self.protocol, self.icmp_type()) {
                (1, 8) => 0,
                (58, 128) => 129,
                (_, other) => other,
            };
            out.destination_port = u16::from(kind) << 8;
        } else {
            (out.source_port, out.destination_port) = (self.destination_port, self.source_port);
        }
        out.flags = if self.flags & SYN != 0 {
            SYN | ACK
        } else {
            ACK
        };
        out
    }

    /// Whether it is ICMP or ICMPv6.
    pub const fn is_icmp(&self) -> bool {
        matches!(self.protocol, 1 | 58)
    }

    /// The ICMP type.
    pub fn icmp_type(&self) -> u8 {
        self.destination_port.to_be_bytes()[0]
    }

    /// `ETH_P_*` of the packet.
    pub const fn ether_type(&self) -> u16 {
        if self.source.is_ipv4() {
            0x0800
        } else {
            0x86dd
        }
    }

    /// The link header: Ethernet between made-up stations.
    pub fn link_header(&self) -> Vec<u8> {
        let mut out = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        out.extend(self.ether_type().to_be_bytes());
        out
    }

    /// The network header: IPv4 without options or IPv6 without extensions.
    pub fn network_header(&self) -> Vec<u8> {
        let payload = u16::try_from(self.transport_header().len()).unwrap_or(0);
        let mut out = Vec::with_capacity(40);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                out.extend([0x45, 0]);
                out.extend((payload + 20).to_be_bytes());
                out.extend([0, 0, 0, 0, self.hops, self.protocol, 0, 0]);
                out.extend(source.octets());
                out.extend(destination.octets());
            }
            (source, destination) => {
                out.extend([0x60, 0, 0, 0]);
                out.extend(payload.to_be_bytes());
                out.extend([self.protocol, self.hops]);
                for address in [source, destination] {
                    match address {
                        IpAddr::V6(address) => out.extend(address.octets()),
                        IpAddr::V4(address) => out.extend(address.to_ipv6_mapped().octets()),
                    }
                }
            }
        }
        out
    }

    /// The transport header, as far as rules look.
    pub fn transport_header(&self) -> Vec<u8> {
        if self.is_icmp() {
            let mut out = self.destination_port.to_be_bytes().to_vec();
            out.extend([0, 0]);
            out.extend(self.source_port.to_be_bytes());
            out.extend([0, 1]);
            return out;
        }
        let mut out = Vec::with_capacity(20);
        out.extend(self.source_port.to_be_bytes());
        out.extend(self.destination_port.to_be_bytes());
        match self.protocol {
            6 => out.extend([
                0, 0, 0, 1, 0, 0, 0, 0, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0,
            ]),
            17 => out.extend([0, 8, 0, 0]),
            _ => out.extend([0; 8]),
        }
        out
    }
}

/// The way of a packet through one network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Path {
    /// From one interface to another.
    Forward {
        /// It comes from here.
        from: String,
        /// It leaves there.
        to: String,
    },
    /// To a process of this namespace.
    Input {
        /// It comes from here.
        from: String,
    },
    /// From a process of this namespace.
    Output {
        /// It leaves there.
        to: String,
    },
}

impl Path {
    /// A way from one interface to another.
    pub fn forward(from: &str, to: &str) -> Self {
        Self::Forward {
            from: from.to_owned(),
            to: to.to_owned(),
        }
    }

    /// A way to a process here.
    pub fn input(from: &str) -> Self {
        Self::Input {
            from: from.to_owned(),
        }
    }

    /// A way from a process here.
    pub fn output(to: &str) -> Self {
        Self::Output { to: to.to_owned() }
    }

    /// Where it comes from; `None` for what was made here.
    pub fn from(&self) -> Option<&str> {
        match self {
            Self::Forward { from, .. } | Self::Input { from } => Some(from),
            Self::Output { .. } => None,
        }
    }

    /// Where it leaves.
    pub fn to(&self) -> Option<&str> {
        match self {
            Self::Forward { to, .. } | Self::Output { to } => Some(to),
            Self::Input { .. } => None,
        }
    }
}
