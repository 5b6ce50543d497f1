//! What the plan answers about itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nft_wire::name::Name;
use nft_wire::snapshot::Snapshot;
use nft_wire::verdict::Verdict;
use types::pod::PodKey;

use super::{Lead, Object, Plan, Refusal};
use crate::adopt::{Carry, FrameObject, Slot};
use crate::index::{Index, SetId};

impl Plan {
    /// Differences between a dump and the desired state, a line each.
    pub fn diff(&self, dump: &[Snapshot], index: &Index) -> Vec<String> {
        let applied = self.survey(dump, index);
        let mut lines: Vec<String> = applied.hopeless.iter().cloned().collect();
        for object in &self.frame.objects {
            if !applied.frame.contains(object) {
                lines.push(format!("missing: {}", describe(object)));
            }
        }
        lines.extend(
            applied
                .damaged
                .iter()
                .map(|name| format!("other content: {name}")),
        );
        let mut names: Vec<&Name> = self.wanted.keys().collect();
        names.sort_unstable();
        for name in names {
            if !applied.units.contains_key(name) {
                lines.push(format!("missing: {name}"));
            }
        }
        let mut units: Vec<_> = applied.units.iter().collect();
        units.sort_by(|a, b| a.0.cmp(b.0));
        for (name, unit) in units {
            if !self.wanted.contains_key(name) {
                lines.push(format!("nobody wants: {name}"));
            }
            lines.extend(unit.fill.iter().map(|m| format!("{name} lacks {}", m.ip)));
            for (member, pending) in &unit.pending {
                let verb = if pending.add {
                    "lacks"
                } else {
                    "should not have"
                };
                lines.push(format!("{name} {verb} {}", member.ip));
            }
        }
        let slots: BTreeSet<&Slot> = self.slots.keys().chain(applied.slots.keys()).collect();
        for slot in slots {
            let (wanted, listed) = (self.effective(slot), applied.slots.get(slot));
            if wanted.as_ref() != listed {
                lines.push(format!(
                    "{} {}: {} instead of {}",
                    slot.table.name(),
                    key_text(slot),
                    lead_text(listed),
                    lead_text(wanted.as_ref())
                ));
            }
        }
        for (link, (_, spec)) in &self.spoof {
            if applied.spoof.get(link) != Some(&spec.rules) {
                lines.push(format!("anti-spoof chain of {link} differs"));
            }
        }
        for link in applied
            .spoof
            .keys()
            .filter(|link| !self.spoof.contains_key(*link))
        {
            lines.push(format!("nobody wants: anti-spoof chain of {link}"));
        }
        lines
    }

    /// Whether the base chains stand, so that what is not in the maps is dropped.
    pub fn is_enforcing(&self) -> bool {
        self.known
            && self
                .frame
                .bases()
                .all(|base| self.applied.frame.contains(base))
    }

    /// Why an element is not as it should be, in words; `None` when it is.
    pub fn slot_waits(&self, slot: &Slot) -> Option<String> {
        let wanted = self.effective(slot);
        let settled = self.known
            && wanted.as_ref() == self.applied.slots.get(slot)
            && !self.flight.as_ref().is_some_and(|f| f.touches(slot));
        if let Some(reason) = self.closed(slot) {
            return Some(reason);
        }
        (!settled).then(|| format!("its element in {} is not committed yet", slot.table.name()))
    }

    /// Why an element denies everything although no policy says so.
    pub fn closed(&self, slot: &Slot) -> Option<String> {
        let Lead::Profile(compiled) = self.slots.get(slot)?.values().next()? else {
            return None;
        };
        let root = compiled.root.as_ref()?;
        self.blocked
            .contains(&root.name)
            .then(|| format!("the kernel refuses an object that {} needs", root.name))
    }

    /// Whether a link's anti-spoof chain is as it should be.
    pub fn spoof_settled(&self, link: &Name) -> bool {
        self.known
            && self.spoof.get(link).map(|(_, s)| &s.rules) == self.applied.spoof.get(link)
            && !self.dirty_spoof.contains(link)
    }

    /// What the kernel refuses.
    pub const fn refusals(&self) -> &BTreeMap<Object, Refusal> {
        &self.refusals
    }

    /// Whether a unit is left out because the kernel refuses it or something that it needs.
    pub fn is_blocked(&self, unit: &str) -> bool {
        self.blocked.contains(unit)
    }

    /// Pods whose elements deny because of a refusal.
    pub fn closed_pods(&self) -> BTreeSet<PodKey> {
        if self.blocked.is_empty() {
            return BTreeSet::new();
        }
        let closed = self.slots.keys().filter(|slot| self.closed(slot).is_some());
        closed
            .filter_map(|slot| self.slots.get(slot))
            .flat_map(|owners| owners.keys().cloned())
            .collect()
    }

    /// The set that the index keeps under a name.
    pub fn set_of(&self, name: &str) -> Option<SetId> {
        self.held.get(name).copied()
    }

    /// Chains, sets that follow pods or nodes, and other sets, as applied; and members as desired.
    pub fn counts(&self, index: &Index) -> [usize; 4] {
        let units = &self.applied.units;
        let chains = units.values().filter(|u| u.chain).count();
        let peers: Vec<&Name> = units
            .keys()
            .filter(|name| self.held.contains_key(*name))
            .collect();
        let ids: BTreeSet<SetId> = peers.iter().filter_map(|n| self.set_of(n)).collect();
        let members = ids.into_iter().map(|id| index.size(id)).sum();
        [
            chains,
            peers.len(),
            units.len() - chains - peers.len(),
            members,
        ]
    }

    /// Whether nothing is left here: no pod, and all that was applied is gone but for the fixed objects.
    pub fn is_idle(&self) -> bool {
        self.slots.is_empty() && self.wanted.is_empty() && self.spoof.is_empty()
    }

    /// Whether anything but removals is to be done.
    pub fn has_work(&self) -> bool {
        if !self.known {
            return false;
        }
        let fillable = |name: &Name| !self.is_stuck(&Object::Members(Arc::clone(name)));
        self.flight.is_some()
            || self.applied.hopeless.is_some()
            || self.applied.orphan
            || self
                .frame
                .objects
                .iter()
                .any(|o| !self.applied.frame.contains(o))
            || self.applied.damaged.iter().any(|name| self.is_ours(name))
            || self
                .dirty_units
                .iter()
                .any(|(_, name)| !self.blocked.contains(name))
            || self.dirty_sets.iter().any(fillable)
            || self
                .dirty_slots
                .iter()
                .any(|slot| !self.is_stuck(&Object::Slot(slot.clone())))
            || self
                .dirty_spoof
                .iter()
                .any(|l| !self.is_stuck(&Object::Spoof(Arc::clone(l))))
    }

    /// Anything that the plan knows of the kernel's units; for tests of leaks.
    pub fn applied_names(&self) -> BTreeSet<Name> {
        self.applied.units.keys().cloned().collect()
    }
}

fn describe(object: &FrameObject) -> String {
    match object {
        FrameObject::Table => "the table with policies".to_owned(),
        FrameObject::SpoofTable => "the table with anti-spoof chains".to_owned(),
        FrameObject::Set(name) => format!("set {name}"),
        FrameObject::Chain(name) => format!("chain {name}"),
        FrameObject::Base(name) => format!("base chain {name}"),
    }
}

fn key_text(slot: &Slot) -> String {
    slot.key.values(slot.table.fields()).map_or_else(
        || format!("{:?}", slot.key),
        |values| {
            values
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" . ")
        },
    )
}

fn lead_text(carry: Option<&Carry>) -> String {
    match carry {
        None => "nothing".to_owned(),
        Some(Carry::Member) => "a member".to_owned(),
        Some(Carry::Leads(Verdict::Goto(chain))) => format!("goto {chain}"),
        Some(Carry::Leads(Verdict::Jump(chain))) => format!("jump {chain}"),
        Some(Carry::Leads(other)) => format!("{other:?}").to_lowercase(),
    }
}
