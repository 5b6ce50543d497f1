//! ENIs: create, attach, detach, delete, describe.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use types::address::MacAddr;
use types::cloud::{EniId, InstanceId, SecurityGroupId, VSwitchId, VpcId, ZoneId};
use types::time::Tick;

use crate::action::Action;
use crate::json::{Malformed, Node};
use crate::model::params::Params;
use crate::model::{Pick, Reply, Request};
use crate::sign::encode::parse_timestamp;

/// Where an ENI is in its life.
///
/// Source: DescribeNetworkInterfaces, `Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EniStatus {
    /// Exists, attached to nothing.
    Available,
    /// An attach is running.
    Attaching,
    /// Attached.
    InUse,
    /// A detach is running.
    Detaching,
    /// A delete is running.
    Deleting,
    /// A status this crate does not know. Wait and look again.
    Other,
}

impl EniStatus {
    /// The word on the wire; empty for [`EniStatus::Other`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Available => "Available",
            Self::Attaching => "Attaching",
            Self::InUse => "InUse",
            Self::Detaching => "Detaching",
            Self::Deleting => "Deleting",
            Self::Other => "",
        }
    }

    /// Reads the word on the wire.
    pub fn of(text: &str) -> Self {
        match text {
            "Available" => Self::Available,
            "Attaching" => Self::Attaching,
            "InUse" => Self::InUse,
            "Detaching" => Self::Detaching,
            "Deleting" => Self::Deleting,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for EniStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an ENI is to its instance.
///
/// Source: DescribeNetworkInterfaces, `Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum EniKind {
    /// The instance's own.
    Primary,
    /// Attached beside it.
    #[default]
    Secondary,
    /// Carries member ENIs.
    Trunk,
    /// Carried by a trunk.
    Member,
}

impl EniKind {
    /// The word on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Primary => "Primary",
            Self::Secondary => "Secondary",
            Self::Trunk => "Trunk",
            Self::Member => "Member",
        }
    }

    /// Reads the word on the wire. Empty means secondary: replies to Create leave it out.
    pub fn of(text: &str) -> Option<Self> {
        match text {
            "Primary" => Some(Self::Primary),
            "" | "Secondary" => Some(Self::Secondary),
            "Trunk" => Some(Self::Trunk),
            "Member" => Some(Self::Member),
            _ => None,
        }
    }
}

impl fmt::Display for EniKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An ENI as the cloud describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eni {
    /// Its id.
    pub id: EniId,
    /// Its hardware address.
    pub mac: MacAddr,
    /// Where it is in its life.
    pub status: EniStatus,
    /// What it is to its instance.
    pub kind: EniKind,
    /// Where it is attached, or being attached or detached.
    pub instance: Option<InstanceId>,
    /// The trunk that carries it, if it is a member.
    pub trunk: Option<EniId>,
    /// Index on the instance; the VLAN of a member.
    pub device_index: Option<u32>,
    /// Its vSwitch.
    pub vswitch: VSwitchId,
    /// Its VPC. Absent in some replies.
    pub vpc: Option<VpcId>,
    /// Its zone. Absent in some replies.
    pub zone: Option<ZoneId>,
    /// Its security groups.
    pub security_groups: Vec<SecurityGroupId>,
    /// Its primary IPv4 address.
    pub primary_ip: Ipv4Addr,
    /// All IPv4 addresses, the primary one first.
    pub ipv4: Vec<Ipv4Addr>,
    /// All IPv6 addresses.
    pub ipv6: Vec<Ipv6Addr>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Its name.
    pub name: String,
    /// Its description.
    pub description: String,
    /// When it was made. Absent in the reply to Create.
    pub created_at: Option<Tick>,
}

impl Reply for Eni {
    fn decode(node: Node<'_>) -> Result<Self, Malformed> {
        let primary_ip: Ipv4Addr = node.parsed("PrivateIpAddress")?;
        let mut ipv4 = vec![primary_ip];
        for entry in node.list("PrivateIpSets", "PrivateIpSet") {
            let ip = entry.parsed("PrivateIpAddress")?;
            if ip != primary_ip {
                ipv4.push(ip);
            }
        }
        let ipv6 = node
            .list("Ipv6Sets", "Ipv6Set")
            .map(|entry| entry.parsed("Ipv6Address"))
            .collect::<Result<_, _>>()?;
        let attachment = node.child("Attachment");
        let instance = match node.parsed_some("InstanceId")? {
            Some(id) => Some(id),
            None => attachment.parsed_some("InstanceId")?,
        };
        let kind = node.text("Type").unwrap_or_default();
        Ok(Self {
            id: node.parsed("NetworkInterfaceId")?,
            mac: node.parsed("MacAddress")?,
            status: EniStatus::of(&node.text("Status").unwrap_or_default()),
            kind: EniKind::of(&kind).ok_or_else(|| node.malformed("Type", &kind))?,
            instance,
            trunk: attachment.parsed_some("TrunkNetworkInterfaceId")?,
            device_index: attachment.parsed_some("DeviceIndex")?,
            vswitch: node.parsed("VSwitchId")?,
            vpc: node.parsed_some("VpcId")?,
            zone: node.parsed_some("ZoneId")?,
            security_groups: node
                .list("SecurityGroupIds", "SecurityGroupId")
                .map(Node::as_parsed)
                .collect::<Result<_, _>>()?,
            primary_ip,
            ipv4,
            ipv6,
            tags: node.tags(),
            name: node.text("NetworkInterfaceName").unwrap_or_default(),
            description: node.text("Description").unwrap_or_default(),
            created_at: node
                .text("CreationTime")
                .and_then(|at| parse_timestamp(&at)),
        })
    }
}

/// Makes an ENI. Idempotent by its token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateNetworkInterface {
    /// Where.
    pub vswitch: VSwitchId,
    /// 1 to 5 groups.
    pub security_groups: Vec<SecurityGroupId>,
    /// The primary address; the cloud chooses when absent.
    pub primary_ip: Option<Ipv4Addr>,
    /// Secondary addresses: at most 10 listed or 49 counted.
    pub ipv4: Pick<Ipv4Addr>,
    /// IPv6 addresses: at most 10.
    pub ipv6: Pick<Ipv6Addr>,
    /// Secondary or trunk.
    pub kind: EniKind,
    /// 2 to 128 characters, or empty.
    pub name: String,
    /// 2 to 256 characters, or empty.
    pub description: String,
    /// At most 20.
    pub tags: BTreeMap<String, String>,
    /// At most 64 ASCII characters.
    pub client_token: Option<String>,
}

impl CreateNetworkInterface {
    /// An ENI with its primary address alone.
    pub fn new(vswitch: VSwitchId, security_groups: Vec<SecurityGroupId>) -> Self {
        Self {
            vswitch,
            security_groups,
            primary_ip: None,
            ipv4: Pick::Nothing,
            ipv6: Pick::Nothing,
            kind: EniKind::Secondary,
            name: String::new(),
            description: String::new(),
            tags: BTreeMap::new(),
            client_token: None,
        }
    }
}

fn filled(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

impl Request for CreateNetworkInterface {
    const ACTION: Action = Action::CreateNetworkInterface;
    type Reply = CreatedEni;

    fn params(&self) -> Params {
        Params::new()
            .with("VSwitchId", &self.vswitch)
            .with_list("SecurityGroupIds", &self.security_groups)
            .with("InstanceType", self.kind)
            .with_some("PrimaryIpAddress", self.primary_ip)
            .with_pick(
                "PrivateIpAddress",
                "SecondaryPrivateIpAddressCount",
                &self.ipv4,
            )
            .with_pick("Ipv6Address", "Ipv6AddressCount", &self.ipv6)
            .with_some("NetworkInterfaceName", filled(&self.name))
            .with_some("Description", filled(&self.description))
            .with_tags(&self.tags)
            .with_some("ClientToken", self.client_token.as_ref())
    }
}

/// What Create answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreatedEni {
    /// The ENI exists.
    Made(Box<Eni>),
    /// Status 200 without an id: nothing was made. Repeat the call under the same token.
    NotMade,
}

impl Reply for CreatedEni {
    fn decode(node: Node<'_>) -> Result<Self, Malformed> {
        match node.text("NetworkInterfaceId") {
            Some(_) => Ok(Self::Made(Box::new(Eni::decode(node)?))),
            None => Ok(Self::NotMade),
        }
    }
}

/// Starts an attach: `Available` → `Attaching` → `InUse`. No token: read back before a repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachNetworkInterface {
    /// Which ENI.
    pub eni: EniId,
    /// Where to.
    pub instance: InstanceId,
    /// The trunk that shall carry it, to make it a member.
    pub trunk: Option<EniId>,
}

impl Request for AttachNetworkInterface {
    const ACTION: Action = Action::AttachNetworkInterface;
    type Reply = ();

    fn params(&self) -> Params {
        Params::new()
            .with("NetworkInterfaceId", &self.eni)
            .with("InstanceId", &self.instance)
            .with_some("TrunkNetworkInstanceId", self.trunk.as_ref())
    }
}

/// Starts a detach: `InUse` → `Detaching` → `Available`. No token: read back before a repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachNetworkInterface {
    /// Which ENI.
    pub eni: EniId,
    /// Where from.
    pub instance: InstanceId,
    /// The trunk that carries it, if it is a member.
    pub trunk: Option<EniId>,
}

impl Request for DetachNetworkInterface {
    const ACTION: Action = Action::DetachNetworkInterface;
    type Reply = ();

    fn params(&self) -> Params {
        Params::new()
            .with("NetworkInterfaceId", &self.eni)
            .with("InstanceId", &self.instance)
            .with_some("TrunkNetworkInstanceId", self.trunk.as_ref())
    }
}

/// Starts a delete; done when Describe no longer shows the ENI. No token: read back before a repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteNetworkInterface {
    /// Which ENI.
    pub eni: EniId,
}

impl Request for DeleteNetworkInterface {
    const ACTION: Action = Action::DeleteNetworkInterface;
    type Reply = ();

    fn params(&self) -> Params {
        Params::new().with("NetworkInterfaceId", &self.eni)
    }
}

/// Finds ENIs; the filters are joined by AND. Unknown ids are absent from the reply.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DescribeNetworkInterfaces {
    /// At most 100; empty means all.
    pub enis: Vec<EniId>,
    /// Attached to this instance.
    pub instance: Option<InstanceId>,
    /// In this vSwitch.
    pub vswitch: Option<VSwitchId>,
    /// In this VPC.
    pub vpc: Option<VpcId>,
    /// In this status.
    pub status: Option<EniStatus>,
    /// Of this kind.
    pub kind: Option<EniKind>,
    /// Having one of these addresses, at most 100.
    pub ipv4: Vec<Ipv4Addr>,
    /// Having one of these addresses, at most 100.
    pub ipv6: Vec<Ipv6Addr>,
    /// Having all these tags.
    pub tags: BTreeMap<String, String>,
    /// Rows per page, 10 to 500; others are pulled into the range. Absent means 10.
    pub max_results: Option<u32>,
    /// From the previous page.
    pub next_token: Option<String>,
}

impl Request for DescribeNetworkInterfaces {
    const ACTION: Action = Action::DescribeNetworkInterfaces;
    type Reply = EniPage;

    fn params(&self) -> Params {
        Params::new()
            .with_list("NetworkInterfaceId", &self.enis)
            .with_some("InstanceId", self.instance.as_ref())
            .with_some("VSwitchId", self.vswitch.as_ref())
            .with_some("VpcId", self.vpc.as_ref())
            .with_some("Status", self.status)
            .with_some("Type", self.kind)
            .with_list("PrivateIpAddress", &self.ipv4)
            .with_list("Ipv6Address", &self.ipv6)
            .with_tags(&self.tags)
            .with_some("MaxResults", self.max_results)
            .with_some("NextToken", self.next_token.as_ref())
    }
}

/// A page of ENIs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniPage {
    /// The rows.
    pub enis: Vec<Eni>,
    /// Where the next page starts; absent on the last one.
    pub next_token: Option<String>,
}

impl Reply for EniPage {
    fn decode(node: Node<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            enis: node
                .list("NetworkInterfaceSets", "NetworkInterfaceSet")
                .map(Eni::decode)
                .collect::<Result<_, _>>()?,
            next_token: node.text("NextToken"),
        })
    }
}
