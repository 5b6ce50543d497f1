//! The plan for a pod with an ENI of its own.

use ipnet::IpNet;
use types::address::{Family, MacAddr};

use super::pod::{create_pair, is_pair, pod_gateway, push_neighbour};
use super::{
    default_net, host_net, node_link_settings, push_route, push_settings, push_up, rule_of,
};
use crate::desired::{NODE_LINK, WholeDesired};
use crate::error::DatapathError;
use crate::names::{self, VethEnd};
use crate::observed::{Address, Link, MAIN_TABLE, Observed};
use crate::op::{Op, Place, RouteSpec};

/// Settings of the pod's namespace that hold before its links come, so that these are born right: with IPv6 on, deaf
/// to router advertisements, and with link-local addresses that serve at once.
pub fn settings(pod: &WholeDesired) -> Vec<(String, &'static str)> {
    if pod.v6.is_none() {
        return Vec::new();
    }
    vec![
        ("net/ipv6/conf/all/disable_ipv6".to_owned(), "0"),
        ("net/ipv6/conf/default/disable_ipv6".to_owned(), "0"),
        ("net/ipv6/conf/default/accept_ra".to_owned(), "0"),
        // As on the node: the cloud sees to it that hardware addresses differ.
        ("net/ipv6/conf/default/accept_dad".to_owned(), "0"),
    ]
}

/// Operations that bring `node` and `inside` (the pod's namespace) to what `pod` wants.
///
/// # Errors
/// [`DatapathError::EniMissing`] when neither of them has the ENI; [`DatapathError::InterfaceTaken`] when the pod holds
/// links of these names that are others.
pub fn complete(
    pod: &WholeDesired,
    node: &Observed,
    inside: &Observed,
) -> Result<Vec<Op>, DatapathError> {
    let mut ops = Vec::new();
    push_settings(&mut ops, Place::Pod, settings(pod), inside);
    let eni = eni_side(&mut ops, pod, node, inside)?;
    own_addresses(&mut ops, pod, eni, inside);
    own_routes(&mut ops, pod, eni, inside);
    let (macs, pair) = node_side(&mut ops, pod, node, inside)?;
    let (host, inner) = pair.unzip();
    through_node(&mut ops, pod, macs, inner, inside);
    from_node(&mut ops, pod, macs, host, node);
    Ok(ops)
}

/// The operation that takes the ENI back to the node, if the pod has it.
pub fn removal(mac: MacAddr, inside: &Observed) -> Vec<Op> {
    inside
        .link_by_mac(mac)
        .map(|link| Op::ReturnLink {
            index: link.index,
            name: link.name.clone(),
            to: names::returned_link(mac),
        })
        .into_iter()
        .collect()
}

/// The ENI's link in the pod; nothing when it is only on its way there.
fn eni_side<'a>(
    ops: &mut Vec<Op>,
    pod: &WholeDesired,
    node: &Observed,
    inside: &'a Observed,
) -> Result<Option<&'a Link>, DatapathError> {
    let name = &pod.attachment.ifname;
    match inside.link(name) {
        Some(link) if link.mac == Some(pod.mac) => {
            push_up(ops, Place::Pod, link, pod.mtu);
            Ok(Some(link))
        }
        Some(_) => Err(DatapathError::InterfaceTaken {
            ifname: name.clone(),
        }),
        None => {
            let link = node
                .link_by_mac(pod.mac)
                .ok_or(DatapathError::EniMissing { mac: pod.mac })?;
            ops.push(Op::MoveLink {
                index: link.index,
                name: link.name.clone(),
                to: name.clone(),
            });
            ops.push(Op::SetUp {
                place: Place::Pod,
                link: name.clone(),
                mtu: pod.mtu,
            });
            Ok(None)
        }
    }
}

fn own_addresses(ops: &mut Vec<Op>, pod: &WholeDesired, link: Option<&Link>, inside: &Observed) {
    let name = &pod.attachment.ifname;
    let on_link = |a: &&Address| link.is_some_and(|l| l.index == a.link);
    let wanted: Vec<IpNet> = pod.addresses().map(host_net).collect();
    for extra in inside.addresses.iter().filter(on_link) {
        if !extra.link_local && !wanted.contains(&extra.net) {
            ops.push(Op::DelAddress {
                place: Place::Pod,
                link: name.clone(),
                net: extra.net,
            });
        }
    }
    for net in wanted {
        let mut here = inside.addresses.iter().filter(on_link);
        if !here.any(|a| a.net == net) {
            ops.push(Op::AddAddress {
                place: Place::Pod,
                link: name.clone(),
                net,
            });
        }
    }
}

fn own_routes(ops: &mut Vec<Op>, pod: &WholeDesired, link: Option<&Link>, inside: &Observed) {
    let mut route = |dst, gateway| {
        let route = RouteSpec {
            dst,
            gateway,
            link: pod.attachment.ifname.clone(),
            table: MAIN_TABLE,
        };
        push_route(ops, Place::Pod, link, route, inside);
    };
    route(default_net(Family::V4), Some(pod.v4.1.into()));
    if let Some((_, gateway)) = pod.v6 {
        route(host_net(gateway.into()), None);
        route(default_net(Family::V6), Some(gateway.into()));
    }
}

#[derive(Clone, Copy)]
struct Macs {
    host: MacAddr,
    pod: MacAddr,
}

type Pair<'a> = Option<(&'a Link, &'a Link)>;

/// The veth to the node: its hardware addresses, and its ends if it is there already.
fn node_side<'a>(
    ops: &mut Vec<Op>,
    pod: &WholeDesired,
    node: &'a Observed,
    inside: &'a Observed,
) -> Result<(Macs, Pair<'a>), DatapathError> {
    let attachment = pod.node_side();
    let alias = names::alias(&attachment);
    let fresh = Macs {
        host: names::veth_mac(&attachment, VethEnd::Host),
        pod: names::veth_mac(&attachment, VethEnd::Pod),
    };
    let (macs, pair) = match (node.link(&pod.host_link), inside.link(NODE_LINK)) {
        (Some(host), Some(inner)) if is_pair(host, inner, &alias) => {
            push_up(ops, Place::Pod, inner, pod.mtu);
            push_up(ops, Place::Node, host, pod.mtu);
            let settings = node_link_settings(&pod.host_link, pod.v6.is_some());
            push_settings(ops, Place::Node, settings, node);
            let macs = Macs {
                host: host.mac.unwrap_or(fresh.host),
                pod: inner.mac.unwrap_or(fresh.pod),
            };
            (macs, Some((host, inner)))
        }
        (_, Some(_)) => {
            return Err(DatapathError::InterfaceTaken {
                ifname: NODE_LINK.to_owned(),
            });
        }
        (host, None) => {
            // An earlier sandbox of the pod had it.
            ops.extend(host.map(|host| Op::DeleteLink {
                index: host.index,
                name: host.name.clone(),
            }));
            create_pair(ops, &attachment, &pod.host_link, pod.mtu);
            (fresh, None)
        }
    };
    if pair.is_none_or(|(host, _)| host.alias.as_deref() != Some(&alias)) {
        ops.push(Op::SetAlias {
            link: pod.host_link.clone(),
            alias,
        });
    }
    Ok((macs, pair))
}

/// The pod's way to the node, and by way of it to Services.
fn through_node(
    ops: &mut Vec<Op>,
    pod: &WholeDesired,
    macs: Macs,
    link: Option<&Link>,
    inside: &Observed,
) {
    for family in pod.addresses().map(Family::of) {
        let gateway = pod_gateway(family);
        let neighbour = (gateway, macs.host);
        push_neighbour(ops, Place::Pod, (NODE_LINK, link), neighbour, inside);
        let of_family = pod
            .through_node
            .iter()
            .filter(|net| Family::of(net.addr()) == family);
        let routes = of_family
            .map(|net| (net.trunc(), Some(gateway)))
            .collect::<Vec<_>>();
        for (dst, gateway) in std::iter::once((host_net(gateway), None)).chain(routes) {
            let route = RouteSpec {
                dst,
                gateway,
                link: NODE_LINK.to_owned(),
                table: MAIN_TABLE,
            };
            push_route(ops, Place::Pod, link, route, inside);
        }
    }
}

/// The node's way to the pod. There are no rules: other pods come by the VPC, as from anywhere.
fn from_node(
    ops: &mut Vec<Op>,
    pod: &WholeDesired,
    macs: Macs,
    link: Option<&Link>,
    node: &Observed,
) {
    for rule in node.rules.iter().filter_map(rule_of) {
        // Of a pod that had the address on a shared ENI.
        if pod.addresses().any(|ip| ip == rule.ip) {
            ops.push(Op::DelRule { rule });
        }
    }
    for ip in pod.addresses() {
        let name = pod.host_link.as_str();
        push_neighbour(ops, Place::Node, (name, link), (ip, macs.pod), node);
        let route = RouteSpec {
            dst: host_net(ip),
            gateway: None,
            link: pod.host_link.clone(),
            table: MAIN_TABLE,
        };
        push_route(ops, Place::Node, link, route, node);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use types::pod::AttachmentKey;

    use super::*;

    const MAC: MacAddr = MacAddr([0, 0x16, 0x3e, 0, 0, 7]);

    fn desired() -> WholeDesired {
        WholeDesired {
            attachment: AttachmentKey::new("s1", "eth0").unwrap(),
            host_link: "cali0d7763386da".to_owned(),
            netns: "/var/run/netns/p".into(),
            mac: MAC,
            mtu: 1500,
            v4: (Ipv4Addr::new(10, 9, 0, 5), Ipv4Addr::new(10, 9, 0, 253)),
            v6: None,
            through_node: vec![
                "10.8.0.4/32".parse().unwrap(),
                "10.96.0.0/16".parse().unwrap(),
                "fd00:96::/112".parse().unwrap(),
            ],
        }
    }

    fn link(name: &str, mac: MacAddr) -> Link {
        Link {
            index: 7,
            name: name.to_owned(),
            mac: Some(mac),
            mtu: 1500,
            up: true,
            alias: None,
            peer_index: None,
            veth: false,
        }
    }

    fn with(link: Link) -> Observed {
        Observed {
            links: vec![link],
            ..Observed::default()
        }
    }

    #[test]
    fn eni_is_moved_before_anything_is_put_on_it() {
        let node = with(link("eth1", MAC));

        let ops = complete(&desired(), &node, &Observed::default()).unwrap();

        let words: Vec<String> = ops.iter().map(ToString::to_string).collect();
        let host_mac = names::veth_mac(&desired().node_side(), VethEnd::Host);
        let pod_mac = names::veth_mac(&desired().node_side(), VethEnd::Pod);
        assert_eq!(
            words,
            [
                "node: link eth1 becomes eth0 of the pod",
                "pod: link eth0 up, mtu 1500",
                "pod: address 10.9.0.5/32 dev eth0",
                "pod: route 0.0.0.0/0 via 10.9.0.253 dev eth0 table 254",
                "link cali0d7763386da (peer veth1)",
                "pod: link veth1 up, mtu 1500",
                "node: alias of cali0d7763386da terway:s1/veth1",
                &format!("pod: neighbour 169.254.1.1 lladdr {host_mac} dev veth1"),
                "pod: route 169.254.1.1/32 dev veth1 table 254",
                "pod: route 10.8.0.4/32 via 169.254.1.1 dev veth1 table 254",
                "pod: route 10.96.0.0/16 via 169.254.1.1 dev veth1 table 254",
                &format!("node: neighbour 10.9.0.5 lladdr {pod_mac} dev cali0d7763386da"),
                "node: route 10.9.0.5/32 dev cali0d7763386da table 254",
            ]
        );
    }

    #[test]
    fn eni_that_is_nowhere_is_waited_for() {
        let error = complete(&desired(), &Observed::default(), &Observed::default()).unwrap_err();

        assert!(
            matches!(error, DatapathError::EniMissing { mac: MAC }),
            "{error}"
        );
    }

    #[test]
    fn interface_of_somebody_else_in_the_pod_is_refused() {
        let node = with(link("eth1", MAC));
        let inside = with(link("eth0", MacAddr([2, 0, 0, 0, 0, 1])));

        let error = complete(&desired(), &node, &inside).unwrap_err();

        assert!(
            matches!(error, DatapathError::InterfaceTaken { .. }),
            "{error}"
        );
    }

    #[test]
    fn eni_that_the_pod_has_goes_back_under_its_own_name() {
        let ops = removal(MAC, &with(link("eth0", MAC)));

        let to = names::returned_link(MAC);
        assert_eq!(
            ops,
            [Op::ReturnLink {
                index: 7,
                name: "eth0".to_owned(),
                to
            }]
        );
        assert_eq!(removal(MAC, &Observed::default()), []);
    }
}
