//! What should be there: units, elements, anti-spoof chains, counted by who wants them.

use std::cmp::Reverse;
use std::sync::Arc;

use nft_wire::name::Name;
use types::pod::PodKey;

use super::{Lead, Object, Plan, Wanted};
use crate::adopt::Slot;
use crate::compile::{Content, Unit};
use crate::index::Index;
use crate::layout::frame::ChainSpec;

impl Plan {
    /// A unit, and all that it needs, is wanted once more.
    pub fn retain(&mut self, unit: &Arc<Unit>, index: &mut Index) {
        if let Some(wanted) = self.wanted.get_mut(&unit.name) {
            wanted.refs += 1;
            return;
        }
        for need in &unit.needs {
            self.retain(need, index);
        }
        self.wanted.insert(
            Arc::clone(&unit.name),
            Wanted {
                unit: Arc::clone(unit),
                refs: 1,
            },
        );
        if let Content::Peers { key, .. } = &unit.content
            && !self.held.contains_key(&unit.name)
        {
            let id = index.acquire(key);
            self.held.insert(Arc::clone(&unit.name), id);
            self.by_set
                .entry(id)
                .or_default()
                .push(Arc::clone(&unit.name));
        }
        self.garbage
            .remove(&(Reverse(unit.rank), Arc::clone(&unit.name)));
        match self.applied.units.get(&unit.name) {
            None => {
                self.dirty_units.insert((unit.rank, Arc::clone(&unit.name)));
            }
            // A leftover of an earlier process that nobody wanted when it was dumped: nobody compared it.
            Some(applied) if !applied.ours => self.distrust(unit, index),
            Some(_) => {}
        }
        if unit
            .needs
            .iter()
            .any(|need| self.blocked.contains(&need.name))
        {
            self.blocked.insert(Arc::clone(&unit.name));
        }
    }

    /// Fills a unit anew whose content nobody compared; nothing of ours leads to it.
    pub(super) fn distrust(&mut self, unit: &Unit, index: &Index) {
        let members = self.members(unit, index);
        let Some(applied) = self.applied.units.get_mut(&unit.name) else {
            return;
        };
        self.garbage
            .remove(&(Reverse(applied.rank), Arc::clone(&unit.name)));
        applied.ours = true;
        applied.rank = unit.rank;
        self.applied.damaged.insert(Arc::clone(&unit.name));
        if matches!(unit.content, Content::Peers { .. }) {
            applied.complete = members.is_empty();
            applied.fill = members;
            self.dirty_sets.insert(Arc::clone(&unit.name));
        }
    }

    /// A unit, and all that it needs, is wanted once less.
    pub fn release(&mut self, unit: &Arc<Unit>, index: &mut Index) {
        let Some(wanted) = self.wanted.get_mut(&unit.name) else {
            return;
        };
        wanted.refs -= 1;
        if wanted.refs > 0 {
            return;
        }
        self.wanted.remove(&unit.name);
        self.blocked.remove(&unit.name);
        self.refusals.remove(&Object::Unit(Arc::clone(&unit.name)));
        if self.applied.units.contains_key(&unit.name) {
            self.garbage
                .insert((Reverse(unit.rank), Arc::clone(&unit.name)));
        } else {
            self.dirty_units
                .remove(&(unit.rank, Arc::clone(&unit.name)));
            self.let_go(&unit.name, index);
        }
        for need in &unit.needs {
            self.release(need, index);
        }
    }

    /// The index need not keep a set any longer, unless a step is making it right now.
    pub(super) fn let_go(&mut self, name: &Name, index: &mut Index) {
        let used = self.wanted.contains_key(name)
            || self.applied.units.contains_key(name)
            || self.flight.as_ref().is_some_and(|f| f.makes(name));
        if used {
            return;
        }
        self.dirty_sets.remove(name);
        self.refusals.remove(&Object::Members(Arc::clone(name)));
        let Some(id) = self.held.remove(name) else {
            return;
        };
        if let Some(names) = self.by_set.get_mut(&id) {
            names.retain(|n| n != name);
            if names.is_empty() {
                self.by_set.remove(&id);
            }
        }
        index.release(id);
    }

    /// Says what a pod's element should be; `None`: the pod has no such element.
    pub fn set_slot(&mut self, slot: &Slot, pod: &PodKey, lead: Option<Lead>, index: &mut Index) {
        let before = self.slots.get(slot).and_then(|o| o.get(pod)).cloned();
        match (&before, &lead) {
            (None, None) => return,
            (Some(a), Some(b)) if a.same(b) => return,
            _ => {}
        }
        if let Some(Lead::Profile(compiled)) = &lead
            && let Some(root) = &compiled.root
        {
            self.retain(root, index);
        }
        match lead {
            Some(lead) => {
                self.slots
                    .entry(slot.clone())
                    .or_default()
                    .insert(pod.clone(), lead);
            }
            None => {
                if let Some(owners) = self.slots.get_mut(slot) {
                    owners.remove(pod);
                    if owners.is_empty() {
                        self.slots.remove(slot);
                    }
                }
            }
        }
        if let Some(Lead::Profile(compiled)) = &before
            && let Some(root) = &compiled.root
        {
            self.release(root, index);
        }
        self.refusals.remove(&Object::Slot(slot.clone()));
        self.touch_slot(slot);
    }

    /// Says what the anti-spoof chain of a link should be; `anew`: the link is not the one it was made for.
    pub fn set_spoof(&mut self, link: &Name, wanted: Option<(PodKey, ChainSpec)>, anew: bool) {
        let same = self.spoof.get(link).map(|(_, s)| s) == wanted.as_ref().map(|(_, s)| s);
        match wanted {
            Some(wanted) => {
                self.spoof.insert(Arc::clone(link), wanted);
            }
            None => {
                self.spoof.remove(link);
            }
        }
        if same && !anew {
            return;
        }
        if anew {
            // The kernel may have removed the chain with its device, or have kept it without one.
            if let Some(rules) = self.applied.spoof.get_mut(link) {
                rules.clear();
            }
            if let Some(flight) = &mut self.flight {
                flight.forget_spoof(link);
            }
        }
        self.refusals.remove(&Object::Spoof(Arc::clone(link)));
        if self.spoof.contains_key(link) {
            self.dirty_spoof.insert(Arc::clone(link));
        } else {
            self.dirty_spoof.remove(link);
        }
    }

    /// Gives every set back to the index; the plan is not used any more.
    pub fn close(&mut self, index: &mut Index) {
        for (_, id) in self.held.drain() {
            index.release(id);
        }
        self.by_set.clear();
        self.wanted.clear();
    }
}
