//! The shards of this replica: claims what membership says, runs each, gives away what it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesh::tasks::Tasks;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use types::op::ShardId;

use ipam_core::spec::ShardSpec;

use crate::drive::Driver;
use crate::log::{ClaimError, ReplicaId, SharedLog};
use crate::membership::{Membership, Plan};
use crate::metrics::Metrics;
use crate::owned::Owned;
use crate::owner::writer::Owner;
use crate::owner::{Limits, Queue, load};
use crate::plan::Planner;
use crate::reconcile::Reconciler;
use crate::traces::Traces;

/// Time between two tries to claim what membership says, without a change.
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// Hand-overs at once.
const HAND_OVERS: usize = 16;

/// What it takes to run a shard.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The store.
    pub log: SharedLog,
    /// Who lives and who owns what.
    pub membership: Membership,
    /// All shards of vSwitches that can be used.
    pub specs: watch::Receiver<BTreeMap<ShardId, ShardSpec>>,
    /// Bounds of writers.
    pub limits: Limits,
    /// Carries out.
    pub driver: Driver,
    /// Decides.
    pub planner: Planner,
    /// Compares with the cloud.
    pub reconciler: Reconciler,
    /// Counters.
    pub metrics: Metrics,
    /// Where tasks run.
    pub tasks: Tasks,
}

/// This replica.
#[derive(Debug, Clone)]
pub struct Replica {
    id: ReplicaId,
    membership: Membership,
    owned: watch::Sender<BTreeMap<ShardId, Arc<Owned>>>,
}

impl Replica {
    /// A replica that owns nothing yet.
    pub fn new(id: ReplicaId, membership: Membership) -> Self {
        Self {
            id,
            membership,
            owned: watch::Sender::default(),
        }
    }

    /// Its name.
    pub fn id(&self) -> &ReplicaId {
        &self.id
    }

    /// Whether it may speak for its shards.
    pub fn is_live(&self) -> bool {
        self.membership.is_live()
    }

    /// A shard, if it is owned here.
    pub fn owned(&self, id: &ShardId) -> Option<Arc<Owned>> {
        self.owned.borrow().get(id).cloned()
    }

    /// All shards that are owned here.
    pub fn all(&self) -> Vec<Arc<Owned>> {
        self.owned.borrow().values().cloned().collect()
    }

    /// What is owned here, as it changes.
    pub fn watch(&self) -> watch::Receiver<BTreeMap<ShardId, Arc<Owned>>> {
        self.owned.subscribe()
    }

    /// Who owns a shard by the store's word.
    pub fn owner_of(&self, id: &ShardId) -> Option<String> {
        let seen = self.membership.ownership();
        seen.borrow()
            .owners
            .get(id)
            .map(|owner| owner.replica.id.to_string())
    }

    /// Follows membership's plan until `stop` is cancelled.
    pub async fn run(self, parts: Parts, stop: CancellationToken) {
        let mut plans = parts.membership.plan();
        let (mut hopeless, mut strange) = (BTreeSet::new(), BTreeSet::new());
        loop {
            let plan = plans.borrow_and_update().clone();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.follow(&parts, &plan, (&mut hopeless, &mut strange), &stop) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = plans.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(TRY_AGAIN) => {}
            }
        }
    }

    async fn follow(
        &self,
        parts: &Parts,
        plan: &Plan,
        (hopeless, strange): (&mut BTreeSet<ShardId>, &mut BTreeSet<ShardId>),
        stop: &CancellationToken,
    ) {
        let mut moved = false;
        for id in &plan.claim {
            if self.owned(id).is_some() || hopeless.contains(id) {
                continue;
            }
            let spec = parts.specs.borrow().get(id).cloned();
            let Some(spec) = spec else {
                // Its vSwitch may become usable.
                if strange.insert(id.clone()) {
                    warn!(shard = %id, "a shard of the map is of no vSwitch that we can use: it is left alone");
                }
                continue;
            };
            strange.remove(id);
            match self.claim(parts, &spec, stop).await {
                Ok(()) => moved = true,
                Err(ClaimError::Corrupt(why)) => {
                    error!(shard = %id, why, "a shard can not be served: a person must look");
                    hopeless.insert(id.clone());
                }
                Err(why) => info!(shard = %id, %why, "a shard was not claimed"),
            }
        }
        let gives = plan
            .give
            .iter()
            .filter_map(|(id, to)| Some((self.owned(id)?, to.clone())));
        let hand_overs = futures::StreamExt::for_each_concurrent(
            futures::stream::iter(gives),
            HAND_OVERS,
            |(owned, to)| async move { owned.handle.hand_over(to).await },
        );
        hand_overs.await;
        if (moved || !plan.give.is_empty())
            && let Err(why) = parts.membership.refresh().await
        {
            info!(%why, "membership was not refreshed");
        }
    }

    async fn claim(
        &self,
        parts: &Parts,
        spec: &ShardSpec,
        stop: &CancellationToken,
    ) -> Result<(), ClaimError> {
        let me = parts.membership.me();
        let claimed =
            tokio::time::timeout(parts.limits.store_call, parts.log.claim(spec.id(), &me));
        let claim = claimed
            .await
            .map_err(|_| ClaimError::Unknown("no answer in time".to_owned()))??;
        mesh::crash_point!("ipam.claim.after_commit");
        let shard = load(spec.clone(), &claim).map_err(|e| ClaimError::Corrupt(e.to_string()))?;
        let broken = ipam_core::invariants::violations(&shard);
        if !broken.is_empty() {
            return Err(ClaimError::Corrupt(format!("{broken:?}")));
        }
        info!(
            shard = %spec.id(),
            epoch = claim.fence.epoch.0,
            seq = shard.last_seq().0,
            open = shard.open_ops().count(),
            "the shard is ours"
        );
        let traces = Arc::new(Traces::default());
        let (writer, handle, queue) = Owner::new(
            Arc::clone(&parts.log),
            claim.fence,
            shard,
            parts.limits,
            parts.metrics.clone(),
            Arc::clone(&traces),
        );
        let owned = Arc::new(Owned::new(handle, traces));
        parts.metrics.claims.inc();
        self.put(&owned, &parts.metrics);
        self.start(parts, &owned, writer, queue, stop);
        Ok(())
    }

    fn start(
        &self,
        parts: &Parts,
        owned: &Arc<Owned>,
        writer: Owner,
        queue: Queue,
        stop: &CancellationToken,
    ) {
        let tasks = &parts.tasks;
        tasks.spawn_once(
            "driver",
            parts.driver.clone().run(Arc::clone(owned), stop.clone()),
        );
        tasks.spawn_once(
            "planner",
            parts.planner.clone().run(Arc::clone(owned), stop.clone()),
        );
        tasks.spawn_once(
            "reconciler",
            parts
                .reconciler
                .clone()
                .run(Arc::clone(owned), stop.clone()),
        );
        let (this, owned, stop) = (self.clone(), Arc::clone(owned), stop.clone());
        let (membership, metrics) = (parts.membership.clone(), parts.metrics.clone());
        tasks.spawn_once("owner", async move {
            let ended = writer.run(queue, stop).await;
            info!(shard = %owned.id(), ?ended, "the shard is not ours any more");
            this.take(&owned, &metrics);
            if let Err(why) = membership.refresh().await {
                info!(%why, "membership was not refreshed");
            }
        });
    }

    fn put(&self, owned: &Arc<Owned>, metrics: &Metrics) {
        self.owned.send_modify(|all| {
            all.insert(owned.id().clone(), Arc::clone(owned));
            metrics
                .owned
                .set(i64::try_from(all.len()).unwrap_or(i64::MAX));
        });
    }

    fn take(&self, owned: &Arc<Owned>, metrics: &Metrics) {
        self.owned.send_modify(|all| {
            if all.get(owned.id()).is_some_and(|is| Arc::ptr_eq(is, owned)) {
                all.remove(owned.id());
            }
            metrics
                .owned
                .set(i64::try_from(all.len()).unwrap_or(i64::MAX));
        });
    }

    /// Gives everything away, as far as there is time: the caller bounds it.
    pub async fn give_up(&self) {
        if let Err(why) = self.membership.drain().await {
            warn!(%why, "the others do not know that this replica goes");
        }
        let mut plans = self.membership.plan();
        for owned in self.all() {
            let to = plans
                .borrow_and_update()
                .give
                .get(owned.id())
                .cloned()
                .flatten();
            owned.handle.hand_over(to).await;
        }
        if let Err(why) = self.membership.leave().await {
            warn!(%why, "the store's session was left to end by itself");
        }
    }
}
