//! Which shards a node asks, in which order, and who owns them.
//!
//! The vSwitches of the node's zone come in the order of the policy; the shards of one vSwitch in the order of the
//! node's hash, so that nodes spread over them and a node stays with its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipam_core::route::{Candidate, preference, shards_for_node};
use k8s_api::eni_conf::VSwitchPolicy;
use mesh::status::Refusal;
use proto::ipam::v1 as wire;
use tokio::sync::{mpsc, watch};
use tonic::{Code, Status};
use tracing::warn;
use types::address::Family;
use types::cloud::{VSwitchId, ZoneId};
use types::op::ShardId;

use crate::facts::NodeFacts;
use crate::membership::Ownership;
use crate::replica::Replica;
use crate::space::Misfit;

/// Makes routes for nodes.
#[derive(Debug, Clone)]
pub struct Router {
    replica: Replica,
    ownership: watch::Receiver<Ownership>,
    vswitches: Arc<BTreeMap<ZoneId, Vec<VSwitchId>>>,
    policy: VSwitchPolicy,
    misfits: watch::Receiver<BTreeMap<VSwitchId, Misfit>>,
}

impl Router {
    /// Routes over the configured vSwitches of each zone.
    pub fn new(
        replica: Replica,
        ownership: watch::Receiver<Ownership>,
        vswitches: BTreeMap<ZoneId, Vec<VSwitchId>>,
        policy: VSwitchPolicy,
        misfits: watch::Receiver<BTreeMap<VSwitchId, Misfit>>,
    ) -> Self {
        Self {
            replica,
            ownership,
            vswitches: Arc::new(vswitches),
            policy,
            misfits,
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
                if routes.is_empty()
                    && let Some(refusal) = self.refusal(facts)
                {
                    // The node comes back; a receiver that is gone needs no words.
                    drop(out.send(Err(refusal)).await);
                    return;
                }
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

    /// Why no vSwitch of the node's zone can be used, if they are configured.
    fn refusal(&self, facts: &NodeFacts) -> Option<Status> {
        let misfits = self.misfits.borrow();
        let of_zone: Vec<(&VSwitchId, &Misfit)> = misfits
            .iter()
            .filter(|(_, misfit)| misfit.zone == facts.zone)
            .collect();
        let (id, first) = of_zone.first()?;
        let texts: Vec<&str> = of_zone
            .iter()
            .map(|(_, misfit)| misfit.fault.message.as_str())
            .collect();
        let reason = first.fault.reason.as_str_name();
        let text = format!(
            "no vSwitch serves zone {}: {}",
            facts.zone,
            texts.join("; ")
        );
        let refusal = Refusal::new(Code::FailedPrecondition, reason, text);
        Some(refusal.with("id", id.to_string()).into_status())
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
