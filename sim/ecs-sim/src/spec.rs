//! What a world is built from: the same shapes in code, in a world file and at the admin port.

use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use types::cloud::{EniId, InstanceId, InstanceType, SecurityGroupId, VSwitchId, VpcId, ZoneId};
use types::quota::EniQuota;

use crate::plane::Port;

/// A VPC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VpcSpec {
    /// Its id.
    pub id: VpcId,
    /// Its IPv4 range.
    pub ipv4_cidr: Ipv4Net,
    /// Its IPv6 range, if it has one; a /56 in the real cloud.
    pub ipv6_cidr: Option<Ipv6Net>,
}

/// A vSwitch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VSwitchSpec {
    /// Its id.
    pub id: VSwitchId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its zone.
    pub zone: ZoneId,
    /// Its IPv4 range, /16 to /29, inside the VPC's.
    pub ipv4_cidr: Ipv4Net,
    /// Its IPv6 range, a /64 inside the VPC's, if it has one.
    pub ipv6_cidr: Option<Ipv6Net>,
}

/// How many members a security group takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecurityGroupKind {
    /// Basic: 2,000 private addresses.
    #[default]
    Normal,
    /// Advanced: 65,536 private addresses.
    Enterprise,
}

/// A security group. Its rules are not simulated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecurityGroupSpec {
    /// Its id.
    pub id: SecurityGroupId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Basic or advanced.
    #[serde(default)]
    pub kind: SecurityGroupKind,
}

/// An instance to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceSpec {
    /// Its id.
    pub id: InstanceId,
    /// Its type; must be in the table of types.
    pub instance_type: InstanceType,
    /// Where its primary ENI is.
    pub vswitch: VSwitchId,
    /// 1 to 5 groups of its primary ENI.
    pub security_groups: Vec<SecurityGroupId>,
    /// Its primary address; chosen when absent.
    #[serde(default)]
    pub primary_ip: Option<Ipv4Addr>,
    /// Its name.
    #[serde(default)]
    pub name: String,
}

/// An instance type and what it allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceTypeSpec {
    /// The type.
    pub id: InstanceType,
    /// Its limits.
    pub quota: EniQuota,
}

/// An instance that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceView {
    /// Its id.
    pub id: InstanceId,
    /// Its type.
    pub instance_type: InstanceType,
    /// Its zone.
    pub zone: ZoneId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its primary ENI as the data plane sees it.
    pub primary: Port,
}

/// A world that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorldError {
    /// The id is taken.
    #[error("{id} exists already")]
    Exists {
        /// Which.
        id: String,
    },
    /// Something else must be there first.
    #[error("{id} needs {needs}, which does not exist")]
    Missing {
        /// What was to be added.
        id: String,
        /// What it needs.
        needs: String,
    },
    /// A range is too small, too large, or outside of the range it must be in.
    #[error("{id}: {why}")]
    BadRange {
        /// What was to be added.
        id: String,
        /// Which rule it breaks.
        why: String,
    },
    /// The instance cannot run; the API would say so in these words.
    #[error("{id}: {code}: {message}")]
    Refused {
        /// What was to be added.
        id: String,
        /// The code of the API.
        code: String,
        /// Its message.
        message: String,
    },
    /// The data plane did not plug the primary ENI in.
    #[error("{eni} of {id}: {why}")]
    Plane {
        /// The instance.
        id: InstanceId,
        /// Its primary ENI.
        eni: EniId,
        /// What the data plane said.
        why: String,
    },
}
