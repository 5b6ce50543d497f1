//! From what the kernel has to what it should have, in transactions whose order lets no packet through.
//!
//! *Create* makes chains and sets that nothing leads to yet; *Move* moves elements of verdict maps and takes rights
//! away: members out of sets that permit, and into sets that restrict; *Grow* gives rights, the other way round;
//! *Delete* removes what nothing leads to any more. A transaction never makes a chain and moves an element to it: a
//! packet can find the new element while the new chain still looks empty to it.
//!
//! The three kinds take turns, so that a stream of events starves none of them. Rights grow only after a transaction
//! that took away what was to go when they came: an address that moves from one pod to another never counts for both,
//! and one that comes under Deny and Accept at once is denied at every moment. Those that Pass leads elsewhere change
//! between the two, in a transaction of their own: they may lose or win by it.

mod answer;
mod create;
mod desire;
mod draft;
mod flight;
mod frame;
mod inquiry;
mod outcome;
mod refusal;
mod step;
mod writer;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use nft_wire::name::Name;
use nft_wire::snapshot::Snapshot;
use nft_wire::verdict::Verdict;
use types::pod::PodKey;

use flight::Flight;
use frame::Frame;
pub use outcome::Outcome;
pub use refusal::{Object, Refusal};
pub use step::{Failure, Step, StepKind, Target};

use crate::adopt::{Applied, Carry, FrameObject, Pending, Slot, Wants, survey};
use crate::compile::{Compiled, Content, Rank, Unit};
use crate::index::{Index, Member, SetDelta, SetId};
use crate::layout::Settings;
use crate::layout::frame::ChainSpec;
use crate::layout::rules::denied;
use crate::profile::Role;

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
    frame: Frame,
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
    /// What gives rights may be done up to this epoch, as far as [`Self::led`] goes as well.
    grown: u64,
    /// Up to this epoch those that Pass leads elsewhere have been changed.
    led: u64,
    /// Up to this epoch they are being changed.
    leading: u64,
    number: u64,
}

impl Plan {
    /// A plan for a namespace of which nothing is known.
    pub fn new(target: Target, settings: &Settings) -> Self {
        Self {
            frame: Frame::of(&target, settings),
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
            led: 0,
            leading: 0,
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

    /// What an element should say now; `None`: it should not be there.
    fn effective(&self, slot: &Slot) -> Option<Carry> {
        let lead = self.slots.get(slot)?.values().next()?;
        Some(match lead {
            Lead::Member => Carry::Member,
            Lead::Profile(compiled) => Carry::Leads(match &compiled.root {
                Some(root) if self.blocked.contains(&root.name) => {
                    denied(compiled.profile.direction)
                }
                Some(_) | None => compiled.verdict.clone(),
            }),
        })
    }

    /// Whether everything that an element leads to is there.
    fn leads_to_applied(&self, carry: Option<&Carry>) -> bool {
        carry
            .and_then(Carry::verdict)
            .and_then(Verdict::chain)
            .is_none_or(|chain| {
                self.applied.units.get(chain).is_some_and(|u| u.complete)
                    || self
                        .applied
                        .frame
                        .contains(&FrameObject::Chain(Arc::clone(chain)))
            })
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
            let Some((_, v4)) = Role::of_name(&name) else {
                continue;
            };
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
        index.members_of(*id, *v4)
    }

    /// Works out everything that is to be done, after the applied state was replaced.
    fn refresh(&mut self, index: &mut Index) {
        self.dirty_units = self
            .wanted
            .values()
            .filter(|w| !self.applied.units.contains_key(&w.unit.name))
            .map(|w| (w.unit.rank, Arc::clone(&w.unit.name)))
            .collect();
        self.garbage = self
            .applied
            .units
            .iter()
            .filter(|(name, _)| !self.wanted.contains_key(*name))
            .map(|(name, unit)| (Reverse(unit.rank), Arc::clone(name)))
            .collect();
        self.dirty_sets = self
            .applied
            .units
            .iter()
            .filter(|(name, u)| {
                self.held.contains_key(*name) && !(u.pending.is_empty() && u.fill.is_empty())
            })
            .map(|(name, _)| Arc::clone(name))
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
        let slots: BTreeSet<Slot> = self
            .slots
            .keys()
            .chain(self.applied.slots.keys())
            .cloned()
            .collect();
        for slot in &slots {
            self.touch_slot(slot);
        }
        self.dirty_slots.retain(|slot| slots.contains(slot));
        self.dirty_spoof = self
            .spoof
            .iter()
            .filter(|(link, (_, spec))| self.applied.spoof.get(*link) != Some(&spec.rules))
            .map(|(link, _)| Arc::clone(link))
            .collect();
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
