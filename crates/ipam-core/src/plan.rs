//! What a shard should do so that a node can serve as many pods as it wants.
//!
//! The plan is a list of records to append, each an intent or a grant; nothing else happens. Making it is
//! pure, and planning again after everything settled gives nothing (a fixed point). Growing goes from cheap
//! to dear: grant what is on an ENI already, fill attached ENIs, create full ones. Shrinking gives back
//! whole idle ENIs first. What a sandbox uses is never asked back; the node would refuse it anyway.
//!
//! ENIs that pods have for themselves are planned apart from the others: [`whole`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use types::address::{Family, Stack};
use types::cloud::{EniId, InstanceId, SecurityGroupId};
use types::quota::EniQuota;
use types::time::Tick;

use crate::eni::{EniKey, EniState};
use crate::record::Record;
use crate::shard::Shard;
use crate::shard::eni::Eni;
use crate::slot::{Slot, SlotSet, SlotState};

mod whole;

/// What is known of a node when its plan is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// Its instance.
    pub instance: InstanceId,
    /// What the instance's type allows, by the cloud's word.
    pub quota: EniQuota,
    /// Families a pod needs.
    pub stack: Stack,
    /// Pods it wants to be able to serve from this shard: a total.
    pub want: u32,
    /// ENIs from this shard that pods have, or are about to have, for themselves: a total.
    pub wholes: u32,
    /// Addresses that sandboxes use, by ENI.
    pub bound: BTreeMap<EniId, BTreeSet<IpAddr>>,
    /// Places for ENIs on the instance that no shard has taken. Places past the quota are ignored.
    pub free_places: Vec<u32>,
    /// The security groups of its ENIs.
    pub security_groups: Vec<SecurityGroupId>,
    /// The cloud said lately that the vSwitch is full.
    pub vswitch_exhausted: bool,
}

/// How to plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanPolicy {
    /// An ENI that got addresses more lately than this is not shrunk: the pool's maximum must not trim
    /// what a fresh ENI brought. Also the pause after a node kept what it was asked to give back.
    pub settle: Duration,
    /// ENIs of one instance that may be on their way at once.
    ///
    /// Source: ECS OpenAPI facts: attach at most five in parallel per instance.
    pub max_bring_ups: u32,
    /// Addresses of a family that one operation on an attached ENI may carry, 1 to 10.
    pub batch: u32,
}

impl Default for PlanPolicy {
    /// Ten minutes, five ENIs, ten addresses.
    fn default() -> Self {
        Self {
            settle: Duration::from_mins(10),
            max_bring_ups: 5,
            batch: 10,
        }
    }
}

/// What to do for a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use = "a plan that is dropped leaves the node without what it wants"]
pub struct Plan {
    /// Records to append, in this order.
    pub records: Vec<Record>,
    /// Why the node will not get all it wants from this shard.
    pub shortage: Option<Shortage>,
}

/// Why a shard can not give a node what it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shortage {
    /// No address is free: another shard or vSwitch must help.
    VSwitchExhausted,
    /// The instance can have no further ENI: nobody can help.
    EniLimit,
}

/// Plans for one node.
pub fn plan_node(shard: &Shard, node: &NodeView, policy: &PlanPolicy, now: Tick) -> Plan {
    let mut planner = Planner::new(shard, node, policy, now);
    planner.retire();
    planner.wholes();
    let capacity = planner.capacity();
    if node.want > capacity {
        planner.grow(node.want.saturating_sub(capacity));
    } else {
        planner.shrink(capacity.saturating_sub(node.want));
    }
    let asks = |record: &Record| matches!(record, Record::Revoke { .. });
    if planner.plan.records.iter().any(asks) {
        // A revoke is dated by the committed time.
        planner.plan.records.insert(0, Record::Tick { at: now });
    }
    planner.plan
}

/// Slots of an ENI by what they can do for the node.
#[derive(Debug, Clone, Default)]
struct Load {
    /// On their way to be granted, or granted.
    serving: SlotSet,
    /// Of these, those the node holds.
    held: SlotSet,
    /// On the ENI and granted to nobody.
    assigned: SlotSet,
    /// Asked back, not answered.
    revoking: SlotSet,
}

struct Planner<'a> {
    shard: &'a Shard,
    node: &'a NodeView,
    policy: &'a PlanPolicy,
    now: Tick,
    loads: BTreeMap<EniKey, Load>,
    /// Free slots that this plan took already.
    taken: SlotSet,
    /// Places on the instance that this plan took already.
    places: BTreeSet<u32>,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(shard: &'a Shard, node: &'a NodeView, policy: &'a PlanPolicy, now: Tick) -> Self {
        let loads = shard
            .enis_of(&node.instance)
            .map(|(key, eni)| (key, load(shard, key, eni)))
            .collect();
        Self {
            shard,
            node,
            policy,
            now,
            loads,
            taken: SlotSet::new(),
            places: BTreeSet::new(),
            plan: Plan::default(),
        }
    }

    fn families(&self) -> &'static [Family] {
        if self.node.stack.has_v6() {
            &[Family::V4, Family::V6]
        } else {
            &[Family::V4]
        }
    }

    /// Pods that a set of slots serves: each needs one address of every family, on one ENI.
    fn pods(&self, slots: &SlotSet) -> u32 {
        let counts = self.families().iter().map(|family| slots.count(*family));
        counts.min().unwrap_or(0)
    }

    fn per_eni(&self) -> u32 {
        if self.node.stack.has_v6() {
            self.node
                .quota
                .ipv4_per_eni
                .min(self.node.quota.ipv6_per_eni)
        } else {
            self.node.quota.ipv4_per_eni
        }
    }

    /// Shared ENIs that serve the node or soon will.
    fn live(&self) -> Vec<(EniKey, &'a Eni, Load)> {
        self.serving(false)
    }

    /// ENIs that serve the node or soon will: those that are one pod's alone, or the others.
    fn serving(&self, whole: bool) -> Vec<(EniKey, &'a Eni, Load)> {
        self.shard
            .enis_of(&self.node.instance)
            .filter(|(key, _)| self.shard.is_whole(*key) == whole)
            .filter(|(_, eni)| !eni.lost && eni.state <= EniState::Attached)
            .filter_map(|(key, eni)| Some((key, eni, self.loads.get(&key)?.clone())))
            .collect()
    }

    /// Pods that the node can have when all that is under way is done.
    fn capacity(&self) -> u32 {
        self.live().iter().fold(0, |sum, (_, _, load)| {
            sum.saturating_add(self.pods(&load.serving))
        })
    }

    fn is_idle(&self, key: EniKey) -> bool {
        self.shard.op_on(key).is_none()
    }

    fn bound(&self, eni: &Eni) -> SlotSet {
        let addresses = eni.id.as_ref().and_then(|id| self.node.bound.get(id));
        self.shard.slots_at(addresses.into_iter().flatten())
    }

    /// Gives up ENIs that the cloud lost.
    fn retire(&mut self) {
        let lost: Vec<_> = self
            .shard
            .enis_of(&self.node.instance)
            .filter(|(_, eni)| eni.lost && eni.state == EniState::Attached)
            .collect();
        for (key, eni) in lost {
            let Some(load) = self.loads.get(&key).cloned() else {
                continue;
            };
            let unused = load.held.without(&self.bound(eni));
            if !unused.is_empty() && load.revoking.is_empty() && self.may_ask(eni) {
                self.push(Record::Revoke {
                    eni: key,
                    slots: unused,
                });
            } else if load.held.is_empty() && load.revoking.is_empty() && self.is_idle(key) {
                self.push(Record::DetachIntent { eni: key });
            }
        }
    }

    fn grow(&mut self, shortage: u32) {
        let rest = self.grant_again(shortage);
        let rest = self.fill(rest);
        self.create(rest);
    }

    /// Grants again what the node gave back and what is still on its ENIs. Costs no cloud call.
    fn grant_again(&mut self, mut rest: u32) -> u32 {
        for (key, eni, load) in self.live() {
            if rest == 0 || eni.state != EniState::Attached || load.assigned.is_empty() {
                continue;
            }
            let mut all = load.serving.clone();
            all.extend(load.assigned.iter());
            let before = self.pods(&load.serving);
            let after = before.saturating_add(rest).min(self.pods(&all));
            let slots: SlotSet = self
                .families()
                .iter()
                .flat_map(|family| {
                    let need = after.saturating_sub(load.serving.count(*family));
                    load.assigned.of(*family).take(to_usize(need))
                })
                .collect();
            if after == before {
                continue;
            }
            rest = rest.saturating_sub(after.saturating_sub(before));
            self.grant(key, slots);
        }
        rest
    }

    /// Puts further addresses on attached ENIs that have room, beside what is on them already.
    fn fill(&mut self, mut rest: u32) -> u32 {
        for (key, eni, load) in self.live() {
            if rest == 0 || self.node.vswitch_exhausted {
                break;
            }
            // What was asked back comes first: it is kept, or given back and granted again.
            let ready = eni.state == EniState::Attached && load.revoking.is_empty();
            if !ready || !self.is_idle(key) {
                continue;
            }
            let before = self.pods(&load.serving);
            let wanted = before.saturating_add(rest).min(self.per_eni());
            let after = self.reachable(eni, &load, wanted);
            if after <= before {
                continue;
            }
            let (mut again, mut new) = (SlotSet::new(), SlotSet::new());
            for family in self.families() {
                let need = after.saturating_sub(load.serving.count(*family));
                again.extend(load.assigned.of(*family).take(to_usize(need)));
                new.extend(self.free(*family, need.saturating_sub(again.count(*family))));
            }
            rest = rest.saturating_sub(after.saturating_sub(before));
            self.grant(key, again);
            self.taken.extend(new.iter());
            if let Some(load) = self.loads.get_mut(&key) {
                load.serving.extend(new.iter());
            }
            self.push(Record::AssignIntent {
                eni: key,
                slots: new,
            });
        }
        rest
    }

    /// Pods that one operation can bring an ENI to, at most `wanted`.
    fn reachable(&self, eni: &Eni, load: &Load, wanted: u32) -> u32 {
        let reach = |family: &Family| {
            let room = match family {
                Family::V4 => self.node.quota.ipv4_per_eni,
                Family::V6 => self.node.quota.ipv6_per_eni,
            }
            .saturating_sub(eni.slots.count(*family))
            .min(self.policy.batch);
            let free = u32::try_from(self.free(*family, room).len()).unwrap_or(0);
            load.serving
                .count(*family)
                .saturating_add(load.assigned.count(*family))
                .saturating_add(free)
        };
        let reached = self.families().iter().map(reach).min().unwrap_or(0);
        reached.min(wanted)
    }

    /// Grants what is on an attached ENI and nobody's.
    fn grant(&mut self, key: EniKey, slots: SlotSet) {
        if slots.is_empty() {
            return;
        }
        if let Some(load) = self.loads.get_mut(&key) {
            load.serving.extend(slots.iter());
            load.assigned = load.assigned.without(&slots);
        }
        self.push(Record::Held { eni: key, slots });
    }

    /// Creates ENIs, each as full as the shard allows, for what the ENIs there are will never serve.
    fn create(&mut self, rest: u32) {
        if rest == 0 {
            return;
        }
        let mut beyond = rest.saturating_sub(self.room());
        let mut starts = self.starts();
        let mut places = self.free_places().into_iter();
        loop {
            let pods = self.pods_of_a_new_eni();
            if pods == 0 || self.node.vswitch_exhausted {
                self.plan.shortage = Some(Shortage::VSwitchExhausted);
                return;
            }
            if beyond == 0 {
                return;
            }
            let Some(place) = places.next() else {
                self.plan.shortage = self.at_limit().then_some(Shortage::EniLimit);
                return;
            };
            // The slot that was free longest comes first in the search, not first in the set.
            let primary = self.free(Family::V4, 1).first().map(|slot| slot.index);
            let (Some(primary), true) = (primary, starts > 0) else {
                return;
            };
            let mut slots = SlotSet::new();
            for family in self.families() {
                slots.extend(self.free(*family, pods));
            }
            self.taken.extend(slots.iter());
            beyond = beyond.saturating_sub(pods);
            starts = starts.saturating_sub(1);
            self.push(Record::EniIntent {
                instance: self.node.instance.clone(),
                quota_index: place,
                primary,
                slots,
                security_groups: self.node.security_groups.clone(),
            });
            if beyond == 0 {
                return;
            }
        }
    }

    /// Pods that the node's ENIs can still serve beyond what they do and this plan adds.
    fn room(&self) -> u32 {
        self.live()
            .iter()
            .map(|(_, _, load)| self.per_eni().saturating_sub(self.pods(&load.serving)))
            .fold(0, u32::saturating_add)
    }

    /// ENIs that may be started now.
    fn starts(&self) -> u32 {
        let on_the_way = self
            .shard
            .enis_of(&self.node.instance)
            .filter(|(_, eni)| eni.state < EniState::Attached)
            .count()
            .saturating_add(self.places.len());
        self.policy
            .max_bring_ups
            .saturating_sub(u32::try_from(on_the_way).unwrap_or(u32::MAX))
    }

    /// Pods that the free slots allow on one ENI.
    fn pods_of_a_new_eni(&self) -> u32 {
        self.families()
            .iter()
            .map(|family| self.free(*family, self.per_eni()).len())
            .min()
            .and_then(|free| u32::try_from(free).ok())
            .unwrap_or(0)
    }

    /// Places that may be taken: within the quota, and by no ENI of this shard.
    fn free_places(&self) -> BTreeSet<u32> {
        let own: BTreeSet<u32> = self
            .shard
            .enis_of(&self.node.instance)
            .map(|(_, eni)| eni.quota_index)
            .collect();
        self.node
            .free_places
            .iter()
            .copied()
            .filter(|place| *place < self.node.quota.secondary_enis())
            .filter(|place| !own.contains(place) && !self.places.contains(place))
            .collect()
    }

    /// Whether no place comes free by itself: an ENI on its way out will make room.
    fn at_limit(&self) -> bool {
        !self
            .shard
            .enis_of(&self.node.instance)
            .any(|(_, eni)| eni.lost || eni.state > EniState::Attached)
    }

    fn shrink(&mut self, mut excess: u32) {
        self.clear_out();
        let mut live = self.live();
        // The youngest goes first: it is the least likely to have pods.
        live.reverse();
        for (key, eni, load) in &live {
            let pods = self.pods(&load.serving);
            let whole = pods <= excess && both(&load.held, &self.bound(eni)).is_empty();
            if whole && self.may_shrink(*key, eni, load) {
                excess = excess.saturating_sub(pods);
                self.loads.remove(key);
                self.push(Record::Revoke {
                    eni: *key,
                    slots: load.held.clone(),
                });
            }
        }
        for (key, eni, load) in live {
            if excess == 0 {
                return;
            }
            if self.loads.contains_key(&key) && self.may_shrink(key, eni, &load) {
                excess = excess.saturating_sub(self.trim(key, eni, &load, excess));
            }
        }
    }

    /// Takes off what nodes have given back: a whole ENI if nothing of it is used, else some addresses.
    fn clear_out(&mut self) {
        for (key, eni, load) in self.live() {
            let given_back = eni.state == EniState::Attached && !load.assigned.is_empty();
            if !given_back || !self.is_idle(key) {
                continue;
            }
            if load.serving.is_empty() && load.revoking.is_empty() {
                self.push(Record::DetachIntent { eni: key });
                continue;
            }
            if load.serving.is_empty() {
                // The rest may be given back too: then the whole ENI goes.
                continue;
            }
            let batch = to_usize(self.policy.batch);
            let not_primary = |slot: &Slot| slot.family == Family::V6 || slot.index != eni.primary;
            let slots: SlotSet = [Family::V4, Family::V6]
                .into_iter()
                .flat_map(|family| load.assigned.of(family).filter(not_primary).take(batch))
                .collect();
            if !slots.is_empty() {
                self.push(Record::UnassignIntent { eni: key, slots });
            }
        }
    }

    /// Whether an ENI's addresses may be asked back: it is settled, and nothing is under way on it. A
    /// primary address that was given back stays on it, and is no hindrance.
    fn may_shrink(&self, key: EniKey, eni: &Eni, load: &Load) -> bool {
        eni.state == EniState::Attached
            && self.is_idle(key)
            && load.revoking.is_empty()
            && !load.held.is_empty()
            && self.now.since(eni.grown_at) >= self.policy.settle
            && self.may_ask(eni)
    }

    /// Whether the ENI's node may be asked: it did not just keep what it was asked for. Its list of bound
    /// addresses is always a little old, and asking at once again would get the same answer.
    fn may_ask(&self, eni: &Eni) -> bool {
        self.now.since(eni.revoked_at) >= self.policy.settle
    }

    /// Asks back unused addresses for up to `excess` pods; says for how many.
    fn trim(&mut self, key: EniKey, eni: &Eni, load: &Load, excess: u32) -> u32 {
        let bound = self.bound(eni);
        let unused = |family: Family| {
            load.held
                .of(family)
                .rev()
                .filter(|slot| !bound.contains(*slot))
                .filter(|slot| family == Family::V6 || slot.index != eni.primary)
                .collect::<Vec<Slot>>()
        };
        let before = self.pods(&load.serving);
        let floor = self
            .families()
            .iter()
            .map(|family| {
                let spare = u32::try_from(unused(*family).len()).unwrap_or(u32::MAX);
                load.held.count(*family).saturating_sub(spare)
            })
            .max()
            .unwrap_or(before);
        let after = before.saturating_sub(excess).max(floor);
        if after >= before {
            return 0;
        }
        let slots: SlotSet = self
            .families()
            .iter()
            .flat_map(|family| {
                let surplus = load.held.count(*family).saturating_sub(after);
                unused(*family).into_iter().take(to_usize(surplus))
            })
            .collect();
        self.push(Record::Revoke { eni: key, slots });
        before.saturating_sub(after)
    }

    /// Free slots that this plan has not taken yet, those free longest first.
    fn free(&self, family: Family, count: u32) -> Vec<Slot> {
        let more = count.saturating_add(self.taken.count(family));
        self.shard
            .free_slots(family, more)
            .into_iter()
            .filter(|slot| !self.taken.contains(*slot))
            .take(to_usize(count))
            .collect()
    }

    fn push(&mut self, record: Record) {
        self.plan.records.push(record);
    }
}

fn load(shard: &Shard, key: EniKey, eni: &Eni) -> Load {
    let is_up = eni.state == EniState::Attached;
    let mut load = Load::default();
    for slot in eni.slots.iter() {
        match shard.slot(slot) {
            Some(SlotState::Intent { .. }) => {
                load.serving.insert(slot);
            }
            Some(SlotState::Assigned { .. }) if !is_up => {
                load.serving.insert(slot);
            }
            Some(SlotState::Assigned { eni }) if *eni == key => {
                load.assigned.insert(slot);
            }
            Some(SlotState::Held { .. }) => {
                load.serving.insert(slot);
                load.held.insert(slot);
            }
            Some(SlotState::Revoking { .. }) => {
                load.revoking.insert(slot);
            }
            Some(
                SlotState::Assigned { .. }
                | SlotState::Unassign { .. }
                | SlotState::Free
                | SlotState::Reserved
                | SlotState::Cooling { .. }
                | SlotState::Foreign { .. }
                | SlotState::Quarantine { .. },
            )
            | None => {}
        }
    }
    load
}

fn both(a: &SlotSet, b: &SlotSet) -> SlotSet {
    a.iter().filter(|slot| b.contains(*slot)).collect()
}

fn to_usize(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
