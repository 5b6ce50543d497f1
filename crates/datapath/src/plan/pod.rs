//! The plan for a pod.

use std::net::IpAddr;

use ipnet::IpNet;
use types::address::{Family, MacAddr};
use types::pod::AttachmentKey;

use super::{
    default_net, host_net, node_link_settings, push_route, push_settings, push_up, rule_of,
};
use crate::desired::{POD_GATEWAY_V4, POD_GATEWAY_V6, PodDesired};
use crate::error::DatapathError;
use crate::names::{self, VethEnd};
use crate::observed::{Address, Link, MAIN_TABLE, Observed};
use crate::op::{Op, Place, RouteSpec, RuleSpec};

/// Settings of the pod's namespace that hold before the link is made, so that it is born right:
/// with IPv6 on and deaf to router advertisements.
pub fn settings(pod: &PodDesired) -> Vec<(String, &'static str)> {
    if pod.v6.is_none() {
        return Vec::new();
    }
    vec![
        ("net/ipv6/conf/all/disable_ipv6".to_owned(), "0"),
        ("net/ipv6/conf/default/disable_ipv6".to_owned(), "0"),
        ("net/ipv6/conf/default/accept_ra".to_owned(), "0"),
    ]
}

/// Settings of the pod's own link, once it exists.
pub fn link_settings(pod: &PodDesired) -> Vec<(String, &'static str)> {
    if pod.v6.is_none() {
        return Vec::new();
    }
    let link = &pod.attachment.ifname;
    vec![
        (format!("net/ipv6/conf/{link}/disable_ipv6"), "0"),
        (format!("net/ipv6/conf/{link}/accept_ra"), "0"),
    ]
}
/// Operations for a pod about whose kernel state nothing is known but that its link should not
/// exist: the quick way of an ADD. Rules that an earlier user of the addresses left are removed
/// unseen.
pub fn fresh(pod: &PodDesired) -> Vec<Op> {
    let mut ops = Vec::with_capacity(20);
    create(&mut ops, pod);
    let macs = Macs {
        host: names::veth_mac(&pod.attachment, VethEnd::Host),
        pod: names::veth_mac(&pod.attachment, VethEnd::Pod),
    };
    pod_side(&mut ops, pod, macs, None, &Observed::default());
    ops.push(Op::SetAlias {
        link: pod.host_link.clone(),
        alias: names::alias(&pod.attachment),
    });
    for ip in pod.addresses() {
        ops.extend([false, true].map(|from| Op::DelRule {
            rule: RuleSpec {
                ip,
                from,
                table: None,
            },
        }));
    }
    node_side(&mut ops, pod, macs, None, &Observed::default());
    ops
}

#[derive(Clone, Copy)]
struct Macs {
    host: MacAddr,
    pod: MacAddr,
}

fn create(ops: &mut Vec<Op>, pod: &PodDesired) {
    create_pair(ops, &pod.attachment, &pod.host_link, pod.mtu);
}

/// Makes the pair of an attachment, both ends up.
pub(super) fn create_pair(
    ops: &mut Vec<Op>,
    attachment: &AttachmentKey,
    host_link: &str,
    mtu: u32,
) {
    ops.push(Op::CreateVeth {
        host: host_link.to_owned(),
        host_mac: names::veth_mac(attachment, VethEnd::Host),
        pod: attachment.ifname.clone(),
        pod_mac: names::veth_mac(attachment, VethEnd::Pod),
        mtu,
    });
    // The kernel takes no "up" for the peer while it makes the pair.
    ops.push(Op::SetUp {
        place: Place::Pod,
        link: attachment.ifname.clone(),
        mtu,
    });
}

/// Operations that bring `node` and `inside` (the pod's namespace) to what `pod` wants.
///
/// A host link of that name that belongs to another attachment is an earlier sandbox of the same
/// pod, and is removed.
///
/// # Errors
/// [`DatapathError::InterfaceTaken`] when the pod holds a link of that name which is not the peer of
/// the host link.
pub fn complete(
    pod: &PodDesired,
    node: &Observed,
    inside: &Observed,
) -> Result<Vec<Op>, DatapathError> {
    let mut ops = Vec::new();
    push_settings(&mut ops, Place::Pod, settings(pod), inside);
    let alias = names::alias(&pod.attachment);
    let inner = inside.link(&pod.attachment.ifname);
    let host = node.link(&pod.host_link);
    let pair = match (host, inner) {
        (Some(host), Some(inner)) if is_pair(host, inner, &alias) => Some((host, inner)),
        (_, Some(_)) => {
            return Err(DatapathError::InterfaceTaken {
                ifname: pod.attachment.ifname.clone(),
            });
        }
        (Some(host), None) => {
            ops.push(Op::DeleteLink {
                index: host.index,
                name: host.name.clone(),
            });
            None
        }
        (None, None) => None,
    };
    let macs = pair.map_or_else(
        || Macs {
            host: names::veth_mac(&pod.attachment, VethEnd::Host),
            pod: names::veth_mac(&pod.attachment, VethEnd::Pod),
        },
        |(host, inner)| Macs {
            host: host.mac.unwrap_or(MacAddr([0; 6])),
            pod: inner.mac.unwrap_or(MacAddr([0; 6])),
        },
    );
    match pair {
        None => create(&mut ops, pod),
        Some((host, inner)) => {
            push_settings(&mut ops, Place::Pod, link_settings(pod), inside);
            push_up(&mut ops, Place::Pod, inner, pod.mtu);
            push_up(&mut ops, Place::Node, host, pod.mtu);
            let settings = node_link_settings(&pod.host_link, pod.v6.is_some());
            push_settings(&mut ops, Place::Node, settings, node);
        }
    }
    pod_side(&mut ops, pod, macs, pair.map(|(_, inner)| inner), inside);
    if pair.is_none_or(|(host, _)| host.alias.as_deref() != Some(&alias)) {
        ops.push(Op::SetAlias {
            link: pod.host_link.clone(),
            alias,
        });
    }
    wrong_rules(&mut ops, pod, node);
    node_side(&mut ops, pod, macs, pair.map(|(host, _)| host), node);
    Ok(ops)
}

pub(super) fn is_pair(host: &Link, inner: &Link, alias: &str) -> bool {
    let ours = host.alias.as_deref().is_none_or(|a| a == alias);
    ours && host.veth && inner.veth && host.peer_index == Some(inner.index)
}
fn pod_side(
    ops: &mut Vec<Op>,
    pod: &PodDesired,
    macs: Macs,
    link: Option<&Link>,
    inside: &Observed,
) {
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
    for net in &wanted {
        let there = inside
            .addresses
            .iter()
            .filter(on_link)
            .any(|a| a.net == *net);
        if !there {
            ops.push(Op::AddAddress {
                place: Place::Pod,
                link: name.clone(),
                net: *net,
            });
        }
    }
    for ip in pod.addresses() {
        let family = Family::of(ip);
        let gateway = pod_gateway(family);
        push_neighbour(ops, Place::Pod, (name, link), (gateway, macs.host), inside);
        let route = RouteSpec {
            dst: default_net(family),
            gateway: Some(gateway),
            link: name.clone(),
            table: MAIN_TABLE,
        };
        push_route(ops, Place::Pod, link, route, inside);
    }
}

fn node_side(
    ops: &mut Vec<Op>,
    pod: &PodDesired,
    macs: Macs,
    link: Option<&Link>,
    node: &Observed,
) {
    for ip in pod.addresses() {
        // Without it the first IPv6 packet to a new pod waits a second or two: a neighbour
        // solicitation needs a link-local source, and the link's own is still being probed.
        if ip.is_ipv6() {
            let link = (pod.host_link.as_str(), link);
            push_neighbour(ops, Place::Node, link, (ip, macs.pod), node);
        }
        let route = RouteSpec {
            dst: host_net(ip),
            gateway: None,
            link: pod.host_link.clone(),
            table: MAIN_TABLE,
        };
        push_route(ops, Place::Node, link, route, node);
        for rule in pod_rules(ip, pod.table) {
            if !has_rule(node, &rule) {
                ops.push(Op::AddRule { rule });
            }
        }
    }
}

fn pod_rules(ip: IpAddr, table: u32) -> [RuleSpec; 2] {
    [(false, MAIN_TABLE), (true, table)].map(|(from, table)| RuleSpec {
        ip,
        from,
        table: Some(table),
    })
}

fn has_rule(node: &Observed, rule: &RuleSpec) -> bool {
    node.rules.iter().any(|r| rule_of(r) == Some(*rule))
}
pub(super) fn push_neighbour(
    ops: &mut Vec<Op>,
    place: Place,
    link: (&str, Option<&Link>),
    entry: (IpAddr, MacAddr),
    seen: &Observed,
) {
    let (ip, mac) = entry;
    let there = link.1.is_some_and(|l| {
        seen.neighbours
            .iter()
            .any(|n| n.link == l.index && n.ip == ip && n.mac == mac)
    });
    if !there {
        ops.push(Op::PutNeighbour {
            place,
            link: link.0.to_owned(),
            ip,
            mac,
        });
    }
}
fn wrong_rules(ops: &mut Vec<Op>, pod: &PodDesired, node: &Observed) {
    for rule in node.rules.iter().filter_map(rule_of) {
        let wanted = if rule.from { pod.table } else { MAIN_TABLE };
        if rule.table != Some(wanted) && pod.addresses().any(|ip| ip == rule.ip) {
            ops.push(Op::DelRule { rule });
        }
    }
}
pub(super) fn pod_gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(POD_GATEWAY_V4),
        Family::V6 => IpAddr::V6(POD_GATEWAY_V6),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::observed::{Neighbour, Route, Rule};

    fn desired() -> PodDesired {
        PodDesired {
            attachment: AttachmentKey::new("s1", "eth0").unwrap(),
            host_link: "cali0d7763386da".to_owned(),
            netns: "/var/run/netns/p".into(),
            mtu: 1500,
            v4: Some(Ipv4Addr::new(10, 9, 0, 5)),
            v6: Some(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 5)),
            table: 1007,
        }
    }

    /// A kernel with just enough behaviour to carry out operations.
    #[derive(Debug, Clone, Default)]
    struct Model {
        node: Observed,
        pod: Observed,
    }

    impl Model {
        fn place(&mut self, place: Place) -> &mut Observed {
            match place {
                Place::Node => &mut self.node,
                Place::Pod => &mut self.pod,
            }
        }

        fn index(&mut self, place: Place, link: &str) -> u32 {
            self.place(place).link(link).unwrap().index
        }

        fn delete_link(&mut self, index: u32) {
            let peer = self
                .node
                .links
                .iter()
                .find(|l| l.index == index)
                .unwrap()
                .peer_index;
            for (seen, gone) in [(&mut self.node, Some(index)), (&mut self.pod, peer)] {
                seen.links.retain(|l| Some(l.index) != gone);
                seen.addresses.retain(|a| Some(a.link) != gone);
                seen.neighbours.retain(|n| Some(n.link) != gone);
                seen.routes.retain(|r| r.link != gone);
            }
        }

        fn create(&mut self, host: &str, host_mac: MacAddr, pod: &str, pod_mac: MacAddr, mtu: u32) {
            assert!(self.node.link(host).is_none() && self.pod.link(pod).is_none());
            let link = |name: &str, mac, index, peer, up| Link {
                index,
                name: name.to_owned(),
                mac: Some(mac),
                mtu,
                up,
                alias: None,
                peer_index: Some(peer),
                veth: true,
            };
            self.node.links.push(link(host, host_mac, 70, 2, true));
            self.pod.links.push(link(pod, pod_mac, 2, 70, false));
            for (place, settings) in [
                (Place::Node, node_link_settings(host, true)),
                (Place::Pod, link_settings(&desired())),
            ] {
                let settings = settings.into_iter().map(|(k, v)| (k, v.to_owned()));
                self.place(place).settings.extend(settings);
            }
        }

        fn apply(&mut self, op: &Op) {
            match op {
                Op::CreateVeth {
                    host,
                    host_mac,
                    pod,
                    pod_mac,
                    mtu,
                } => {
                    self.create(host, *host_mac, pod, *pod_mac, *mtu);
                }
                Op::MoveLink { .. } | Op::ReturnLink { .. } => panic!("no link moves: {op}"),
                Op::DeleteLink { index, .. } => self.delete_link(*index),
                Op::SetAlias { link, alias } => {
                    let index = self.index(Place::Node, link);
                    for l in self.node.links.iter_mut().filter(|l| l.index == index) {
                        l.alias = Some(alias.clone());
                    }
                }
                Op::SetUp { place, link, mtu } => {
                    let index = self.index(*place, link);
                    for l in self
                        .place(*place)
                        .links
                        .iter_mut()
                        .filter(|l| l.index == index)
                    {
                        (l.up, l.mtu) = (true, *mtu);
                    }
                }
                Op::Set { place, key, value } => {
                    self.place(*place)
                        .settings
                        .insert(key.clone(), (*value).to_owned());
                }
                Op::AddAddress { place, link, net } => {
                    let link = self.index(*place, link);
                    let address = Address {
                        link,
                        net: *net,
                        link_local: false,
                    };
                    self.place(*place).addresses.push(address);
                }
                Op::DelAddress { place, net, .. } => {
                    self.place(*place).addresses.retain(|a| a.net != *net);
                }
                Op::PutRoute { place, route } => {
                    let link = Some(self.index(*place, &route.link));
                    let seen = self.place(*place);
                    // IPv4 replaces; IPv6 keeps routes by other links.
                    seen.routes.retain(|r| {
                        let same = r.dst == route.dst && r.table == route.table;
                        !same || (r.dst.addr().is_ipv6() && r.link != link)
                    });
                    seen.routes.push(Route {
                        dst: route.dst,
                        gateway: route.gateway,
                        link,
                        table: route.table,
                        scope_link: route.gateway.is_none() && route.dst.addr().is_ipv4(),
                        onlink: route.gateway.is_some(),
                        metric: 0,
                    });
                }
                Op::DelRoute { route } => self.node.routes.retain(|r| r != route),
                Op::AddRule { rule } => {
                    let net = Some(host_net(rule.ip));
                    self.node.rules.push(Rule {
                        v6: rule.ip.is_ipv6(),
                        priority: rule.priority(),
                        src: net.filter(|_| rule.from),
                        dst: net.filter(|_| !rule.from),
                        table: rule.table.unwrap(),
                    });
                }
                Op::DelRule { rule } => self.node.rules.retain(|r| {
                    let found = rule_of(r).unwrap();
                    (found.ip, found.from) != (rule.ip, rule.from)
                        || rule.table.is_some_and(|t| t != r.table)
                }),
                Op::PutNeighbour {
                    place,
                    link,
                    ip,
                    mac,
                } => {
                    let link = self.index(*place, link);
                    let seen = self.place(*place);
                    seen.neighbours.retain(|n| (n.link, n.ip) != (link, *ip));
                    seen.neighbours.push(Neighbour {
                        link,
                        ip: *ip,
                        mac: *mac,
                    });
                }
            }
        }

        fn complete(&mut self) -> Vec<Op> {
            let ops = complete(&desired(), &self.node, &self.pod).unwrap();
            for op in &ops {
                self.apply(op);
            }
            ops
        }
    }

    fn keep<T: Clone>(items: &mut Vec<T>, mut mask: u32) {
        items.retain(|_| {
            let stays = mask & 1 == 0;
            mask >>= 1;
            stays
        });
    }

    /// Takes away what the bits say, and puts wrong things beside what is left.
    fn damage(model: &mut Model, masks: [u32; 6], wrong: u32, link: u32) {
        keep(&mut model.node.rules, masks[0]);
        keep(&mut model.node.routes, masks[1]);
        keep(&mut model.node.neighbours, masks[2]);
        keep(&mut model.pod.addresses, masks[3]);
        keep(&mut model.pod.routes, masks[4]);
        keep(&mut model.pod.neighbours, masks[5]);
        let mut ops = Vec::new();
        for (bit, ip) in desired().addresses().enumerate() {
            let rule = |from, table| Op::AddRule {
                rule: RuleSpec {
                    ip,
                    from,
                    table: Some(table),
                },
            };
            let wanted = [rule(true, 1003), rule(false, 1003)];
            let bits = wrong >> (bit * 2);
            ops.extend(
                wanted
                    .into_iter()
                    .enumerate()
                    .filter(|(n, _)| bits >> n & 1 == 1),
            );
        }
        for (_, op) in ops {
            model.apply(&op);
        }
        if wrong & 16 != 0 {
            let mut stale = Route {
                dst: host_net(IpAddr::V6(desired().v6.unwrap())),
                gateway: None,
                link: Some(33),
                table: MAIN_TABLE,
                scope_link: false,
                onlink: false,
                metric: 1024,
            };
            model.node.routes.push(stale.clone());
            stale.dst = host_net(IpAddr::V4(desired().v4.unwrap()));
            model.node.routes.push(stale);
        }
        if wrong & 32 != 0 {
            model.pod.addresses.push(Address {
                link: 2,
                net: "10.1.0.1/24".parse().unwrap(),
                link_local: false,
            });
        }
        match link {
            0 => model.delete_link(70),
            1 => model.pod.links[0].up = false,
            2 => model.node.links[0].mtu = 1400,
            3 => model.node.links[0].alias = None,
            _ => {}
        }
    }

    #[test]
    fn fresh_plan_leaves_nothing_to_complete() {
        let mut model = Model::default();
        let settings = settings(&desired())
            .into_iter()
            .map(|(k, v)| (k, v.to_owned()));
        model.pod.settings.extend(settings);
        for op in fresh(&desired()) {
            model.apply(&op);
        }

        assert_eq!(model.complete(), []);
    }

    #[test]
    fn link_of_an_earlier_sandbox_is_replaced() {
        let mut model = Model::default();
        model.complete();
        model.node.links[0].alias = Some("terway:s0/eth0".to_owned());
        // The earlier sandbox had a namespace of its own.
        model.pod = Observed::default();

        let ops = model.complete();

        assert!(matches!(
            ops.iter().find(|o| o.place() == Place::Node),
            Some(Op::DeleteLink { .. })
        ));
        assert_eq!(model.complete(), []);
    }

    #[test]
    fn interface_that_is_not_the_peer_is_refused() {
        let mut model = Model::default();
        model.complete();
        model.node.links.clear();

        let error = complete(&desired(), &model.node, &model.pod).unwrap_err();

        assert!(
            matches!(error, DatapathError::InterfaceTaken { .. }),
            "{error}"
        );
    }

    proptest! {
        // Applying a plan leaves nothing to do, whatever was lost or wrong before.
        #[test]
        fn completed_pod_has_an_empty_plan(
            masks in any::<[u32; 6]>(),
            wrong in 0_u32..64,
            link in 0_u32..6,
        ) {
            let mut model = Model::default();
            model.complete();
            damage(&mut model, masks, wrong, link);

            model.complete();

            prop_assert_eq!(model.complete(), []);
            prop_assert_eq!(model.node.rules.len(), 4);
            prop_assert_eq!(model.node.routes.len(), 2);
        }
    }
}
