//! Decides what to begin, so that the nodes of a shard get what they want.
//!
//! Level-triggered: every change of the shard, of what nodes want, or of what the cloud refuses leads to a new look at
//! everything, and so does time. The decision is `ipam_core::plan`; it is made on the writer's own state, so that
//! two looks never begin the same thing twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use ipam_core::plan::{NodeView, PlanPolicy, Shortage, plan_node};
use ipam_core::record::Record;
use ipam_core::shard::Shard;
use mesh::telemetry::set_parent;
use proto::types::v1::Reason;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, warn};
use types::cloud::{InstanceId, VSwitchId};
use types::time::Tick;

use crate::demand::{Blocks, NodeDemand, Shortfall, Shortfalls};
use crate::fault::Fault;
use crate::log::SharedLog;
use crate::metrics::Metrics;
use crate::owned::Owned;
use crate::owner::ProposeError;
use crate::quota;

/// Nodes that are planned at once: their records share an append.
const AT_ONCE: usize = 64;

/// Pause after the store or the queue refused.
const PAUSE: Duration = Duration::from_millis(500);

/// What all planners of a replica have in common.
#[derive(Debug, Clone)]
pub struct Planner {
    /// For places on instances.
    pub log: SharedLog,
    /// How to plan.
    pub policy: PlanPolicy,
    /// Time between two looks without a change.
    pub every: Duration,
    /// What a node is told to wait when nothing else is known.
    pub retry_after: Duration,
    /// How long a fault is believed after it was met last.
    pub fault_age: Duration,
    /// The VPC of each vSwitch.
    pub vpcs: watch::Receiver<BTreeMap<VSwitchId, String>>,
    /// Counters.
    pub metrics: Metrics,
}

impl Planner {
    /// Plans for a shard until it is not owned here any more or `stop` is cancelled.
    pub async fn run(self, owned: Arc<Owned>, stop: CancellationToken) {
        let ended = owned.handle.ended().clone();
        tokio::select! {
            () = ended.cancelled() => {}
            () = stop.cancelled() => {}
            () = self.plan(&owned) => {}
        }
    }

    async fn plan(&self, owned: &Owned) {
        let mut views = owned.handle.watch();
        let mut demands = owned.demand.subscribe();
        let mut blocks = owned.blocks.subscribe();
        let mut faults = owned.faults.subscribe();
        let mut again = Instant::now();
        loop {
            tokio::select! {
                changed = views.changed() => if changed.is_err() { return },
                changed = demands.changed() => if changed.is_err() { return },
                changed = blocks.changed() => if changed.is_err() { return },
                changed = faults.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(again) => {}
            }
            views.mark_unchanged();
            demands.mark_unchanged();
            blocks.mark_unchanged();
            faults.mark_unchanged();
            again = self.look(owned).await;
        }
    }

    /// One look at everything; when to look again without a change.
    async fn look(&self, owned: &Owned) -> Instant {
        let mut again = Instant::now() + self.every;
        let mut ended = None;
        owned.blocks.send_if_modified(|blocks| {
            let before = blocks.clone();
            ended = blocks.expire(Instant::now());
            *blocks != before
        });
        if let Some(ended) = ended {
            again = again.min(ended);
        }
        owned
            .faults
            .send_if_modified(|faults| faults.forget(self.fault_age));
        let shard = owned.handle.view().shard;
        self.show(owned, &shard);
        let blocks = owned.blocks.borrow().clone();
        let mut nodes: Vec<(InstanceId, NodeDemand)> = {
            let demand = owned.demand.borrow();
            demand
                .iter()
                .map(|(instance, demand)| (instance.clone(), demand.clone()))
                .collect()
        };
        // Stable: those with a waiting pod first.
        nodes.sort_by_key(|(_, demand)| !demand.urgent);
        let looks: Vec<Look> = futures::stream::iter(nodes)
            .map(|(instance, demand)| self.node(owned, &shard, &blocks, instance, demand))
            .buffered(AT_ONCE)
            .collect()
            .await;
        let mut shortfalls = Shortfalls::new();
        for look in looks {
            if look.failed {
                again = again.min(Instant::now() + PAUSE);
            }
            if let Some(shortfall) = look.shortfall {
                shortfalls.insert(look.instance, shortfall);
            }
        }
        owned.shortfalls.send_if_modified(|now| {
            let changed = *now != shortfalls;
            if changed {
                *now = shortfalls;
            }
            changed
        });
        again
    }

    async fn node(
        &self,
        owned: &Owned,
        shard: &Shard,
        blocks: &Blocks,
        instance: InstanceId,
        demand: NodeDemand,
    ) -> Look {
        let mut policy = self.policy;
        if demand.gone {
            policy.settle = Duration::ZERO;
        }
        let mut node = NodeView {
            instance: instance.clone(),
            quota: demand.facts.quota,
            stack: demand.facts.stack,
            want: demand.pods,
            wholes: demand.wholes,
            bound: demand.bound.clone(),
            free_places: Vec::new(),
            security_groups: demand.facts.security_groups.clone(),
            vswitch_exhausted: blocks.shard.is_some(),
        };
        let now = Tick(mesh::clock::wall_ms()).max(shard.tick());
        let misplaced = self.misplaced(owned, &demand);
        node.vswitch_exhausted |= misplaced.is_some();
        if misplaced.is_none() && !blocks.instances.contains_key(&instance) {
            node.free_places = (0..node.quota.secondary_enis()).collect();
        }
        let mut plan = plan_node(shard, &node, &policy, now);
        if plan.records.iter().any(|record| {
            matches!(
                record,
                Record::EniIntent { .. } | Record::WholeEniIntent { .. }
            )
        }) {
            // An ENI is wanted: now it matters what other shards have taken.
            match quota::free_places(&*self.log, &instance, &node.quota).await {
                Ok(places) => node.free_places = places,
                Err(error) => {
                    warn!(shard = %owned.id(), %error, "places on an instance can not be read");
                    return Look {
                        instance,
                        shortfall: None,
                        failed: true,
                    };
                }
            }
            plan = plan_node(shard, &node, &policy, now);
        }
        let shortfall = misplaced
            .or_else(|| Some(self.shortfall(owned, blocks, &instance, plan.shortage?)))
            .or_else(|| self.hindered(owned, &instance));
        if plan.records.is_empty() {
            return Look {
                instance,
                shortfall,
                failed: false,
            };
        }
        let span =
            tracing::info_span!("ipam.intent", shard = %owned.id(), records = plan.records.len());
        set_parent(&span, &demand.traceparent);
        let proposed = owned
            .handle
            .propose(Box::new(move |shard, now| {
                plan_node(shard, &node, &policy, now).records
            }))
            .instrument(span)
            .await;
        let failed = match proposed {
            Ok(_) | Err(ProposeError::NotOwner) => false,
            // The state moved on, which is a change that leads to the next look.
            Err(ProposeError::Stale(_) | ProposeError::PlaceTaken { .. }) => true,
            Err(
                error @ (ProposeError::Unavailable(_)
                | ProposeError::Overloaded
                | ProposeError::Invalid(_)),
            ) => {
                warn!(shard = %owned.id(), %error, "a plan was not written");
                true
            }
        };
        Look {
            instance,
            shortfall,
            failed,
        }
    }

    fn shortfall(
        &self,
        owned: &Owned,
        blocks: &Blocks,
        instance: &InstanceId,
        shortage: Shortage,
    ) -> Shortfall {
        let now = Instant::now();
        let block = match shortage {
            Shortage::VSwitchExhausted => blocks.shard.as_ref(),
            Shortage::EniLimit => blocks.instances.get(instance),
        };
        let wait = block.map_or(self.retry_after, |block| {
            block.until.saturating_duration_since(now)
        });
        // Rounded up to whole seconds, so that a repeated look gives the same text.
        let retry_after_ms = u32::try_from(wait.as_secs().saturating_add(1).saturating_mul(1_000))
            .unwrap_or(u32::MAX);
        let (reason, message) = match (block, shortage) {
            (Some(block), _) => (block.reason, block.message.clone()),
            (None, Shortage::VSwitchExhausted) => {
                let (id, vswitch) = (owned.id(), &owned.id().vswitch);
                let message = format!("vSwitch {vswitch}: shard {id} has no free address");
                let reason = Reason::VswitchExhausted;
                self.meet(owned, instance, reason, &message);
                (reason, message)
            }
            (None, Shortage::EniLimit) => (
                Reason::EniLimit,
                "the instance type allows no further ENI".to_owned(),
            ),
        };
        Shortfall {
            reason,
            message,
            retry_after_ms,
            begun: false,
        }
    }

    /// A vSwitch of another VPC can give the node nothing: its ENIs could never be attached.
    fn misplaced(&self, owned: &Owned, demand: &NodeDemand) -> Option<Shortfall> {
        let facts = &demand.facts;
        let vswitch = &owned.id().vswitch;
        let vpc = self.vpcs.borrow().get(vswitch).cloned()?;
        if vpc.is_empty() || facts.vpc.is_empty() || vpc == facts.vpc {
            return None;
        }
        let message = format!(
            "vSwitch {vswitch} is in {vpc}, instance {} in {}",
            facts.instance, facts.vpc
        );
        let reason = Reason::VswitchInvalid;
        self.meet(owned, &facts.instance, reason, &message);
        Some(Shortfall {
            reason,
            message,
            retry_after_ms: u32::try_from(self.retry_after.as_millis()).unwrap_or(u32::MAX),
            begun: false,
        })
    }

    fn meet(&self, owned: &Owned, instance: &InstanceId, reason: Reason, message: &str) {
        let fault = Fault::new(reason, message.to_owned(), false, &self.metrics);
        owned
            .faults
            .send_if_modified(|faults| faults.meet(instance, fault));
    }

    /// What keeps from its end what was begun for the node.
    fn hindered(&self, owned: &Owned, instance: &InstanceId) -> Option<Shortfall> {
        let faults = owned.faults.borrow();
        let fault = faults.of(instance).filter(|fault| fault.begun)?;
        Some(Shortfall {
            reason: fault.reason,
            message: fault.message.clone(),
            retry_after_ms: u32::try_from(self.retry_after.as_millis()).unwrap_or(u32::MAX),
            begun: true,
        })
    }

    fn show(&self, owned: &Owned, shard: &Shard) {
        use types::address::Family;
        self.metrics
            .slots(owned.id(), "v4", shard.counts(Family::V4));
        if shard.spec().has_v6() {
            self.metrics
                .slots(owned.id(), "v6", shard.counts(Family::V6));
        }
    }
}

struct Look {
    instance: InstanceId,
    shortfall: Option<Shortfall>,
    failed: bool,
}

/// Demand of a node that is proved to be gone: nothing, so that its ENIs are taken back.
pub fn demand_of_the_gone(facts: Arc<crate::facts::NodeFacts>) -> NodeDemand {
    NodeDemand {
        facts,
        session: 0,
        pods: 0,
        wholes: 0,
        urgent: false,
        bound: BTreeMap::new(),
        traceparent: String::new(),
        gone: true,
    }
}
