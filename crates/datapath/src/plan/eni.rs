//! The plan for an ENI.

use std::net::IpAddr;

use ipnet::IpNet;
use types::address::Family;

use super::{
    default_net, host_net, node_link_settings, push_route, push_settings, push_up, rule_of,
};
use crate::desired::EniDesired;
use crate::names;
use crate::observed::{Link, Observed};
use crate::op::{Op, Place, RouteSpec};

/// Settings of an ENI's link.
pub fn link_settings(link: &str, v6: bool) -> Vec<(String, &'static str)> {
    let mut settings = node_link_settings(link, v6);
    if v6 {
        // While its link-local address is being probed an ENI can not ask for its gateway, and pods
        // that were granted its addresses at once would be without IPv6 for a second or two. The
        // cloud sees to it that hardware addresses differ.
        settings.push((format!("net/ipv6/conf/{link}/accept_dad"), "0"));
    }
    settings
}
/// Operations that configure the ENI `link`: up, MTU, the node's address, and its routing table.
/// Addresses that somebody else put on it (a DHCP client) are removed: they may be a pod's.
pub fn setup(eni: &EniDesired, link: &Link, node: &Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    let place = Place::Node;
    let settings = link_settings(&link.name, eni.v6_gateway.is_some());
    push_settings(&mut ops, place, settings, node);
    push_up(&mut ops, place, link, eni.mtu);
    let wanted: Vec<IpNet> = [eni.node_v4.map(IpAddr::V4), eni.node_v6.map(IpAddr::V6)]
        .into_iter()
        .flatten()
        .map(host_net)
        .collect();
    let here = || node.addresses.iter().filter(|a| a.link == link.index);
    for extra in here().filter(|a| !a.link_local && !wanted.contains(&a.net)) {
        ops.push(Op::DelAddress {
            place,
            link: link.name.clone(),
            net: extra.net,
        });
    }
    for net in &wanted {
        if !here().any(|a| a.net == *net) {
            ops.push(Op::AddAddress {
                place,
                link: link.name.clone(),
                net: *net,
            });
        }
    }
    let table = names::eni_table(link.index);
    let mut routes = Vec::new();
    if let Some(gateway) = eni.v4_gateway {
        routes.push((default_net(Family::V4), Some(IpAddr::V4(gateway))));
    }
    if let Some(gateway) = eni.v6_gateway {
        routes.push((host_net(IpAddr::V6(gateway)), None));
        routes.push((default_net(Family::V6), Some(IpAddr::V6(gateway))));
    }
    for (dst, gateway) in routes {
        let route = RouteSpec {
            dst,
            gateway,
            link: link.name.clone(),
            table,
        };
        push_route(&mut ops, place, Some(link), route, node);
    }
    ops
}

/// Operations after which nothing refers to the ENI with routing table `table`; `link` if it is
/// still there.
pub fn removal(table: u32, link: Option<&Link>, node: &Observed) -> Vec<Op> {
    let rules = node.rules.iter().filter(|r| r.table == table);
    let mut ops: Vec<Op> = rules
        .filter_map(rule_of)
        .map(|rule| Op::DelRule { rule })
        .collect();
    let Some(link) = link else { return ops };
    let routes = node.routes.iter().filter(|r| r.table == table);
    ops.extend(routes.map(|r| Op::DelRoute { route: r.clone() }));
    let addresses = node.addresses.iter().filter(|a| a.link == link.index);
    ops.extend(addresses.filter(|a| !a.link_local).map(|a| Op::DelAddress {
        place: Place::Node,
        link: link.name.clone(),
        net: a.net,
    }));
    ops
}
