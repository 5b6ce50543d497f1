//! Which replicas live, which shards there are, who owns them, and what this replica should own.
//!
//! One implementation for all stores: each replica writes `mem/<replica>` under its session, reads
//! members, owners and the shard map at a fixed pace, and computes the same preference. No leader.
//! Nothing here is needed for safety, that is the fence of [`crate::log`]; this decides how fast a
//! shard finds its next owner, and that two replicas do not fight.
//!
//! How a service uses it:
//!
//! 1. [`Membership::join`] opens the session; [`Membership::ensure_map`] makes the shards known.
//! 2. Follow [`Membership::plan`]: claim what stands in `claim` and is not running, drain and
//!    transfer what stands in `give`. Call [`Membership::refresh`] after each claim and hand-over.
//! 3. Before answering from state ask [`Membership::is_live`]: a replica whose session was not
//!    renewed in time says no by itself.
//! 4. On SIGTERM call [`Membership::drain`], follow the plan until nothing is owned, then
//!    [`Membership::leave`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use types::cloud::ZoneId;
use types::op::ShardId;

use crate::log::keys::Keys;
use crate::log::kv::Kv;
use crate::log::{Owner, Replica, ReplicaId};

pub mod claims;
pub mod placement;
pub mod replicas;
pub mod session;

/// What this replica tells the others about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advert {
    /// Its name, unique among the replicas of the store.
    pub id: ReplicaId,
    /// `host:port` at which nodes reach it.
    pub address: String,
    /// The zone it runs in, if known; shards of that zone come here first.
    pub zone: Option<ZoneId>,
    /// Share of the shards relative to others; at least 1.
    pub capacity: u32,
}

/// A live replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Name, address and session.
    pub replica: Replica,
    /// Its zone, if known.
    pub zone: Option<ZoneId>,
    /// Its share.
    pub capacity: u32,
    /// It is about to stop: it claims nothing and gives everything away.
    pub draining: bool,
}

/// A shard of the map. Its ranges never change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Which.
    pub shard: ShardId,
    /// The zone of its vSwitch.
    pub zone: ZoneId,
    /// Its block of IPv4 addresses.
    pub ipv4: Option<Ipv4Net>,
    /// Its block of IPv6 addresses.
    pub ipv6: Option<Ipv6Net>,
}

/// What the store says about replicas and shards, at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ownership {
    /// Revision of the store at which it was read; grows with each change. 0 before the first read.
    pub version: u64,
    /// Live replicas.
    pub members: BTreeMap<ReplicaId, Member>,
    /// All shards of the map.
    pub shards: BTreeMap<ShardId, ShardEntry>,
    /// Owners. A shard without one is not in here.
    pub owners: BTreeMap<ShardId, Owner>,
}

/// What this replica should do now. A level, not an event: it stands until it is done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Shards to claim now, if they are not running here already: free ones whose turn has come, and
    /// those that are ours by the store's word.
    pub claim: Vec<ShardId>,
    /// Shards of this replica to drain and hand over; to nobody (release) if no other replica lives.
    pub give: BTreeMap<ShardId, Option<Replica>>,
}

/// Times of the session and of placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long the session outlives its last renewal. Whole seconds, since etcd counts in those.
    pub session_ttl: Duration,
    /// Time between two renewals.
    pub renew_every: Duration,
    /// So long after the sending of the last answered renewal the replica stops by itself.
    pub stop_after: Duration,
    /// Time between two reads of members, owners and map.
    pub poll_every: Duration,
    /// A free shard is claimed by the n-th choice after n of these, plus up to as much again by chance.
    pub claim_step: Duration,
    /// So long another replica must be the better owner before a shard is handed over.
    pub rebalance_after: Duration,
}

impl Default for Timing {
    /// Reasons: the gap after a crash is `session_ttl` + 0.5 s; `stop_after` lies 2 s before it, so
    /// that a cut-off replica is silent before the next one speaks.
    fn default() -> Self {
        Self {
            session_ttl: Duration::from_secs(8),
            renew_every: Duration::from_secs(2),
            stop_after: Duration::from_secs(6),
            poll_every: Duration::from_millis(500),
            claim_step: Duration::from_millis(200),
            rebalance_after: Duration::from_secs(30),
        }
    }
}

/// Why something about membership failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The map has this shard with other ranges; ranges never change.
    #[error("shard {shard} stands in the map with other ranges")]
    OtherRanges {
        /// Which.
        shard: ShardId,
    },
    /// What is stored cannot be read.
    #[error("{key} cannot be read: {why}")]
    Corrupt {
        /// The key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// The store could not be reached, or its answer was lost. All calls here can be repeated.
    #[error("store unavailable: {0}")]
    Unavailable(String),
}

/// This replica among the others.
#[derive(Clone)]
pub struct Membership {
    inner: Arc<replicas::Inner>,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("me", &self.inner.advert.id)
            .finish_non_exhaustive()
    }
}

impl Membership {
    /// Opens a session, makes this replica known, reads the store once, and starts the tasks that
    /// renew and read on. They end with `tasks`' shutdown.
    pub async fn join(
        kv: Arc<dyn Kv>,
        keys: Keys,
        advert: Advert,
        timing: Timing,
        tasks: &mesh::tasks::Tasks,
    ) -> Result<Self, MembershipError> {
        let inner = replicas::Inner::join(kv, keys, advert, timing).await?;
        inner.start(tasks);
        Ok(Self { inner })
    }

    /// This replica with its present session, as [`crate::log::ShardLog::claim`] wants it.
    pub fn me(&self) -> Replica {
        self.inner.session.me()
    }

    /// Adds shards to the map. Those that are there already with the same ranges are left alone.
    pub async fn ensure_map(&self, entries: &[ShardEntry]) -> Result<(), MembershipError> {
        self.inner.ensure_map(entries).await
    }

    /// Who lives and who owns what; changes as the store changes.
    pub fn ownership(&self) -> watch::Receiver<Ownership> {
        self.inner.ownership.subscribe()
    }

    /// What this replica should do; changes as the store changes.
    pub fn plan(&self) -> watch::Receiver<Plan> {
        self.inner.plan.subscribe()
    }

    /// False once the last answered renewal was sent longer ago than [`Timing::stop_after`]: then
    /// answer nothing from state, and own nothing.
    pub fn is_live(&self) -> bool {
        self.inner.session.is_live(Instant::now())
    }

    /// Reads the store now instead of at the next turn, and answers when that is done.
    pub async fn refresh(&self) -> Result<(), MembershipError> {
        self.inner.refresh().await
    }

    /// Says that this replica is about to stop. From now on the plan gives everything away.
    pub async fn drain(&self) -> Result<(), MembershipError> {
        self.inner.drain().await
    }

    /// Ends the session. What is still owned becomes free at once.
    pub async fn leave(&self) -> Result<(), MembershipError> {
        self.inner.leave().await
    }
}
