//! The arrows of the state machine. Each record is checked whole before anything is changed.

use std::collections::BTreeSet;

use types::address::Family;
use types::cloud::InstanceId;
use types::op::Seq;
use types::time::Tick;

use super::Shard;
use crate::eni::{EniKey, EniState, Op};
use crate::record::{Conflict, Record};
use crate::shard::eni::Eni;
use crate::slot::{Slot, SlotSet, SlotState};
use crate::spec::Mode;

/// Why a record does not follow from the state. The shard is unchanged. On a record of one's own making
/// it means that the state moved on meanwhile: drop it. On a committed record the shard must not be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// A record is missing, or comes twice.
    #[error("record {given} does not follow record {last}")]
    Sequence {
        /// Number of the last record applied.
        last: Seq,
        /// Number given.
        given: Seq,
    },
    /// The record names an ENI that does not exist.
    #[error("no eni {0}")]
    NoEni(EniKey),
    /// The record names an operation that is not open, or of another kind.
    #[error("no open operation {0} of this kind")]
    NoOp(Seq),
    /// No arrow leaves the ENI's state by this record.
    #[error("eni {eni} is {state:?}")]
    EniState {
        /// Which ENI.
        eni: EniKey,
        /// Its state.
        state: EniState,
    },
    /// The ENI has an open operation already, or slots that the record may not leave behind.
    #[error("eni {0} is in use")]
    EniBusy(EniKey),
    /// The cloud's id is an ENI's already.
    #[error("eni {0} has this id")]
    EniIdTaken(EniKey),
    /// The place on the instance is an ENI's already.
    #[error("eni {0} has this place on the instance")]
    PlaceTaken(EniKey),
    /// No arrow leaves the slot's state by this record.
    #[error("slot {slot:?} is {state:?}")]
    SlotState {
        /// Which slot.
        slot: Slot,
        /// Its state; `None` outside the shard.
        state: Option<SlotState>,
    },
    /// The set of slots breaks a rule of the record.
    #[error("slots do not fit the record: {0}")]
    Slots(&'static str),
}

type Applied = Result<(), ApplyError>;

impl Shard {
    /// Applies record number `seq`.
    ///
    /// # Errors
    /// [`ApplyError`], with the shard unchanged.
    pub fn apply(&mut self, seq: Seq, record: &Record) -> Applied {
        if seq != self.next_seq() {
            return Err(ApplyError::Sequence {
                last: self.last_seq(),
                given: seq,
            });
        }
        match record {
            Record::EniIntent { .. } | Record::WholeEniIntent { .. } => {
                self.eni_intent(seq, record)
            }
            Record::EniCreated { .. } => self.eni_created(seq, record),
            Record::EniAttached { eni, at } => self.eni_attached(seq, *eni, *at),
            Record::AssignIntent { eni, slots } => self.assign_intent(seq, *eni, slots),
            Record::Assigned { op, slots, at } => self.assigned(seq, *op, slots, *at),
            Record::Aborted {
                op,
                slots,
                conflict,
            } => self.aborted(seq, *op, slots, conflict.as_ref()),
            Record::Held { eni, slots } => self.held(seq, *eni, slots),
            Record::Revoke { eni, slots } => self.revoke(seq, *eni, slots),
            Record::RevokeAcked {
                revoke,
                accepted,
                refused,
            } => self.revoke_acked(*revoke, accepted, refused),
            Record::NodeGone { instance } => {
                self.node_gone(instance);
                Ok(())
            }
            Record::UnassignIntent { eni, slots } => self.unassign_intent(seq, *eni, slots),
            Record::Unassigned {
                op,
                slots,
                at,
                cooldown_ms,
            } => self.unassigned(seq, (*op, slots), *at, *cooldown_ms),
            Record::DetachIntent { eni } => self.detach_intent(seq, *eni),
            Record::DeleteIntent { eni } => self.delete_intent(seq, *eni),
            Record::EniGone {
                eni,
                at,
                cooldown_ms,
            } => self.eni_gone(*eni, *at, *cooldown_ms),
            Record::EniLost { eni } => self.eni_lost(*eni),
            Record::Foreign { slots, at, ttl_ms } => self.foreign(slots, *at, *ttl_ms),
            Record::Tick { at } => {
                self.advance(*at);
                Ok(())
            }
            Record::EniDetached { eni } => self.eni_detached(*eni),
        }?;
        self.state.last = seq;
        Ok(())
    }

    fn eni_intent(&mut self, seq: Seq, record: &Record) -> Applied {
        let (Record::EniIntent {
            instance,
            quota_index,
            primary,
            slots,
            security_groups,
        }
        | Record::WholeEniIntent {
            instance,
            quota_index,
            primary,
            slots,
            security_groups,
        }) = record
        else {
            return Ok(());
        };
        let whole = matches!(record, Record::WholeEniIntent { .. });
        let one = slots.count(Family::V4) == 1 && slots.count(Family::V6) <= 1;
        if whole && !one {
            return Err(ApplyError::Slots("one pod has one address of a family"));
        }
        if !slots.family(Family::V4).contains(primary) {
            return Err(ApplyError::Slots("the primary address is not among them"));
        }
        let taken = self
            .enis_of(instance)
            .find(|(_, eni)| eni.quota_index == *quota_index);
        if let Some((key, _)) = taken {
            return Err(ApplyError::PlaceTaken(key));
        }
        self.expect(slots, |state| matches!(state, SlotState::Free))?;
        self.set_all(slots, SlotState::Intent { op: seq, eni: seq });
        self.move_cursor(slots);
        self.state.enis.insert(
            seq,
            Eni {
                instance: instance.clone(),
                quota_index: *quota_index,
                state: EniState::Intent,
                id: None,
                mac: None,
                primary: *primary,
                slots: slots.clone(),
                security_groups: security_groups.clone(),
                stage: seq,
                grown_at: self.state.tick,
                revoked_at: Tick(0),
                lost: false,
            },
        );
        self.state.ops.insert(seq, Op::BringUp { eni: seq });
        if whole {
            self.wholes.insert(seq);
        }
        Ok(())
    }

    fn eni_created(&mut self, seq: Seq, record: &Record) -> Applied {
        let Record::EniCreated {
            eni: key,
            id,
            mac,
            present,
        } = record
        else {
            return Ok(());
        };
        self.eni_in(*key, EniState::Intent)?;
        if let Some((other, _)) = self.eni_by_id(id) {
            return Err(ApplyError::EniIdTaken(other));
        }
        self.expect(present, |state| state.eni() == Some(*key))?;
        self.set_all(present, SlotState::Assigned { eni: *key });
        let eni = self.eni_mut(*key)?;
        eni.state = EniState::Created;
        eni.id = Some(id.clone());
        eni.mac = Some(*mac);
        eni.stage = seq;
        Ok(())
    }

    fn eni_attached(&mut self, seq: Seq, key: EniKey, at: Tick) -> Applied {
        self.eni_in(key, EniState::Created)?;
        let at = self.pass_to(at);
        let eni = self.eni_mut(key)?;
        eni.state = EniState::Attached;
        eni.stage = seq;
        eni.grown_at = at;
        self.close_if_done(key);
        Ok(())
    }

    fn assign_intent(&mut self, seq: Seq, key: EniKey, slots: &SlotSet) -> Applied {
        self.idle_attached(key, slots)?;
        self.expect(slots, |state| matches!(state, SlotState::Free))?;
        self.set_all(slots, SlotState::Intent { op: seq, eni: key });
        self.move_cursor(slots);
        let eni = self.eni_mut(key)?;
        eni.slots.extend(slots.iter());
        eni.stage = seq;
        self.state.ops.insert(seq, Op::Assign { eni: key });
        Ok(())
    }

    fn assigned(&mut self, seq: Seq, op: Seq, slots: &SlotSet, at: Tick) -> Applied {
        let key = self.growing(op)?;
        match self.known(key)?.state {
            EniState::Created | EniState::Attached => {}
            state @ (EniState::Intent | EniState::Detaching | EniState::Deleting) => {
                return Err(ApplyError::EniState { eni: key, state });
            }
        }
        not_empty(slots)?;
        self.expect(slots, |state| *state == SlotState::Intent { op, eni: key })?;
        let at = self.pass_to(at);
        self.set_all(slots, SlotState::Assigned { eni: key });
        let eni = self.eni_mut(key)?;
        eni.stage = seq;
        eni.grown_at = at;
        self.close_if_done(key);
        Ok(())
    }

    fn aborted(
        &mut self,
        seq: Seq,
        op: Seq,
        slots: &SlotSet,
        conflict: Option<&Conflict>,
    ) -> Applied {
        let key = self.growing(op)?;
        let mut all = slots.clone();
        if let Some(conflict) = conflict {
            if conflict.slots.iter().any(|slot| slots.contains(slot)) {
                return Err(ApplyError::Slots("free and in conflict at once"));
            }
            all.extend(conflict.slots.iter());
        }
        not_empty(&all)?;
        self.expect(&all, |state| *state == SlotState::Intent { op, eni: key })?;
        let unborn = self.known(key)?.state == EniState::Intent;
        if unborn && self.known(key)?.slots != all {
            return Err(ApplyError::Slots(
                "an eni that does not exist is dropped whole",
            ));
        }
        self.set_all(slots, SlotState::Free);
        if let Some(Conflict { slots, at, ttl_ms }) = conflict {
            let until = after(self.pass_to(*at), *ttl_ms);
            let state = match self.spec.vswitch().mode {
                Mode::Shared => SlotState::Foreign { until },
                Mode::Exclusive => SlotState::Quarantine { until },
            };
            self.set_all(slots, state);
        }
        if unborn {
            self.state.enis.remove(&key);
            self.wholes.remove(&key);
            self.state.ops.remove(&op);
            return Ok(());
        }
        self.take_off(key, &all)?;
        // What is left is another request, so it needs another key.
        self.eni_mut(key)?.stage = seq;
        self.close_if_done(key);
        Ok(())
    }

    fn held(&mut self, seq: Seq, key: EniKey, slots: &SlotSet) -> Applied {
        let eni = self.eni_in(key, EniState::Attached)?;
        if eni.lost {
            return Err(ApplyError::EniBusy(key));
        }
        not_empty(slots)?;
        self.expect(slots, |state| *state == SlotState::Assigned { eni: key })?;
        let state = SlotState::Held {
            eni: key,
            generation: seq,
        };
        self.set_all(slots, state);
        Ok(())
    }

    fn revoke(&mut self, seq: Seq, key: EniKey, slots: &SlotSet) -> Applied {
        self.eni_in(key, EniState::Attached)?;
        not_empty(slots)?;
        self.expect(
            slots,
            |state| matches!(state, SlotState::Held { eni, .. } if *eni == key),
        )?;
        self.update(slots, |state| match state.generation() {
            Some(generation) => SlotState::Revoking {
                eni: key,
                generation,
                revoke: seq,
            },
            None => state,
        });
        let tick = self.state.tick;
        self.eni_mut(key)?.revoked_at = tick;
        Ok(())
    }

    fn revoke_acked(&mut self, revoke: Seq, accepted: &SlotSet, refused: &SlotSet) -> Applied {
        if accepted.iter().any(|slot| refused.contains(slot)) {
            return Err(ApplyError::Slots("accepted and refused at once"));
        }
        // The node gives up every generation below the revoke; a later grant is not meant.
        self.expect(accepted, |state| {
            state.generation().is_some_and(|held| held < revoke)
        })?;
        self.expect(
            refused,
            |state| matches!(state, SlotState::Revoking { revoke: of, .. } if *of == revoke),
        )?;
        let asked: BTreeSet<EniKey> = accepted
            .iter()
            .filter_map(|slot| self.slot(slot)?.eni())
            .collect();
        self.update(accepted, |state| match state.eni() {
            Some(eni) => SlotState::Assigned { eni },
            None => state,
        });
        self.update(refused, |state| match (state.eni(), state.generation()) {
            (Some(eni), Some(generation)) => SlotState::Held { eni, generation },
            (None, _) | (_, None) => state,
        });
        if refused.is_empty() {
            for key in asked {
                self.eni_mut(key)?.revoked_at = Tick(0);
            }
        }
        Ok(())
    }

    fn node_gone(&mut self, instance: &InstanceId) {
        let keys: Vec<EniKey> = self.enis_of(instance).map(|(key, _)| key).collect();
        for key in keys {
            let granted = self.slots_where(key, |state| state.generation().is_some());
            self.set_all(&granted, SlotState::Assigned { eni: key });
        }
    }

    fn unassign_intent(&mut self, seq: Seq, key: EniKey, slots: &SlotSet) -> Applied {
        let primary = self.idle_attached(key, slots)?.primary;
        if slots.family(Family::V4).contains(&primary) {
            return Err(ApplyError::Slots(
                "the primary address can not be taken off",
            ));
        }
        self.expect(slots, |state| *state == SlotState::Assigned { eni: key })?;
        self.set_all(slots, SlotState::Unassign { op: seq, eni: key });
        self.eni_mut(key)?.stage = seq;
        self.state.ops.insert(seq, Op::Unassign { eni: key });
        Ok(())
    }

    fn unassigned(
        &mut self,
        seq: Seq,
        (op, slots): (Seq, &SlotSet),
        at: Tick,
        cooldown_ms: u64,
    ) -> Applied {
        let Some(Op::Unassign { eni: key }) = self.op(op) else {
            return Err(ApplyError::NoOp(op));
        };
        not_empty(slots)?;
        self.expect(slots, |state| {
            *state == SlotState::Unassign { op, eni: key }
        })?;
        let at = self.pass_to(at);
        self.set_all(slots, cooling(at, cooldown_ms));
        self.take_off(key, slots)?;
        self.eni_mut(key)?.stage = seq;
        self.close_if_done(key);
        Ok(())
    }

    fn detach_intent(&mut self, seq: Seq, key: EniKey) -> Applied {
        let slots = self.eni_in(key, EniState::Attached)?.slots.clone();
        if self.op_on(key).is_some() {
            return Err(ApplyError::EniBusy(key));
        }
        self.expect(&slots, |state| *state == SlotState::Assigned { eni: key })?;
        let eni = self.eni_mut(key)?;
        eni.state = EniState::Detaching;
        eni.stage = seq;
        self.state.ops.insert(seq, Op::Remove { eni: key });
        Ok(())
    }

    fn delete_intent(&mut self, seq: Seq, key: EniKey) -> Applied {
        match self.known(key)?.state {
            EniState::Detaching => {}
            EniState::Created => {
                // What the bring-up asked for last may still arrive: it cools with the rest.
                self.state.ops.remove(&key);
                self.state.ops.insert(seq, Op::Remove { eni: key });
                let waiting =
                    self.slots_where(key, |state| matches!(state, SlotState::Intent { .. }));
                self.set_all(&waiting, SlotState::Assigned { eni: key });
            }
            state @ (EniState::Intent | EniState::Attached | EniState::Deleting) => {
                return Err(ApplyError::EniState { eni: key, state });
            }
        }
        let eni = self.eni_mut(key)?;
        eni.state = EniState::Deleting;
        eni.stage = seq;
        Ok(())
    }

    fn eni_gone(&mut self, key: EniKey, at: Tick, cooldown_ms: u64) -> Applied {
        let slots = self.eni_in(key, EniState::Deleting)?.slots.clone();
        let at = self.pass_to(at);
        self.set_all(&slots, cooling(at, cooldown_ms));
        self.state.enis.remove(&key);
        self.wholes.remove(&key);
        self.state.ops.retain(|_, op| op.eni() != key);
        Ok(())
    }

    fn eni_lost(&mut self, key: EniKey) -> Applied {
        self.eni_in(key, EniState::Attached)?;
        self.eni_mut(key)?.lost = true;
        Ok(())
    }

    fn eni_detached(&mut self, key: EniKey) -> Applied {
        self.eni_in(key, EniState::Attached)?;
        if self.op_on(key).is_some() {
            return Err(ApplyError::EniBusy(key));
        }
        let granted = self.slots_where(key, |state| state.generation().is_some());
        self.set_all(&granted, SlotState::Assigned { eni: key });
        self.eni_mut(key)?.lost = true;
        Ok(())
    }

    fn foreign(&mut self, slots: &SlotSet, at: Tick, ttl_ms: u64) -> Applied {
        not_empty(slots)?;
        self.expect(slots, |state| {
            matches!(state, SlotState::Free | SlotState::Foreign { .. })
        })?;
        let until = after(self.pass_to(at), ttl_ms);
        self.set_all(slots, SlotState::Foreign { until });
        Ok(())
    }

    fn advance(&mut self, at: Tick) {
        let at = self.pass_to(at);
        for slot in self.state.v4.iter_mut().chain(&mut self.state.v6) {
            if slot.until().is_some_and(|until| until <= at) {
                *slot = SlotState::Free;
            }
        }
    }

    fn known(&self, key: EniKey) -> Result<&Eni, ApplyError> {
        self.eni(key).ok_or(ApplyError::NoEni(key))
    }

    fn eni_mut(&mut self, key: EniKey) -> Result<&mut Eni, ApplyError> {
        self.state.enis.get_mut(&key).ok_or(ApplyError::NoEni(key))
    }

    fn eni_in(&self, key: EniKey, state: EniState) -> Result<&Eni, ApplyError> {
        let eni = self.known(key)?;
        if eni.state != state {
            return Err(ApplyError::EniState {
                eni: key,
                state: eni.state,
            });
        }
        Ok(eni)
    }

    /// An attached ENI that nothing else is done to, and that the cloud still knows.
    fn idle_attached(&self, key: EniKey, slots: &SlotSet) -> Result<&Eni, ApplyError> {
        not_empty(slots)?;
        let eni = self.eni_in(key, EniState::Attached)?;
        if eni.lost || self.op_on(key).is_some() {
            return Err(ApplyError::EniBusy(key));
        }
        Ok(eni)
    }

    /// The ENI that an open `BringUp` or `Assign` grows.
    fn growing(&self, op: Seq) -> Result<EniKey, ApplyError> {
        match self.op(op) {
            Some(Op::BringUp { eni } | Op::Assign { eni }) => Ok(eni),
            Some(Op::Unassign { .. } | Op::Remove { .. }) | None => Err(ApplyError::NoOp(op)),
        }
    }

    /// Moves time to `at`; never back, so a record that was made before another one only waits longer.
    fn pass_to(&mut self, at: Tick) -> Tick {
        self.state.tick = self.state.tick.max(at);
        self.state.tick
    }

    fn expect(&self, slots: &SlotSet, wanted: impl Fn(&SlotState) -> bool) -> Applied {
        for slot in slots.iter() {
            let state = self.slot(slot);
            if !state.is_some_and(&wanted) {
                return Err(ApplyError::SlotState {
                    slot,
                    state: state.copied(),
                });
            }
        }
        Ok(())
    }

    fn set_all(&mut self, slots: &SlotSet, to: SlotState) {
        self.update(slots, |_| to);
    }

    fn update(&mut self, slots: &SlotSet, to: impl Fn(SlotState) -> SlotState) {
        for slot in slots.iter() {
            let family = match slot.family {
                Family::V4 => &mut self.state.v4,
                Family::V6 => &mut self.state.v6,
            };
            let state = usize::try_from(slot.index)
                .ok()
                .and_then(|index| family.get_mut(index));
            if let Some(state) = state {
                *state = to(*state);
            }
        }
    }

    /// Forgets slots of an ENI whose states no longer name it.
    fn take_off(&mut self, key: EniKey, slots: &SlotSet) -> Applied {
        let eni = self.eni_mut(key)?;
        eni.slots = eni.slots.without(slots);
        Ok(())
    }

    /// Ends the operation on an ENI when none of its slots waits for the cloud and the ENI is attached.
    fn close_if_done(&mut self, key: EniKey) {
        let attached = self.eni(key).map(|eni| eni.state) == Some(EniState::Attached);
        let waits = |state: &SlotState| {
            matches!(state, SlotState::Intent { .. } | SlotState::Unassign { .. })
        };
        if attached && self.slots_where(key, waits).is_empty() {
            self.state.ops.retain(|_, op| op.eni() != key);
        }
    }

    fn move_cursor(&mut self, slots: &SlotSet) {
        for (family, cursor) in [
            (Family::V4, &mut self.state.cursor_v4),
            (Family::V6, &mut self.state.cursor_v6),
        ] {
            let indexes = slots.family(family);
            // A set that wraps around ends in the run at the front.
            let ahead = indexes.range(*cursor..).next_back().copied();
            let behind = indexes.range(..*cursor).next_back().copied();
            if let Some(last) = behind.or(ahead) {
                *cursor = last.saturating_add(1);
            }
        }
    }
}

fn not_empty(slots: &SlotSet) -> Applied {
    if slots.is_empty() {
        return Err(ApplyError::Slots("there are none"));
    }
    Ok(())
}

fn cooling(at: Tick, cooldown_ms: u64) -> SlotState {
    SlotState::Cooling {
        until: after(at, cooldown_ms),
    }
}

fn after(at: Tick, ms: u64) -> Tick {
    Tick(at.0.saturating_add(ms))
}
