//! What rules look at: fields of packets, of their way and of their flow.

use std::net::IpAddr;

use crate::expr::{CtKey, Expr, MetaKey, PayloadBase, Register};

/// An IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ip {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Ip {
    /// The version of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Something of a packet that is compared or looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Load {
    /// Name of the input interface.
    Iifname,
    /// Name of the output interface.
    Oifname,
    /// Index of the input interface; 0 for packets that this host made.
    Iif,
    /// Source address.
    Source(Ip),
    /// Destination address.
    Destination(Ip),
    /// Transport protocol.
    Protocol,
    /// Source port; only behind a check that the protocol has ports, or as part of a key that
    /// has the protocol as well.
    SourcePort,
    /// Destination port; as with the source port.
    DestinationPort,
    /// The flow's mark.
    CtMark,
    /// The packet's mark.
    Mark,
}

impl Load {
    /// Words that it fills.
    pub(super) const fn words(self) -> u8 {
        match self {
            Self::Iifname | Self::Oifname | Self::Source(Ip::V6) | Self::Destination(Ip::V6) => 4,
            Self::Iif
            | Self::Source(Ip::V4)
            | Self::Destination(Ip::V4)
            | Self::Protocol
            | Self::SourcePort
            | Self::DestinationPort
            | Self::CtMark
            | Self::Mark => 1,
        }
    }

    /// The IP version that it only makes sense for.
    pub(super) const fn version(self) -> Option<Ip> {
        match self {
            Self::Source(ip) | Self::Destination(ip) => Some(ip),
            Self::Iifname
            | Self::Oifname
            | Self::Iif
            | Self::Protocol
            | Self::SourcePort
            | Self::DestinationPort
            | Self::CtMark
            | Self::Mark => None,
        }
    }

    /// The expression that loads it.
    pub const fn into_register(self, to: Register) -> Expr {
        match self {
            Self::Iifname => meta(MetaKey::Iifname, to),
            Self::Oifname => meta(MetaKey::Oifname, to),
            Self::Iif => meta(MetaKey::Iif, to),
            Self::Source(Ip::V4) => network_field(12, 4, to),
            Self::Source(Ip::V6) => network_field(8, 16, to),
            Self::Destination(Ip::V4) => network_field(16, 4, to),
            Self::Destination(Ip::V6) => network_field(24, 16, to),
            Self::Protocol => meta(MetaKey::L4proto, to),
            Self::SourcePort => transport_field(0, 2, to),
            Self::DestinationPort => transport_field(2, 2, to),
            Self::CtMark => ct(CtKey::Mark, to),
            Self::Mark => meta(MetaKey::Mark, to),
        }
    }
}

pub(super) const fn meta(key: MetaKey, to: Register) -> Expr {
    Expr::Meta { key, to }
}

pub(super) const fn ct(key: CtKey, to: Register) -> Expr {
    Expr::Ct {
        key,
        direction: None,
        to,
    }
}

pub(super) const fn network_field(offset: u32, len: u32, to: Register) -> Expr {
    Expr::Payload {
        base: PayloadBase::Network,
        offset,
        len,
        to,
    }
}

pub(super) const fn transport_field(offset: u32, len: u32, to: Register) -> Expr {
    Expr::Payload {
        base: PayloadBase::Transport,
        offset,
        len,
        to,
    }
}
