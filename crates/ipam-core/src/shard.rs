//! One shard: its slots, its ENIs, its open operations, and what can be asked of them.
//!
//! [`Shard::apply`] is the only way to change a shard. It is deterministic: two folds of the same log
//! are equal, and a snapshot with the records after it equals the fold of the whole log.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use types::address::Family;
use types::cloud::{EniId, InstanceId};
use types::op::{Generation, Seq};
use types::time::Tick;

use crate::eni::{EniKey, EniState, Op};
use crate::record::Record;
use crate::shard::eni::Eni;
use crate::slot::{Slot, SlotSet, SlotState};
use crate::spec::ShardSpec;

pub mod apply;
pub mod eni;
pub mod snapshot;

/// The state of a shard after its last record.
///
/// Invariant: [`crate::invariants::violations`] is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    spec: ShardSpec,
    state: State,
    /// ENIs that serve one pod each. Beside the rest of the state, since a snapshot without any is written as before
    /// there were such.
    wholes: BTreeSet<EniKey>,
}

/// What a snapshot holds: everything but the spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    last: Seq,
    tick: Tick,
    v4: Vec<SlotState>,
    v6: Vec<SlotState>,
    enis: BTreeMap<EniKey, Eni>,
    ops: BTreeMap<Seq, Op>,
    /// Where the search for a free slot goes on; so an address that just became free is taken last.
    cursor_v4: u32,
    cursor_v6: u32,
}

/// An address that a node may use, or may still use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Granted {
    /// Which.
    pub slot: Slot,
    /// Its text.
    pub address: IpAddr,
    /// Under which generation.
    pub generation: Generation,
}

/// A place for an ENI on an instance: one key of the index that keeps ENI quotas across shards.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EniPlace {
    /// The instance.
    pub instance: InstanceId,
    /// Which of its places, from 0 below the secondary ENIs that its type allows.
    pub index: u32,
}

/// What a record does to the index of ENI places, in the same transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlaceChange {
    /// The place must be free and is taken.
    Take(EniPlace),
    /// The place becomes free.
    Free(EniPlace),
}

/// Slots of a shard by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotCounts {
    /// Nobody's, available now.
    pub free: u32,
    /// Kept by the cloud.
    pub reserved: u32,
    /// On their way to an ENI.
    pub intent: u32,
    /// On an ENI, granted to nobody.
    pub assigned: u32,
    /// Granted.
    pub held: u32,
    /// Asked back.
    pub revoking: u32,
    /// On their way off an ENI.
    pub unassign: u32,
    /// Resting.
    pub cooling: u32,
    /// Somebody else's.
    pub foreign: u32,
    /// Set aside after a conflict.
    pub quarantine: u32,
}

impl Shard {
    /// The shard before its first record.
    pub fn new(spec: ShardSpec) -> Self {
        let slots = |family| {
            (0..spec.slot_count(family))
                .map(|index| {
                    if spec.is_reserved(Slot { family, index }) {
                        SlotState::Reserved
                    } else {
                        SlotState::Free
                    }
                })
                .collect()
        };
        let state = State {
            last: Seq(0),
            tick: Tick(0),
            v4: slots(Family::V4),
            v6: slots(Family::V6),
            enis: BTreeMap::new(),
            ops: BTreeMap::new(),
            cursor_v4: 0,
            cursor_v6: 0,
        };
        Self {
            spec,
            state,
            wholes: BTreeSet::new(),
        }
    }

    /// What the shard is made of.
    pub fn spec(&self) -> &ShardSpec {
        &self.spec
    }

    /// Number of the last record; 0 before the first.
    pub fn last_seq(&self) -> Seq {
        self.state.last
    }

    /// Number of the record to be applied next.
    pub fn next_seq(&self) -> Seq {
        self.state.last.next()
    }

    /// The latest committed time.
    pub fn tick(&self) -> Tick {
        self.state.tick
    }

    /// The state of a slot; `None` outside the shard.
    pub fn slot(&self, slot: Slot) -> Option<&SlotState> {
        let slots = match slot.family {
            Family::V4 => &self.state.v4,
            Family::V6 => &self.state.v6,
        };
        slots.get(usize::try_from(slot.index).ok()?)
    }

    /// All slots, IPv4 first.
    pub fn slots(&self) -> impl Iterator<Item = (Slot, &SlotState)> {
        let named = |family| move |(index, state)| (Slot { family, index }, state);
        let v4 = (0_u32..).zip(&self.state.v4).map(named(Family::V4));
        let v6 = (0_u32..).zip(&self.state.v6).map(named(Family::V6));
        v4.chain(v6)
    }

    /// How many slots of a family are in which state.
    pub fn counts(&self, family: Family) -> SlotCounts {
        let mut counts = SlotCounts::default();
        let slots = match family {
            Family::V4 => &self.state.v4,
            Family::V6 => &self.state.v6,
        };
        for slot in slots {
            let count = match slot {
                SlotState::Free => &mut counts.free,
                SlotState::Reserved => &mut counts.reserved,
                SlotState::Intent { .. } => &mut counts.intent,
                SlotState::Assigned { .. } => &mut counts.assigned,
                SlotState::Held { .. } => &mut counts.held,
                SlotState::Revoking { .. } => &mut counts.revoking,
                SlotState::Unassign { .. } => &mut counts.unassign,
                SlotState::Cooling { .. } => &mut counts.cooling,
                SlotState::Foreign { .. } => &mut counts.foreign,
                SlotState::Quarantine { .. } => &mut counts.quarantine,
            };
            *count = count.saturating_add(1);
        }
        counts
    }

    /// Up to `count` free slots of a family, those first that were free longest by and large: the search
    /// goes on where the last one ended, and starts again at the front.
    pub fn free_slots(&self, family: Family, count: u32) -> Vec<Slot> {
        let cursor = match family {
            Family::V4 => self.state.cursor_v4,
            Family::V6 => self.state.cursor_v6,
        };
        let total = self.spec.slot_count(family);
        (cursor..total)
            .chain(0..cursor.min(total))
            .map(|index| Slot { family, index })
            .filter(|slot| self.slot(*slot) == Some(&SlotState::Free))
            .take(usize::try_from(count).unwrap_or(usize::MAX))
            .collect()
    }

    /// The ENI with this key.
    pub fn eni(&self, key: EniKey) -> Option<&Eni> {
        self.state.enis.get(&key)
    }

    /// All ENIs, oldest first.
    pub fn enis(&self) -> impl DoubleEndedIterator<Item = (EniKey, &Eni)> {
        self.state.enis.iter().map(|(key, eni)| (*key, eni))
    }

    /// The ENIs for an instance, oldest first.
    pub fn enis_of<'a>(
        &'a self,
        instance: &'a InstanceId,
    ) -> impl DoubleEndedIterator<Item = (EniKey, &'a Eni)> {
        self.enis()
            .filter(move |(_, eni)| eni.instance == *instance)
    }

    /// Whether an ENI is one pod's alone.
    pub fn is_whole(&self, key: EniKey) -> bool {
        self.wholes.contains(&key)
    }

    /// Keys of all ENIs that are one pod's alone.
    pub fn whole_enis(&self) -> impl Iterator<Item = EniKey> + '_ {
        self.wholes.iter().copied()
    }

    /// The ENI with this id of the cloud.
    pub fn eni_by_id(&self, id: &EniId) -> Option<(EniKey, &Eni)> {
        self.enis().find(|(_, eni)| eni.id.as_ref() == Some(id))
    }

    /// Instances that have an ENI here.
    pub fn instances(&self) -> BTreeSet<&InstanceId> {
        self.state.enis.values().map(|eni| &eni.instance).collect()
    }

    /// Operations that are not done, oldest first.
    pub fn open_ops(&self) -> impl Iterator<Item = (Seq, Op)> + '_ {
        self.state.ops.iter().map(|(seq, op)| (*seq, *op))
    }

    /// The operation with this number, if it is open.
    pub fn op(&self, op: Seq) -> Option<Op> {
        self.state.ops.get(&op).copied()
    }

    /// The operation that is open on an ENI. There is at most one.
    pub fn op_on(&self, eni: EniKey) -> Option<(Seq, Op)> {
        self.open_ops().find(|(_, op)| op.eni() == eni)
    }

    /// Slots that an open operation still works on.
    pub fn op_slots(&self, op: Seq) -> SlotSet {
        let Some(eni) = self.op(op).and_then(|op| self.eni(op.eni())) else {
            return SlotSet::new();
        };
        eni.slots
            .iter()
            .filter(|slot| match self.slot(*slot) {
                Some(SlotState::Intent { op: of, .. } | SlotState::Unassign { op: of, .. }) => {
                    *of == op
                }
                Some(
                    SlotState::Free
                    | SlotState::Reserved
                    | SlotState::Assigned { .. }
                    | SlotState::Held { .. }
                    | SlotState::Revoking { .. }
                    | SlotState::Cooling { .. }
                    | SlotState::Foreign { .. }
                    | SlotState::Quarantine { .. },
                )
                | None => false,
            })
            .collect()
    }

    /// Slots of an ENI whose state satisfies `wanted`.
    pub fn slots_where(&self, eni: EniKey, wanted: impl Fn(&SlotState) -> bool) -> SlotSet {
        let Some(eni) = self.eni(eni) else {
            return SlotSet::new();
        };
        eni.slots
            .iter()
            .filter(|slot| self.slot(*slot).is_some_and(&wanted))
            .collect()
    }

    /// What the node of an ENI may use now: held, or asked back and not yet acknowledged.
    pub fn grants_on(&self, eni: EniKey) -> Vec<Granted> {
        let Some(eni) = self.eni(eni) else {
            return Vec::new();
        };
        eni.slots
            .iter()
            .filter_map(|slot| {
                Some(Granted {
                    slot,
                    address: self.spec.address(slot)?,
                    generation: self.slot(slot)?.generation()?,
                })
            })
            .collect()
    }

    /// Everything a node may use in this shard, by ENI.
    pub fn grants_of(&self, instance: &InstanceId) -> BTreeMap<EniKey, Vec<Granted>> {
        self.enis_of(instance)
            .map(|(key, _)| (key, self.grants_on(key)))
            .filter(|(_, grants)| !grants.is_empty())
            .collect()
    }

    /// Addresses of slots, in the order of the set.
    pub fn addresses(&self, slots: &SlotSet) -> Vec<IpAddr> {
        slots.iter().filter_map(|s| self.spec.address(s)).collect()
    }

    /// Slots of addresses; those outside the shard are left out.
    pub fn slots_at<'a>(&self, addresses: impl IntoIterator<Item = &'a IpAddr>) -> SlotSet {
        addresses
            .into_iter()
            .filter_map(|address| self.spec.slot(*address))
            .collect()
    }

    /// When the next slot becomes free by itself: a `Tick` at or after it should be appended then.
    pub fn next_deadline(&self) -> Option<Tick> {
        (self.state.v4.iter())
            .chain(&self.state.v6)
            .filter_map(SlotState::until)
            .min()
    }

    /// What `record`, if applied next, does to the index of ENI places.
    pub fn place_change(&self, record: &Record) -> Option<PlaceChange> {
        let place_of = |key: EniKey| {
            self.eni(key).map(|eni| EniPlace {
                instance: eni.instance.clone(),
                index: eni.quota_index,
            })
        };
        match record {
            Record::EniIntent {
                instance,
                quota_index,
                ..
            }
            | Record::WholeEniIntent {
                instance,
                quota_index,
                ..
            } => Some(PlaceChange::Take(EniPlace {
                instance: instance.clone(),
                index: *quota_index,
            })),
            Record::EniGone { eni, .. } => place_of(*eni).map(PlaceChange::Free),
            Record::Aborted { op, .. } => match self.op(*op) {
                Some(Op::BringUp { eni })
                    if self.eni(eni).map(|eni| eni.state) == Some(EniState::Intent) =>
                {
                    place_of(eni).map(PlaceChange::Free)
                }
                Some(
                    Op::BringUp { .. }
                    | Op::Assign { .. }
                    | Op::Unassign { .. }
                    | Op::Remove { .. },
                )
                | None => None,
            },
            Record::EniCreated { .. }
            | Record::EniAttached { .. }
            | Record::AssignIntent { .. }
            | Record::Assigned { .. }
            | Record::Held { .. }
            | Record::Revoke { .. }
            | Record::RevokeAcked { .. }
            | Record::NodeGone { .. }
            | Record::UnassignIntent { .. }
            | Record::Unassigned { .. }
            | Record::DetachIntent { .. }
            | Record::DeleteIntent { .. }
            | Record::EniLost { .. }
            | Record::EniDetached { .. }
            | Record::Foreign { .. }
            | Record::Tick { .. } => None,
        }
    }
}
