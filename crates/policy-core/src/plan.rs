//! From what the kernel has to what it should have, in transactions whose order lets no packet through.
//!
//! *Create* makes chains and sets that nothing leads to yet; *Move* moves elements of verdict maps and takes members
//! out; *Grow* puts members in; *Delete* removes what nothing leads to any more. A transaction never makes a chain and
//! moves an element to it: a packet can find the new element while the new chain still looks empty to it.
//!
//! The three kinds take turns, so that a stream of events starves none of them. Members grow only after a transaction
//! that took out what was to go when they came: an address that moves from one pod to another never counts for both.

mod outcome;
mod refusal;
mod step;
mod work;
mod writer;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use nft_wire::name::Name;
use nft_wire::snapshot::Snapshot;
use nft_wire::verdict::Verdict;
use types::pod::PodKey;

pub use outcome::Outcome;
pub use refusal::{Object, Refusal};
pub use step::{Failure, Step, StepKind, Target};
use work::Flight;

use crate::adopt::{Applied, FrameObject, Pending, Slot, Wants, survey};
use crate::compile::{Compiled, Content, Rank, Unit};
use crate::flow::Direction;
use crate::index::{Index, Member, SetDelta, SetId};
use crate::layout::Settings;
use crate::layout::frame::{ChainSpec, allowed_sets, bases, ends};
use crate::layout::names::{Table, denied_sets};
use crate::layout::rules::denied;

/// What an element should say.
#[derive(Debug, Clone)]
pub enum Lead {
    /// Nothing: it is a member.
    Member,
    /// Into a profile.
    Profile(Arc<Compiled>),
}

impl Lead {
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Member, Self::Member) => true,
            (Self::Profile(a), Self::Profile(b)) => Arc::ptr_eq(a, b),
            (Self::Member | Self::Profile(_), _) => false,
        }
    }
}

#[derive(Debug)]
struct Wanted {
    unit: Arc<Unit>,
    refs: usize,
}

/// Everything that one namespace should have, and what it has.
#[derive(Debug)]
pub struct Plan {
    target: Target,
    settings: Settings,
    applied: Applied,
    /// Whether `applied` can be relied on.
    known: bool,
    wanted: HashMap<Name, Wanted>,
    /// Sets that the index keeps for us: those wanted, and those not removed yet.
    held: HashMap<Name, SetId>,
    by_set: HashMap<SetId, Vec<Name>>,
    slots: BTreeMap<Slot, BTreeMap<PodKey, Lead>>,
    spoof: BTreeMap<Name, (PodKey, ChainSpec)>,
    dirty_units: BTreeSet<(Rank, Name)>,
    dirty_slots: BTreeSet<Slot>,
    dirty_sets: BTreeSet<Name>,
    dirty_spoof: BTreeSet<Name>,
    garbage: BTreeSet<(Reverse<Rank>, Name)>,
    refusals: BTreeMap<Object, Refusal>,
    blocked: HashSet<Name>,
    flight: Option<Flight>,
    /// Most items of the next step, while a refused one is being searched.
    limit: usize,
    turn: StepKind,
    epoch: u64,
    /// Members that came up to this epoch may be put in.
    grown: u64,
    number: u64,
}

impl Plan {
    /// A plan for a namespace of which nothing is known.
    pub fn new(target: Target, settings: &Settings) -> Self {
        Self {
            target,
            settings: settings.clone(),
            applied: Applied::default(),
            known: false,
            wanted: HashMap::new(),
            held: HashMap::new(),
            by_set: HashMap::new(),
            slots: BTreeMap::new(),
            spoof: BTreeMap::new(),
            dirty_units: BTreeSet::new(),
            dirty_slots: BTreeSet::new(),
            dirty_sets: BTreeSet::new(),
            dirty_spoof: BTreeSet::new(),
            garbage: BTreeSet::new(),
            refusals: BTreeMap::new(),
            blocked: HashSet::new(),
            flight: None,
            limit: usize::MAX,
            turn: StepKind::Create,
            epoch: 1,
            grown: 0,
            number: 0,
        }
    }

    /// Whether a dump has to be adopted before anything is written.
    pub const fn is_unknown(&self) -> bool {
        !self.known
    }

    /// What the kernel has can no longer be relied on.
    pub const fn mistrust(&mut self) {
        self.known = false;
    }

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
            unit.name.clone(),
            Wanted {
                unit: Arc::clone(unit),
                refs: 1,
            },
        );
        if let Content::Peers { key, .. } = &unit.content
            && !self.held.contains_key(&unit.name)
        {
            let id = index.acquire(key);
            self.held.insert(unit.name.clone(), id);
            self.by_set.entry(id).or_default().push(unit.name.clone());
        }
        self.garbage.remove(&(Reverse(unit.rank), unit.name.clone()));
        match self.applied.units.get(&unit.name) {
            None => {
                self.dirty_units.insert((unit.rank, unit.name.clone()));
            }
            // A leftover of an earlier process that nobody wanted when it was dumped: nobody compared it.
            Some(applied) if !applied.ours => self.distrust(unit, index),
            Some(_) => {}
        }
        if unit.needs.iter().any(|need| self.blocked.contains(&need.name)) {
            self.blocked.insert(unit.name.clone());
        }
    }

    /// Fills a unit anew whose content nobody compared; nothing of ours leads to it.
    fn distrust(&mut self, unit: &Unit, index: &Index) {
        let members = self.members(unit, index);
        let Some(applied) = self.applied.units.get_mut(&unit.name) else {
            return;
        };
        self.garbage.remove(&(Reverse(applied.rank), unit.name.clone()));
        applied.ours = true;
        applied.rank = unit.rank;
        self.applied.damaged.insert(unit.name.clone());
        if matches!(unit.content, Content::Peers { .. }) {
            applied.complete = members.is_empty();
            applied.fill = members;
            self.dirty_sets.insert(unit.name.clone());
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
        self.refusals.remove(&Object::Unit(unit.name.clone()));
        if self.applied.units.contains_key(&unit.name) {
            self.garbage.insert((Reverse(unit.rank), unit.name.clone()));
        } else {
            self.dirty_units.remove(&(unit.rank, unit.name.clone()));
            self.let_go(&unit.name, index);
        }
        for need in &unit.needs {
            self.release(need, index);
        }
    }

    /// The index need not keep a set any longer, unless a step is making it right now.
    fn let_go(&mut self, name: &Name, index: &mut Index) {
        let used = self.wanted.contains_key(name)
            || self.applied.units.contains_key(name)
            || self.flight.as_ref().is_some_and(|f| f.makes(name));
        if used {
            return;
        }
        self.dirty_sets.remove(name);
        self.refusals.remove(&Object::Members(name.clone()));
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
                self.slots.entry(slot.clone()).or_default().insert(pod.clone(), lead);
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
                self.spoof.insert(link.clone(), wanted);
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
        self.refusals.remove(&Object::Spoof(link.clone()));
        if self.spoof.contains_key(link) {
            self.dirty_spoof.insert(link.clone());
        } else {
            self.dirty_spoof.remove(link);
        }
    }

    /// What an element should be now: `None`: absent; `Some(None)`: a member.
    fn effective(&self, slot: &Slot) -> Option<Option<Verdict>> {
        let lead = self.slots.get(slot)?.values().next()?;
        Some(match lead {
            Lead::Member => None,
            Lead::Profile(compiled) => Some(match &compiled.root {
                Some(root) if self.blocked.contains(&root.name) => {
                    denied(compiled.profile.direction)
                }
                Some(_) | None => compiled.verdict.clone(),
            }),
        })
    }

    /// Whether everything that the element leads to is there.
    fn leads_to_applied(&self, verdict: &Option<Option<Verdict>>) -> bool {
        match verdict {
            Some(Some(verdict)) => verdict.chain().is_none_or(|chain| {
                self.applied.units.get(chain).is_some_and(|u| u.complete)
                    || self.applied.frame.contains(&FrameObject::Chain(chain.clone()))
            }),
            Some(None) | None => true,
        }
    }

    fn touch_slot(&mut self, slot: &Slot) {
        if self.effective(slot).as_ref() == self.applied.slots.get(slot) {
            self.dirty_slots.remove(slot);
        } else {
            self.dirty_slots.insert(slot.clone());
        }
    }

    /// Members of sets came and went.
    pub fn take_delta(&mut self, delta: &SetDelta) {
        let Some(names) = self.by_set.get(&delta.id) else {
            return;
        };
        for name in names.clone() {
            let Some(v4) = is_v4(&name) else { continue };
            let Some(unit) = self.applied.units.get_mut(&name) else {
                // Made later, with the members of then; those of a set that is being made come on top.
                if let Some(flight) = &mut self.flight {
                    flight.take_delta(&name, delta, v4, self.epoch);
                }
                continue;
            };
            let removed = delta.removed.iter().map(|m| (m, false));
            for (member, add) in removed.chain(delta.added.iter().map(|m| (m, true))) {
                if member.ip.is_ipv4() == v4 {
                    note(&mut unit.pending, *member, add, self.epoch);
                }
            }
            if unit.pending.is_empty() && unit.fill.is_empty() {
                self.dirty_sets.remove(&name);
            } else {
                self.dirty_sets.insert(name);
            }
        }
    }

    /// Takes what a dump shows for the state to start from.
    pub fn adopt(&mut self, dump: &[Snapshot], index: &mut Index) {
        let applied = self.survey(dump, index);
        self.applied = applied;
        self.known = true;
        self.flight = None;
        self.limit = usize::MAX;
        self.turn = StepKind::Create;
        self.refresh(index);
    }

    fn survey(&self, dump: &[Snapshot], index: &Index) -> Applied {
        let units = |name: &str| self.wanted.get(name).map(|w| Arc::clone(&w.unit));
        let members = |unit: &Unit| self.members(unit, index);
        let wants = Wants {
            settings: &self.settings,
            place: self.target.place(),
            units: &units,
            members: &members,
            epoch: self.epoch,
        };
        survey(dump, &wants)
    }

    fn members(&self, unit: &Unit, index: &Index) -> Vec<Member> {
        let (Content::Peers { v4, .. }, Some(id)) = (&unit.content, self.held.get(&unit.name))
        else {
            return Vec::new();
        };
        let mut members = index.members(*id);
        members.retain(|m| m.ip.is_ipv4() == *v4);
        members
    }

    /// Works out everything that is to be done, after the applied state was replaced.
    fn refresh(&mut self, index: &mut Index) {
        self.dirty_units = self
            .wanted
            .values()
            .filter(|w| !self.applied.units.contains_key(&w.unit.name))
            .map(|w| (w.unit.rank, w.unit.name.clone()))
            .collect();
        self.garbage = self
            .applied
            .units
            .iter()
            .filter(|(name, _)| !self.wanted.contains_key(*name))
            .map(|(name, unit)| (Reverse(unit.rank), name.clone()))
            .collect();
        self.dirty_sets = self
            .applied
            .units
            .iter()
            .filter(|(name, u)| {
                self.held.contains_key(*name) && !(u.pending.is_empty() && u.fill.is_empty())
            })
            .map(|(name, _)| name.clone())
            .collect();
        let unwanted: Vec<Name> = self
            .held
            .keys()
            .filter(|name| !self.wanted.contains_key(*name))
            .cloned()
            .collect();
        for name in unwanted {
            // Its members were not compared: it can only be removed, or the tables be dumped again.
            if let Some(id) = self.held.remove(&name) {
                if let Some(names) = self.by_set.get_mut(&id) {
                    names.retain(|n| *n != name);
                    if names.is_empty() {
                        self.by_set.remove(&id);
                    }
                }
                index.release(id);
            }
        }
        let slots: BTreeSet<Slot> =
            self.slots.keys().chain(self.applied.slots.keys()).cloned().collect();
        for slot in &slots {
            self.touch_slot(slot);
        }
        self.dirty_slots.retain(|slot| slots.contains(slot));
        self.dirty_spoof = self
            .spoof
            .iter()
            .filter(|(link, (_, spec))| self.applied.spoof.get(*link) != Some(&spec.rules))
            .map(|(link, _)| link.clone())
            .collect();
    }

    /// Differences between a dump and the desired state, a line each.
    pub fn diff(&self, dump: &[Snapshot], index: &Index) -> Vec<String> {
        let applied = self.survey(dump, index);
        let mut lines: Vec<String> = applied.hopeless.iter().cloned().collect();
        for object in self.frame_objects() {
            if !applied.frame.contains(&object) {
                lines.push(format!("missing: {}", describe(&object)));
            }
        }
        lines.extend(applied.damaged.iter().map(|name| format!("other content: {name}")));
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
                let verb = if pending.add { "lacks" } else { "should not have" };
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
        for link in applied.spoof.keys().filter(|link| !self.spoof.contains_key(*link)) {
            lines.push(format!("nobody wants: anti-spoof chain of {link}"));
        }
        lines
    }

    /// Every object of fixed name that this namespace should have.
    fn frame_objects(&self) -> Vec<FrameObject> {
        let mut out = vec![FrameObject::Table];
        if self.has_spoof_table() {
            out.push(FrameObject::SpoofTable);
        }
        let sets = Table::ALL.iter().map(|t| Name::from(t.name()));
        let denied = denied_sets(&self.settings).into_iter().map(|s| s.name);
        let allowed = allowed_sets(&self.settings).into_iter().map(|s| s.set.name);
        out.extend(sets.chain(denied).chain(allowed).map(FrameObject::Set));
        let place = self.target.place();
        out.extend(ends(&self.settings, place).into_iter().map(|s| FrameObject::Chain(s.chain.name)));
        out.extend(bases(&self.settings, place).into_iter().map(|s| FrameObject::Base(s.chain.name)));
        out
    }

    const fn has_spoof_table(&self) -> bool {
        self.settings.anti_spoof && matches!(self.target, Target::Host)
    }

    /// Whether the base chains stand, so that what is not in the maps is dropped.
    pub fn is_enforcing(&self) -> bool {
        let place = self.target.place();
        self.known
            && bases(&self.settings, place)
                .into_iter()
                .all(|s| self.applied.frame.contains(&FrameObject::Base(s.chain.name)))
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
        (!settled).then(|| {
            format!("its element in {} is not committed yet", slot.table.name())
        })
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

    /// Whether anything is left out because the kernel refuses it.
    pub fn has_blocked(&self) -> bool {
        !self.blocked.is_empty()
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
        let peers: Vec<&Name> = units.keys().filter(|name| self.held.contains_key(*name)).collect();
        let ids: BTreeSet<SetId> = peers.iter().filter_map(|n| self.set_of(n)).collect();
        let members = ids.into_iter().map(|id| index.members(id).len()).sum();
        [chains, peers.len(), units.len() - chains - peers.len(), members]
    }

    /// Whether nothing is left here: no pod, and all that was applied is gone but for the fixed objects.
    pub fn is_idle(&self) -> bool {
        self.slots.is_empty() && self.wanted.is_empty() && self.spoof.is_empty()
    }

    /// Gives every set back to the index; the plan is not used any more.
    pub fn close(&mut self, index: &mut Index) {
        for (_, id) in self.held.drain() {
            index.release(id);
        }
        self.by_set.clear();
        self.wanted.clear();
    }

    /// The direction that a map of this name judges.
    pub const fn direction_of(table: Table) -> Option<Direction> {
        match table {
            Table::FromPod | Table::FromIp4 | Table::FromIp6 => Some(Direction::Egress),
            Table::ToPod => Some(Direction::Ingress),
            Table::Hair | Table::Pods4 | Table::Pods6 | Table::Node4 | Table::Node6 => None,
        }
    }
}

/// Notes that a member came or went; what cancels out is forgotten.
fn note(pending: &mut BTreeMap<Member, Pending>, member: Member, add: bool, epoch: u64) {
    match pending.get(&member) {
        Some(before) if before.add != add => {
            pending.remove(&member);
        }
        Some(_) => {}
        None => {
            pending.insert(member, Pending { add, epoch });
        }
    }
}

/// The family of a set that follows pods or nodes, by its name.
fn is_v4(name: &str) -> Option<bool> {
    match name.as_bytes() {
        [b'p' | b'n', b'4', b'_', ..] => Some(true),
        [b'p' | b'n', b'6', b'_', ..] => Some(false),
        _ => None,
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
        |values| values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" . "),
    )
}

fn lead_text(lead: Option<&Option<Verdict>>) -> String {
    match lead {
        None => "nothing".to_owned(),
        Some(None) => "a member".to_owned(),
        Some(Some(Verdict::Goto(chain))) => format!("goto {chain}"),
        Some(Some(Verdict::Jump(chain))) => format!("jump {chain}"),
        Some(Some(other)) => format!("{other:?}").to_lowercase(),
    }
}
