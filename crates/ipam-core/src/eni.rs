//! Names of ENIs, how far they are, and the operations that are open on them.

use serde::{Deserialize, Serialize};
use types::op::Seq;

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
