//! Operations as route-netlink messages.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use types::address::MacAddr;

use super::Request;
use crate::namespace::Namespace;
use crate::observed::{MAIN_TABLE, Route};
use crate::op::{RouteSpec, RuleSpec};

pub(crate) fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn set(message: RouteNetlinkMessage) -> Request {
    Request { message, flags: 0 }
}

fn put(message: RouteNetlinkMessage) -> Request {
    Request {
        message,
        flags: NLM_F_CREATE | NLM_F_REPLACE,
    }
}

fn add(message: RouteNetlinkMessage) -> Request {
    Request {
        message,
        flags: NLM_F_CREATE | NLM_F_EXCL,
    }
}

/// What a new veth is made of.
pub(crate) struct Veth<'a> {
    pub(crate) host: (&'a str, MacAddr),
    pub(crate) pod: (&'a str, MacAddr),
    pub(crate) mtu: u32,
    pub(crate) netns: &'a Namespace,
}

pub(crate) fn create_veth(veth: &Veth<'_>) -> Request {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(veth.pod.0.to_owned()),
        LinkAttribute::Mtu(veth.mtu),
        LinkAttribute::Address(veth.pod.1.0.to_vec()),
        LinkAttribute::NetNsFd(veth.netns.file().as_raw_fd()),
    ];
    let mut link = LinkMessage::default();
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes = vec![
        LinkAttribute::IfName(veth.host.0.to_owned()),
        LinkAttribute::Mtu(veth.mtu),
        LinkAttribute::Address(veth.host.1.0.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    add(RouteNetlinkMessage::NewLink(link))
}

/// Gives a link to another namespace under another name.
pub(crate) fn move_link(index: u32, to: &str, netns: &Namespace) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = vec![
        LinkAttribute::NetNsFd(netns.file().as_raw_fd()),
        LinkAttribute::IfName(to.to_owned()),
    ];
    set(RouteNetlinkMessage::SetLink(link))
}

pub(crate) fn get_link(name: &str) -> Request {
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
    ];
    set(RouteNetlinkMessage::GetLink(link))
}

pub(crate) fn delete_link(index: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    set(RouteNetlinkMessage::DelLink(link))
}

pub(crate) fn set_alias(index: u32, alias: &str) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = vec![LinkAttribute::IfAlias(alias.to_owned())];
    set(RouteNetlinkMessage::SetLink(link))
}

pub(crate) fn set_up(index: u32, mtu: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes = vec![LinkAttribute::Mtu(mtu)];
    set(RouteNetlinkMessage::SetLink(link))
}

fn address(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![
        AddressAttribute::Local(net.addr()),
        AddressAttribute::Address(net.addr()),
    ];
    message
}

pub(crate) fn add_address(index: u32, net: IpNet) -> Request {
    let mut message = address(index, net);
    if net.addr().is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    put(RouteNetlinkMessage::NewAddress(message))
}

pub(crate) fn delete_address(index: u32, net: IpNet) -> Request {
    set(RouteNetlinkMessage::DelAddress(address(index, net)))
}

fn route_message(dst: IpNet, gateway: Option<IpAddr>, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(dst.addr());
    header.destination_prefix_length = dst.prefix_len();
    header.kind = RouteType::Unicast;
    header.table = RouteHeader::RT_TABLE_UNSPEC;
    if dst.prefix_len() > 0 {
        let dst = RouteAttribute::Destination(RouteAddress::from(dst.network()));
        message.attributes.push(dst);
    }
    message.attributes.push(RouteAttribute::Table(table));
    if let Some(gateway) = gateway {
        let gateway = RouteAttribute::Gateway(RouteAddress::from(gateway));
        message.attributes.push(gateway);
    }
    message
}

pub(crate) fn put_route(index: u32, route: &RouteSpec) -> Request {
    let mut message = route_message(route.dst, route.gateway, route.table);
    message.header.protocol = RouteProtocol::Static;
    if route.gateway.is_some() {
        message.header.flags = RouteFlags::Onlink;
    } else {
        message.header.scope = RouteScope::Link;
    }
    message.attributes.push(RouteAttribute::Oif(index));
    put(RouteNetlinkMessage::NewRoute(message))
}

pub(crate) fn delete_route(route: &Route) -> Request {
    let mut message = route_message(route.dst, route.gateway, route.table);
    message.header.scope = RouteScope::NoWhere;
    if let Some(index) = route.link {
        message.attributes.push(RouteAttribute::Oif(index));
    }
    if route.metric != 0 {
        message
            .attributes
            .push(RouteAttribute::Priority(route.metric));
    }
    set(RouteNetlinkMessage::DelRoute(message))
}

/// Asks which entry of the tables traffic to `ip` would use.
pub(crate) fn match_route(ip: IpAddr) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ip);
    message.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
    message.header.flags = RouteFlags::FibMatch | RouteFlags::LookupTable;
    message
        .attributes
        .push(RouteAttribute::Destination(RouteAddress::from(ip)));
    set(RouteNetlinkMessage::GetRoute(message))
}

fn rule(spec: &RuleSpec) -> RuleMessage {
    let mut message = RuleMessage::default();
    let bits = if spec.ip.is_ipv4() { 32 } else { 128 };
    message.header.family = family(spec.ip);
    message.header.action = RuleAction::ToTable;
    message
        .attributes
        .push(RuleAttribute::Priority(spec.priority()));
    if spec.from {
        message.header.src_len = bits;
        message.attributes.push(RuleAttribute::Source(spec.ip));
    } else {
        message.header.dst_len = bits;
        message.attributes.push(RuleAttribute::Destination(spec.ip));
    }
    match spec.table {
        Some(MAIN_TABLE) => message.header.table = RouteHeader::RT_TABLE_MAIN,
        Some(table) => message.attributes.push(RuleAttribute::Table(table)),
        None => message.header.action = RuleAction::Unspec,
    }
    message
}

pub(crate) fn add_rule(spec: &RuleSpec) -> Request {
    add(RouteNetlinkMessage::NewRule(rule(spec)))
}

pub(crate) fn delete_rule(spec: &RuleSpec) -> Request {
    set(RouteNetlinkMessage::DelRule(rule(spec)))
}

/// Packets with the bit are routed by the main table.
fn mark_rule(v6: bool, bit: u32, priority: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if v6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    message.header.action = RuleAction::ToTable;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::FwMark(bit),
        RuleAttribute::FwMask(bit),
    ];
    message
}

pub(crate) fn add_mark_rule(v6: bool, bit: u32, priority: u32) -> Request {
    add(RouteNetlinkMessage::NewRule(mark_rule(v6, bit, priority)))
}

pub(crate) fn delete_mark_rule(v6: bool, bit: u32, priority: u32) -> Request {
    set(RouteNetlinkMessage::DelRule(mark_rule(v6, bit, priority)))
}

pub(crate) fn put_neighbour(index: u32, ip: IpAddr, mac: MacAddr) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    let destination = match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(destination),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    put(RouteNetlinkMessage::NewNeighbour(message))
}
