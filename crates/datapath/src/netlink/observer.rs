//! Dumps of a namespace, as plain data.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enums are the library's, open, and mostly of no concern here"
)]

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use types::address::MacAddr;

use super::Connection;
use crate::error::DatapathError;
use crate::observed::{Address, Link, Neighbour, Observed, Route, Rule};

/// Number of the routing table with the node's own addresses.
const LOCAL_TABLE: u32 = 255;

const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

impl Connection {
    /// All links.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, DatapathError> {
        let mut request = LinkMessage::default();
        request
            .attributes
            .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let found = self.dump(&RouteNetlinkMessage::GetLink(request))?;
        Ok(found.iter().filter_map(link).collect())
    }

    /// Everything but settings.
    pub(crate) fn observe(&mut self) -> Result<Observed, DatapathError> {
        let mut seen = Observed {
            links: self.links()?,
            ..Observed::default()
        };
        for family in FAMILIES {
            let mut request = AddressMessage::default();
            request.header.family = family;
            let found = self.dump(&RouteNetlinkMessage::GetAddress(request))?;
            seen.addresses.extend(found.iter().filter_map(address));

            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let found = self.dump(&RouteNetlinkMessage::GetRoute(request))?;
            seen.routes.extend(found.iter().filter_map(route));

            let mut request = RuleMessage::default();
            request.header.family = family;
            let found = self.dump(&RouteNetlinkMessage::GetRule(request))?;
            seen.rules.extend(found.iter().filter_map(rule));

            let mut request = NeighbourMessage::default();
            request.header.family = family;
            let found = self.dump(&RouteNetlinkMessage::GetNeighbour(request))?;
            seen.neighbours.extend(found.iter().filter_map(neighbour));
        }
        Ok(seen)
    }
}

fn mac(bytes: &[u8]) -> Option<MacAddr> {
    Some(MacAddr(bytes.try_into().ok()?))
}

/// A link, if the message is about one.
pub(crate) fn link(message: &RouteNetlinkMessage) -> Option<Link> {
    let (RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)) = message
    else {
        return None;
    };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        alias: None,
        peer_index: None,
        veth: false,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = mac(bytes),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::Link(index) => link.peer_index = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                link.veth = infos
                    .iter()
                    .any(|i| matches!(i, LinkInfo::Kind(InfoKind::Veth)));
            }
            _ => {}
        }
    }
    Some(link)
}

/// An address, if the message is about one.
pub(crate) fn address(message: &RouteNetlinkMessage) -> Option<Address> {
    let (RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message)) =
        message
    else {
        return None;
    };
    // With a peer, IFA_ADDRESS is the peer's; IFA_LOCAL is always the link's own, where it exists.
    let mut local = None;
    let mut plain = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => plain = Some(*ip),
            _ => {}
        }
    }
    let ip = local.or(plain)?;
    Some(Address {
        link: message.header.index,
        net: IpNet::new(ip, message.header.prefix_len).ok()?,
        link_local: message.header.scope == AddressScope::Link && ip.is_ipv6(),
    })
}

fn route_ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// A unicast route outside the local table, if the message is about one.
pub(crate) fn route(message: &RouteNetlinkMessage) -> Option<Route> {
    let (RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message)) = message
    else {
        return None;
    };
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut dst = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let (mut gateway, mut link, mut metric) = (None, None, 0);
    let mut table = u32::from(message.header.table);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(ip) => dst = route_ip(ip)?,
            RouteAttribute::Gateway(ip) => gateway = route_ip(ip),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            _ => {}
        }
    }
    if table == LOCAL_TABLE {
        return None;
    }
    Some(Route {
        dst: IpNet::new(dst, message.header.destination_prefix_length).ok()?,
        gateway,
        link,
        table,
        scope_link: message.header.scope == RouteScope::Link,
        onlink: message.header.flags.contains(RouteFlags::Onlink),
        metric,
    })
}

/// A rule, if the message is about one.
pub(crate) fn rule(message: &RouteNetlinkMessage) -> Option<Rule> {
    let (RouteNetlinkMessage::NewRule(message) | RouteNetlinkMessage::DelRule(message)) = message
    else {
        return None;
    };
    let mut rule = Rule {
        v6: message.header.family == AddressFamily::Inet6,
        priority: 0,
        src: None,
        dst: None,
        table: u32::from(message.header.table),
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => rule.priority = *number,
            RuleAttribute::Source(ip) => rule.src = IpNet::new(*ip, message.header.src_len).ok(),
            RuleAttribute::Destination(ip) => {
                rule.dst = IpNet::new(*ip, message.header.dst_len).ok();
            }
            RuleAttribute::Table(number) => rule.table = *number,
            _ => {}
        }
    }
    Some(rule)
}

/// A permanent neighbour, if the message is about one.
pub(crate) fn neighbour(message: &RouteNetlinkMessage) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else {
        return None;
    };
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut ip, mut lladdr) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => ip = Some(IpAddr::V4(*a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => {
                ip = Some(IpAddr::V6(*a));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => lladdr = mac(bytes),
            _ => {}
        }
    }
    Some(Neighbour {
        link: message.header.ifindex,
        ip: ip?,
        mac: lladdr?,
    })
}
