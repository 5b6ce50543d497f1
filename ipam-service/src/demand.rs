//! What nodes want from a shard, and why they do not get it. In memory: sessions say it again when they come back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use proto::types::v1::Reason;
use tokio::time::Instant;
use types::cloud::{EniId, InstanceId};

use crate::facts::NodeFacts;

/// What one node wants from one shard. A later one replaces it.
#[derive(Debug, Clone)]
pub struct NodeDemand {
    /// The node as the cloud knows it.
    pub facts: Arc<NodeFacts>,
    /// Which session says so.
    pub session: u64,
    /// Pods that it wants to be able to serve: a total.
    pub pods: u32,
    /// ENIs that pods have, or are about to have, for themselves: a total.
    pub wholes: u32,
    /// A pod waits.
    pub urgent: bool,
    /// Addresses that sandboxes use.
    pub bound: BTreeMap<EniId, BTreeSet<IpAddr>>,
    /// The trace of the message that said so; may be empty.
    pub traceparent: String,
    /// It is proved that the instance is gone.
    pub gone: bool,
}

/// Demand of all nodes of a shard.
pub type Demand = BTreeMap<InstanceId, NodeDemand>;

/// Why a node does not get all it wants from a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortfall {
    /// What the node decides by.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// When it is worth asking again, in milliseconds.
    pub retry_after_ms: u32,
    /// What was asked for is begun, and comes by itself once the reason is mended.
    pub begun: bool,
}

/// Shortfalls of a shard's nodes; a node without one gets what it wants.
pub type Shortfalls = BTreeMap<InstanceId, Shortfall>;

/// What the cloud said that makes asking again useless for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// What a node decides by.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// When the cloud may be asked again.
    pub until: Instant,
}

/// Blocks of a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blocks {
    /// Nothing can be created or assigned for anybody.
    pub shard: Option<Block>,
    /// No ENI can be created for these.
    pub instances: BTreeMap<InstanceId, Block>,
}

impl Blocks {
    /// Drops what is over; the next end.
    pub fn expire(&mut self, now: Instant) -> Option<Instant> {
        self.shard.take_if(|block| block.until <= now);
        self.instances.retain(|_, block| block.until > now);
        self.shard
            .iter()
            .chain(self.instances.values())
            .map(|block| block.until)
            .min()
    }
}
