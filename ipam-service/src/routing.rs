//! Which shards a node asks, in which order, and who owns them.
//!
//! The vSwitches of the node's zone come in the order of the policy; the shards of one vSwitch in the order of the
//! node's hash, so that nodes spread over them and a node stays with its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipam_core::route::{Candidate, preference, shards_for_node};
use k8s_api::eni_conf::VSwitchPolicy;
use proto::ipam::v1 as wire;
use tokio::sync::{mpsc, watch};
use tonic::Status;
use tracing::warn;
use types::address::Family;
use types::cloud::{VSwitchId, ZoneId};
use types::op::ShardId;

use crate::facts::NodeFacts;
use crate::membership::Ownership;
use crate::replica::Replica;

/// Makes routes for nodes.
#[derive(Debug, Clone)]
pub struct Router {
    replica: Replica,
    ownership: watch::Receiver<Ownership>,
    vswitches: Arc<BTreeMap<ZoneId, Vec<VSwitchId>>>,
    policy: VSwitchPolicy,
}

impl Router {
    /// Routes over the configured vSwitches of each zone.
    pub fn new(
        replica: Replica,
        ownership: watch::Receiver<Ownership>,
        vswitches: BTreeMap<ZoneId, Vec<VSwitchId>>,
        policy: VSwitchPolicy,
    ) -> Self {
        Self {
            replica,
            ownership,
            vswitches: Arc::new(vswitches),
            policy,
        }
    }

    /// Sends a whole picture now and whenever it changes, until nobody listens.
    pub async fn follow(
        mut self,
        facts: &NodeFacts,
        out: &mpsc::Sender<Result<wire::RouteUpdate, Status>>,
    ) {
        let mut last: Option<Vec<wire::Route>> = None;
        loop {
            self.ownership.mark_unchanged();
            let (version, routes) = {
                let seen = self.ownership.borrow();
                (seen.version, self.routes(facts, &seen))
            };
            if last.as_ref() != Some(&routes) {
                if routes.is_empty() {
                    warn!(instance = %facts.instance, zone = %facts.zone, "no vSwitch serves the node's zone");
                }
                let update = wire::RouteUpdate {
                    version,
                    routes: routes.clone(),
                };
                if out.send(Ok(update)).await.is_err() {
                    return;
                }
                last = Some(routes);
            }
            tokio::select! {
                () = out.closed() => return,
                changed = self.ownership.changed() => if changed.is_err() { return },
            }
        }
    }

    fn routes(&self, facts: &NodeFacts, seen: &Ownership) -> Vec<wire::Route> {
        let vswitches: Vec<Vec<ShardId>> = self
            .order(facts)
            .iter()
            .map(|vswitch| {
                let own = seen
                    .shards
                    .values()
                    .filter(|entry| entry.shard.vswitch == *vswitch);
                own.map(|entry| entry.shard.clone()).collect()
            })
            .collect();
        shards_for_node(&facts.instance, &vswitches)
            .into_iter()
            .map(|shard| {
                let owner = seen.owners.get(&shard);
                let zone = seen.shards.get(&shard).map(|entry| entry.zone.to_string());
                wire::Route {
                    vswitch_id: shard.vswitch.to_string(),
                    shard: shard.to_string(),
                    zone_id: zone.unwrap_or_default(),
                    owner: owner.map(|o| o.replica.id.to_string()).unwrap_or_default(),
                    owner_address: owner.map(|o| o.replica.address.clone()).unwrap_or_default(),
                }
            })
            .collect()
    }

    /// The vSwitches of a node, best first.
    fn order(&self, facts: &NodeFacts) -> Vec<VSwitchId> {
        let configured = self.vswitches.get(&facts.zone).cloned().unwrap_or_default();
        match self.policy {
            VSwitchPolicy::Ordered => configured,
            VSwitchPolicy::Random => {
                let candidates: Vec<Candidate<'_>> = configured
                    .iter()
                    .map(|vswitch| Candidate {
                        name: vswitch.as_str(),
                        weight: 1,
                    })
                    .collect();
                preference(facts.instance.as_str(), &candidates)
                    .into_iter()
                    .filter_map(|name| configured.iter().find(|v| v.as_str() == name).cloned())
                    .collect()
            }
            VSwitchPolicy::Most => {
                // By the books of this replica; what others own counts as empty, which spreads load away from here.
                let mut ordered = configured;
                ordered.sort_by_key(|vswitch| std::cmp::Reverse(self.free(vswitch)));
                ordered
            }
        }
    }

    fn free(&self, vswitch: &VSwitchId) -> u32 {
        self.replica
            .all()
            .iter()
            .filter(|owned| owned.id().vswitch == *vswitch)
            .map(|owned| owned.handle.view().shard.counts(Family::V4).free)
            .fold(0, u32::saturating_add)
    }
}

/// All vSwitches of a configuration, each once.
pub fn all_vswitches(vswitches: &BTreeMap<ZoneId, Vec<VSwitchId>>) -> BTreeSet<VSwitchId> {
    vswitches.values().flatten().cloned().collect()
}
