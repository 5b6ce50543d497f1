//! The laws that a shard and a set of shards keep, as predicates: for property tests, audits, and
//! assertions of debug builds.

use std::collections::BTreeMap;

use types::address::Family;
use types::cloud::EniId;
use types::op::{Seq, ShardId};
use types::quota::EniQuota;

use crate::eni::{EniKey, EniState, Op};
use crate::shard::{EniPlace, Shard};
use crate::slot::{Slot, SlotState};

/// A law that is broken, by the number it has in the design.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// I1: an address has two owners, or books that disagree about its owner.
    #[error("I1: slot {slot:?} is {state:?}, and the eni's list says otherwise")]
    Owner {
        /// Which slot.
        slot: Slot,
        /// Its state.
        state: SlotState,
    },
    /// I1: one ENI, or one address block, is in two shards.
    #[error("I1: {what} is in {first} and in {second}")]
    Shared {
        /// The ENI id or the block.
        what: String,
        /// A shard.
        first: ShardId,
        /// Another one.
        second: ShardId,
    },
    /// I2: an address is granted on an ENI that is not attached.
    #[error("I2: slot {slot:?} is granted on eni {eni}, which is {state:?}")]
    Backing {
        /// Which slot.
        slot: Slot,
        /// The ENI.
        eni: EniKey,
        /// Its state.
        state: EniState,
    },
    /// I4: an operation and what it works on disagree.
    #[error("I4: operation {0} does not fit its eni")]
    Operation(Seq),
    /// I6: an address became free before its time.
    #[error("I6: slot {slot:?} left {before:?} too early")]
    Cooldown {
        /// Which slot.
        slot: Slot,
        /// Its state before.
        before: SlotState,
    },
    /// I7: an address that nobody owns and nothing will free.
    #[error("I7: slot {slot:?} waits for operation {op}, which is not open")]
    Leak {
        /// Which slot.
        slot: Slot,
        /// The operation it names.
        op: Seq,
    },
    /// I10: more than the instance type allows.
    #[error("I10: eni {eni} of {instance} is past the quota", instance = place.instance)]
    Quota {
        /// The ENI.
        eni: EniKey,
        /// Its place.
        place: EniPlace,
    },
    /// I10: two ENIs have the same place on an instance.
    #[error("I10: two enis have place {} of {}", .0.index, .0.instance)]
    Place(EniPlace),
    /// An ENI that is one pod's alone has more addresses than one pod.
    #[error("eni {0} is one pod's alone, and has more than one address of a family")]
    Whole(EniKey),
    /// An address that the cloud keeps is in use, or one that it does not keep is set aside.
    #[error("slot {0:?} is reserved and used, or not reserved and set aside")]
    Reserved(Slot),
}

/// What is wrong within one shard. Empty in every state that [`Shard::apply`] can reach.
pub fn violations(shard: &Shard) -> Vec<Violation> {
    let mut found = Vec::new();
    for (slot, state) in shard.slots() {
        slot_violations(shard, slot, state, &mut found);
    }
    let mut places: BTreeMap<EniPlace, EniKey> = BTreeMap::new();
    for (key, eni) in shard.enis() {
        for slot in eni.slots.iter() {
            if let Some(state) = shard.slot(slot)
                && state.eni() != Some(key)
            {
                found.push(Violation::Owner {
                    slot,
                    state: *state,
                });
            }
        }
        let place = EniPlace {
            instance: eni.instance.clone(),
            index: eni.quota_index,
        };
        if places.insert(place.clone(), key).is_some() {
            found.push(Violation::Place(place));
        }
    }
    for key in shard.whole_enis() {
        let fits = shard.eni(key).is_some_and(|eni| {
            eni.slots.count(Family::V4) == 1 && eni.slots.count(Family::V6) <= 1
        });
        if !fits {
            found.push(Violation::Whole(key));
        }
    }
    for (seq, op) in shard.open_ops() {
        if !op_fits(shard, seq, op) {
            found.push(Violation::Operation(seq));
        }
    }
    found
}

fn slot_violations(shard: &Shard, slot: Slot, state: &SlotState, found: &mut Vec<Violation>) {
    if shard.spec().is_reserved(slot) != matches!(state, SlotState::Reserved) {
        found.push(Violation::Reserved(slot));
    }
    let Some(key) = state.eni() else { return };
    let Some(eni) = shard.eni(key).filter(|eni| eni.slots.contains(slot)) else {
        found.push(Violation::Owner {
            slot,
            state: *state,
        });
        return;
    };
    let is_up = eni.state == EniState::Attached && eni.id.is_some();
    if state.generation().is_some() && !is_up {
        found.push(Violation::Backing {
            slot,
            eni: key,
            state: eni.state,
        });
    }
    if let SlotState::Intent { op, .. } | SlotState::Unassign { op, .. } = state
        && shard.op(*op).is_none_or(|open| open.eni() != key)
    {
        found.push(Violation::Leak { slot, op: *op });
    }
}

fn op_fits(shard: &Shard, seq: Seq, op: Op) -> bool {
    let Some(eni) = shard.eni(op.eni()) else {
        return false;
    };
    let alone = shard
        .open_ops()
        .filter(|(_, other)| other.eni() == op.eni())
        .count()
        == 1;
    let fits = match op {
        Op::BringUp { eni: key } => {
            seq == key
                && match eni.state {
                    EniState::Intent | EniState::Created => true,
                    EniState::Attached => !shard.op_slots(seq).is_empty(),
                    EniState::Detaching | EniState::Deleting => false,
                }
        }
        Op::Assign { .. } | Op::Unassign { .. } => {
            eni.state == EniState::Attached && !shard.op_slots(seq).is_empty()
        }
        Op::Remove { .. } => {
            matches!(eni.state, EniState::Detaching | EniState::Deleting)
        }
    };
    alone && fits && seq <= shard.last_seq()
}

/// What is wrong between a state and the one after one more record.
pub fn step_violations(before: &Shard, after: &Shard) -> Vec<Violation> {
    let mut found = Vec::new();
    for (slot, was) in before.slots() {
        let Some(is) = after.slot(slot) else { continue };
        // I6: what rests leaves that state for Free alone, and not before its time.
        if let Some(until) = was.until()
            && is != was
        {
            let on_time = matches!(is, SlotState::Free) && after.tick() >= until;
            let extended = is.until().is_some_and(|later| later >= until);
            if !on_time && !extended {
                found.push(Violation::Cooldown { slot, before: *was });
            }
        }
        // I2: what a node may use becomes nobody's in one way alone, through Assigned.
        let kept = is.generation().is_some() || matches!(is, SlotState::Assigned { .. });
        if was.generation().is_some() && !kept {
            found.push(Violation::Owner { slot, state: *is });
        }
        // I2: generations of a slot grow.
        if let (Some(old), Some(new)) = (was.generation(), is.generation())
            && new < old
        {
            found.push(Violation::Owner { slot, state: *is });
        }
    }
    found
}

/// Which ENIs are past what their instance's type allows. `quota` says what that is; an instance it does
/// not know is left out.
pub fn quota_violations(
    shard: &Shard,
    quota: impl Fn(&types::cloud::InstanceId) -> Option<EniQuota>,
) -> Vec<Violation> {
    shard
        .enis()
        .filter(|(_, eni)| {
            quota(&eni.instance).is_some_and(|quota| {
                eni.quota_index >= quota.secondary_enis()
                    || eni.slots.count(Family::V4) > quota.ipv4_per_eni
                    || eni.slots.count(Family::V6) > quota.ipv6_per_eni
            })
        })
        .map(|(key, eni)| Violation::Quota {
            eni: key,
            place: EniPlace {
                instance: eni.instance.clone(),
                index: eni.quota_index,
            },
        })
        .collect()
}

/// What is wrong between shards: an ENI, a place or a block in two of them.
pub fn set_violations<'a>(shards: impl IntoIterator<Item = &'a Shard>) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut enis: BTreeMap<&EniId, &ShardId> = BTreeMap::new();
    let mut places: BTreeMap<EniPlace, &ShardId> = BTreeMap::new();
    let mut blocks: Vec<&Shard> = Vec::new();
    for shard in shards {
        let id = shard.spec().id();
        for (_, eni) in shard.enis() {
            if let Some(first) = eni.id.as_ref().and_then(|eni| enis.insert(eni, id)) {
                found.push(shared(eni.id.as_ref(), first, id));
            }
            let place = EniPlace {
                instance: eni.instance.clone(),
                index: eni.quota_index,
            };
            if places.insert(place.clone(), id).is_some() {
                found.push(Violation::Place(place));
            }
        }
        for other in &blocks {
            if overlap(shard, other) {
                let block = shard.spec().v4_block();
                found.push(shared(Some(&block), other.spec().id(), id));
            }
        }
        blocks.push(shard);
    }
    found
}

fn shared(what: Option<&impl ToString>, first: &ShardId, second: &ShardId) -> Violation {
    Violation::Shared {
        what: what.map(ToString::to_string).unwrap_or_default(),
        first: first.clone(),
        second: second.clone(),
    }
}

fn overlap(a: &Shard, b: &Shard) -> bool {
    let (v4_a, v4_b) = (a.spec().v4_block(), b.spec().v4_block());
    let v6 = a.spec().v6_block().zip(b.spec().v6_block());
    v4_a.contains(&v4_b)
        || v4_b.contains(&v4_a)
        || v6.is_some_and(|(v6_a, v6_b)| v6_a.contains(&v6_b) || v6_b.contains(&v6_a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;
    use crate::slot::SlotSet;
    use crate::spec::shards_of_vswitch;
    use crate::spec::tests::vswitch;

    fn shard_with_an_eni(v4: &str) -> Shard {
        let spec = shards_of_vswitch(&vswitch(v4, None), 20).unwrap().remove(0);
        let mut shard = Shard::new(spec);
        let slots: SlotSet = (1..4)
            .map(|index| Slot {
                family: Family::V4,
                index,
            })
            .collect();
        let intent = Record::EniIntent {
            instance: "i-a".parse().unwrap(),
            quota_index: 0,
            primary: 1,
            slots: slots.clone(),
            security_groups: Vec::new(),
        };
        let created = Record::EniCreated {
            eni: Seq(1),
            id: "eni-a".parse().unwrap(),
            mac: "00:16:3e:00:00:01".parse().unwrap(),
            present: slots,
        };
        shard.apply(Seq(1), &intent).unwrap();
        shard.apply(Seq(2), &created).unwrap();
        shard
    }

    // I10: the audit sees a quota that is broken.
    #[test]
    fn eni_past_the_quota_is_found() {
        let shard = shard_with_an_eni("10.0.0.0/26");
        let quota = |ipv4_per_eni| EniQuota {
            enis: 2,
            enis_total: 2,
            ipv4_per_eni,
            ipv6_per_eni: 0,
            trunk: false,
        };

        assert_eq!(quota_violations(&shard, |_| Some(quota(3))), []);
        assert_eq!(quota_violations(&shard, |_| Some(quota(2))).len(), 1);
        assert_eq!(quota_violations(&shard, |_| None), []);
    }

    // I1, I10: the audit sees one ENI, one place and one block in two shards.
    #[test]
    fn two_shards_with_the_same_things_are_found() {
        let first = shard_with_an_eni("10.0.0.0/26");
        let second = shard_with_an_eni("10.0.0.32/27");

        let found = set_violations([&first, &second]);

        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(set_violations([&first]), []);
    }

    // I6: the audit sees an address that came back too early.
    #[test]
    fn cooldown_that_was_cut_short_is_found() {
        let mut resting = shard_with_an_eni("10.0.0.0/26");
        let fresh = Shard::new(resting.spec().clone());
        resting
            .apply(Seq(3), &Record::DeleteIntent { eni: Seq(1) })
            .unwrap();
        let gone = Record::EniGone {
            eni: Seq(1),
            at: tick(1_000),
            cooldown_ms: 60_000,
        };
        resting.apply(Seq(4), &gone).unwrap();

        assert_eq!(step_violations(&resting, &fresh).len(), 3);
    }

    fn tick(ms: u64) -> types::time::Tick {
        types::time::Tick(ms)
    }
}
