//! Whose turn it is to claim a free shard, and when a shard goes to a better owner.
//!
//! Pure: time comes in as an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use types::op::ShardId;

use super::{Member, Ownership, Plan, ShardEntry, Timing, placement};
use crate::log::{Replica, ReplicaId};

/// At most one in so many shards is handed over per minute for the sake of balance, and at least one.
const REBALANCE_SHARE: usize = 20;

/// The window of that limit.
const REBALANCE_WINDOW: Duration = Duration::from_mins(1);

/// What has been seen so far, for as long as it lasts.
#[derive(Debug, Default)]
pub struct Turns {
    /// Free shards and since when.
    free: BTreeMap<ShardId, Instant>,
    /// Own shards that another replica should have, and since when.
    misplaced: BTreeMap<ShardId, Instant>,
    /// Hand-overs for balance that were begun, for the limit per minute.
    begun: BTreeMap<ShardId, Instant>,
}

/// What to do now, and when to ask again even if nothing changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// What to do.
    pub plan: Plan,
    /// When the next turn comes.
    pub again: Option<Instant>,
}

impl Turns {
    /// Decides for replica `me`. `chance` gives a fraction of a step for each shard, in 1/256.
    pub fn next(
        &mut self,
        now: Instant,
        seen: &Ownership,
        me: &ReplicaId,
        timing: &Timing,
        chance: impl Fn(&ShardId) -> u8,
    ) -> Next {
        let wished = placement::preferred(&seen.shards, &seen.members);
        let draining = seen.members.get(me).is_none_or(|m| m.draining);
        let mut plan = Plan::default();
        let mut again: Option<Instant> = None;
        let mut later = |at: Instant| again = Some(again.map_or(at, |first| first.min(at)));

        self.free
            .retain(|s, _| seen.shards.contains_key(s) && !seen.owners.contains_key(s));
        self.misplaced
            .retain(|s, _| seen.owners.get(s).is_some_and(|o| o.replica.id == *me));
        self.begun
            .retain(|_, at| now.saturating_duration_since(*at) < REBALANCE_WINDOW);

        for (id, shard) in &seen.shards {
            let wish = wished.get(id);
            match seen.owners.get(id) {
                None => {
                    let since = *self.free.entry(id.clone()).or_insert(now);
                    let Some(rank) = rank(shard, seen, wish, me).filter(|_| !draining) else {
                        continue;
                    };
                    let due = since + wait(rank, timing.claim_step, chance(id));
                    if due <= now {
                        plan.claim.push(id.clone());
                    } else {
                        later(due);
                    }
                }
                Some(owner) if owner.replica.id != *me => {}
                Some(_) if draining => {
                    let to = wish.filter(|w| *w != me).and_then(|w| replica(seen, w));
                    plan.give.insert(id.clone(), to);
                }
                Some(_) => match wish.filter(|w| *w != me).and_then(|w| replica(seen, w)) {
                    None => {
                        self.misplaced.remove(id);
                        plan.claim.push(id.clone());
                    }
                    Some(better) => {
                        let since = *self.misplaced.entry(id.clone()).or_insert(now);
                        let due = since + timing.rebalance_after;
                        if due > now {
                            later(due);
                            plan.claim.push(id.clone());
                        } else if self.may_begin(id, now, seen.shards.len()) {
                            plan.give.insert(id.clone(), Some(better));
                        } else {
                            later(now + timing.rebalance_after);
                            plan.claim.push(id.clone());
                        }
                    }
                },
            }
        }
        Next { plan, again }
    }

    /// Whether a hand-over has begun or may begin now.
    fn may_begin(&mut self, shard: &ShardId, now: Instant, shards: usize) -> bool {
        if self.begun.contains_key(shard) {
            return true;
        }
        let fits = self.begun.len() < (shards / REBALANCE_SHARE).max(1);
        if fits {
            self.begun.insert(shard.clone(), now);
        }
        fits
    }
}

/// 0 for the wished owner, then 1, 2, … in the order of preference. None: takes no shards.
fn rank(
    shard: &ShardEntry,
    seen: &Ownership,
    wish: Option<&ReplicaId>,
    me: &ReplicaId,
) -> Option<u32> {
    if wish == Some(me) {
        return Some(0);
    }
    let others = placement::ranked(shard, seen.members.values());
    let others = others.into_iter().filter(|m| Some(&m.replica.id) != wish);
    let at = others
        .map(|m: &Member| &m.replica.id)
        .position(|id| id == me)?;
    u32::try_from(at).ok()?.checked_add(1)
}

fn wait(rank: u32, step: Duration, chance: u8) -> Duration {
    if rank == 0 {
        return Duration::ZERO;
    }
    (step * rank).saturating_add(step * u32::from(chance) / 256)
}

fn replica(seen: &Ownership, id: &ReplicaId) -> Option<Replica> {
    seen.members.get(id).map(|m| m.replica.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Owner, SessionId};
    use types::op::Epoch;

    fn id(name: &str) -> ReplicaId {
        name.parse().unwrap()
    }

    fn member(name: &str) -> (ReplicaId, Member) {
        let replica = Replica {
            id: id(name),
            address: String::new(),
            session: SessionId(1),
        };
        let member = Member {
            replica,
            zone: None,
            capacity: 1,
            draining: false,
        };
        (id(name), member)
    }

    fn seen(members: &[&str], shards: u32) -> Ownership {
        let shard = |index| {
            let shard: ShardId = format!("vsw-a.{index}").parse().unwrap();
            let entry = ShardEntry {
                shard: shard.clone(),
                zone: "z".parse().unwrap(),
                ipv4: None,
                ipv6: None,
            };
            (shard, entry)
        };
        Ownership {
            version: 1,
            members: members.iter().map(|name| member(name)).collect(),
            shards: (0..shards).map(shard).collect(),
            owners: BTreeMap::new(),
        }
    }

    fn own(seen: &mut Ownership, name: &str) {
        let replica = seen.members[&id(name)].replica.clone();
        let owner = Owner {
            replica,
            epoch: Epoch(1),
        };
        let all = seen
            .shards
            .keys()
            .map(|s| (s.clone(), owner.clone()))
            .collect();
        seen.owners = all;
    }

    fn next(turns: &mut Turns, now: Instant, seen: &Ownership, me: &str) -> Next {
        turns.next(now, seen, &id(me), &Timing::default(), |_| 128)
    }

    #[test]
    fn free_shard_is_claimed_by_its_first_choice_at_once_and_by_others_later() {
        let seen = seen(&["a", "b"], 6);
        let now = Instant::now();
        let (mut a, mut b) = (Turns::default(), Turns::default());

        let first = next(&mut a, now, &seen, "a");
        let second = next(&mut b, now, &seen, "b");

        assert_eq!(first.plan.claim.len() + second.plan.claim.len(), 6);
        assert!(
            first
                .plan
                .claim
                .iter()
                .all(|s| !second.plan.claim.contains(s))
        );
        assert_eq!(first.again, Some(now + Duration::from_millis(300)));
        let all = next(&mut a, now + Duration::from_millis(300), &seen, "a");
        assert_eq!(all.plan.claim.len(), 6);
    }

    #[test]
    fn shard_of_another_owner_is_left_alone() {
        let mut seen = seen(&["a", "b"], 3);
        own(&mut seen, "b");

        let next = next(&mut Turns::default(), Instant::now(), &seen, "a");

        assert_eq!(next.plan, Plan::default());
    }

    #[test]
    fn own_shard_is_handed_to_a_better_owner_only_after_a_while_and_one_at_a_time() {
        let mut seen = seen(&["a", "b"], 8);
        own(&mut seen, "a");
        let now = Instant::now();
        let mut turns = Turns::default();

        let early = next(&mut turns, now, &seen, "a");
        let late = next(&mut turns, now + Duration::from_secs(30), &seen, "a");

        assert!(early.plan.give.is_empty());
        assert_eq!(early.plan.claim.len(), 8);
        assert_eq!(late.plan.give.len(), 1);
        assert_eq!(late.plan.claim.len(), 7);
        let to = late.plan.give.values().next().unwrap().as_ref().unwrap();
        assert_eq!(to.id, id("b"));
    }

    #[test]
    fn draining_replica_gives_everything_to_the_others_and_claims_nothing() {
        let mut seen = seen(&["a", "b"], 3);
        own(&mut seen, "a");
        seen.members.get_mut(&id("a")).unwrap().draining = true;

        let next = next(&mut Turns::default(), Instant::now(), &seen, "a");

        assert!(next.plan.claim.is_empty());
        assert_eq!(next.plan.give.len(), 3);
        assert!(next.plan.give.values().flatten().all(|r| r.id == id("b")));
    }

    #[test]
    fn draining_replica_without_others_releases() {
        let mut seen = seen(&["a"], 2);
        own(&mut seen, "a");
        seen.members.get_mut(&id("a")).unwrap().draining = true;

        let next = next(&mut Turns::default(), Instant::now(), &seen, "a");

        assert_eq!(next.plan.give.len(), 2);
        assert!(next.plan.give.values().all(Option::is_none));
    }

    #[test]
    fn replica_that_the_store_does_not_know_claims_nothing() {
        let seen = seen(&["a"], 2);

        let next = next(&mut Turns::default(), Instant::now(), &seen, "ghost");

        assert!(next.plan.claim.is_empty());
    }
}
