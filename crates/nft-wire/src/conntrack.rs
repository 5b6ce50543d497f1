//! Flows of the connection tracker: dumped, marked, removed.

mod wire;

use std::net::IpAddr;

pub use wire::{
    decode, decode_count, encode_count, encode_delete, encode_dump, encode_mark, set_ack,
};

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// From where.
    pub source: IpAddr,
    /// To where; of the same family.
    pub destination: IpAddr,
    /// Transport protocol.
    pub protocol: u8,
    /// What tells flows of a protocol apart.
    pub ports: Ports,
}

/// What tells flows of a protocol apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ports {
    /// TCP, UDP, SCTP and their like.
    Ports {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP and ICMPv6 queries.
    Icmp {
        /// Their identifier.
        id: u16,
        /// Their type.
        kind: u8,
        /// Their code.
        code: u8,
    },
    /// A protocol of which the tracker knows addresses only.
    None,
}

impl Tuple {
    /// The destination port; 0 without ports.
    pub const fn destination_port(&self) -> u16 {
        match self.ports {
            Ports::Ports { destination, .. } => destination,
            Ports::Icmp { .. } | Ports::None => 0,
        }
    }

    /// The source port; 0 without ports.
    pub const fn source_port(&self) -> u16 {
        match self.ports {
            Ports::Ports { source, .. } => source,
            Ports::Icmp { .. } | Ports::None => 0,
        }
    }
}

/// Bit of [`Flow::status`]: there was an answer.
pub const STATUS_SEEN_REPLY: u32 = 1 << 1;
/// Bit of [`Flow::status`]: enough was exchanged to keep it under pressure.
pub const STATUS_ASSURED: u32 = 1 << 2;
/// Bit of [`Flow::status`]: its source is translated.
pub const STATUS_SNAT: u32 = 1 << 4;
/// Bit of [`Flow::status`]: its destination is translated.
pub const STATUS_DNAT: u32 = 1 << 5;
/// Bit of [`Flow::status`]: being removed.
pub const STATUS_DYING: u32 = 1 << 9;

/// A flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// As its first packet was before translation.
    pub original: Tuple,
    /// As its answers are: the real destination is their source.
    pub reply: Tuple,
    /// Its mark.
    pub mark: u32,
    /// Bits `STATUS_*`.
    pub status: u32,
    /// The kernel's number for it, which tells it from a later flow with the same tuple.
    pub id: u32,
    /// Its zone; 0 is the usual one.
    pub zone: u16,
}

/// Whose end of a flow a filter compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    /// Source of the first packet.
    OriginalSource,
    /// Destination of the first packet, before translation.
    OriginalDestination,
    /// Source of the answers: the real destination.
    ReplySource,
    /// Destination of the answers: the source after translation.
    ReplyDestination,
}

/// Which flows to dump; what is `None` does not restrict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    /// Only of this family; an address says it already.
    pub family: Option<crate::name::Family>,
    /// Only those that have the address at that end. Kernels from 5.8 on filter IPv4 addresses; for
    /// IPv6 the ones that were looked at (6.18) send the flows *without* the address. So ask for IPv4
    /// only, and pass answers through [`Filter::passes`].
    pub address: Option<(End, IpAddr)>,
    /// Only those whose mark, cut to the mask, is the value.
    pub mark: Option<Mark>,
}

/// Bits of a mark.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Mark {
    /// Their values.
    pub value: u32,
    /// Which bits are meant.
    pub mask: u32,
}

impl Filter {
    /// Whether a flow passes: for answers of kernels that do not filter.
    pub fn passes(&self, flow: &Flow) -> bool {
        use crate::name::Family;
        let family = match flow.original.source {
            IpAddr::V4(_) => Family::Ipv4,
            IpAddr::V6(_) => Family::Ipv6,
        };
        let end = |end| match end {
            End::OriginalSource => flow.original.source,
            End::OriginalDestination => flow.original.destination,
            End::ReplySource => flow.reply.source,
            End::ReplyDestination => flow.reply.destination,
        };
        self.family.is_none_or(|f| f == family)
            && self.address.is_none_or(|(at, address)| end(at) == address)
            && self
                .mark
                .is_none_or(|m| flow.mark & m.mask == m.value & m.mask)
    }
}
