//! What tables are called and where they live.

use std::fmt;
use std::sync::Arc;

use crate::error::DecodeError;

/// Name of a table, chain, set or interface. The kernel takes up to 255 bytes (interfaces: 15).
pub type Name = Arc<str>;

/// The family of a table: which packets its chains can see.
///
/// Source: `NFPROTO_*` of the kernel's `linux/netfilter.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// None in particular; in requests: all.
    Unspecified,
    /// IPv4 and IPv6.
    Inet,
    /// IPv4 only (`ip`).
    Ipv4,
    /// ARP.
    Arp,
    /// One device, before the network layer.
    Netdev,
    /// Frames of a bridge.
    Bridge,
    /// IPv6 only (`ip6`).
    Ipv6,
}

impl Family {
    /// The kernel's number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Unspecified => 0,
            Self::Inet => 1,
            Self::Ipv4 => 2,
            Self::Arp => 3,
            Self::Netdev => 5,
            Self::Bridge => 7,
            Self::Ipv6 => 10,
        }
    }

    /// The family of a number.
    ///
    /// # Errors
    /// [`DecodeError::Value`] for a number the kernel has no tables for.
    pub const fn from_number(number: u8) -> Result<Self, DecodeError> {
        Ok(match number {
            0 => Self::Unspecified,
            1 => Self::Inet,
            2 => Self::Ipv4,
            3 => Self::Arp,
            5 => Self::Netdev,
            7 => Self::Bridge,
            10 => Self::Ipv6,
            _ => return Err(DecodeError::Value { what: "family" }),
        })
    }

    /// As `nft` writes it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Unspecified => "unspec",
            Self::Inet => "inet",
            Self::Ipv4 => "ip",
            Self::Arp => "arp",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
            Self::Ipv6 => "ip6",
        }
    }
}

/// Which table: names are unique within a family.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableRef {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: Name,
}

impl TableRef {
    /// A table of `family` called `name`.
    pub fn new(family: Family, name: &str) -> Self {
        Self {
            family,
            name: name.into(),
        }
    }
}

impl fmt::Display for TableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family.text(), self.name)
    }
}
