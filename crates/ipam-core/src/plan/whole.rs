//! ENIs that pods have for themselves.
//!
//! What a node says is a total, as with addresses: saying it again brings nothing more, and which ENI serves which
//! pod is the node's own affair. An ENI that is wanted no more goes back as soon as its node lets go of it: no pod
//! that shares ENIs could use it.

use std::time::Duration;

use super::{Load, Planner, Shortage};
use crate::eni::{EniKey, EniState};
use crate::record::Record;
use crate::shard::eni::Eni;
use crate::slot::SlotSet;

/// Pause after a node kept an ENI that it was asked for: it says what it uses a moment after it refused.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Planner<'_> {
    /// Creates what is wanted and not there, and takes back what is there and not wanted.
    pub(super) fn wholes(&mut self) {
        // One place is always left to pods that share: `types::quota::whole_eni_capacity`.
        let most = self.node.quota.secondary_enis().saturating_sub(1);
        let want = self.node.wholes.min(most);
        let (used, spare): (Vec<_>, Vec<_>) = self
            .serving(true)
            .into_iter()
            .partition(|(_, eni, _)| !self.bound(eni).is_empty());
        let mut have = u32::try_from(used.len()).unwrap_or(u32::MAX);
        // The oldest stays: it is the most likely to be there already.
        for (key, eni, load) in spare {
            if have < want {
                have = have.saturating_add(1);
                self.complete(key, eni, &load);
            } else {
                self.give_up(key, eni, &load);
            }
        }
        self.create_wholes(want.saturating_sub(have));
    }

    /// Grants what is on the ENI and nobody's; a family that a refusal left it without is asked for again.
    fn complete(&mut self, key: EniKey, eni: &Eni, load: &Load) {
        let ready = eni.state == EniState::Attached && load.revoking.is_empty();
        if !ready || !self.is_idle(key) {
            return;
        }
        let missing: SlotSet = self
            .families()
            .iter()
            .filter(|family| eni.slots.count(**family) == 0)
            .flat_map(|family| self.free(*family, 1))
            .collect();
        if missing.is_empty() || self.node.vswitch_exhausted {
            self.grant(key, load.assigned.clone());
            return;
        }
        self.taken.extend(missing.iter());
        self.push(Record::AssignIntent {
            eni: key,
            slots: missing,
        });
    }

    /// Asks an unused ENI back, and takes it off once it was given.
    fn give_up(&mut self, key: EniKey, eni: &Eni, load: &Load) {
        // What is on its way is waited for.
        if eni.state != EniState::Attached || !load.revoking.is_empty() || !self.is_idle(key) {
            return;
        }
        if load.held.is_empty() {
            self.push(Record::DetachIntent { eni: key });
        } else if self.now.since(eni.revoked_at) >= ASK_AGAIN {
            self.push(Record::Revoke {
                eni: key,
                slots: load.held.clone(),
            });
        }
    }

    fn create_wholes(&mut self, count: u32) {
        for _ in 0..count {
            if self.pods_of_a_new_eni() == 0 || self.node.vswitch_exhausted {
                self.plan.shortage = Some(Shortage::VSwitchExhausted);
                return;
            }
            let Some(place) = self.free_places().first().copied() else {
                self.plan.shortage = self.at_limit().then_some(Shortage::EniLimit);
                return;
            };
            if self.starts() == 0 {
                return;
            }
            let slots: SlotSet = self
                .families()
                .iter()
                .flat_map(|family| self.free(*family, 1))
                .collect();
            let Some(primary) = slots.family(types::address::Family::V4).first().copied() else {
                return;
            };
            self.taken.extend(slots.iter());
            self.places.insert(place);
            self.push(Record::WholeEniIntent {
                instance: self.node.instance.clone(),
                quota_index: place,
                primary,
                slots,
                security_groups: self.node.security_groups.clone(),
            });
        }
    }
}
