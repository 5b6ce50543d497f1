//! The difference between what is desired and what was observed, as ordered operations. Pure.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use types::address::{Family, MacAddr};

use crate::desired::{
    EniDesired, FROM_POD_PRIORITY, POD_GATEWAY_V4, POD_GATEWAY_V6, PodDesired, TO_POD_PRIORITY,
};
use crate::error::DatapathError;
use crate::names::{self, VethEnd};
use crate::observed::{Link, MAIN_TABLE, Observed, Route};

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
    /// Where it works. A new veth belongs to the node: it is asked for there.
    pub fn place(&self) -> Place {
        match self {
            Self::CreateVeth { .. }
            | Self::DeleteLink { .. }
            | Self::SetAlias { .. }
            | Self::DelRoute { .. }
            | Self::AddRule { .. }
            | Self::DelRule { .. } => Place::Node,
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

/// One way in which the kernel differs from what is desired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// The object that is missing, wrong or too much, in words such as
    /// `node: rule 512: to 10.0.1.7 lookup main`.
    pub what: String,
}

impl From<&Op> for Drift {
    fn from(op: &Op) -> Self {
        Self {
            what: op.to_string(),
        }
    }
}

/// The host address `ip` as a network: /32 or /128.
pub fn host_net(ip: IpAddr) -> IpNet {
    IpNet::from(ip)
}

fn default_net(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(ipnet::Ipv4Net::default()),
        Family::V6 => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

fn pod_gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(POD_GATEWAY_V4),
        Family::V6 => IpAddr::V6(POD_GATEWAY_V6),
    }
}

/// Settings of the pod's namespace that hold before the link is made, so that it is born right:
/// with IPv6 on and deaf to router advertisements.
pub fn pod_settings(pod: &PodDesired) -> Vec<(String, &'static str)> {
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
pub fn pod_link_settings(pod: &PodDesired) -> Vec<(String, &'static str)> {
    if pod.v6.is_none() {
        return Vec::new();
    }
    let link = &pod.attachment.ifname;
    vec![
        (format!("net/ipv6/conf/{link}/disable_ipv6"), "0"),
        (format!("net/ipv6/conf/{link}/accept_ra"), "0"),
    ]
}

/// Settings of a link of the node through which pods' traffic passes.
pub fn node_link_settings(link: &str, v6: bool) -> Vec<(String, &'static str)> {
    let mut settings = vec![
        (format!("net/ipv4/conf/{link}/rp_filter"), "0"),
        (format!("net/ipv4/conf/{link}/forwarding"), "1"),
    ];
    if v6 {
        settings.push((format!("net/ipv6/conf/{link}/disable_ipv6"), "0"));
        settings.push((format!("net/ipv6/conf/{link}/accept_ra"), "0"));
        settings.push((format!("net/ipv6/conf/{link}/forwarding"), "1"));
    }
    settings
}

/// Settings of an ENI's link.
pub fn eni_link_settings(link: &str, v6: bool) -> Vec<(String, &'static str)> {
    let mut settings = node_link_settings(link, v6);
    if v6 {
        // While its link-local address is being probed an ENI can not ask for its gateway, and pods
        // that were granted its addresses at once would be without IPv6 for a second or two. The
        // cloud sees to it that hardware addresses differ.
        settings.push((format!("net/ipv6/conf/{link}/accept_dad"), "0"));
    }
    settings
}

fn push_settings(
    ops: &mut Vec<Op>,
    place: Place,
    wanted: Vec<(String, &'static str)>,
    seen: &Observed,
) {
    for (key, value) in wanted {
        if seen.settings.get(&key).map(String::as_str) != Some(value) {
            ops.push(Op::Set { place, key, value });
        }
    }
}

/// Operations for a pod about whose kernel state nothing is known but that its link should not
/// exist: the quick way of an ADD. Rules that an earlier user of the addresses left are removed
/// unseen.
pub fn fresh_pod(pod: &PodDesired) -> Vec<Op> {
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
    ops.push(Op::CreateVeth {
        host: pod.host_link.clone(),
        host_mac: names::veth_mac(&pod.attachment, VethEnd::Host),
        pod: pod.attachment.ifname.clone(),
        pod_mac: names::veth_mac(&pod.attachment, VethEnd::Pod),
        mtu: pod.mtu,
    });
    // The kernel takes no "up" for the peer while it makes the pair.
    ops.push(Op::SetUp {
        place: Place::Pod,
        link: pod.attachment.ifname.clone(),
        mtu: pod.mtu,
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
pub fn pod(pod: &PodDesired, node: &Observed, inside: &Observed) -> Result<Vec<Op>, DatapathError> {
    let mut ops = Vec::new();
    push_settings(&mut ops, Place::Pod, pod_settings(pod), inside);
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
            push_settings(&mut ops, Place::Pod, pod_link_settings(pod), inside);
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

fn is_pair(host: &Link, inner: &Link, alias: &str) -> bool {
    let ours = host.alias.as_deref().is_none_or(|a| a == alias);
    ours && host.veth && inner.veth && host.peer_index == Some(inner.index)
}

fn push_up(ops: &mut Vec<Op>, place: Place, link: &Link, mtu: u32) {
    if !link.up || link.mtu != mtu {
        ops.push(Op::SetUp {
            place,
            link: link.name.clone(),
            mtu,
        });
    }
}

fn push_neighbour(
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

fn push_route(
    ops: &mut Vec<Op>,
    place: Place,
    link: Option<&Link>,
    route: RouteSpec,
    seen: &Observed,
) {
    let index = link.map(|l| l.index);
    let right = |r: &Route| {
        r.link == index
            && r.gateway == route.gateway
            && (r.scope_link || route.gateway.is_some() || route.dst.addr().is_ipv6())
    };
    let same = |r: &&Route| r.dst == route.dst && r.table == route.table;
    if index.is_some() && seen.routes.iter().filter(same).any(right) {
        return;
    }
    // Replacing works by metric in IPv4 alone; an IPv6 route by another link would stay beside ours.
    if place == Place::Node && route.dst.addr().is_ipv6() {
        let wrong = seen.routes.iter().filter(same).filter(|r| !right(r));
        ops.extend(wrong.map(|r| Op::DelRoute { route: r.clone() }));
    }
    ops.push(Op::PutRoute { place, route });
}

fn pod_side(
    ops: &mut Vec<Op>,
    pod: &PodDesired,
    macs: Macs,
    link: Option<&Link>,
    inside: &Observed,
) {
    let name = &pod.attachment.ifname;
    let on_link = |a: &&crate::observed::Address| link.is_some_and(|l| l.index == a.link);
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

/// The rule as one of ours; nothing when priority, match or prefix length are not.
fn rule_of(rule: &crate::observed::Rule) -> Option<RuleSpec> {
    let (net, from) = match (rule.priority, rule.src, rule.dst) {
        (FROM_POD_PRIORITY, Some(src), None) => (src, true),
        (TO_POD_PRIORITY, None, Some(dst)) => (dst, false),
        (_, _, _) => return None,
    };
    (net.prefix_len() == net.max_prefix_len()).then(|| RuleSpec {
        ip: net.addr(),
        from,
        table: Some(rule.table),
    })
}

fn wrong_rules(ops: &mut Vec<Op>, pod: &PodDesired, node: &Observed) {
    for rule in node.rules.iter().filter_map(rule_of) {
        let wanted = if rule.from { pod.table } else { MAIN_TABLE };
        if rule.table != Some(wanted) && pod.addresses().any(|ip| ip == rule.ip) {
            ops.push(Op::DelRule { rule });
        }
    }
}

/// Operations that configure the ENI `link`: up, MTU, the node's address, and its routing table.
/// Addresses that somebody else put on it (a DHCP client) are removed: they may be a pod's.
pub fn eni(eni: &EniDesired, link: &Link, node: &Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    let place = Place::Node;
    let settings = eni_link_settings(&link.name, eni.v6_gateway.is_some());
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
pub fn eni_removal(table: u32, link: Option<&Link>, node: &Observed) -> Vec<Op> {
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

/// What of ours in the kernel belongs to no known pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Orphans {
    /// Host links whose alias names an attachment that is not known: index and name.
    pub links: Vec<(u32, String)>,
    /// Rules for addresses that no known pod has.
    pub rules: Vec<RuleSpec>,
}

impl Orphans {
    /// What is in both: seen twice, some time apart, it is really abandoned and no ADD under way.
    #[must_use]
    pub fn still(&self, later: &Self) -> Self {
        Self {
            links: self
                .links
                .iter()
                .filter(|l| later.links.contains(l))
                .cloned()
                .collect(),
            rules: self
                .rules
                .iter()
                .filter(|r| later.rules.contains(r))
                .copied()
                .collect(),
        }
    }

    /// Operations that remove them.
    pub fn removal(&self) -> Vec<Op> {
        let rules = self.rules.iter().map(|r| Op::DelRule { rule: *r });
        let links = self.links.iter().map(|(index, name)| Op::DeleteLink {
            index: *index,
            name: name.clone(),
        });
        rules.chain(links).collect()
    }
}

/// Links with an alias of ours, and rules of ours, that belong to none of `pods`.
pub fn orphans(node: &Observed, pods: &[PodDesired]) -> Orphans {
    let links = node
        .attachments()
        .filter(|(key, _)| !pods.iter().any(|p| p.attachment == *key))
        .map(|(_, link)| (link.index, link.name.clone()))
        .collect();
    let rules = node
        .rules
        .iter()
        .filter_map(rule_of)
        .filter(|rule| !pods.iter().any(|p| p.addresses().any(|ip| ip == rule.ip)))
        .collect();
    Orphans { links, rules }
}
