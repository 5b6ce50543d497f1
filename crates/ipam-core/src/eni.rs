//! An ENI in a shard's books, and the operations that are open.

use serde::{Deserialize, Serialize};
use types::address::MacAddr;
use types::cloud::{EniId, InstanceId, SecurityGroupId};
use types::op::Seq;
use types::time::Tick;

use crate::slot::SlotSet;

/// Names an ENI within a shard: the sequence number of its `EniIntent`. It exists before the cloud's id.
pub type EniKey = Seq;

/// How far an ENI is, in the order of its life. The arrows are those of [`crate::shard::Shard::apply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EniState {
    /// The cloud was or will be asked to create it.
    Intent,
    /// It exists, attached to nothing.
    Created,
    /// It is attached to the instance (`InUse`).
    Attached,
    /// The cloud was or will be asked to detach it.
    Detaching,
    /// It is detached; the cloud was or will be asked to delete it.
    Deleting,
}

impl EniState {
    /// Name as people read it in dumps.
    pub fn name(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Created => "created",
            Self::Attached => "attached",
            Self::Detaching => "detaching",
            Self::Deleting => "deleting",
        }
    }
}

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

/// Work that is not done: an intent without its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Op {
    /// Create, fill and attach an ENI.
    BringUp {
        /// The ENI; its key is the operation's number too.
        eni: EniKey,
    },
    /// Put further addresses on an attached ENI.
    Assign {
        /// The ENI.
        eni: EniKey,
    },
    /// Take addresses off an attached ENI.
    Unassign {
        /// The ENI.
        eni: EniKey,
    },
    /// Detach (if it is attached) and delete an ENI.
    Remove {
        /// The ENI.
        eni: EniKey,
    },
}

impl Op {
    /// The ENI it works on. Operations on one ENI are done one at a time.
    pub fn eni(self) -> EniKey {
        match self {
            Self::BringUp { eni }
            | Self::Assign { eni }
            | Self::Unassign { eni }
            | Self::Remove { eni } => eni,
        }
    }

    /// Name as people read it in dumps.
    pub fn name(self) -> &'static str {
        match self {
            Self::BringUp { .. } => "bring-up",
            Self::Assign { .. } => "assign",
            Self::Unassign { .. } => "unassign",
            Self::Remove { .. } => "remove",
        }
    }
}
