//! What the node wants, kept up to date: pool, feed, waiting ADDs and routes in, wants per shard out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster::pods::Pods as Feed;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use types::op::ShardId;

use crate::capacity::Capacity;
use crate::demand::{self, PoolSize};
use crate::ledger::Ledger;
use crate::pods::Waiting;
use crate::standing::{Ipam, Shortage};
use crate::wholes::{self, Asking};

/// One shard of the node's routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The shard.
    pub shard: ShardId,
    /// `host:port` of its owner; empty while nobody owns it.
    pub owner: String,
}

/// What one shard is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Want {
    /// Pods on shared ENIs, in total.
    pub pods: u32,
    /// ENIs for pods of their own, in total.
    pub wholes: u32,
    /// A pod waits now.
    pub urgent: bool,
    /// Trace of the pod that waits.
    pub traceparent: String,
}

/// Why a shard can not give more, and until when that is believed.
#[derive(Debug, Clone)]
struct Exhausted {
    why: String,
    until: Instant,
}

/// Sizes from the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Idle addresses at least.
    pub min_idle: u32,
    /// Idle addresses at most.
    pub max_idle: u32,
    /// Addresses asked for in one step.
    pub batch: u32,
}

#[derive(Debug)]
struct Shared {
    exhausted: Mutex<BTreeMap<ShardId, Exhausted>>,
    capacity: Mutex<Option<Capacity>>,
    sessions: Mutex<BTreeSet<String>>,
    /// What replicas say of their shards and of us, for people.
    said: Mutex<Said>,
    /// The node leaves: nothing idle is wanted.
    leaving: AtomicBool,
    /// Wakes whoever looks at the way to ipam.
    news: watch::Sender<u64>,
    nudge: tokio::sync::Notify,
    wants: watch::Sender<BTreeMap<ShardId, Want>>,
    pods_known: watch::Sender<u32>,
    pool_target: watch::Sender<u32>,
}

/// What replicas said last.
#[derive(Debug, Default)]
struct Said {
    shards: Option<BTreeSet<ShardId>>,
    shortages: BTreeMap<ShardId, Shortage>,
    trouble: Option<(Option<String>, String)>,
}

/// Shared between the sessions and the task that computes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Targets {
    shared: Arc<Shared>,
}

impl Default for Targets {
    fn default() -> Self {
        let shared = Shared {
            exhausted: Mutex::default(),
            capacity: Mutex::default(),
            sessions: Mutex::default(),
            said: Mutex::default(),
            leaving: AtomicBool::new(false),
            news: watch::Sender::new(0),
            nudge: tokio::sync::Notify::new(),
            wants: watch::Sender::new(BTreeMap::new()),
            pods_known: watch::Sender::new(0),
            pool_target: watch::Sender::new(0),
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Targets {
    /// Wants per shard.
    pub fn wants(&self) -> watch::Receiver<BTreeMap<ShardId, Want>> {
        self.shared.wants.subscribe()
    }

    /// The shard can not give more for a while, or (`None`) it can again.
    pub fn set_exhausted(&self, shard: ShardId, state: Option<(String, Duration)>) {
        let mut exhausted = lock(&self.shared.exhausted);
        match state {
            Some((why, wait)) => {
                exhausted.insert(
                    shard,
                    Exhausted {
                        why,
                        until: Instant::now() + wait,
                    },
                );
            }
            None => {
                exhausted.remove(&shard);
            }
        }
        drop(exhausted);
        self.shared.nudge.notify_one();
    }

    /// Why shards can not give more, for people.
    pub fn exhausted(&self) -> BTreeMap<ShardId, String> {
        let exhausted = lock(&self.shared.exhausted);
        exhausted
            .iter()
            .map(|(shard, e)| (shard.clone(), e.why.clone()))
            .collect()
    }

    /// What a replica said that the shard can not give; nothing: it can.
    pub fn set_shortage(&self, shard: ShardId, shortage: Option<Shortage>) {
        self.say(|said| match shortage {
            Some(shortage) => drop(said.shortages.insert(shard, shortage)),
            None => drop(said.shortages.remove(&shard)),
        });
    }

    /// A replica told which shards serve this node.
    pub fn set_shards(&self, shards: BTreeSet<ShardId>) {
        self.say(|said| {
            // What is no longer asked is no longer believed either.
            said.shortages.retain(|shard, _| shards.contains(shard));
            said.shards = Some(shards);
        });
    }

    /// A session ended, or routes were not told: the machine-readable reason if there was one, and words.
    pub fn note_trouble(&self, reason: Option<String>, why: String) {
        self.say(|said| said.trouble = Some((reason, why)));
    }

    fn say(&self, change: impl FnOnce(&mut Said)) {
        change(&mut lock(&self.shared.said));
        self.shared
            .news
            .send_modify(|news| *news = news.wrapping_add(1));
    }

    /// The way to ipam at this moment.
    pub fn ipam(&self) -> Ipam {
        let welcomed = self.connected();
        let said = lock(&self.shared.said);
        Ipam {
            welcomed,
            shards: said.shards.clone(),
            shortages: said.shortages.clone(),
            trouble: said.trouble.clone(),
        }
    }

    /// Wakes when [`Targets::ipam`] may have changed.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.shared.news.subscribe()
    }

    /// Whether the node leaves: then only what is in use is wanted.
    pub fn set_leaving(&self, leaving: bool) {
        if self.shared.leaving.swap(leaving, Ordering::AcqRel) != leaving {
            self.shared.nudge.notify_one();
        }
    }

    /// Facts of the node, once ipam has told them.
    pub fn capacity(&self) -> Option<Capacity> {
        *lock(&self.shared.capacity)
    }

    /// Notes what ipam told about the node.
    pub fn set_capacity(&self, capacity: Capacity) {
        *lock(&self.shared.capacity) = Some(capacity);
        self.shared.nudge.notify_one();
    }

    /// Notes that a session with `owner` is up or down.
    pub fn set_connected(&self, owner: &str, up: bool) {
        let mut sessions = lock(&self.shared.sessions);
        if up {
            sessions.insert(owner.to_owned());
        } else {
            sessions.remove(owner);
        }
        drop(sessions);
        self.say(|said| {
            if up {
                said.trouble = None;
            }
        });
    }

    /// Whether any session is up.
    pub fn connected(&self) -> bool {
        !lock(&self.shared.sessions).is_empty()
    }

    /// How many sessions are up.
    pub fn session_count(&self) -> u32 {
        u32::try_from(lock(&self.shared.sessions).len()).unwrap_or(u32::MAX)
    }

    /// Target last computed, in pods.
    pub fn total(&self) -> u32 {
        *self.shared.pool_target.borrow()
    }

    /// Pods of this node that need an address, as the feed knows them.
    pub fn pods_known(&self) -> u32 {
        *self.shared.pods_known.borrow()
    }
}

/// Inputs of the computing task.
#[derive(Debug)]
pub struct Inputs {
    /// Addresses and bindings.
    pub ledger: Ledger,
    /// Pods scheduled to the node.
    pub feed: Feed,
    /// ADDs that wait.
    pub waiting: watch::Receiver<Waiting>,
    /// The node's shards, best first.
    pub routes: watch::Receiver<Vec<Route>>,
    /// Sizes of the pool.
    pub sizes: Sizes,
}

/// Computes until `drain` is cancelled or an input is gone.
pub async fn run(targets: Targets, mut inputs: Inputs, drain: CancellationToken) {
    let mut view = inputs.ledger.watch();
    loop {
        view.borrow_and_update();
        let waiting = inputs.waiting.borrow_and_update().clone();
        let order: Vec<ShardId> = inputs
            .routes
            .borrow_and_update()
            .iter()
            .map(|r| r.shard.clone())
            .collect();
        let next = compute(&targets, &inputs, &order, &waiting);
        let wake = next.unwrap_or_else(|| Instant::now() + Duration::from_mins(1));
        let alive = tokio::select! {
            biased;
            () = drain.cancelled() => return,
            changed = view.changed() => changed.is_ok(),
            changed = inputs.waiting.changed() => changed.is_ok(),
            changed = inputs.routes.changed() => changed.is_ok(),
            changed = inputs.feed.changed() => changed,
            () = targets.shared.nudge.notified() => true,
            () = tokio::time::sleep_until(wake) => true,
        };
        if !alive {
            return;
        }
    }
}

/// Pods of this node that need an address: on shared ENIs, and on ENIs of their own.
fn scheduled(feed: &Feed) -> (u32, u32) {
    let pods = feed.snapshot();
    let needing = pods.values().filter(|pod| pod.needs_address());
    let (whole, shared): (Vec<_>, Vec<_>) = needing.partition(|pod| pod.needs_whole_eni());
    let count = |pods: Vec<_>| u32::try_from(pods.len()).unwrap_or(u32::MAX);
    (count(shared), count(whole))
}

/// Publishes the wants; gives the moment at which an exhausted shard may be asked again.
fn compute(
    targets: &Targets,
    inputs: &Inputs,
    order: &[ShardId],
    waiting: &Waiting,
) -> Option<Instant> {
    let now = Instant::now();
    let (exhausted, next) = {
        let mut exhausted = lock(&targets.shared.exhausted);
        exhausted.retain(|_, e| e.until > now);
        let set: BTreeSet<ShardId> = exhausted.keys().cloned().collect();
        (set, exhausted.values().map(|e| e.until).min())
    };
    let capacity = *lock(&targets.shared.capacity);
    let leaving = targets.shared.leaving.load(Ordering::Acquire);
    let idle = |idle: u32| if leaving { 0 } else { idle };
    let sizes = PoolSize {
        min_idle: idle(inputs.sizes.min_idle),
        max_idle: idle(inputs.sizes.max_idle),
        max_pods: capacity.map_or(u32::MAX, |c| c.max_pods),
        batch: inputs.sizes.batch,
    };
    let view = inputs.ledger.view();
    let (scheduled, scheduled_wholes) = scheduled(&inputs.feed);
    let asking = Asking {
        scheduled: if leaving { 0 } else { scheduled_wholes },
        waiting: waiting.wholes,
    };
    let wholes = wholes::compute(&view, asking, capacity, order, &exhausted);
    let sizes = PoolSize {
        max_pods: wholes.shared_pods.unwrap_or(sizes.max_pods),
        ..sizes
    };
    // A pod that is scheduled will come; one that waits has come.
    let used = view.used().saturating_add(waiting.pods);
    let used = if leaving { used } else { used.max(scheduled) };
    let total = demand::target(sizes, used);
    targets
        .shared
        .pods_known
        .send_replace(scheduled.saturating_add(scheduled_wholes));
    targets.shared.pool_target.send_replace(total);
    let mut pods = demand::split(total, order, &view.holdings, &exhausted);
    for shard in wholes.by_shard.keys() {
        pods.entry(shard.clone()).or_default();
    }
    let wants: BTreeMap<ShardId, Want> = pods
        .into_iter()
        .map(|(shard, pods)| {
            let held = view.holdings.get(&shard).map_or(0, |h| h.pods);
            let whole = wholes.by_shard.get(&shard).copied().unwrap_or(0);
            let held_wholes = wholes.held.get(&shard).copied().unwrap_or(0);
            let urgent =
                waiting.pods > 0 && pods > held || waiting.wholes > 0 && whole > held_wholes;
            let traceparent = if urgent {
                waiting.traceparent.clone()
            } else {
                String::new()
            };
            (
                shard,
                Want {
                    pods,
                    wholes: whole,
                    urgent,
                    traceparent,
                },
            )
        })
        .collect();
    targets.shared.wants.send_if_modified(|old| {
        let changed = *old != wants;
        if changed {
            *old = wants;
        }
        changed
    });
    next
}
