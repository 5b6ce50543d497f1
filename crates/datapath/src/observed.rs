//! What one network namespace holds, as far as we care.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use types::address::MacAddr;
use types::pod::AttachmentKey;

use crate::names;

/// Number of the main routing table.
pub const MAIN_TABLE: u32 = 254;

/// A link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Hardware address, if it is an Ethernet link.
    pub mac: Option<MacAddr>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Alias.
    pub alias: Option<String>,
    /// Index of the link at the other end, in that end's namespace.
    pub peer_index: Option<u32>,
    /// Whether the kernel says that it is a veth.
    pub veth: bool,
}

impl Link {
    /// The attachment whose host end this is.
    pub fn attachment(&self) -> Option<AttachmentKey> {
        names::attachment_of(self.alias.as_deref()?)
    }
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Index of the link.
    pub link: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// Whether it was given out by the link itself (IPv6 link-local).
    pub link_local: bool,
}

/// A unicast route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Index of the outgoing link.
    pub link: Option<u32>,
    /// Table.
    pub table: u32,
    /// Whether its scope is `link`. IPv6 routes have none.
    pub scope_link: bool,
    /// Whether the next hop is taken to be on the link.
    pub onlink: bool,
    /// Metric; 0 is the default of IPv4, 1024 that of IPv6.
    pub metric: u32,
}

/// A policy-routing rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Whether it is an IPv6 rule.
    pub v6: bool,
    /// Priority; lower comes first.
    pub priority: u32,
    /// Source it matches.
    pub src: Option<IpNet>,
    /// Destination it matches.
    pub dst: Option<IpNet>,
    /// Table it looks up.
    pub table: u32,
}

/// A permanent neighbour entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the link.
    pub link: u32,
    /// Address.
    pub ip: IpAddr,
    /// Hardware address.
    pub mac: MacAddr,
}

/// What a namespace holds: links, addresses, unicast routes of all tables but `local`, rules,
/// permanent neighbours, and the settings that were asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// All links.
    pub links: Vec<Link>,
    /// All addresses.
    pub addresses: Vec<Address>,
    /// Unicast routes.
    pub routes: Vec<Route>,
    /// Rules with a table.
    pub rules: Vec<Rule>,
    /// Permanent neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Path below `/proc/sys` → value; a setting that the kernel does not have is missing.
    pub settings: BTreeMap<String, String>,
}

impl Observed {
    /// The link of that name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|l| l.name == name)
    }

    /// The link with that hardware address; of several, one that is not the host end of a pod.
    pub fn link_by_mac(&self, mac: MacAddr) -> Option<&Link> {
        self.links
            .iter()
            .find(|l| l.mac == Some(mac) && l.attachment().is_none())
    }

    /// Host ends of pods with the attachments that their aliases name.
    pub fn attachments(&self) -> impl Iterator<Item = (AttachmentKey, &Link)> {
        self.links.iter().filter_map(|l| Some((l.attachment()?, l)))
    }
}
