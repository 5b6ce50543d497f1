//! What an open operation needs from the cloud next, and what an answer means for the log.
//!
//! An operation carries no memory but the shard: the next call follows from the state of its ENI. So the
//! first drive, the drive after each answer and the drive after a restart are one function. Each call
//! has a key of its own, the number of the record that made it the next one; a repeat has the same key
//! and asks for the same.

use std::net::IpAddr;
use std::time::Duration;

use types::address::{Family, MacAddr};
use types::cloud::{EniId, InstanceId, SecurityGroupId};
use types::op::Seq;
use types::time::Tick;

use crate::eni::{EniKey, EniState, Op};
use crate::record::{Conflict, Record};
use crate::shard::Shard;
use crate::shard::eni::Eni;
use crate::slot::{Slot, SlotSet, SlotState};

/// Explicit addresses of a family that the create call takes, beside the primary one; also the most
/// IPv6 addresses of one assign call, and the most that an ENI can have before it is attached.
///
/// Source: ECS OpenAPI facts, CreateNetworkInterface, AssignIpv6Addresses.
pub const MAX_EXPLICIT: u32 = 10;

/// IPv4 addresses of one assign call.
///
/// Source: ECS OpenAPI facts, AssignPrivateIpAddresses: 49 secondaries on an `Available` ENI.
pub const MAX_ASSIGN_V4: u32 = 49;

/// A cloud call that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a step that is not taken leaves its operation open"]
pub struct Step {
    /// The operation. ENIs carry it as a tag.
    pub op: Seq,
    /// The ENI in the shard's books.
    pub eni: EniKey,
    /// Names the call among all of the shard: the sequence of its `OpKey`.
    pub key: Seq,
    /// The call.
    pub call: Call,
}

/// A call to the cloud gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Create an ENI with these addresses.
    Create {
        /// For whom; a tag, not a parameter.
        instance: InstanceId,
        /// The primary address.
        primary: IpAddr,
        /// Further IPv4 addresses, at most [`MAX_EXPLICIT`].
        ipv4: Vec<IpAddr>,
        /// IPv6 addresses, at most [`MAX_EXPLICIT`].
        ipv6: Vec<IpAddr>,
        /// Its security groups.
        security_groups: Vec<SecurityGroupId>,
    },
    /// Put these addresses on the ENI.
    Assign {
        /// Which.
        eni: EniId,
        /// At most [`MAX_ASSIGN_V4`].
        ipv4: Vec<IpAddr>,
        /// At most [`MAX_EXPLICIT`].
        ipv6: Vec<IpAddr>,
    },
    /// Attach the ENI.
    Attach {
        /// Which.
        eni: EniId,
        /// To whom.
        instance: InstanceId,
    },
    /// Take these addresses off the ENI.
    Unassign {
        /// Which.
        eni: EniId,
        /// At most what the planner put into one operation.
        ipv4: Vec<IpAddr>,
        /// Likewise.
        ipv6: Vec<IpAddr>,
    },
    /// Detach the ENI.
    Detach {
        /// Which.
        eni: EniId,
        /// From whom.
        instance: InstanceId,
    },
    /// Delete the ENI.
    Delete {
        /// Which.
        eni: EniId,
    },
}

/// What came of a call, as the gateway says it after its read-back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The ENI exists (`Available`).
    Created {
        /// Its id.
        id: EniId,
        /// Its hardware address.
        mac: MacAddr,
        /// All its addresses.
        addresses: Vec<IpAddr>,
    },
    /// The ENI is attached (`InUse`).
    Attached {
        /// All its addresses as read back. What the create and assign calls confirmed counts whether it
        /// is among them or not: a read shortly after may be stale, and nobody else takes addresses off.
        addresses: Vec<IpAddr>,
    },
    /// The assign call is done.
    Assigned {
        /// All addresses of the ENI as read back.
        addresses: Vec<IpAddr>,
    },
    /// The unassign call is done.
    Unassigned {
        /// All addresses that are still on the ENI as read back.
        addresses: Vec<IpAddr>,
    },
    /// The ENI is attached to nothing (`Available`).
    Detached,
    /// The ENI is gone.
    Deleted,
    /// Refused: an address is somebody else's. Nothing was done.
    AddressInUse {
        /// Which, if the cloud said so.
        address: Option<IpAddr>,
    },
    /// Refused: the vSwitch is full. Nothing was done. The owner should not ask again for a while.
    Exhausted,
    /// Refused: the instance can have no further ENI. The owner should not ask again for a while.
    EniLimit,
    /// Refused: the ENI can have no further address. Nothing was done.
    AddressLimit,
    /// The object of the call does not exist.
    NotFound,
    /// Refused as such: repeating is useless. Nothing was done.
    Refused,
    /// Not known, or not now: repeat the same step later.
    Retry,
}

/// The cloud call that an open operation needs next; `None` if it is not open.
pub fn next_step(shard: &Shard, op: Seq) -> Option<Step> {
    let kind = shard.op(op)?;
    let key = kind.eni();
    let eni = shard.eni(key)?;
    let waiting = shard.op_slots(op);
    let call = match (kind, eni.state) {
        (Op::BringUp { .. }, EniState::Intent) => create(shard, eni)?,
        (Op::BringUp { .. }, EniState::Created) if asked(shard, op).is_empty() => Call::Attach {
            eni: eni.id.clone()?,
            instance: eni.instance.clone(),
        },
        (Op::BringUp { .. }, EniState::Created | EniState::Attached)
        | (Op::Assign { .. }, EniState::Attached) => {
            let (ipv4, ipv6) = by_family(shard, &asked(shard, op));
            Call::Assign {
                eni: eni.id.clone()?,
                ipv4,
                ipv6,
            }
        }
        (Op::Unassign { .. }, EniState::Attached) => {
            let (ipv4, ipv6) = by_family(shard, &waiting);
            Call::Unassign {
                eni: eni.id.clone()?,
                ipv4,
                ipv6,
            }
        }
        (Op::Remove { .. }, EniState::Detaching) => Call::Detach {
            eni: eni.id.clone()?,
            instance: eni.instance.clone(),
        },
        (Op::Remove { .. }, EniState::Deleting) => Call::Delete {
            eni: eni.id.clone()?,
        },
        (Op::BringUp { .. }, EniState::Detaching | EniState::Deleting)
        | (
            Op::Assign { .. } | Op::Unassign { .. },
            EniState::Intent | EniState::Created | EniState::Detaching | EniState::Deleting,
        )
        | (Op::Remove { .. }, EniState::Intent | EniState::Created | EniState::Attached) => {
            return None;
        }
    };
    Some(Step {
        op,
        eni: key,
        key: eni.stage,
        call,
    })
}

/// The records that `outcome` of `step` adds, to be appended together; empty if the step must be
/// repeated, or if the shard has moved on since the step was taken.
///
/// `at` is the owner's time ([`crate::clock::OwnerClock`]).
pub fn on_outcome(shard: &Shard, step: &Step, outcome: &Outcome, at: Tick) -> Vec<Record> {
    if next_step(shard, step.op).as_ref() != Some(step) {
        return Vec::new();
    }
    match &step.call {
        Call::Create { .. } => after_create(shard, step, outcome, at),
        Call::Assign { .. } => after_assign(shard, step, outcome, at),
        Call::Attach { .. } => after_attach(shard, step, outcome, at),
        Call::Unassign { .. } => after_unassign(shard, step, outcome, at),
        Call::Detach { .. } => after_detach(step, outcome),
        Call::Delete { .. } => after_delete(shard, step, outcome, at),
    }
}

fn create(shard: &Shard, eni: &Eni) -> Option<Call> {
    let primary = Slot {
        family: Family::V4,
        index: eni.primary,
    };
    let explicit = usize::try_from(MAX_EXPLICIT).ok()?;
    let first: SlotSet = eni
        .slots
        .of(Family::V4)
        .filter(|slot| *slot != primary)
        .take(explicit)
        .chain(eni.slots.of(Family::V6).take(explicit))
        .collect();
    let (ipv4, ipv6) = by_family(shard, &first);
    Some(Call::Create {
        instance: eni.instance.clone(),
        primary: shard.spec().address(primary)?,
        ipv4,
        ipv6,
        security_groups: eni.security_groups.clone(),
    })
}

/// The slots that the next assign call of an operation asks for. An ENI that is not attached takes
/// [`MAX_EXPLICIT`] IPv6 addresses in all, so the rest waits.
fn asked(shard: &Shard, op: Seq) -> SlotSet {
    let waiting = shard.op_slots(op);
    let eni = shard.op(op).map(Op::eni);
    let attached = eni
        .and_then(|eni| shard.eni(eni))
        .is_some_and(|eni| eni.state == EniState::Attached);
    let on_eni = eni.map_or(0, |eni| {
        shard
            .slots_where(eni, |state| matches!(state, SlotState::Assigned { .. }))
            .count(Family::V6)
    });
    let room_v6 = if attached {
        MAX_EXPLICIT
    } else {
        MAX_EXPLICIT.saturating_sub(on_eni)
    };
    let take = |family, count: u32| {
        waiting
            .of(family)
            .take(usize::try_from(count).unwrap_or(usize::MAX))
    };
    take(Family::V4, MAX_ASSIGN_V4)
        .chain(take(Family::V6, room_v6))
        .collect()
}

fn by_family(shard: &Shard, slots: &SlotSet) -> (Vec<IpAddr>, Vec<IpAddr>) {
    shard
        .addresses(slots)
        .into_iter()
        .partition(IpAddr::is_ipv4)
}

fn after_create(shard: &Shard, step: &Step, outcome: &Outcome, at: Tick) -> Vec<Record> {
    let all = shard.op_slots(step.op);
    match outcome {
        Outcome::Created { id, mac, addresses } => {
            let present = both(&shard.slots_at(addresses), &all);
            let mut records = vec![Record::EniCreated {
                eni: step.eni,
                id: id.clone(),
                mac: *mac,
                present: present.clone(),
            }];
            let primary = shard.eni(step.eni).map(|eni| eni.primary);
            if !primary.is_some_and(|primary| present.family(Family::V4).contains(&primary)) {
                // Not what was asked for: an ENI without its primary address is of no use.
                records.push(Record::DeleteIntent { eni: step.eni });
            }
            records
        }
        Outcome::AddressInUse { address } => {
            vec![refused(shard, step.op, &all, address.as_ref(), at)]
        }
        Outcome::Exhausted
        | Outcome::EniLimit
        | Outcome::AddressLimit
        | Outcome::NotFound
        | Outcome::Refused => vec![refused(shard, step.op, &all, None, at)],
        Outcome::Attached { .. }
        | Outcome::Assigned { .. }
        | Outcome::Unassigned { .. }
        | Outcome::Detached
        | Outcome::Deleted
        | Outcome::Retry => Vec::new(),
    }
}

fn after_assign(shard: &Shard, step: &Step, outcome: &Outcome, at: Tick) -> Vec<Record> {
    let asked = asked(shard, step.op);
    let attached = shard
        .eni(step.eni)
        .is_some_and(|eni| eni.state == EniState::Attached);
    match outcome {
        Outcome::Assigned { addresses } => {
            // What the read did not show is asked for again: only a refusal says that it is not there.
            let present = both(&shard.slots_at(addresses), &asked);
            let mut records = Vec::new();
            if !present.is_empty() {
                records.push(Record::Assigned {
                    op: step.op,
                    slots: present.clone(),
                    at,
                });
                if attached {
                    records.push(Record::Held {
                        eni: step.eni,
                        slots: present,
                    });
                }
            }
            records
        }
        Outcome::AddressInUse { address } => {
            vec![refused(shard, step.op, &asked, address.as_ref(), at)]
        }
        Outcome::Exhausted | Outcome::EniLimit | Outcome::AddressLimit | Outcome::Refused => {
            vec![refused(shard, step.op, &asked, None, at)]
        }
        Outcome::NotFound if attached => vec![
            refused(shard, step.op, &shard.op_slots(step.op), None, at),
            Record::EniLost { eni: step.eni },
        ],
        Outcome::NotFound => vec![Record::DeleteIntent { eni: step.eni }],
        Outcome::Created { .. }
        | Outcome::Attached { .. }
        | Outcome::Unassigned { .. }
        | Outcome::Detached
        | Outcome::Deleted
        | Outcome::Retry => Vec::new(),
    }
}

fn after_attach(shard: &Shard, step: &Step, outcome: &Outcome, at: Tick) -> Vec<Record> {
    match outcome {
        Outcome::Attached { .. } => vec![
            Record::EniAttached { eni: step.eni, at },
            Record::Held {
                eni: step.eni,
                slots: shard.slots_where(step.eni, |state| {
                    matches!(state, SlotState::Assigned { .. })
                }),
            },
        ],
        Outcome::EniLimit | Outcome::NotFound | Outcome::Refused => {
            vec![Record::DeleteIntent { eni: step.eni }]
        }
        Outcome::Created { .. }
        | Outcome::Assigned { .. }
        | Outcome::Unassigned { .. }
        | Outcome::Detached
        | Outcome::Deleted
        | Outcome::AddressInUse { .. }
        | Outcome::Exhausted
        | Outcome::AddressLimit
        | Outcome::Retry => Vec::new(),
    }
}

fn after_unassign(shard: &Shard, step: &Step, outcome: &Outcome, at: Tick) -> Vec<Record> {
    let waiting = shard.op_slots(step.op);
    let unassigned = |slots: SlotSet| Record::Unassigned {
        op: step.op,
        slots,
        at,
        cooldown_ms: cooldown_ms(shard),
    };
    match outcome {
        Outcome::Unassigned { addresses } => {
            let off = waiting.without(&shard.slots_at(addresses));
            if off.is_empty() {
                return Vec::new();
            }
            vec![unassigned(off)]
        }
        Outcome::NotFound => vec![unassigned(waiting), Record::EniLost { eni: step.eni }],
        Outcome::Created { .. }
        | Outcome::Attached { .. }
        | Outcome::Assigned { .. }
        | Outcome::Detached
        | Outcome::Deleted
        | Outcome::AddressInUse { .. }
        | Outcome::Exhausted
        | Outcome::EniLimit
        | Outcome::AddressLimit
        | Outcome::Refused
        | Outcome::Retry => Vec::new(),
    }
}

fn after_detach(step: &Step, outcome: &Outcome) -> Vec<Record> {
    match outcome {
        Outcome::Detached | Outcome::NotFound => vec![Record::DeleteIntent { eni: step.eni }],
        Outcome::Created { .. }
        | Outcome::Attached { .. }
        | Outcome::Assigned { .. }
        | Outcome::Unassigned { .. }
        | Outcome::Deleted
        | Outcome::AddressInUse { .. }
        | Outcome::Exhausted
        | Outcome::EniLimit
        | Outcome::AddressLimit
        | Outcome::Refused
        | Outcome::Retry => Vec::new(),
    }
}

fn after_delete(shard: &Shard, step: &Step, outcome: &Outcome, at: Tick) -> Vec<Record> {
    match outcome {
        Outcome::Deleted | Outcome::NotFound => vec![Record::EniGone {
            eni: step.eni,
            at,
            cooldown_ms: cooldown_ms(shard),
        }],
        Outcome::Created { .. }
        | Outcome::Attached { .. }
        | Outcome::Assigned { .. }
        | Outcome::Unassigned { .. }
        | Outcome::Detached
        | Outcome::AddressInUse { .. }
        | Outcome::Exhausted
        | Outcome::EniLimit
        | Outcome::AddressLimit
        | Outcome::Refused
        | Outcome::Retry => Vec::new(),
    }
}

/// The record by which an operation gives up `slots`; the one at `address` is somebody else's.
fn refused(shard: &Shard, op: Seq, slots: &SlotSet, address: Option<&IpAddr>, at: Tick) -> Record {
    let taken = both(&shard.slots_at(address), slots);
    let conflict = (!taken.is_empty()).then(|| Conflict {
        slots: taken.clone(),
        at,
        ttl_ms: millis(shard.spec().vswitch().timing.foreign_ttl),
    });
    Record::Aborted {
        op,
        slots: slots.without(&taken),
        conflict,
    }
}

fn both(a: &SlotSet, b: &SlotSet) -> SlotSet {
    a.iter().filter(|slot| b.contains(*slot)).collect()
}

fn cooldown_ms(shard: &Shard) -> u64 {
    millis(shard.spec().vswitch().timing.cooldown)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
