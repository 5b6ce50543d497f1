//! What the simulator shows of its state: for audits and for people.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use types::address::MacAddr;
use types::cloud::{
    EniId, InstanceId, InstanceType, RegionId, SecurityGroupId, VSwitchId, VpcId, ZoneId,
};

/// The whole state, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SimDump {
    /// The region.
    pub region: RegionId,
    /// The seed the simulator was made with.
    pub seed: u64,
    /// All ENIs, by id; also those of foreign users, which Describe hides.
    pub enis: Vec<EniDump>,
    /// All vSwitches, by id.
    pub vswitches: Vec<VSwitchDump>,
    /// All instances, by id.
    pub instances: Vec<InstanceDump>,
    /// Calls by action name since the start.
    pub calls: BTreeMap<String, CallCount>,
}

/// An ENI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EniDump {
    /// Its id.
    pub id: EniId,
    /// Its hardware address.
    pub mac: MacAddr,
    /// Available, Attaching, InUse, Detaching, Deleting.
    pub status: String,
    /// Primary, Secondary, Trunk, Member.
    pub kind: String,
    /// Where it is attached, or being attached or detached.
    pub instance: Option<InstanceId>,
    /// Its vSwitch.
    pub vswitch: VSwitchId,
    /// Its zone.
    pub zone: ZoneId,
    /// Its security groups.
    pub security_groups: Vec<SecurityGroupId>,
    /// All IPv4 addresses, the primary one first.
    pub ipv4: Vec<Ipv4Addr>,
    /// All IPv6 addresses.
    pub ipv6: Vec<Ipv6Addr>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Whether it belongs to another user of the vSwitch.
    pub foreign: bool,
}

/// A vSwitch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VSwitchDump {
    /// Its id.
    pub id: VSwitchId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its zone.
    pub zone: ZoneId,
    /// Its IPv4 range.
    pub ipv4_cidr: Ipv4Net,
    /// Its IPv6 range.
    pub ipv6_cidr: Option<Ipv6Net>,
    /// IPv4 addresses that can still be taken.
    pub available_ipv4: u64,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceDump {
    /// Its id.
    pub id: InstanceId,
    /// Its type.
    pub instance_type: InstanceType,
    /// Its zone.
    pub zone: ZoneId,
    /// Running or Stopped.
    pub status: String,
    /// Its ENIs, the primary one first.
    pub enis: Vec<EniId>,
}

/// Calls of one action.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallCount {
    /// All that came in with a known action name.
    pub total: u64,
    /// Answered with success, or lost after success.
    pub succeeded: u64,
    /// Refused by throttling.
    pub throttled: u64,
    /// Refusals by code, throttling included.
    pub refused: BTreeMap<String, u64>,
}

/// One call, for the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// When it came in, milliseconds since 1970.
    pub at_ms: u64,
    /// Which action; the given text if it is unknown.
    pub action: String,
    /// The id in its answer.
    pub request_id: String,
    /// Which key signed it; empty if that was not known.
    pub access_key_id: String,
    /// HTTP status of the answer; 0 when the answer was lost.
    pub status: u16,
    /// Code of the refusal; empty for success.
    pub code: String,
    /// The ENI it was about, if it named one.
    pub eni: String,
}
