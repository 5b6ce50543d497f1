//! An ENI in a shard's books.

use serde::{Deserialize, Serialize};
use types::address::MacAddr;
use types::cloud::{EniId, InstanceId, SecurityGroupId};
use types::op::Seq;
use types::time::Tick;

use crate::eni::EniState;
use crate::slot::SlotSet;

/// An ENI of ours.
///
/// Invariant: `slots` are exactly the slots whose state names this ENI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eni {
    /// The instance it is for.
    pub instance: InstanceId,
    /// Which of the instance's ENI places it takes, from 0.
    pub quota_index: u32,
    /// How far it is.
    pub state: EniState,
    /// The cloud's id; from `Created` on.
    pub id: Option<EniId>,
    /// Its hardware address; from `Created` on.
    pub mac: Option<MacAddr>,
    /// IPv4 slot of its primary address. Stays on it until it is deleted.
    pub primary: u32,
    /// Its slots, with the primary one.
    pub slots: SlotSet,
    /// As asked for in the create call; a repeat must name the same.
    pub security_groups: Vec<SecurityGroupId>,
    /// The record that made its next cloud call the next one: the call's idempotency key.
    pub stage: Seq,
    /// When it last got addresses; the planner leaves a fresh ENI alone.
    pub grown_at: Tick,
    /// When its node was last asked for addresses; 0 once it gave all that it was asked for. A node that
    /// kept some is not asked again for a while.
    pub revoked_at: Tick,
    /// The cloud does not know it though we have not deleted it: give it up as soon as its node allows.
    pub lost: bool,
}
