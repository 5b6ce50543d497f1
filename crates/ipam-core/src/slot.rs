//! One address of a shard, sets of them, and the states one can be in.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use types::address::Family;
use types::op::{Generation, Seq};
use types::time::Tick;

use crate::eni::EniKey;

/// One address of a shard: the family, and the offset in the shard's block of that family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// Which block.
    pub family: Family,
    /// Offset from the block's first address.
    pub index: u32,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{}", self.family, self.index)
    }
}

/// What an address is doing. The arrows are those of [`crate::shard::Shard::apply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SlotState {
    /// Nobody has it and anybody may get it.
    Free,
    /// The cloud keeps it for itself.
    Reserved,
    /// The cloud was or will be asked to put it on `eni`; nobody knows yet whether it is there.
    Intent {
        /// The operation that asks.
        op: Seq,
        /// The ENI it is meant for.
        eni: EniKey,
    },
    /// It is on `eni` by the cloud's word, and no node may use it.
    Assigned {
        /// The ENI it is on.
        eni: EniKey,
    },
    /// The ENI's node may use it.
    Held {
        /// The ENI it is on.
        eni: EniKey,
        /// Of the grant.
        generation: Generation,
    },
    /// The node was asked to give it back and may still use it.
    Revoking {
        /// The ENI it is on.
        eni: EniKey,
        /// Of the grant.
        generation: Generation,
        /// The record that asked.
        revoke: Seq,
    },
    /// No node uses it; the cloud was or will be asked to take it off `eni`.
    Unassign {
        /// The operation that asks.
        op: Seq,
        /// The ENI it is or was on.
        eni: EniKey,
    },
    /// On no ENI; rests until a tick at or after `until` is committed.
    Cooling {
        /// When it becomes free.
        until: Tick,
    },
    /// Somebody else of a shared vSwitch has it; tried again after `until`.
    Foreign {
        /// When it becomes free.
        until: Tick,
    },
    /// Somebody has it though the vSwitch is ours alone; tried again after `until`.
    Quarantine {
        /// When it becomes free.
        until: Tick,
    },
}

impl SlotState {
    /// The ENI that the state names.
    pub fn eni(&self) -> Option<EniKey> {
        match *self {
            Self::Intent { eni, .. }
            | Self::Assigned { eni }
            | Self::Held { eni, .. }
            | Self::Revoking { eni, .. }
            | Self::Unassign { eni, .. } => Some(eni),
            Self::Free
            | Self::Reserved
            | Self::Cooling { .. }
            | Self::Foreign { .. }
            | Self::Quarantine { .. } => None,
        }
    }

    /// The grant under which a node may use the address.
    pub fn generation(&self) -> Option<Generation> {
        match *self {
            Self::Held { generation, .. } | Self::Revoking { generation, .. } => Some(generation),
            Self::Free
            | Self::Reserved
            | Self::Intent { .. }
            | Self::Assigned { .. }
            | Self::Unassign { .. }
            | Self::Cooling { .. }
            | Self::Foreign { .. }
            | Self::Quarantine { .. } => None,
        }
    }

    /// When the state ends by itself.
    pub fn until(&self) -> Option<Tick> {
        match *self {
            Self::Cooling { until } | Self::Foreign { until } | Self::Quarantine { until } => {
                Some(until)
            }
            Self::Free
            | Self::Reserved
            | Self::Intent { .. }
            | Self::Assigned { .. }
            | Self::Held { .. }
            | Self::Revoking { .. }
            | Self::Unassign { .. } => None,
        }
    }

    /// Name as people read it in dumps.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Reserved => "reserved",
            Self::Intent { .. } => "intent",
            Self::Assigned { .. } => "assigned",
            Self::Held { .. } => "held",
            Self::Revoking { .. } => "revoking",
            Self::Unassign { .. } => "unassign",
            Self::Cooling { .. } => "cooling",
            Self::Foreign { .. } => "foreign",
            Self::Quarantine { .. } => "quarantine",
        }
    }
}

/// A set of slots. Written as runs, so that a full ENI takes a few bytes.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct SlotSet {
    v4: BTreeSet<u32>,
    v6: BTreeSet<u32>,
}

/// Most slots of one family that a set read from bytes may hold: a whole /16.
const MAX_SLOTS: u32 = 1 << 16;

impl SlotSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Indexes of one family, ascending.
    pub fn family(&self, family: Family) -> &BTreeSet<u32> {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Slots of one family, ascending.
    pub fn of(&self, family: Family) -> impl DoubleEndedIterator<Item = Slot> + '_ {
        self.family(family)
            .iter()
            .map(move |&index| Slot { family, index })
    }

    /// All slots, IPv4 first, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Slot> + '_ {
        self.of(Family::V4).chain(self.of(Family::V6))
    }

    /// Number of slots of one family.
    pub fn count(&self, family: Family) -> u32 {
        u32::try_from(self.family(family).len()).unwrap_or(u32::MAX)
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        self.v4.len().saturating_add(self.v6.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether `slot` is in it.
    pub fn contains(&self, slot: Slot) -> bool {
        self.family(slot.family).contains(&slot.index)
    }

    /// Adds a slot; false if it was there.
    pub fn insert(&mut self, slot: Slot) -> bool {
        self.family_mut(slot.family).insert(slot.index)
    }

    /// Takes a slot out; false if it was not there.
    pub fn remove(&mut self, slot: Slot) -> bool {
        self.family_mut(slot.family).remove(&slot.index)
    }

    /// Those that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        self.iter().filter(|slot| !other.contains(*slot)).collect()
    }

    fn family_mut(&mut self, family: Family) -> &mut BTreeSet<u32> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        let mut set = Self::new();
        set.extend(slots);
        set
    }
}

impl Extend<Slot> for SlotSet {
    fn extend<I: IntoIterator<Item = Slot>>(&mut self, slots: I) {
        for slot in slots {
            self.insert(slot);
        }
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// `(gap, length)`: free indexes before the run, and its length.
type Runs = Vec<(u32, u32)>;

fn runs(set: &BTreeSet<u32>) -> Runs {
    let mut runs: Runs = Vec::new();
    let mut next = 0_u32;
    for &index in set {
        let gap = index.saturating_sub(next);
        match runs.last_mut() {
            Some((_, length)) if gap == 0 => *length = length.saturating_add(1),
            Some(_) | None => runs.push((gap, 1)),
        }
        next = index.saturating_add(1);
    }
    runs
}

fn indexes(runs: &Runs) -> Option<BTreeSet<u32>> {
    let mut set = BTreeSet::new();
    let mut next = 0_u32;
    for &(gap, length) in runs {
        let start = next.checked_add(gap)?;
        next = start.checked_add(length)?;
        if length == 0 || next > MAX_SLOTS {
            return None;
        }
        set.extend(start..next);
    }
    Some(set)
}

impl Serialize for SlotSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (runs(&self.v4), runs(&self.v6)).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SlotSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (v4, v6) = <(Runs, Runs)>::deserialize(deserializer)?;
        let read = |runs: &Runs| {
            indexes(runs).ok_or_else(|| serde::de::Error::custom("slot run out of range"))
        };
        Ok(Self {
            v4: read(&v4)?,
            v6: read(&v6)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(index: u32) -> Slot {
        Slot {
            family: Family::V4,
            index,
        }
    }

    #[test]
    fn set_of_one_run_takes_few_bytes() {
        let set: SlotSet = (100..120).map(v4).collect();

        let bytes = postcard::to_stdvec(&set).unwrap();

        assert_eq!(bytes, [1, 100, 20, 0]);
    }

    #[test]
    fn set_with_a_run_past_the_end_is_refused() {
        let bytes = postcard::to_stdvec(&(vec![(u32::MAX, 2_u32)], Runs::new())).unwrap();

        assert!(postcard::from_bytes::<SlotSet>(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn set_round_trips(v4 in prop::collection::btree_set(0_u32..70, 0..50),
                           v6 in prop::collection::btree_set(0_u32..9000, 0..20)) {
            let set = SlotSet { v4, v6 };

            let bytes = postcard::to_stdvec(&set).unwrap();

            prop_assert_eq!(postcard::from_bytes::<SlotSet>(&bytes).unwrap(), set);
        }
    }
}
