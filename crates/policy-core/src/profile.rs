//! What the policies of one local pod come to in one direction: tiers of bodies of clauses, in the order of judgement.
//!
//! A [`Body`] is what one policy says in one direction, with ports by name resolved: those of ingress to the numbers of
//! the pod itself (two pods under one policy may open different numbers), those of egress to tuples of address,
//! protocol and port of the destination pods. Equal content has an equal hash; names of policies and rules are no part
//! of it, so that the kernel's chains are shared.

mod body;
mod ports;
mod ranges;
mod role;

use std::sync::Arc;

pub use body::{Body, Clause, Far, KeyRef, Match, own_names};
pub use ports::PortSet;
pub use ranges::{Blocks, Range};
pub use role::Role;

use crate::flow::Direction;
use crate::policy::{Action, Tier};

/// The bodies of one tier, in the order of judgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierPart {
    /// Tier.
    pub tier: Tier,
    /// What each policy says.
    pub bodies: Vec<Arc<Body>>,
}

impl TierPart {
    /// Whether a rule can leave the tier, so that its bodies have to stand in one chain.
    pub fn passes(&self) -> bool {
        self.bodies.iter().any(|body| {
            body.clauses
                .iter()
                .any(|c| c.action == Action::Pass && c.can_match())
        })
    }
}

/// One direction of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Direction.
    pub direction: Direction,
    /// Tiers that have something to say, in order.
    pub tiers: Vec<TierPart>,
    /// Whether the tier of namespaces denies at its end what nothing accepted.
    pub isolated: bool,
    /// Everything is denied, whatever the policies say: the pod's object is not known, or its rules cannot be written.
    pub closed: bool,
}

impl Profile {
    /// A profile that lets nothing pass.
    pub const fn closed(direction: Direction) -> Self {
        Self {
            direction,
            tiers: Vec::new(),
            isolated: true,
            closed: true,
        }
    }

    /// Whether it lets everything pass.
    pub fn is_open(&self) -> bool {
        !self.isolated && !self.closed && self.tiers.iter().all(|t| t.bodies.is_empty())
    }

    /// How many bodies it has.
    pub fn len(&self) -> usize {
        self.tiers.iter().map(|t| t.bodies.len()).sum()
    }

    /// Whether it has no bodies.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All bodies, in order.
    pub fn bodies(&self) -> impl Iterator<Item = &Arc<Body>> {
        self.tiers.iter().flat_map(|t| &t.bodies)
    }
}
