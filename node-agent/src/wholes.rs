//! How many ENIs pods of this node want for themselves, and from which shard; and what is left for pods that share.
//! Pure.

use std::collections::{BTreeMap, BTreeSet};

use types::op::ShardId;
use types::quota::{shared_pod_capacity, whole_eni_capacity};

use crate::capacity::Capacity;
use crate::demand;
use crate::ledger::View;
use crate::pool::Holding;

/// Pods that want an ENI for themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asking {
    /// Scheduled to this node, as the feed knows them.
    pub scheduled: u32,
    /// Whose ADD waits.
    pub waiting: u32,
}

/// What is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wholes {
    /// ENIs for pods of their own, by shard: totals.
    pub by_shard: BTreeMap<ShardId, u32>,
    /// ENIs of each shard that are there.
    pub held: BTreeMap<ShardId, u32>,
    /// Pods that shared ENIs may serve beside them; `None` while the instance type is not known.
    pub shared_pods: Option<u32>,
}

/// Computes what is wanted from the present moment alone: a total for each shard.
pub fn compute(
    view: &View,
    asking: Asking,
    capacity: Option<Capacity>,
    order: &[ShardId],
    exhausted: &BTreeSet<ShardId>,
) -> Wholes {
    let mut holdings: BTreeMap<ShardId, Holding> = BTreeMap::new();
    let mut shared_enis = 0_u32;
    for eni in view.enis.values() {
        if !eni.record.whole {
            shared_enis = shared_enis.saturating_add(1);
            continue;
        }
        let holding = holdings.entry(eni.record.shard.clone()).or_default();
        holding.pods = holding.pods.saturating_add(1);
        holding.ready = holding.ready.saturating_add(u32::from(eni.ready));
        let bound = u32::from(!eni.bound.is_empty());
        holding.bound = holding.bound.saturating_add(bound);
    }
    let bound = holdings.values().map(|h| h.bound).sum::<u32>();
    // A pod that is scheduled will come; one that waits has come.
    let asked = bound.saturating_add(asking.waiting).max(asking.scheduled);
    let (wanted, shared_pods) = match capacity {
        None => (asked, None),
        Some(capacity) => {
            let secondary = capacity.secondary_enis();
            // The pool makes room for pods that are scheduled, down to its last ENI; until it has, they wait.
            let room = asked.min(whole_eni_capacity(secondary, 1));
            (
                asked
                    .min(whole_eni_capacity(secondary, shared_enis))
                    .max(bound),
                Some(shared_pod_capacity(secondary, room, capacity.per_eni)),
            )
        }
    };
    Wholes {
        by_shard: demand::split(wanted, order, &holdings, exhausted),
        held: holdings
            .into_iter()
            .map(|(shard, holding)| (shard, holding.pods))
            .collect(),
        shared_pods,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::EniView;
    use crate::pool::EniRecord;
    use types::address::MacAddr;

    fn shard() -> ShardId {
        "vsw-a.0".parse().unwrap()
    }

    /// A view of ENIs: whether each is one pod's, and whether it is in use.
    fn view(enis: &[(bool, bool)]) -> View {
        let mut view = View::default();
        for (n, (whole, used)) in (1_u8..).zip(enis) {
            let record = EniRecord {
                shard: shard(),
                eni: format!("eni-{n}").parse().unwrap(),
                mac: MacAddr([0, 0x16, 0x3e, 0, 0, n]),
                vswitch: "vsw-a".parse().unwrap(),
                ipv4_cidr: "10.0.0.0/16".parse().unwrap(),
                ipv4_gateway: "10.0.255.253".parse().unwrap(),
                ipv6: None,
                primary: "10.0.0.1".parse().unwrap(),
                addresses: BTreeMap::new(),
                whole: *whole,
            };
            let bound = if *used {
                vec!["10.0.0.1".parse().unwrap()]
            } else {
                Vec::new()
            };
            view.enis.insert(
                record.eni.clone(),
                EniView {
                    record,
                    ready: true,
                    bound,
                },
            );
        }
        view
    }

    fn wanted(view: &View, scheduled: u32, waiting: u32, secondary: u32) -> (u32, Option<u32>) {
        let capacity = Capacity {
            max_pods: secondary * 10,
            per_eni: 10,
        };
        let asking = Asking { scheduled, waiting };
        let wholes = compute(view, asking, Some(capacity), &[shard()], &BTreeSet::new());
        (wholes.by_shard[&shard()], wholes.shared_pods)
    }

    #[test]
    fn scheduled_pod_and_its_waiting_add_are_one_eni() {
        assert_eq!(wanted(&view(&[]), 1, 0, 3), (1, Some(20)));
        assert_eq!(wanted(&view(&[]), 1, 1, 3), (1, Some(20)));
        assert_eq!(wanted(&view(&[(true, true)]), 1, 0, 3), (1, Some(20)));
    }

    #[test]
    fn sandbox_that_is_made_anew_may_need_a_second_eni() {
        assert_eq!(wanted(&view(&[(true, true)]), 1, 1, 3), (2, Some(10)));
    }

    #[test]
    fn nobody_who_asks_wants_nothing_and_the_pool_has_all() {
        assert_eq!(wanted(&view(&[(true, false)]), 0, 0, 3), (0, Some(30)));
    }

    // I10: one ENI is kept for pods that share, and what they have is not asked for.
    #[test]
    fn shared_enis_are_left_to_the_pool_which_makes_room() {
        assert_eq!(wanted(&view(&[]), 9, 0, 3), (2, Some(10)));
        let full = view(&[(false, true), (false, true), (false, true)]);
        assert_eq!(wanted(&full, 1, 0, 3), (0, Some(20)));
    }

    #[test]
    fn eni_in_use_is_wanted_whatever_is_scheduled() {
        assert_eq!(wanted(&view(&[(true, true)]), 0, 0, 3), (1, Some(20)));
    }
}
