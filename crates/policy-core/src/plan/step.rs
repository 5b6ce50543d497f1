//! One transaction, and what became of it.

use std::sync::Arc;

use nft_wire::change::Change;

use crate::layout::Place;

/// The network namespace whose tables a transaction is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// The node's.
    Host,
    /// A pod's, by its path.
    Namespace(Arc<str>),
}

impl Target {
    /// Which variant of the layout stands there.
    pub const fn place(&self) -> Place {
        match self {
            Self::Host => Place::Host,
            Self::Namespace(_) => Place::PodNamespace,
        }
    }
}

/// The part of a change that a transaction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StepKind {
    /// Makes tables, sets and chains that nothing leads to yet; puts damaged ones right.
    Create,
    /// Moves elements of verdict maps, takes members out of sets; on a first install makes the base chains as well.
    Move,
    /// Puts members into sets.
    Grow,
    /// Removes chains and sets that nothing leads to.
    Delete,
    /// Removes tables that cannot be put right in place, because a fixed object in them has another type.
    Rebuild,
}

impl StepKind {
    /// The word in logs and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Move => "move",
            Self::Grow => "grow",
            Self::Delete => "delete",
            Self::Rebuild => "rebuild",
        }
    }
}

/// One transaction: everything in it takes effect, or nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Counts up; tells one step from another in logs.
    pub number: u64,
    /// Whose tables.
    pub target: Target,
    /// What it does.
    pub kind: StepKind,
    /// The messages between the begin and the end of the batch, in this order.
    pub changes: Vec<Change>,
}

/// Why a transaction did not take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The kernel refused one change: its index in [`Step::changes`], and the error number (positive).
    Change {
        /// Index in [`Step::changes`].
        index: usize,
        /// Error number, positive.
        errno: i32,
    },
    /// The kernel refused the whole without saying which change: the error number (positive).
    Whole {
        /// Error number, positive.
        errno: i32,
    },
    /// It was sent, and no answer came: it may have taken effect. The target has to be dumped and adopted again.
    Unknown,
    /// It was not sent; nothing changed, and nothing is held against any object.
    NotSent,
}
