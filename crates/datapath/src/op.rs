//! Changes to the kernel, as data.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use types::address::MacAddr;

use crate::desired::{FROM_POD_PRIORITY, TO_POD_PRIORITY};
use crate::observed::{MAIN_TABLE, Route};

/// Which namespace an operation works in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The node's.
    Node,
    /// The pod's.
    Pod,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Pod => "pod",
        })
    }
}

/// A route as it should be. Its link is given by name: it may not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSpec {
    /// Where to.
    pub dst: IpNet,
    /// Next hop, taken to be on the link.
    pub gateway: Option<IpAddr>,
    /// Name of the outgoing link.
    pub link: String,
    /// Table.
    pub table: u32,
}

/// A rule: exactly one of `src` and `dst` is the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleSpec {
    /// The pod's address.
    pub ip: IpAddr,
    /// Whether it matches traffic from the pod; otherwise traffic to it.
    pub from: bool,
    /// Table it looks up; in a removal, nothing stands for any table.
    pub table: Option<u32>,
}

impl RuleSpec {
    /// Its priority.
    pub fn priority(&self) -> u32 {
        if self.from {
            FROM_POD_PRIORITY
        } else {
            TO_POD_PRIORITY
        }
    }
}

/// One change to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Make a veth with one end in the pod, the node's end up.
    CreateVeth {
        /// Name on the node.
        host: String,
        /// Hardware address on the node.
        host_mac: MacAddr,
        /// Name in the pod.
        pod: String,
        /// Hardware address in the pod.
        pod_mac: MacAddr,
        /// MTU of both, in bytes.
        mtu: u32,
    },
    /// Give a link of the node to the pod. It arrives without addresses, and down.
    MoveLink {
        /// Its index on the node.
        index: u32,
        /// Its name on the node, for people.
        name: String,
        /// Its name in the pod.
        to: String,
    },
    /// Take a link of the pod back to the node. It arrives without addresses, and down.
    ReturnLink {
        /// Its index in the pod.
        index: u32,
        /// Its name in the pod, for people.
        name: String,
        /// Its name on the node.
        to: String,
    },
    /// Remove a link of the node.
    DeleteLink {
        /// Its index.
        index: u32,
        /// Its name, for people.
        name: String,
    },
    /// Set the alias of a link of the node.
    SetAlias {
        /// The link.
        link: String,
        /// What to set.
        alias: String,
    },
    /// Bring a link up and set its MTU.
    SetUp {
        /// Where.
        place: Place,
        /// The link.
        link: String,
        /// In bytes.
        mtu: u32,
    },
    /// Write a setting.
    Set {
        /// Where.
        place: Place,
        /// Path below `/proc/sys`.
        key: String,
        /// What to write.
        value: &'static str,
    },
    /// Add an address.
    AddAddress {
        /// Where.
        place: Place,
        /// The link.
        link: String,
        /// The address; added without duplicate address detection.
        net: IpNet,
    },
    /// Remove an address.
    DelAddress {
        /// Where.
        place: Place,
        /// The link.
        link: String,
        /// The address.
        net: IpNet,
    },
    /// Add a route, or replace the one with the same destination and metric.
    PutRoute {
        /// Where.
        place: Place,
        /// The route.
        route: RouteSpec,
    },
    /// Remove a route of the node.
    DelRoute {
        /// The route.
        route: Route,
    },
    /// Add a rule on the node.
    AddRule {
        /// The rule.
        rule: RuleSpec,
    },
    /// Remove rules of the node; that there is none is fine.
    DelRule {
        /// The rule.
        rule: RuleSpec,
    },
    /// Add or change a permanent neighbour.
    PutNeighbour {
        /// Where.
        place: Place,
        /// The link.
        link: String,
        /// Address.
        ip: IpAddr,
        /// Hardware address.
        mac: MacAddr,
    },
}

impl Op {
    /// Where it works: where it is asked for. A new veth belongs to the node.
    pub fn place(&self) -> Place {
        match self {
            Self::CreateVeth { .. }
            | Self::MoveLink { .. }
            | Self::DeleteLink { .. }
            | Self::SetAlias { .. }
            | Self::DelRoute { .. }
            | Self::AddRule { .. }
            | Self::DelRule { .. } => Place::Node,
            Self::ReturnLink { .. } => Place::Pod,
            Self::SetUp { place, .. }
            | Self::Set { place, .. }
            | Self::AddAddress { place, .. }
            | Self::DelAddress { place, .. }
            | Self::PutRoute { place, .. }
            | Self::PutNeighbour { place, .. } => *place,
        }
    }
}

impl fmt::Display for RuleSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.from { "from" } else { "to" };
        write!(f, "rule {}: {way} {} lookup ", self.priority(), self.ip)?;
        match self.table {
            Some(MAIN_TABLE) => f.write_str("main"),
            Some(table) => write!(f, "{table}"),
            None => f.write_str("any"),
        }
    }
}

impl fmt::Display for RouteSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {}", self.dst)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        write!(f, " dev {} table {}", self.link, self.table)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place();
        match self {
            Self::CreateVeth { host, pod, .. } => write!(f, "link {host} (peer {pod})"),
            Self::MoveLink { name, to, .. } => {
                write!(f, "node: link {name} becomes {to} of the pod")
            }
            Self::ReturnLink { name, to, .. } => {
                write!(f, "pod: link {name} becomes {to} of the node")
            }
            Self::DeleteLink { name, .. } => write!(f, "{place}: remove link {name}"),
            Self::SetAlias { link, alias } => write!(f, "{place}: alias of {link} {alias}"),
            Self::SetUp { link, mtu, .. } => write!(f, "{place}: link {link} up, mtu {mtu}"),
            Self::Set { key, value, .. } => write!(f, "{place}: setting {key} = {value}"),
            Self::AddAddress { link, net, .. } => write!(f, "{place}: address {net} dev {link}"),
            Self::DelAddress { link, net, .. } => {
                write!(f, "{place}: remove address {net} dev {link}")
            }
            Self::PutRoute { route, .. } => write!(f, "{place}: {route}"),
            Self::DelRoute { route } => {
                write!(
                    f,
                    "{place}: remove route {} table {}",
                    route.dst, route.table
                )
            }
            Self::AddRule { rule } => write!(f, "{place}: {rule}"),
            Self::DelRule { rule } => write!(f, "{place}: remove {rule}"),
            Self::PutNeighbour { link, ip, mac, .. } => {
                write!(f, "{place}: neighbour {ip} lladdr {mac} dev {link}")
            }
        }
    }
}
