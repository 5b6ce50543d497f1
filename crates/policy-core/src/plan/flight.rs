//! The unanswered transaction.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use nft_wire::name::Name;

use super::{Object, StepKind, note};
use crate::adopt::{AppliedUnit, Carry, FrameObject, Slot};
use crate::index::{Member, SetDelta};
use crate::layout::frame::Exprs;

/// One thing that a transaction does.
#[derive(Debug, Clone)]
pub(super) enum Item {
    /// The tables go, to be made anew.
    Raze,
    /// The table gets an owner.
    Claim,
    /// An object of fixed name is made.
    Frame(FrameObject),
    /// A chain or set gets its right content.
    Repair(Name),
    /// A unit is made.
    Make(Name),
    /// First members of a set, counted from the end of the list.
    Fill(Name, usize),
    /// An anti-spoof chain is made or changed.
    Spoof(Name, Vec<Exprs>),
    /// An element is put, moved or taken away.
    Slot(Slot, Option<Carry>),
    /// Members leave or join a set.
    Members(Name, Vec<(Member, bool)>),
    /// A unit goes.
    Remove(Name),
    /// An anti-spoof chain goes.
    RemoveSpoof(Name),
}

impl Item {
    pub(super) fn object(&self) -> Option<Object> {
        Some(match self {
            Self::Raze | Self::Claim | Self::Frame(_) | Self::Repair(_) => return None,
            Self::Make(name) => Object::Unit(Arc::clone(name)),
            Self::Fill(name, _) | Self::Members(name, _) => Object::Members(Arc::clone(name)),
            Self::Spoof(link, _) => Object::Spoof(Arc::clone(link)),
            Self::Slot(slot, _) => Object::Slot(slot.clone()),
            Self::Remove(name) | Self::RemoveSpoof(name) => Object::Removal(Arc::clone(name)),
        })
    }
}

/// The unanswered transaction.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) number: u64,
    pub(super) kind: StepKind,
    /// Each item with the messages that it is in.
    pub(super) items: Vec<([Range<usize>; 2], Item)>,
    /// Sets that it makes, as they will be.
    pub(super) making: HashMap<Name, AppliedUnit>,
    /// Members that came up to this epoch may be put in when it took effect.
    pub(super) grown: Option<u64>,
}

impl Flight {
    pub(super) fn makes(&self, name: &Name) -> bool {
        self.making.contains_key(name)
    }

    pub(super) fn touches(&self, slot: &Slot) -> bool {
        self.items
            .iter()
            .any(|(_, item)| matches!(item, Item::Slot(s, _) if s == slot))
    }

    /// The link is not the one any more that its chain is being made for.
    pub(super) fn forget_spoof(&mut self, link: &Name) {
        for (_, item) in &mut self.items {
            if let Item::Spoof(l, rules) = item
                && l == link
            {
                rules.clear();
            }
        }
    }

    pub(super) fn take_delta(&mut self, name: &Name, delta: &SetDelta, v4: bool, epoch: u64) {
        let Some(unit) = self.making.get_mut(name) else {
            return;
        };
        let removed = delta.removed.iter().map(|m| (m, false));
        for (member, add) in removed.chain(delta.added.iter().map(|m| (m, true))) {
            if member.ip.is_ipv4() == v4 {
                note(&mut unit.pending, *member, add, epoch);
            }
        }
    }
}
