//! What ENIs live between: instances, instance types, vSwitches, security groups.

use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};
use types::cloud::{
    EniId, InstanceId, InstanceType, RegionId, SecurityGroupId, VSwitchId, VpcId, ZoneId,
};
use types::quota::EniQuota;

use crate::action::Action;
use crate::json::{Malformed, Node};
use crate::model::params::Params;
use crate::model::{Reply, Request};

/// A JSON array as text, as some parameters want it.
fn json_array<T: ToString>(values: &[T]) -> Option<String> {
    if values.is_empty() {
        return None;
    }
    let values: Vec<_> = values.iter().map(ToString::to_string).collect();
    Some(serde_json::Value::from(values).to_string())
}

/// Finds instances. Unknown ids are absent from the reply.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DescribeInstances {
    /// At most 100; empty means all.
    pub instances: Vec<InstanceId>,
    /// Rows per page, 10 to 100. Absent means 10.
    pub max_results: Option<u32>,
    /// From the previous page.
    pub next_token: Option<String>,
}

impl Request for DescribeInstances {
    const ACTION: Action = Action::DescribeInstances;
    type Reply = InstancePage;

    fn params(&self) -> Params {
        Params::new()
            .with_some("InstanceIds", json_array(&self.instances))
            .with_some("MaxResults", self.max_results)
            .with_some("NextToken", self.next_token.as_ref())
    }
}

/// An instance as the cloud describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// Its type.
    pub instance_type: InstanceType,
    /// Its region.
    pub region: RegionId,
    /// Its zone.
    pub zone: ZoneId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its vSwitch.
    pub vswitch: VSwitchId,
    /// Pending, Starting, Running, Stopping, Stopped.
    pub status: String,
    /// Its security groups.
    pub security_groups: Vec<SecurityGroupId>,
    /// Its primary ENI.
    pub primary_eni: Option<EniId>,
    /// The primary address of its primary ENI.
    pub primary_ip: Option<Ipv4Addr>,
    /// Its name.
    pub name: String,
}

impl Reply for Instance {
    fn decode(node: Node<'_>) -> Result<Self, Malformed> {
        let vpc = node.child("VpcAttributes");
        let primary = node
            .list("NetworkInterfaces", "NetworkInterface")
            .find(|eni| eni.text("Type").as_deref() == Some("Primary"));
        let mut primary_ip = None;
        let mut primary_eni = None;
        if let Some(eni) = primary {
            primary_eni = eni.parsed_some("NetworkInterfaceId")?;
            primary_ip = eni.parsed_some("PrimaryIpAddress")?;
        }
        if primary_ip.is_none() {
            primary_ip = vpc
                .list("PrivateIpAddress", "IpAddress")
                .next()
                .map(Node::as_parsed)
                .transpose()?;
        }
        Ok(Self {
            id: node.parsed("InstanceId")?,
            instance_type: node.parsed("InstanceType")?,
            region: node.parsed("RegionId")?,
            zone: node.parsed("ZoneId")?,
            vpc: vpc.parsed("VpcId")?,
            vswitch: vpc.parsed("VSwitchId")?,
            status: node.text("Status").unwrap_or_default(),
            security_groups: node
                .list("SecurityGroupIds", "SecurityGroupId")
                .map(Node::as_parsed)
                .collect::<Result<_, _>>()?,
            primary_eni,
            primary_ip,
            name: node.text("InstanceName").unwrap_or_default(),
        })
    }
}

/// A page of instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstancePage {
    /// The rows.
    pub instances: Vec<Instance>,
    /// Where the next page starts; absent on the last one.
    pub next_token: Option<String>,
}

impl Reply for InstancePage {
    fn decode(node: Node<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            instances: node
                .list("Instances", "Instance")
                .map(Instance::decode)
                .collect::<Result<_, _>>()?,
            next_token: node.text("NextToken"),
        })
    }
}

/// Finds instance types with their limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DescribeInstanceTypes {
    /// Which; empty means all.
    pub instance_types: Vec<InstanceType>,
    /// Rows per page, at most 100.
    pub max_results: Option<u32>,
    /// From the previous page.
    pub next_token: Option<String>,
}

impl Request for DescribeInstanceTypes {
    const ACTION: Action = Action::DescribeInstanceTypes;
    type Reply = InstanceTypePage;

    fn params(&self) -> Params {
        Params::new()
            .with_list("InstanceTypes", &self.instance_types)
            .with_some("MaxResults", self.max_results)
            .with_some("NextToken", self.next_token.as_ref())
    }
}

/// The limits of one instance type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceTypeRow {
    /// The type.
    pub id: InstanceType,
    /// What it allows.
    pub quota: EniQuota,
}

impl Reply for InstanceTypeRow {
    fn decode(node: Node<'_>) -> Result<Self, Malformed> {
        let enis = node.parsed("EniQuantity")?;
        Ok(Self {
            id: node.parsed("InstanceTypeId")?,
            quota: EniQuota {
                enis,
                enis_total: node.parsed_some("EniTotalQuantity")?.unwrap_or(enis),
                ipv4_per_eni: node.parsed("EniPrivateIpAddressQuantity")?,
                ipv6_per_eni: node.parsed_some("EniIpv6AddressQuantity")?.unwrap_or(0),
                trunk: node.flag("EniTrunkSupported"),
            },
        })
    }
}

/// A page of instance types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceTypePage {
    /// The rows.
    pub instance_types: Vec<InstanceTypeRow>,
    /// Where the next page starts; absent on the last one.
    pub next_token: Option<String>,
}

impl Reply for InstanceTypePage {
    fn decode(node: Node<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            instance_types: node
                .list("InstanceTypes", "InstanceType")
                .map(InstanceTypeRow::decode)
                .collect::<Result<_, _>>()?,
            next_token: node.text("NextToken"),
        })
    }
}

/// Finds vSwitches, by pages counted from 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DescribeVSwitches {
    /// At most 20; empty means all.
    pub vswitches: Vec<VSwitchId>,
    /// In this VPC.
    pub vpc: Option<VpcId>,
    /// In this zone.
    pub zone: Option<ZoneId>,
    /// From 1; absent means 1.
    pub page_number: Option<u32>,
    /// 1 to 50; absent means 10.
    pub page_size: Option<u32>,
}

impl Request for DescribeVSwitches {
    const ACTION: Action = Action::DescribeVSwitches;
    type Reply = VSwitchPage;

    fn params(&self) -> Params {
        let ids: Vec<_> = self.vswitches.iter().map(VSwitchId::as_str).collect();
        Params::new()
            .with_some("VSwitchId", (!ids.is_empty()).then(|| ids.join(",")))
            .with_some("VpcId", self.vpc.as_ref())
            .with_some("ZoneId", self.zone.as_ref())
            .with_some("PageNumber", self.page_number)
            .with_some("PageSize", self.page_size)
    }
}

/// A vSwitch as the cloud describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VSwitch {
    /// Its id.
    pub id: VSwitchId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its zone.
    pub zone: ZoneId,
    /// Its IPv4 range.
    pub ipv4_cidr: Ipv4Net,
    /// Its IPv6 range, if it has one.
    pub ipv6_cidr: Option<Ipv6Net>,
    /// Free IPv4 addresses; may lag.
    pub available_ipv4: u64,
    /// Pending or Available.
    pub status: String,
}

impl Reply for VSwitch {
    fn decode(node: Node<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            id: node.parsed("VSwitchId")?,
            vpc: node.parsed("VpcId")?,
            zone: node.parsed("ZoneId")?,
            ipv4_cidr: node.parsed("CidrBlock")?,
            ipv6_cidr: node.parsed_some("Ipv6CidrBlock")?,
            available_ipv4: node.parsed("AvailableIpAddressCount")?,
            status: node.text("Status").unwrap_or_default(),
        })
    }
}

/// A page of vSwitches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VSwitchPage {
    /// The rows.
    pub vswitches: Vec<VSwitch>,
    /// How many there are on all pages.
    pub total_count: u32,
}

impl Reply for VSwitchPage {
    fn decode(node: Node<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            vswitches: node
                .list("VSwitches", "VSwitch")
                .map(VSwitch::decode)
                .collect::<Result<_, _>>()?,
            total_count: node.parsed_some("TotalCount")?.unwrap_or(0),
        })
    }
}

/// Finds security groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DescribeSecurityGroups {
    /// At most 100; empty means all.
    pub security_groups: Vec<SecurityGroupId>,
    /// In this VPC.
    pub vpc: Option<VpcId>,
    /// Rows per page, at most 100. Absent means 10.
    pub max_results: Option<u32>,
    /// From the previous page.
    pub next_token: Option<String>,
}

impl Request for DescribeSecurityGroups {
    const ACTION: Action = Action::DescribeSecurityGroups;
    type Reply = SecurityGroupPage;

    fn params(&self) -> Params {
        Params::new()
            .with_some("SecurityGroupIds", json_array(&self.security_groups))
            .with_some("VpcId", self.vpc.as_ref())
            .with_some("MaxResults", self.max_results)
            .with_some("NextToken", self.next_token.as_ref())
    }
}

/// A security group as the cloud describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroup {
    /// Its id.
    pub id: SecurityGroupId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its name.
    pub name: String,
    /// `normal` or `enterprise`.
    pub kind: String,
}

impl Reply for SecurityGroup {
    fn decode(node: Node<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            id: node.parsed("SecurityGroupId")?,
            vpc: node.parsed("VpcId")?,
            name: node.text("SecurityGroupName").unwrap_or_default(),
            kind: node.text("SecurityGroupType").unwrap_or_default(),
        })
    }
}

/// A page of security groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroupPage {
    /// The rows.
    pub security_groups: Vec<SecurityGroup>,
    /// Where the next page starts; absent on the last one.
    pub next_token: Option<String>,
}

impl Reply for SecurityGroupPage {
    fn decode(node: Node<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            security_groups: node
                .list("SecurityGroups", "SecurityGroup")
                .map(SecurityGroup::decode)
                .collect::<Result<_, _>>()?,
            next_token: node.text("NextToken"),
        })
    }
}
