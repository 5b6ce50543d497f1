//! Chains and sets by content.

use std::sync::Arc;

use nft_wire::name::Name;

use crate::index::PeerKey;
use crate::layout::frame::{Exprs, SetSpec};
use crate::profile::{Body, Role};

/// Order of creation: a unit only needs units of lower rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rank {
    /// Sets.
    Set,
    /// Rules of one policy, or of one tier.
    Rules,
    /// The part of a profile that concerns some ports.
    Subset,
    /// Maps from ports to such parts.
    Switch,
    /// Profiles.
    Profile,
}

/// What a unit is.
#[derive(Debug, Clone)]
pub enum Content {
    /// A chain.
    Rules {
        /// Its rules in order.
        rules: Vec<Exprs>,
        /// The bodies that they are made of, for a chain of rank [`Rank::Rules`].
        bodies: Vec<Arc<Body>>,
        /// Whether a verdict stands behind those rules.
        ends: bool,
    },
    /// A set whose members follow pods or nodes.
    Peers {
        /// Who is in it.
        key: PeerKey,
        /// Which family of them.
        v4: bool,
        /// What rules do with them.
        role: Role,
    },
    /// A set or map whose elements never change.
    Fixed(SetSpec),
}

impl Content {
    /// A chain that jumps to others.
    pub const fn rules(rules: Vec<Exprs>) -> Self {
        Self::Rules {
            rules,
            bodies: Vec::new(),
            ends: false,
        }
    }

    /// Whether the kernel's objects would be alike, names left out.
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Rules { rules: a, .. }, Self::Rules { rules: b, .. }) => a == b,
            (
                Self::Peers { key, v4, role },
                Self::Peers {
                    key: other,
                    v4: family,
                    role: part,
                },
            ) => key == other && v4 == family && role == part,
            (Self::Fixed(a), Self::Fixed(b)) => {
                a.set.key == b.set.key
                    && a.set.kind == b.set.kind
                    && a.set.flags == b.set.flags
                    && a.elements == b.elements
            }
            (Self::Rules { .. } | Self::Peers { .. } | Self::Fixed(_), _) => false,
        }
    }

    /// The same under another name.
    pub(super) fn named(mut self, name: &Name) -> Self {
        match &mut self {
            Self::Fixed(spec) => spec.set.name = Arc::clone(name),
            Self::Rules { .. } | Self::Peers { .. } => {}
        }
        self
    }
}

/// One chain or set.
#[derive(Debug)]
pub struct Unit {
    /// Its name in the kernel.
    pub name: Name,
    /// When it is made.
    pub rank: Rank,
    /// What it is.
    pub content: Content,
    /// What has to be there before.
    pub needs: Vec<Arc<Unit>>,
}

impl Unit {
    /// Whether it is the chain of these bodies.
    pub(super) fn is_of(&self, wanted: &[Arc<Body>], ended: bool) -> bool {
        match &self.content {
            Content::Rules { bodies, ends, .. } => {
                *ends == ended
                    && bodies.len() == wanted.len()
                    && bodies
                        .iter()
                        .zip(wanted)
                        .all(|(a, b)| Arc::ptr_eq(a, b) || a.same_content(b))
            }
            Content::Peers { .. } | Content::Fixed(_) => false,
        }
    }

    /// Whether it is a chain.
    pub const fn is_chain(&self) -> bool {
        matches!(self.content, Content::Rules { .. })
    }
}
