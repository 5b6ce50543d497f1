//! What becomes of the plan when a transaction took effect, or did not.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use nft_wire::name::Name;

use super::flight::{Flight, Item};
use super::refusal::{Meaning, PATIENCE, is_absent, meaning};
use super::{Failure, Object, Outcome, Plan, StepKind};
use crate::adopt::{Applied, AppliedUnit, FrameObject, Pending, Slot};
use crate::compile::Rank;
use crate::index::Index;

impl Plan {
    /// The transaction took effect. Another step's number changes nothing.
    pub fn committed(&mut self, number: u64, index: &mut Index) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(mut flight) = self.flight.take_if(|f| f.number == number) else {
            return outcome;
        };
        if let Some(grown) = flight.grown {
            self.grown = grown;
        }
        if self.limit != usize::MAX {
            self.limit = self.limit.saturating_mul(2);
            if self.limit > 1 << 20 {
                self.limit = usize::MAX;
            }
        }
        for (_, item) in std::mem::take(&mut flight.items) {
            if let Some(object) = item.object() {
                self.refusals.remove(&object);
            }
            self.settle(item, &mut flight, &mut outcome, index);
        }
        outcome
    }

    fn settle(
        &mut self,
        item: Item,
        flight: &mut Flight,
        outcome: &mut Outcome,
        index: &mut Index,
    ) {
        match item {
            Item::Raze => {
                self.applied = Applied::default();
                self.refresh(index);
                outcome.everything = true;
            }
            Item::Claim => self.applied.orphan = false,
            Item::Frame(object) => {
                outcome.everything |= matches!(object, FrameObject::Base(_));
                self.applied.frame.insert(object);
            }
            Item::Repair(name) => {
                self.applied.damaged.remove(&name);
                outcome.everything = true;
            }
            Item::Make(name) => self.made(&name, flight, index),
            Item::Fill(name, count) => {
                if let Some(unit) = self.applied.units.get_mut(&name) {
                    unit.fill.truncate(unit.fill.len().saturating_sub(count));
                    unit.complete = unit.fill.is_empty();
                }
                self.touch_set(&name);
            }
            Item::Spoof(link, rules) => {
                if self
                    .spoof
                    .get(&link)
                    .is_some_and(|(_, spec)| spec.rules == rules)
                {
                    self.dirty_spoof.remove(&link);
                }
                self.applied.spoof.insert(link, rules);
            }
            Item::Slot(slot, value) => {
                match value {
                    Some(value) => {
                        self.applied.slots.insert(slot.clone(), value);
                    }
                    None => {
                        self.applied.slots.remove(&slot);
                    }
                }
                if slot.table.leads() {
                    let owners = self.slots.get(&slot).into_iter().flat_map(BTreeMap::keys);
                    outcome.moved.extend(owners.cloned());
                }
                self.touch_slot(&slot);
            }
            Item::Members(name, members) => {
                let epoch = self.epoch;
                if let Some(unit) = self.applied.units.get_mut(&name) {
                    for (member, add) in &members {
                        match unit.pending.get(member) {
                            Some(pending) if pending.add == *add => {
                                unit.pending.remove(member);
                            }
                            Some(_) => {}
                            // It was called off while the transaction was under way.
                            None => {
                                unit.pending.insert(*member, Pending { add: !add, epoch });
                            }
                        }
                    }
                }
                for (member, add) in members {
                    let ips = if add {
                        &mut outcome.gained
                    } else {
                        &mut outcome.lost
                    };
                    ips.insert(member.ip);
                }
                self.touch_set(&name);
            }
            Item::Remove(name) => self.removed(&name, index),
            Item::RemoveSpoof(link) => {
                self.applied.spoof.remove(&link);
            }
        }
    }

    fn made(&mut self, name: &Name, flight: &mut Flight, index: &mut Index) {
        let wanted = self
            .wanted
            .get(name)
            .map(|w| (w.unit.rank, w.unit.is_chain()));
        let entry = flight.making.remove(name).unwrap_or_else(|| {
            let (rank, chain) = wanted.unwrap_or_else(|| guess(name));
            AppliedUnit {
                rank,
                chain,
                ours: true,
                complete: true,
                fill: Vec::new(),
                pending: BTreeMap::new(),
            }
        });
        let rank = entry.rank;
        self.dirty_units.remove(&(rank, Arc::clone(name)));
        self.applied.units.insert(Arc::clone(name), entry);
        if wanted.is_none() {
            self.garbage.insert((Reverse(rank), Arc::clone(name)));
            if !self.held.contains_key(name) {
                self.let_go(name, index);
            }
        }
        self.touch_set(name);
    }

    fn removed(&mut self, name: &Name, index: &mut Index) {
        if let Some(unit) = self.applied.units.remove(name) {
            self.garbage.remove(&(Reverse(unit.rank), Arc::clone(name)));
        }
        self.applied.damaged.remove(name);
        self.dirty_sets.remove(name);
        if let Some(wanted) = self.wanted.get(name) {
            self.dirty_units
                .insert((wanted.unit.rank, Arc::clone(name)));
        } else {
            self.let_go(name, index);
        }
    }

    fn touch_set(&mut self, name: &Name) {
        let work = self.held.contains_key(name)
            && self
                .applied
                .units
                .get(name)
                .is_some_and(|u| !(u.pending.is_empty() && u.fill.is_empty()));
        if work {
            self.dirty_sets.insert(Arc::clone(name));
        } else {
            self.dirty_sets.remove(name);
        }
    }

    /// The transaction did not take effect. Another step's number changes nothing.
    pub fn failed(&mut self, number: u64, failure: Failure, index: &mut Index) {
        let Some(flight) = self.flight.take_if(|f| f.number == number) else {
            return;
        };
        self.turn = match flight.kind {
            StepKind::Delete => StepKind::Grow,
            StepKind::Rebuild => StepKind::Create,
            kind @ (StepKind::Create | StepKind::Move | StepKind::Grow) => kind,
        };
        // Sets that were being made for nobody.
        for name in flight.making.keys() {
            self.let_go(name, index);
        }
        let (suspects, errno): (Vec<&Item>, i32) = match failure {
            Failure::NotSent => return,
            Failure::Unknown => {
                self.known = false;
                return;
            }
            Failure::Whole { errno } => (flight.items.iter().map(|(_, i)| i).collect(), errno),
            Failure::Change { index, errno } => {
                let spans = |spans: &[Range<usize>; 2]| spans.iter().any(|s| s.contains(&index));
                let named = flight.items.iter().filter(|(s, _)| spans(s));
                (named.map(|(_, i)| i).collect(), errno)
            }
        };
        if meaning(errno) == Meaning::Passing {
            return;
        }
        match suspects.as_slice() {
            [item] => self.blame(item, errno, index),
            // Half of it next time, until the one that is refused stands alone.
            _ => self.limit = (flight.items.len() / 2).max(1),
        }
    }

    fn blame(&mut self, item: &Item, errno: i32, index: &mut Index) {
        if is_absent(errno) {
            match item {
                Item::Remove(name) => return self.removed(name, index),
                Item::RemoveSpoof(link) => {
                    self.applied.spoof.remove(link);
                    return;
                }
                Item::Raze
                | Item::Claim
                | Item::Frame(_)
                | Item::Repair(_)
                | Item::Make(_)
                | Item::Fill(..)
                | Item::Spoof(..)
                | Item::Slot(..)
                | Item::Members(..) => {}
            }
        }
        let Some(object) = item.object() else {
            // Without what every table has nothing else can be; the caller tries again.
            self.known &= meaning(errno) != Meaning::Mismatch;
            return;
        };
        let refusal = self.refusals.entry(object.clone()).or_default();
        refusal.errno = errno;
        refusal.strikes = refusal.strikes.saturating_add(1);
        let definite = match meaning(errno) {
            Meaning::Definite => true,
            // A link that is gone does not come back by waiting.
            Meaning::Mismatch if matches!(item, Item::Spoof(..)) => true,
            Meaning::Mismatch => {
                self.known = false;
                refusal.strikes >= PATIENCE
            }
            Meaning::Scarce | Meaning::Passing => refusal.strikes >= PATIENCE,
        };
        if !definite {
            return;
        }
        refusal.stuck = true;
        match object {
            Object::Unit(name) => self.block(&name),
            Object::Members(name) if self.applied.units.get(&name).is_some_and(|u| !u.complete) => {
                self.block(&name);
            }
            Object::Members(_) | Object::Slot(_) | Object::Spoof(_) | Object::Removal(_) => {}
        }
    }

    /// A unit cannot be: nor can what needs it, and pods that would be led there are denied everything.
    fn block(&mut self, name: &Name) {
        self.blocked.insert(Arc::clone(name));
        let mut units: Vec<_> = self.wanted.values().map(|w| Arc::clone(&w.unit)).collect();
        units.sort_by_key(|u| u.rank);
        for unit in units {
            if unit
                .needs
                .iter()
                .any(|need| self.blocked.contains(&need.name))
            {
                self.blocked.insert(Arc::clone(&unit.name));
            }
        }
        let slots: Vec<Slot> = self.slots.keys().cloned().collect();
        for slot in &slots {
            self.touch_slot(slot);
        }
    }
}

/// What a unit was, when it is not wanted any more.
fn guess(name: &str) -> (Rank, bool) {
    match name.split('_').next() {
        Some("r") => (Rank::Rules, true),
        Some("s") => (Rank::Subset, true),
        Some("pm") => (Rank::Switch, false),
        Some("in" | "eg") => (Rank::Profile, true),
        _ => (Rank::Set, false),
    }
}
