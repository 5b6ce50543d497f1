//! How many addresses the node wants, and from which shard. Pure.

use std::collections::{BTreeMap, BTreeSet};

use types::op::ShardId;

use crate::pool::Holding;

/// Sizes of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSize {
    /// Idle addresses at least.
    pub min_idle: u32,
    /// Idle addresses at most.
    pub max_idle: u32,
    /// Pods that the instance type allows; `u32::MAX` until it is known.
    pub max_pods: u32,
    /// Addresses asked for in one step.
    pub batch: u32,
}

/// The node's total target in pods, for `used` pods bound, waiting or scheduled.
pub fn target(size: PoolSize, used: u32) -> u32 {
    ipam_core::pool::target(used, size.batch, size.min_idle, size.max_idle).min(size.max_pods)
}

/// Splits the target over the shards.
///
/// Every shard keeps what it holds, those first in `order` first, until the target is used up; what is missing goes
/// to the first shard that can still give. So shards late in the order shrink first, and an exhausted one is passed over.
pub fn split(
    target: u32,
    order: &[ShardId],
    holdings: &BTreeMap<ShardId, Holding>,
    exhausted: &BTreeSet<ShardId>,
) -> BTreeMap<ShardId, u32> {
    let mut wants = BTreeMap::new();
    let mut rest = target;
    // Shards that hold something and left the order (another zone, another configuration) come last.
    let strays = holdings.keys().filter(|s| !order.contains(s));
    for shard in order.iter().chain(strays) {
        let held = holdings.get(shard).copied().unwrap_or_default();
        let want = held.pods.min(rest).max(held.bound);
        rest = rest.saturating_sub(want);
        wants.insert(shard.clone(), want);
    }
    if rest > 0
        && let Some(shard) = order.iter().find(|s| !exhausted.contains(s))
    {
        *wants.entry(shard.clone()).or_default() += rest;
    }
    wants
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(n: u32) -> ShardId {
        format!("vsw-a.{n}").parse().unwrap()
    }

    fn held(pods: u32, bound: u32) -> Holding {
        Holding {
            pods,
            ready: pods,
            bound,
        }
    }

    #[test]
    fn cold_node_asks_its_first_shard() {
        let wants = split(5, &[shard(0), shard(1)], &BTreeMap::new(), &BTreeSet::new());

        assert_eq!(wants, BTreeMap::from([(shard(0), 5), (shard(1), 0)]));
    }

    #[test]
    fn exhausted_shard_is_passed_over_and_keeps_what_it_gave() {
        let holdings = BTreeMap::from([(shard(0), held(4, 4))]);

        let wants = split(
            9,
            &[shard(0), shard(1)],
            &holdings,
            &BTreeSet::from([shard(0)]),
        );

        assert_eq!(wants, BTreeMap::from([(shard(0), 4), (shard(1), 5)]));
    }

    #[test]
    fn later_shard_shrinks_first() {
        let holdings = BTreeMap::from([(shard(0), held(10, 0)), (shard(1), held(10, 2))]);

        let wants = split(11, &[shard(0), shard(1)], &holdings, &BTreeSet::new());

        assert_eq!(wants, BTreeMap::from([(shard(0), 10), (shard(1), 2)]));
    }

    #[test]
    fn nothing_more_is_asked_when_all_are_exhausted() {
        let all = BTreeSet::from([shard(0), shard(1)]);

        let wants = split(5, &[shard(0), shard(1)], &BTreeMap::new(), &all);

        assert_eq!(wants.values().sum::<u32>(), 0);
    }

    #[test]
    fn shard_that_left_the_order_keeps_its_bound_pods() {
        let holdings = BTreeMap::from([(shard(7), held(10, 3))]);

        let wants = split(4, &[shard(0)], &holdings, &BTreeSet::new());

        assert_eq!(wants, BTreeMap::from([(shard(0), 0), (shard(7), 4)]));
    }
}
