//! One direction of a probe, seen from the pod whose policies apply.

use std::fmt;
use std::net::IpAddr;

use crate::inventory::{Inventory, Pod};
use crate::probe::Protocol;

/// Which side of the connection is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// A connection attempt as one pod's policies see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow<'a> {
    /// Everything that is known.
    pub(crate) inventory: &'a Inventory,
    /// Whose policies apply.
    pub(crate) subject: &'a Pod,
    /// The subject sends, or receives.
    pub(crate) direction: Direction,
    /// The subject's address in the packet.
    pub(crate) local: IpAddr,
    /// The other side's address in the packet.
    pub(crate) remote: IpAddr,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) source_port: Option<u16>,
}

impl<'a> Flow<'a> {
    /// The pods that the other side's address stands for.
    pub(crate) fn peers(self) -> impl Iterator<Item = &'a Pod> {
        self.inventory.holders(self.remote)
    }

    /// "TCP 80", "ICMP echo".
    pub(crate) fn what(self) -> String {
        if self.protocol.has_ports() {
            format!("{} {}", self.protocol, self.port)
        } else {
            self.protocol.to_string()
        }
    }
}
