//! The next transaction.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use nft_wire::change::Change;
use nft_wire::name::{Name, TableRef};
use nft_wire::table::Table as WireTable;

use super::flight::{Flight, Item};
use super::writer::{Writer, elements, member_bytes, slot_element};
use super::{Object, Plan, Step, StepKind};
use crate::adopt::{Applied, AppliedUnit, Carry, FrameObject, Pending, Slot};
use crate::index::{Index, Member};
use crate::layout::names::{Table, inet, netdev};
use crate::profile::Role;

/// A transaction in the making.
pub(super) struct Draft {
    pub(super) writer: Writer,
    pub(super) items: Vec<([Range<usize>; 2], Item)>,
    pub(super) making: HashMap<Name, AppliedUnit>,
    grown: Option<u64>,
    limit: usize,
    budget: usize,
}

impl Draft {
    pub(super) fn new(limit: usize, budget: usize) -> Self {
        Self {
            writer: Writer::default(),
            items: Vec::new(),
            making: HashMap::new(),
            grown: None,
            limit,
            budget,
        }
    }

    /// Whether there is room for another item.
    pub(super) fn is_full(&self) -> bool {
        self.items.len() >= self.limit
            || (!self.items.is_empty() && self.writer.bytes >= self.budget)
    }

    pub(super) fn put(&mut self, start: usize, item: Item) {
        self.items.push(([self.writer.since(start), 0..0], item));
    }

    /// How many members of these fit, at least one.
    pub(super) fn room_for(&self, each: usize) -> usize {
        (self.budget.saturating_sub(self.writer.bytes) / each.max(1)).max(1)
    }
}

const fn next_turn(kind: StepKind) -> StepKind {
    match kind {
        StepKind::Create => StepKind::Move,
        StepKind::Move => StepKind::Grow,
        StepKind::Grow | StepKind::Delete | StepKind::Rebuild => StepKind::Create,
    }
}

impl Plan {
    /// The next transaction; `None` while one is unanswered, while the kernel's content is not known, and when there is
    /// nothing to do.
    pub fn next(&mut self, index: &Index) -> Option<Step> {
        if self.flight.is_some() || !self.known {
            return None;
        }
        if self.applied.hopeless.is_some() {
            return Some(self.launch(StepKind::Rebuild, self.raze()));
        }
        let mut turn = self.turn;
        // Once more than there are kinds: when growing comes first, it has to be asked again after an empty move has
        // said that nothing is left to be taken out.
        for _ in 0..4 {
            let draft = match turn {
                StepKind::Create => self.draft_create(index),
                StepKind::Move => self.draft_move(),
                StepKind::Grow | StepKind::Delete | StepKind::Rebuild => self.draft_grow(),
            };
            let removes = |item: &Item| matches!(item, Item::Remove(_) | Item::RemoveSpoof(_));
            let kind = if draft.items.iter().all(|(_, item)| removes(item)) {
                StepKind::Delete
            } else {
                turn
            };
            turn = next_turn(turn);
            if !draft.items.is_empty() {
                self.turn = turn;
                return Some(self.launch(kind, draft));
            }
        }
        None
    }

    fn launch(&mut self, kind: StepKind, draft: Draft) -> Step {
        self.number = self.number.wrapping_add(1);
        self.flight = Some(Flight {
            number: self.number,
            kind,
            items: draft.items,
            making: draft.making,
            grown: draft.grown,
        });
        Step {
            number: self.number,
            target: self.target.clone(),
            kind,
            changes: draft.writer.changes,
        }
    }

    pub(super) fn is_stuck(&self, object: &Object) -> bool {
        self.refusals.get(object).is_some_and(|r| r.stuck)
    }

    pub(super) fn is_ours(&self, name: &Name) -> bool {
        self.wanted.contains_key(name)
            || self.frame.chain(name).is_some()
            || self.frame.set(name).is_some()
    }

    fn raze(&self) -> Draft {
        let mut draft = Draft::new(usize::MAX, usize::MAX);
        for (object, at) in [
            (FrameObject::Table, inet(&self.settings)),
            (FrameObject::SpoofTable, netdev(&self.settings)),
        ] {
            if self.applied.frame.contains(&object) {
                draft.writer.push(Change::DeleteTable(at));
            }
        }
        draft.put(0, Item::Raze);
        draft
    }

    fn draft_move(&mut self) -> Draft {
        let mut draft = Draft::new(self.limit, self.settings.batch_bytes);
        let at = inet(&self.settings);
        let mut all = true;
        for name in &self.dirty_sets {
            if draft.is_full() {
                all = false;
                break;
            }
            let mut less = self.pending_of(name, Right::Taken, u64::MAX);
            all &= draft_members(&at, name, &mut less, &mut draft);
        }
        let shrunk = all;
        let mut slots: Vec<(&Slot, Option<Carry>)> = Vec::new();
        for slot in &self.dirty_slots {
            if draft.items.len() + slots.len() >= self.limit {
                all = false;
                break;
            }
            if self.is_stuck(&Object::Slot(slot.clone())) {
                continue;
            }
            let wanted = self.effective(slot);
            let in_place = self
                .applied
                .frame
                .contains(&FrameObject::Set(slot.table.name().into()));
            if in_place && self.leads_to_applied(wanted.as_ref()) {
                slots.push((slot, wanted));
            } else {
                all = false;
            }
        }
        draft_slots(&self.applied, &at, &slots, &mut draft);
        // What is in no map is dropped as soon as the base chains stand, so all that can be in a map comes with them.
        let made = self
            .dirty_units
            .iter()
            .all(|(_, name)| self.blocked.contains(name));
        if all && made && self.frame_stands() {
            for object in self.frame.bases() {
                if !self.applied.frame.contains(object) {
                    let start = draft.writer.at();
                    self.frame.write(object, &mut draft.writer);
                    draft.put(start, Item::Frame(object.clone()));
                }
            }
        }
        if shrunk {
            if draft.items.is_empty() {
                self.grown = self.epoch;
            } else {
                draft.grown = Some(self.epoch);
            }
            self.epoch = self.epoch.saturating_add(1);
        }
        draft
    }

    /// Whether everything that base chains refer to is there.
    fn frame_stands(&self) -> bool {
        let mut needed = self
            .frame
            .objects
            .iter()
            .filter(|o| !matches!(o, FrameObject::Base(_)));
        needed.all(|o| self.applied.frame.contains(o))
    }

    /// Members of a set that came or went up to this epoch, as far as it does this to rights, and whether they came.
    fn pending_of(&self, name: &Name, right: Right, epoch: u64) -> Vec<(Member, bool)> {
        if self.is_stuck(&Object::Members(Arc::clone(name))) {
            return Vec::new();
        }
        let Some((role, _)) = Role::of_name(name) else {
            return Vec::new();
        };
        let Some(unit) = self.applied.units.get(name).filter(|u| u.fill.is_empty()) else {
            return Vec::new();
        };
        let which = |p: &Pending| Right::of(role, p.add) == right && p.epoch <= epoch;
        let chosen = unit.pending.iter().filter(|(_, p)| which(p));
        chosen.map(|(m, p)| (*m, p.add)).collect()
    }

    fn draft_grow(&mut self) -> Draft {
        let led = self.draft_members_up_to(Right::Moved, self.leading);
        if !led.items.is_empty() {
            return led;
        }
        // Those that wait for the ones led elsewhere just now come before those that are led next.
        self.led = self.leading;
        self.leading = self.grown;
        let mut draft = self.draft_members_up_to(Right::Given, self.led);
        if draft.items.is_empty() {
            draft = self.draft_members_up_to(Right::Moved, self.leading);
            if !draft.items.is_empty() {
                return draft;
            }
            self.led = self.leading;
            draft = self.draft_members_up_to(Right::Given, self.led);
        }
        self.draft_removals(&mut draft);
        draft
    }

    fn draft_members_up_to(&self, right: Right, epoch: u64) -> Draft {
        let mut draft = Draft::new(self.limit, self.settings.batch_bytes);
        let at = inet(&self.settings);
        for name in &self.dirty_sets {
            if draft.is_full() {
                break;
            }
            let mut members = self.pending_of(name, right, epoch);
            draft_members(&at, name, &mut members, &mut draft);
        }
        draft
    }

    /// What nobody wants and nothing leads to, users before what they use.
    fn draft_removals(&self, draft: &mut Draft) {
        let waits = self
            .dirty_slots
            .iter()
            .any(|slot| slot.table.leads() && !self.is_stuck(&Object::Slot(slot.clone())));
        let repairs = self.applied.damaged.iter().any(|name| self.is_ours(name));
        if waits || repairs {
            return;
        }
        let at = inet(&self.settings);
        let doomed: Vec<&Name> = self
            .garbage
            .iter()
            .map(|(_, name)| name)
            .filter(|name| !self.is_stuck(&Object::Removal(Arc::clone(*name))))
            .collect();
        let foreign = |name: &Name| self.applied.units.get(name).is_some_and(|u| !u.ours);
        let room = self.limit.saturating_sub(draft.items.len());
        let doomed = doomed.get(..room.min(doomed.len())).unwrap_or_default();
        // What others made may refer to anything.
        for name in doomed.iter().filter(|n| foreign(n)) {
            if self.applied.units.get(*name).is_some_and(|u| u.chain) {
                draft.writer.push(Change::FlushChain {
                    table: at.clone(),
                    name: Arc::clone(&(**name)),
                });
            }
        }
        for name in doomed {
            let Some(unit) = self.applied.units.get(*name) else {
                continue;
            };
            let start = draft.writer.at();
            let (table, name) = (at.clone(), Arc::clone(*name));
            draft.writer.push(if unit.chain {
                Change::DeleteChain {
                    table,
                    name: Arc::clone(&name),
                }
            } else {
                Change::DeleteSet {
                    table,
                    name: Arc::clone(&name),
                }
            });
            draft.put(start, Item::Remove(name));
        }
        for link in self.applied.spoof.keys() {
            let stuck = self.is_stuck(&Object::Removal(Arc::clone(link)));
            if self.spoof.contains_key(link) || stuck || draft.items.len() >= self.limit {
                continue;
            }
            let start = draft.writer.at();
            draft.writer.push(Change::DeleteChain {
                table: netdev(&self.settings),
                name: Arc::clone(link),
            });
            draft.put(start, Item::RemoveSpoof(Arc::clone(link)));
        }
    }

    /// Messages that remove our tables, those that are not there included.
    pub fn teardown(&self) -> Vec<Change> {
        let mut spoof = Vec::new();
        if matches!(self.target, super::Target::Host) {
            // A table that is there already stays as it is; one that is not must be there to be removed.
            spoof.push(Change::AddTable(WireTable::new(netdev(&self.settings))));
            spoof.push(Change::DeleteTable(netdev(&self.settings)));
        }
        let mut changes = vec![
            Change::AddTable(WireTable::new(inet(&self.settings))),
            Change::DeleteTable(inet(&self.settings)),
        ];
        changes.append(&mut spoof);
        changes
    }
}

/// What a change of members does to rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Right {
    Taken,
    Moved,
    Given,
}

impl Right {
    const fn of(role: Role, add: bool) -> Self {
        match (role, add) {
            (Role::Permits, true) | (Role::Restricts, false) => Self::Given,
            (Role::Permits, false) | (Role::Restricts, true) => Self::Taken,
            (Role::Leads, _) => Self::Moved,
        }
    }
}

/// Members that go and then members that come, as far as there is room; whether all of them are in it.
fn draft_members(
    at: &TableRef,
    name: &Name,
    members: &mut Vec<(Member, bool)>,
    draft: &mut Draft,
) -> bool {
    let Some((first, _)) = members.first() else {
        return true;
    };
    let (many, room) = (members.len(), draft.room_for(member_bytes(first)));
    members.truncate(room);
    let start = draft.writer.at();
    let of = |add: bool| elements(members.iter().filter(|(_, a)| *a == add).map(|(m, _)| m));
    let (gone, new) = (of(false), of(true));
    draft.writer.delete(at, name, gone);
    draft.writer.add(at, name, new);
    draft.put(
        start,
        Item::Members(Arc::clone(name), std::mem::take(members)),
    );
    many <= room
}

/// Elements: first all that go or change, then all that come or changed; one message per set.
fn draft_slots(
    applied: &Applied,
    at: &TableRef,
    slots: &[(&Slot, Option<Carry>)],
    draft: &mut Draft,
) {
    let mut by_table: BTreeMap<Table, Vec<usize>> = BTreeMap::new();
    for (place, (slot, _)) in slots.iter().enumerate() {
        by_table.entry(slot.table).or_default().push(place);
    }
    let mut spans: Vec<[Range<usize>; 2]> = vec![[0..0, 0..0]; slots.len()];
    for adding in [false, true] {
        for (table, places) in &by_table {
            let start = draft.writer.at();
            let mut list = Vec::new();
            let mut chosen = Vec::new();
            for place in places {
                let Some((slot, wanted)) = slots.get(*place) else {
                    continue;
                };
                let element = if adding {
                    wanted.as_ref().map(|c| slot_element(slot, c.verdict()))
                } else {
                    applied
                        .slots
                        .contains_key(*slot)
                        .then(|| slot_element(slot, None))
                };
                if let Some(element) = element {
                    list.push(element);
                    chosen.push(*place);
                }
            }
            let set = Name::from(table.name());
            if adding {
                draft.writer.add(at, &set, list);
            } else {
                draft.writer.delete(at, &set, list);
            }
            let span = draft.writer.since(start);
            for place in chosen {
                if let Some(of) = spans.get_mut(place) {
                    of[usize::from(adding)] = span.clone();
                }
            }
        }
    }
    for ((slot, wanted), spans) in slots.iter().zip(spans) {
        draft
            .items
            .push((spans, Item::Slot((*slot).clone(), wanted.clone())));
    }
}
