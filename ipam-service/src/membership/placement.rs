//! Which replica should own which shard: the same answer on every replica that sees the same.
//!
//! Rendezvous hashing: each replica has a score for each shard, the highest is the first choice. A
//! replica that comes or goes moves only the shards that it gains or loses. A bound on the load keeps
//! the luck of the hash from giving one replica too much. This is a wish; the fence decides.

use std::collections::BTreeMap;

use ipam_core::route::{Candidate, MAX_WEIGHT, preference};
use types::op::ShardId;

use super::{Member, ShardEntry};
use crate::log::ReplicaId;

/// Live replicas that take shards, best first for this shard: those of its zone, then by score.
pub fn ranked<'m>(
    shard: &ShardEntry,
    members: impl IntoIterator<Item = &'m Member>,
) -> Vec<&'m Member> {
    let members: BTreeMap<&str, &Member> = members
        .into_iter()
        .filter(|m| !m.draining)
        .map(|m| (m.replica.id.as_str(), m))
        .collect();
    let candidates: Vec<_> = members
        .iter()
        .map(|(name, m)| Candidate {
            name,
            weight: capacity(m),
        })
        .collect();
    let mut ranked: Vec<&Member> = preference(&shard.shard.to_string(), &candidates)
        .into_iter()
        .filter_map(|name| members.get(name).copied())
        .collect();
    // Stable: within a zone the order stays.
    ranked.sort_by_key(|m| m.zone.as_ref() != Some(&shard.zone));
    ranked
}

/// The wished owner of every shard, none with more than 1.25 times its share. Empty without replicas.
pub fn preferred(
    shards: &BTreeMap<ShardId, ShardEntry>,
    members: &BTreeMap<ReplicaId, Member>,
) -> BTreeMap<ShardId, ReplicaId> {
    let total: u64 = members
        .values()
        .filter(|m| !m.draining)
        .map(|m| u64::from(capacity(m)))
        .sum();
    let count = u64::try_from(shards.len()).unwrap_or(u64::MAX);
    let mut load: BTreeMap<&ReplicaId, u64> = BTreeMap::new();
    let mut wished = BTreeMap::new();
    for (id, shard) in shards {
        let choice = ranked(shard, members.values()).into_iter().find(|m| {
            load.get(&m.replica.id).copied().unwrap_or(0) < bound(count, capacity(m), total)
        });
        if let Some(member) = choice {
            *load.entry(&member.replica.id).or_default() += 1;
            wished.insert(id.clone(), member.replica.id.clone());
        }
    }
    wished
}

/// `⌈1.25 · shards · capacity / total⌉`: the sum over all is never below the number of shards.
fn bound(shards: u64, capacity: u32, total: u64) -> u64 {
    let share = shards.saturating_mul(5).saturating_mul(u64::from(capacity));
    share.div_ceil(total.saturating_mul(4).max(1))
}

fn capacity(member: &Member) -> u32 {
    member.capacity.clamp(1, MAX_WEIGHT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::log::{Replica, SessionId};

    fn member(name: &str, capacity: u32, zone: Option<&str>) -> (ReplicaId, Member) {
        let id: ReplicaId = name.parse().unwrap();
        let member = Member {
            replica: Replica {
                id: id.clone(),
                address: format!("{name}:7301"),
                session: SessionId(1),
            },
            zone: zone.map(|z| z.parse().unwrap()),
            capacity,
            draining: false,
        };
        (id, member)
    }

    fn shards(n: u32) -> BTreeMap<ShardId, ShardEntry> {
        let entry = |index| {
            let shard: ShardId = format!("vsw-a.{index}").parse().unwrap();
            let zone = if index % 2 == 0 { "z-a" } else { "z-b" };
            let zone = zone.parse().unwrap();
            (
                shard.clone(),
                ShardEntry {
                    shard,
                    zone,
                    ipv4: None,
                    ipv6: None,
                },
            )
        };
        (0..n).map(entry).collect()
    }

    fn counts(wished: &BTreeMap<ShardId, ReplicaId>) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for id in wished.values() {
            *counts.entry(id.as_str()).or_default() += 1;
        }
        counts
    }

    #[test]
    fn preference_of_a_lone_replica_is_everything() {
        let members = BTreeMap::from([member("a", 1, None)]);

        assert_eq!(preferred(&shards(7), &members).len(), 7);
    }

    #[test]
    fn preference_without_replicas_is_nothing() {
        assert!(preferred(&shards(7), &BTreeMap::new()).is_empty());
    }

    #[test]
    fn draining_replica_is_preferred_for_nothing() {
        let mut members = BTreeMap::from([member("a", 1, None), member("b", 1, None)]);
        members.values_mut().next().unwrap().draining = true;

        assert_eq!(
            counts(&preferred(&shards(8), &members)),
            BTreeMap::from([("b", 8)])
        );
    }

    #[test]
    fn replica_of_the_shards_zone_comes_first() {
        let members = BTreeMap::from([member("a", 1, Some("z-a")), member("b", 1, Some("z-b"))]);

        for (id, replica) in preferred(&shards(8), &members) {
            let expected = if id.index % 2 == 0 { "a" } else { "b" };
            assert_eq!(replica.as_str(), expected);
        }
    }

    #[test]
    fn replica_that_joins_takes_only_what_becomes_its_own() {
        let all = shards(100);
        let mut members = BTreeMap::from([member("a", 1, None), member("b", 1, None)]);
        let first = |members: &BTreeMap<_, Member>| -> Vec<String> {
            all.values()
                .map(|s| ranked(s, members.values())[0].replica.id.to_string())
                .collect()
        };
        let before = first(&members);
        members.extend([member("c", 1, None)]);

        let after = first(&members);

        for (before, after) in before.iter().zip(&after) {
            assert!(after == before || after == "c");
        }
        let moved = after.iter().filter(|id| *id == "c").count();
        assert!((15..=52).contains(&moved), "{moved} of 100");
    }

    proptest! {
        #[test]
        fn nobody_gets_more_than_its_bound_and_nothing_is_left_over(
            n in 1_u32..60,
            capacities in prop::collection::vec(1_u32..5, 1..6),
        ) {
            let members: BTreeMap<_, _> = capacities
                .iter()
                .enumerate()
                .map(|(i, c)| member(&format!("r{i}"), *c, None))
                .collect();
            let total: u64 = capacities.iter().map(|c| u64::from(*c)).sum();

            let wished = preferred(&shards(n), &members);

            prop_assert_eq!(wished.len(), usize::try_from(n).unwrap());
            for (name, count) in counts(&wished) {
                let id: ReplicaId = name.parse().unwrap();
                let bound = bound(u64::from(n), members[&id].capacity, total);
                prop_assert!(u64::try_from(count).unwrap() <= bound);
            }
        }
    }
}
