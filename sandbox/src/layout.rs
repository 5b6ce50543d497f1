//! The plan of the simulated VPC: ids, ranges and addresses that follow from the options. Pure.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde_json::json;
use types::cloud::{InstanceId, InvalidId, SecurityGroupId, VSwitchId, VpcId, ZoneId};

use crate::options::ClusterOptions;

/// The only region.
pub const REGION: &str = "cn-hangzhou";
/// The cluster's id.
pub const CLUSTER: &str = "sandbox";
/// Services network, for `eni_conf`.
const SERVICE_CIDR: &str = "172.16.0.0/16";

/// A vSwitch to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VSwitchPlan {
    /// Its id.
    pub id: VSwitchId,
    /// Its IPv4 range.
    pub ipv4: Ipv4Net,
    /// Its IPv6 range.
    pub ipv6: Option<Ipv6Net>,
}

/// A zone with its vSwitches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZonePlan {
    /// Its id.
    pub id: ZoneId,
    /// Where the instances' primary ENIs are.
    pub hosts: VSwitchPlan,
    /// Where pods are, the first to be used first.
    pub pods: Vec<VSwitchPlan>,
}

/// What an instance is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Gateway, ipam and etcd run here.
    Services,
    /// A node of the cluster.
    Node,
    /// Neither; it only looks on.
    Plain,
}

/// An instance to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstancePlan {
    /// Its id.
    pub id: InstanceId,
    /// Its name: `services`, `node-1`, `host-1`.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Which zone, an index into [`Layout::zones`].
    pub zone: usize,
    /// Its primary address.
    pub ip: Ipv4Addr,
}

/// The whole plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The VPC.
    pub vpc: VpcId,
    /// Its IPv4 range.
    pub vpc_ipv4: Ipv4Net,
    /// Its IPv6 range.
    pub vpc_ipv6: Option<Ipv6Net>,
    /// The security group of everything.
    pub security_group: SecurityGroupId,
    /// The zones.
    pub zones: Vec<ZonePlan>,
    /// The instances: services first, then nodes, then plain hosts.
    pub instances: Vec<InstancePlan>,
}

/// A plan that has no place for what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A made-up id is not one: a fault of this module.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// A made-up range is not one: a fault of this module.
    #[error(transparent)]
    Range(#[from] ipnet::PrefixLenError),
    /// A made-up range is not one: a fault of this module.
    #[error(transparent)]
    Text(#[from] ipnet::AddrParseError),
}

impl Layout {
    /// Plans the VPC for these options, which must be checked.
    pub fn plan(options: &ClusterOptions) -> Result<Self, LayoutError> {
        let mut zones = Vec::new();
        for (index, letter) in ('h'..).take(options.zones).enumerate() {
            zones.push(zone(options, index, letter)?);
        }
        let mut instances = vec![instance("services", Role::Services, 0, 10)?];
        for n in 1..=options.nodes {
            let zone = (n - 1) % options.zones;
            instances.push(instance(&format!("node-{n}"), Role::Node, zone, 20 + n)?);
        }
        for n in 1..=options.plain_hosts {
            let zone = (n - 1) % options.zones;
            instances.push(instance(&format!("host-{n}"), Role::Plain, zone, 100 + n)?);
        }
        Ok(Self {
            vpc: "vpc-sandbox".parse()?,
            vpc_ipv4: "10.0.0.0/8".parse()?,
            vpc_ipv6: options
                .dual_stack
                .then(|| "2001:db8:64:6400::/56".parse())
                .transpose()?,
            security_group: "sg-sandbox".parse()?,
            zones,
            instances,
        })
    }

    /// Instances of one role, in order.
    pub fn of_role(&self, role: Role) -> impl Iterator<Item = &InstancePlan> {
        self.instances.iter().filter(move |i| i.role == role)
    }

    /// Terway's `eni_conf` for this plan.
    pub fn eni_conf(&self, options: &ClusterOptions) -> serde_json::Value {
        let vswitches: serde_json::Map<String, serde_json::Value> = self
            .zones
            .iter()
            .map(|zone| {
                let ids: Vec<_> = zone.pods.iter().map(|v| v.id.as_str()).collect();
                (zone.id.to_string(), json!(ids))
            })
            .collect();
        json!({
            "vswitches": vswitches,
            "security_groups": [self.security_group],
            "eni_tags": {"cluster": CLUSTER},
            "ip_stack": if options.dual_stack { "dual" } else { "ipv4" },
            "vswitch_selection_policy": "ordered",
            "min_pool_size": options.pool_min,
            "max_pool_size": options.pool_max,
            "service_cidr": SERVICE_CIDR,
        })
    }
}

fn zone(options: &ClusterOptions, index: usize, letter: char) -> Result<ZonePlan, LayoutError> {
    let id: ZoneId = format!("{REGION}-{letter}").parse()?;
    let pods = usize::from(options.spare_vswitch) + 1;
    Ok(ZonePlan {
        hosts: VSwitchPlan {
            id: format!("vsw-hosts-{letter}").parse()?,
            ipv4: format!("10.0.{index}.0/24").parse()?,
            ipv6: v6(options, index)?,
        },
        pods: (0..pods)
            .map(|spare| {
                // Each pod vSwitch lies at the start of a /16 of its own.
                let second = u8::try_from(1 + index + 100 * spare).unwrap_or(u8::MAX);
                let base = Ipv4Addr::new(10, second, 0, 0);
                let name = if spare == 0 { "pods" } else { "spare" };
                Ok(VSwitchPlan {
                    id: format!("vsw-{name}-{letter}").parse()?,
                    ipv4: Ipv4Net::new(base, options.pod_vswitch_prefix)?,
                    ipv6: v6(options, 16 + 16 * spare + index)?,
                })
            })
            .collect::<Result<_, LayoutError>>()?,
        id,
    })
}

/// The `n`th /64 of the VPC.
fn v6(options: &ClusterOptions, n: usize) -> Result<Option<Ipv6Net>, LayoutError> {
    let parse = || format!("2001:db8:64:64{n:02x}::/64").parse();
    Ok(options.dual_stack.then(parse).transpose()?)
}

fn instance(name: &str, role: Role, zone: usize, last: usize) -> Result<InstancePlan, LayoutError> {
    let octet = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
    Ok(InstancePlan {
        id: format!("i-{name}").parse()?,
        name: name.to_owned(),
        role,
        zone,
        ip: Ipv4Addr::new(10, 0, octet(zone), octet(last)),
    })
}

/// The address of an instance, for configuration files.
pub fn host_port(ip: impl Into<IpAddr>, port: u16) -> String {
    std::net::SocketAddr::new(ip.into(), port).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_of_the_default_has_two_zones_and_three_nodes() {
        let layout = Layout::plan(&ClusterOptions::default()).unwrap();

        assert_eq!(layout.zones.len(), 2);
        let nodes: Vec<_> = layout.of_role(Role::Node).map(|n| n.zone).collect();
        assert_eq!(nodes, [0, 1, 0]);
        assert_eq!(layout.of_role(Role::Plain).count(), 1);
    }

    #[test]
    fn vswitches_of_a_plan_do_not_overlap() {
        let options = ClusterOptions {
            zones: 8,
            pod_vswitch_prefix: 16,
            spare_vswitch: true,
            ..ClusterOptions::default()
        };
        let layout = Layout::plan(&options).unwrap();
        let all: Vec<_> = layout
            .zones
            .iter()
            .flat_map(|z| z.pods.iter().chain([&z.hosts]))
            .collect();

        for (i, a) in all.iter().enumerate() {
            for b in &all[i + 1..] {
                assert!(!a.ipv4.contains(&b.ipv4) && !b.ipv4.contains(&a.ipv4));
                assert_ne!(a.ipv6, b.ipv6);
                assert_ne!(a.id, b.id);
            }
        }
    }
}
