//! The difference between what is desired and what was observed, as ordered operations. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use types::address::Family;

use crate::desired::{FROM_POD_PRIORITY, PodDesired, TO_POD_PRIORITY, WholeDesired};
use crate::observed::{Link, Observed, Route, Rule};
use crate::op::{Op, Place, RouteSpec, RuleSpec};

pub mod eni;
pub mod pod;
pub mod whole;

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
fn push_up(ops: &mut Vec<Op>, place: Place, link: &Link, mtu: u32) {
    if !link.up || link.mtu != mtu {
        ops.push(Op::SetUp {
            place,
            link: link.name.clone(),
            mtu,
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
    // One by another link or with another metric would stay beside ours, and may win.
    if place == Place::Node {
        let wrong = seen.routes.iter().filter(same).filter(|r| !right(r));
        ops.extend(wrong.map(|r| Op::DelRoute { route: r.clone() }));
    }
    if index.is_some() && seen.routes.iter().filter(same).any(right) {
        return;
    }
    ops.push(Op::PutRoute { place, route });
}
/// The rule as one of ours; nothing when priority, match or prefix length are not.
fn rule_of(rule: &Rule) -> Option<RuleSpec> {
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

/// Links with an alias of ours, and rules of ours, that belong to none of `pods` and `wholes`.
pub fn orphans(node: &Observed, pods: &[PodDesired], wholes: &[WholeDesired]) -> Orphans {
    let links = node
        .attachments()
        .filter(|(key, _)| !pods.iter().any(|p| p.attachment == *key))
        .filter(|(key, _)| !wholes.iter().any(|w| w.node_side() == *key))
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
