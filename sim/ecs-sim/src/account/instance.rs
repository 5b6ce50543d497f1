//! What an instance is.

use types::cloud::{EniId, InstanceId, InstanceType, SecurityGroupId, VSwitchId, VpcId, ZoneId};
use types::time::Tick;

use crate::refusal::Refusal;

/// Whether an instance does something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceStatus {
    /// It runs.
    Running,
    /// On its way from one to the other: nothing may be attached or detached.
    Stopping,
    /// It stands still.
    Stopped,
}

impl InstanceStatus {
    /// The word on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "Running",
            Self::Stopping => "Stopping",
            Self::Stopped => "Stopped",
        }
    }
}

/// An instance.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// Its type.
    pub instance_type: InstanceType,
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: ZoneId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its vSwitch.
    pub vswitch: VSwitchId,
    /// Groups of its primary ENI.
    pub security_groups: Vec<SecurityGroupId>,
    /// Whether it runs.
    pub status: InstanceStatus,
    /// Its primary ENI.
    pub primary_eni: EniId,
    /// Since when it exists.
    pub created_at: Tick,
}

impl Instance {
    /// Whether ENIs can be attached and detached.
    pub fn is_settled(&self) -> bool {
        match self.status {
            InstanceStatus::Running | InstanceStatus::Stopped => true,
            InstanceStatus::Stopping => false,
        }
    }
}

pub(crate) fn no_instance() -> Refusal {
    Refusal::not_found("InvalidEcsId.NotFound", "The specified EcsId is not found.")
}
