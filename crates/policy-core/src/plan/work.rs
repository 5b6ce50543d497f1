//! The next transaction, and what becomes of the plan when it took effect or did not.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

use nft_wire::change::Change;
use nft_wire::name::Name;
use nft_wire::table::{Table as WireTable, TableFlags};
use nft_wire::verdict::Verdict;

use super::refusal::{Meaning, PATIENCE, is_absent, meaning};
use super::writer::{Writer, elements, member_bytes, slot_element};
use super::{Failure, Object, Outcome, Plan, Step, StepKind, note};
use crate::adopt::{Applied, AppliedUnit, FrameObject, Pending, Slot};
use crate::compile::{Content, Rank, Unit};
use crate::index::{Index, Member, SetDelta};
use crate::layout::frame::{ChainSpec, Exprs, allowed_sets, bases, ends};
use crate::layout::names::{Table, denied_sets, inet, netdev};
use crate::layout::rules::peer_set;

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
    Slot(Slot, Option<Option<Verdict>>),
    /// Members leave or join a set.
    Members(Name, Vec<(Member, bool)>),
    /// A unit goes.
    Remove(Name),
    /// An anti-spoof chain goes.
    RemoveSpoof(Name),
}

impl Item {
    fn object(&self) -> Option<Object> {
        Some(match self {
            Self::Raze | Self::Claim | Self::Frame(_) | Self::Repair(_) => return None,
            Self::Make(name) => Object::Unit(name.clone()),
            Self::Fill(name, _) | Self::Members(name, _) => Object::Members(name.clone()),
            Self::Spoof(link, _) => Object::Spoof(link.clone()),
            Self::Slot(slot, _) => Object::Slot(slot.clone()),
            Self::Remove(name) | Self::RemoveSpoof(name) => Object::Removal(name.clone()),
        })
    }
}

/// The unanswered transaction.
#[derive(Debug)]
pub(super) struct Flight {
    number: u64,
    kind: StepKind,
    /// Each item with the messages that it is in.
    items: Vec<([Range<usize>; 2], Item)>,
    /// Sets that it makes, as they will be.
    making: HashMap<Name, AppliedUnit>,
    /// Members that came up to this epoch may be put in when it took effect.
    grown: Option<u64>,
}

impl Flight {
    pub(super) fn makes(&self, name: &Name) -> bool {
        self.making.contains_key(name)
    }

    pub(super) fn touches(&self, slot: &Slot) -> bool {
        self.items.iter().any(|(_, item)| matches!(item, Item::Slot(s, _) if s == slot))
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

/// A transaction in the making.
struct Draft {
    writer: Writer,
    items: Vec<([Range<usize>; 2], Item)>,
    making: HashMap<Name, AppliedUnit>,
    grown: Option<u64>,
    limit: usize,
    budget: usize,
}

impl Draft {
    fn new(limit: usize, budget: usize) -> Self {
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
    fn is_full(&self) -> bool {
        self.items.len() >= self.limit
            || (!self.items.is_empty() && self.writer.bytes >= self.budget)
    }

    fn put(&mut self, start: usize, item: Item) {
        self.items.push(([self.writer.since(start), 0..0], item));
    }

    /// How many members of these fit, at least one.
    fn room_for(&self, each: usize) -> usize {
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
            return self.launch(StepKind::Rebuild, self.raze());
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
                return self.launch(kind, draft);
            }
        }
        None
    }

    fn launch(&mut self, kind: StepKind, draft: Draft) -> Option<Step> {
        self.number = self.number.wrapping_add(1);
        self.flight = Some(Flight {
            number: self.number,
            kind,
            items: draft.items,
            making: draft.making,
            grown: draft.grown,
        });
        Some(Step {
            number: self.number,
            target: self.target.clone(),
            kind,
            changes: draft.writer.changes,
        })
    }

    /// Whether anything but removals is to be done.
    pub fn has_work(&self) -> bool {
        if !self.known {
            return false;
        }
        let fillable = |name: &Name| !self.is_stuck(&Object::Members(name.clone()));
        self.flight.is_some()
            || self.applied.hopeless.is_some()
            || self.applied.orphan
            || self.frame_objects().iter().any(|o| !self.applied.frame.contains(o))
            || self.applied.damaged.iter().any(|name| self.is_ours(name))
            || self.dirty_units.iter().any(|(_, name)| !self.blocked.contains(name))
            || self.dirty_sets.iter().any(fillable)
            || self.dirty_slots.iter().any(|slot| !self.is_stuck(&Object::Slot(slot.clone())))
            || self.dirty_spoof.iter().any(|l| !self.is_stuck(&Object::Spoof(l.clone())))
    }

    fn is_stuck(&self, object: &Object) -> bool {
        self.refusals.get(object).is_some_and(|r| r.stuck)
    }

    fn is_ours(&self, name: &Name) -> bool {
        self.wanted.contains_key(name) || self.frame_chain(name).is_some()
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

    fn table_change(&self, spoof: bool) -> Change {
        let at = if spoof { netdev(&self.settings) } else { inet(&self.settings) };
        let mut table = WireTable::new(at);
        table.flags = TableFlags {
            owner: self.settings.owner,
            persist: self.settings.owner && self.settings.persist,
            dormant: false,
        };
        Change::AddTable(table)
    }

    /// The chain of fixed name as it should be.
    fn frame_chain(&self, name: &str) -> Option<ChainSpec> {
        let place = self.target.place();
        ends(&self.settings, place)
            .into_iter()
            .chain(bases(&self.settings, place))
            .find(|spec| *spec.chain.name == *name)
    }

    fn write_frame(&self, object: &FrameObject, writer: &mut Writer) {
        match object {
            FrameObject::Table => writer.push(self.table_change(false)),
            FrameObject::SpoofTable => writer.push(self.table_change(true)),
            FrameObject::Chain(name) | FrameObject::Base(name) => {
                if let Some(spec) = self.frame_chain(name) {
                    writer.chain(&spec);
                }
            }
            FrameObject::Set(name) => {
                let at = inet(&self.settings);
                if let Some(table) = Table::by_name(name) {
                    writer.push(Change::AddSet(table.set(&at)));
                }
                for set in denied_sets(&self.settings).into_iter().filter(|s| s.name == *name) {
                    writer.push(Change::AddSet(set));
                }
                for spec in allowed_sets(&self.settings) {
                    if spec.set.name == *name {
                        writer.push(Change::AddSet(spec.set));
                        writer.add(&at, name, spec.elements);
                    }
                }
            }
        }
    }

    fn draft_create(&self, index: &Index) -> Draft {
        let mut draft = Draft::new(self.limit, self.settings.batch_bytes);
        let at = inet(&self.settings);
        if self.applied.orphan {
            draft.writer.push(self.table_change(false));
            draft.put(0, Item::Claim);
        }
        for object in self.frame_objects() {
            let base = matches!(object, FrameObject::Base(_));
            if base || self.applied.frame.contains(&object) || draft.is_full() {
                continue;
            }
            let start = draft.writer.at();
            self.write_frame(&object, &mut draft.writer);
            draft.put(start, Item::Frame(object));
        }
        // Units that are whole once this transaction took effect.
        let mut whole: HashSet<Name> = HashSet::new();
        self.draft_fills(&mut draft, &mut whole);
        for (_, name) in &self.dirty_units {
            if draft.is_full() {
                break;
            }
            let Some(wanted) = self.wanted.get(name) else {
                continue;
            };
            if self.blocked.contains(name) || !self.needs_are_met(&wanted.unit, &whole) {
                continue;
            }
            if self.draft_unit(&wanted.unit, index, &mut draft) {
                whole.insert(name.clone());
            }
        }
        for name in &self.applied.damaged {
            if draft.is_full() {
                break;
            }
            let start = draft.writer.at();
            if let Some(spec) = self.frame_chain(name) {
                draft.writer.chain_anew(&spec);
            } else if let Some(wanted) = self.wanted.get(name) {
                if !self.needs_are_met(&wanted.unit, &whole) {
                    continue;
                }
                self.write_anew(&wanted.unit, &mut draft.writer);
            } else if let Some(spec) =
                allowed_sets(&self.settings).into_iter().find(|s| s.set.name == *name)
            {
                draft.writer.push(Change::FlushSet {
                    table: at.clone(),
                    name: name.clone(),
                });
                draft.writer.add(&at, name, spec.elements);
            } else {
                continue;
            }
            draft.put(start, Item::Repair(name.clone()));
        }
        for link in &self.dirty_spoof {
            if draft.is_full() {
                break;
            }
            let Some((_, spec)) = self.spoof.get(link) else {
                continue;
            };
            if !self.has_spoof_table() || self.is_stuck(&Object::Spoof(link.clone())) {
                continue;
            }
            let start = draft.writer.at();
            draft.writer.chain_anew(spec);
            draft.put(start, Item::Spoof(link.clone(), spec.rules.clone()));
        }
        draft
    }

    /// First members of sets that did not fit into the transaction that made them.
    fn draft_fills(&self, draft: &mut Draft, whole: &mut HashSet<Name>) {
        let at = inet(&self.settings);
        for name in &self.dirty_sets {
            let Some(unit) = self.applied.units.get(name) else {
                continue;
            };
            if unit.fill.is_empty()
                || self.applied.damaged.contains(name)
                || self.is_stuck(&Object::Members(name.clone()))
            {
                continue;
            }
            if draft.is_full() {
                break;
            }
            let start = draft.writer.at();
            let each = unit.fill.last().map_or(1, member_bytes);
            let take = draft.room_for(each).min(unit.fill.len());
            let from = unit.fill.len() - take;
            let chunk = unit.fill.get(from..).unwrap_or_default();
            draft.writer.add(&at, name, elements(chunk));
            draft.put(start, Item::Fill(name.clone(), take));
            if from == 0 {
                whole.insert(name.clone());
            }
        }
    }

    fn needs_are_met(&self, unit: &Unit, whole: &HashSet<Name>) -> bool {
        unit.needs.iter().all(|need| {
            whole.contains(&need.name)
                || self.applied.units.get(&need.name).is_some_and(|u| u.complete)
        })
    }

    /// Writes a unit; whether it is whole then.
    fn draft_unit(&self, unit: &Unit, index: &Index, draft: &mut Draft) -> bool {
        let at = inet(&self.settings);
        let start = draft.writer.at();
        match &unit.content {
            Content::Rules { rules, .. } => {
                draft.writer.chain(&self.unit_chain(unit, rules));
                draft.put(start, Item::Make(unit.name.clone()));
                true
            }
            Content::Fixed(spec) => {
                draft.writer.push(Change::AddSet(spec.set.clone()));
                draft.writer.add(&at, &unit.name, spec.elements.clone());
                draft.put(start, Item::Make(unit.name.clone()));
                true
            }
            Content::Peers { key, v4 } => {
                let set = peer_set(&self.settings, key, *v4, &unit.name);
                draft.writer.push(Change::AddSet(set));
                let mut fill = self.members(unit, index);
                let each = fill.last().map_or(1, member_bytes);
                let from = fill.len() - draft.room_for(each).min(fill.len());
                let first = fill.split_off(from);
                draft.writer.add(&at, &unit.name, elements(&first));
                draft.put(start, Item::Make(unit.name.clone()));
                let whole = fill.is_empty();
                draft.making.insert(
                    unit.name.clone(),
                    AppliedUnit {
                        rank: unit.rank,
                        chain: false,
                        ours: true,
                        complete: whole,
                        fill,
                        pending: BTreeMap::new(),
                    },
                );
                whole
            }
        }
    }

    fn unit_chain(&self, unit: &Unit, rules: &[Exprs]) -> ChainSpec {
        ChainSpec {
            chain: nft_wire::chain::Chain::regular(&inet(&self.settings), &unit.name),
            rules: rules.to_vec(),
        }
    }

    fn write_anew(&self, unit: &Unit, writer: &mut Writer) {
        let at = inet(&self.settings);
        match &unit.content {
            Content::Rules { rules, .. } => writer.chain_anew(&self.unit_chain(unit, rules)),
            Content::Fixed(spec) => {
                writer.push(Change::FlushSet {
                    table: at.clone(),
                    name: unit.name.clone(),
                });
                writer.add(&at, &unit.name, spec.elements.clone());
            }
            // Its members come with the next transaction, as those of a new one do that did not fit.
            Content::Peers { .. } => writer.push(Change::FlushSet {
                table: at,
                name: unit.name.clone(),
            }),
        }
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
            let gone = self.pending_of(name, |p| !p.add);
            if gone.is_empty() {
                continue;
            }
            let start = draft.writer.at();
            draft.writer.delete(&at, name, elements(gone.iter().map(|(m, _)| m)));
            draft.put(start, Item::Members(name.clone(), gone));
        }
        let shrunk = all;
        let mut slots: Vec<(&Slot, Option<Option<Verdict>>)> = Vec::new();
        for slot in &self.dirty_slots {
            if draft.items.len() + slots.len() >= self.limit {
                all = false;
                break;
            }
            if self.is_stuck(&Object::Slot(slot.clone())) {
                continue;
            }
            let wanted = self.effective(slot);
            let in_place = self.applied.frame.contains(&FrameObject::Set(slot.table.name().into()));
            if in_place && self.leads_to_applied(&wanted) {
                slots.push((slot, wanted));
            } else {
                all = false;
            }
        }
        draft_slots(&self.applied, &at, &slots, &mut draft);
        // What is in no map is dropped as soon as the base chains stand, so all that can be in a map comes with them.
        let made = self.dirty_units.iter().all(|(_, name)| self.blocked.contains(name));
        let place = self.target.place();
        for spec in bases(&self.settings, place) {
            let object = FrameObject::Base(spec.chain.name.clone());
            if all && made && !self.applied.frame.contains(&object) && self.frame_stands() {
                let start = draft.writer.at();
                draft.writer.chain(&spec);
                draft.put(start, Item::Frame(object));
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
        let objects = self.frame_objects();
        let needed = objects.iter().filter(|o| !matches!(o, FrameObject::Base(_)));
        needed.clone().all(|o| self.applied.frame.contains(o))
    }

    /// Members of a set that came or went, and whether they came.
    fn pending_of(&self, name: &Name, which: impl Fn(&Pending) -> bool) -> Vec<(Member, bool)> {
        if self.is_stuck(&Object::Members(name.clone())) {
            return Vec::new();
        }
        let Some(unit) = self.applied.units.get(name).filter(|u| u.fill.is_empty()) else {
            return Vec::new();
        };
        let chosen = unit.pending.iter().filter(|(_, p)| which(p));
        chosen.map(|(m, p)| (*m, p.add)).collect()
    }

    fn draft_grow(&self) -> Draft {
        let mut draft = Draft::new(self.limit, self.settings.batch_bytes);
        let at = inet(&self.settings);
        for name in &self.dirty_sets {
            if draft.is_full() {
                break;
            }
            let mut new = self.pending_of(name, |p| p.add && p.epoch <= self.grown);
            if let Some((member, _)) = new.first() {
                new.truncate(draft.room_for(member_bytes(member)));
                let start = draft.writer.at();
                draft.writer.add(&at, name, elements(new.iter().map(|(m, _)| m)));
                draft.put(start, Item::Members(name.clone(), new));
            }
        }
        self.draft_removals(&mut draft);
        draft
    }

    /// What nobody wants and nothing leads to, users before what they use.
    fn draft_removals(&self, draft: &mut Draft) {
        let waits = self.dirty_slots.iter().any(|slot| {
            slot.table.leads() && !self.is_stuck(&Object::Slot(slot.clone()))
        });
        let repairs = self.applied.damaged.iter().any(|name| self.is_ours(name));
        if waits || repairs {
            return;
        }
        let at = inet(&self.settings);
        let doomed: Vec<&Name> = self
            .garbage
            .iter()
            .map(|(_, name)| name)
            .filter(|name| !self.is_stuck(&Object::Removal((*name).clone())))
            .collect();
        let foreign = |name: &Name| self.applied.units.get(name).is_some_and(|u| !u.ours);
        let room = self.limit.saturating_sub(draft.items.len());
        let doomed = doomed.get(..room.min(doomed.len())).unwrap_or_default();
        // What others made may refer to anything.
        for name in doomed.iter().filter(|n| foreign(n)) {
            if self.applied.units.get(*name).is_some_and(|u| u.chain) {
                draft.writer.push(Change::FlushChain {
                    table: at.clone(),
                    name: (**name).clone(),
                });
            }
        }
        for name in doomed {
            let Some(unit) = self.applied.units.get(*name) else {
                continue;
            };
            let start = draft.writer.at();
            let (table, name) = (at.clone(), (*name).clone());
            draft.writer.push(if unit.chain {
                Change::DeleteChain {
                    table,
                    name: name.clone(),
                }
            } else {
                Change::DeleteSet {
                    table,
                    name: name.clone(),
                }
            });
            draft.put(start, Item::Remove(name));
        }
        for link in self.applied.spoof.keys() {
            let stuck = self.is_stuck(&Object::Removal(link.clone()));
            if self.spoof.contains_key(link) || stuck || draft.items.len() >= self.limit {
                continue;
            }
            let start = draft.writer.at();
            draft.writer.push(Change::DeleteChain {
                table: netdev(&self.settings),
                name: link.clone(),
            });
            draft.put(start, Item::RemoveSpoof(link.clone()));
        }
    }

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
            Item::Make(name) => self.made(name, flight, index),
            Item::Fill(name, count) => {
                if let Some(unit) = self.applied.units.get_mut(&name) {
                    unit.fill.truncate(unit.fill.len().saturating_sub(count));
                    unit.complete = unit.fill.is_empty();
                }
                self.touch_set(&name);
            }
            Item::Spoof(link, rules) => {
                if self.spoof.get(&link).is_some_and(|(_, spec)| spec.rules == rules) {
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
                    let ips = if add { &mut outcome.gained } else { &mut outcome.lost };
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

    fn made(&mut self, name: Name, flight: &mut Flight, index: &mut Index) {
        let wanted = self.wanted.get(&name).map(|w| (w.unit.rank, w.unit.is_chain()));
        let entry = flight.making.remove(&name).unwrap_or_else(|| {
            let (rank, chain) = wanted.unwrap_or_else(|| guess(&name));
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
        self.dirty_units.remove(&(rank, name.clone()));
        self.applied.units.insert(name.clone(), entry);
        if wanted.is_none() {
            self.garbage.insert((Reverse(rank), name.clone()));
            if !self.held.contains_key(&name) {
                self.let_go(&name, index);
            }
        }
        self.touch_set(&name);
    }

    fn removed(&mut self, name: &Name, index: &mut Index) {
        if let Some(unit) = self.applied.units.remove(name) {
            self.garbage.remove(&(Reverse(unit.rank), name.clone()));
        }
        self.applied.damaged.remove(name);
        self.dirty_sets.remove(name);
        if let Some(wanted) = self.wanted.get(name) {
            self.dirty_units.insert((wanted.unit.rank, name.clone()));
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
            self.dirty_sets.insert(name.clone());
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
                _ => {}
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
            Object::Members(name)
                if self.applied.units.get(&name).is_some_and(|u| !u.complete) =>
            {
                self.block(&name);
            }
            Object::Members(_) | Object::Slot(_) | Object::Spoof(_) | Object::Removal(_) => {}
        }
    }

    /// A unit cannot be: nor can what needs it, and pods that would be led there are denied everything.
    fn block(&mut self, name: &Name) {
        self.blocked.insert(name.clone());
        let mut units: Vec<_> =
            self.wanted.values().map(|w| std::sync::Arc::clone(&w.unit)).collect();
        units.sort_by_key(|u| u.rank);
        for unit in units {
            if unit.needs.iter().any(|need| self.blocked.contains(&need.name)) {
                self.blocked.insert(unit.name.clone());
            }
        }
        let slots: Vec<Slot> = self.slots.keys().cloned().collect();
        for slot in &slots {
            self.touch_slot(slot);
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

    /// Anything that the plan knows of the kernel's units; for tests of leaks.
    pub fn applied_names(&self) -> BTreeSet<Name> {
        self.applied.units.keys().cloned().collect()
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

/// Elements: first all that go or change, then all that come or changed; one message per set.
fn draft_slots(
    applied: &Applied,
    at: &nft_wire::name::TableRef,
    slots: &[(&Slot, Option<Option<Verdict>>)],
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
                    wanted.as_ref().map(|v| slot_element(slot, v.as_ref()))
                } else {
                    applied.slots.contains_key(*slot).then(|| slot_element(slot, None))
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
        draft.items.push((spans, Item::Slot((*slot).clone(), wanted.clone())));
    }
}

