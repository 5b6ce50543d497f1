//! What cloud, shards, agents and kernels say, reduced to what must agree.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Everything that was asked for.
#[derive(Debug, Clone, Default)]
pub struct Picture {
    /// ENIs that carry our tags, by id, as the cloud describes them.
    pub cloud: BTreeMap<String, CloudEni>,
    /// Shards by id, as their owners dump them.
    pub shards: BTreeMap<String, Shard>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
}

/// An ENI in the cloud.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CloudEni {
    /// Instance it is attached to; empty if none.
    pub instance: String,
    /// Hardware address.
    pub mac: String,
    /// Status as the cloud names it.
    pub status: String,
    /// All its addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// A shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shard {
    /// Slots that are not free.
    pub slots: BTreeMap<IpAddr, Slot>,
    /// ENIs by id; one without an id (its create was not answered yet) is left out.
    pub enis: BTreeMap<String, ShardEni>,
    /// Operations that are under way.
    pub open_ops: usize,
}

/// A slot that is not free.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slot {
    /// State as the shard names it.
    pub state: String,
    /// ENI, where the state has one.
    pub eni: String,
    /// Generation, where the state has one.
    pub generation: u64,
}

impl Slot {
    /// Whether the node of the ENI may use the address.
    pub fn held(&self) -> bool {
        self.state == "held" || self.state == "revoking"
    }

    /// Whether something is under way, so that cloud and shard may differ for a while.
    pub fn in_motion(&self) -> bool {
        matches!(self.state.as_str(), "intent" | "revoking" | "unassign")
    }
}

/// An ENI as its shard knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardEni {
    /// State as the shard names it.
    pub state: String,
    /// Instance.
    pub instance: String,
    /// Hardware address.
    pub mac: String,
}

/// A node: its agent's store and its kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Instance.
    pub instance: String,
    /// ENIs by id.
    pub enis: BTreeMap<String, NodeEni>,
    /// Bindings by attachment.
    pub bindings: BTreeMap<String, Binding>,
    /// What in the kernel belongs to no binding, in words.
    pub orphans: Vec<String>,
}

/// An ENI as the agent holds it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeEni {
    /// Its shard.
    pub shard: String,
    /// Hardware address.
    pub mac: String,
    /// Its link is there and configured.
    pub ready: bool,
    /// Addresses with generations.
    pub addresses: BTreeMap<IpAddr, u64>,
}

/// A sandbox's addresses as the agent holds them, and what the kernel holds of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Binding {
    /// The pod, for people.
    pub pod: String,
    /// ENI.
    pub eni: String,
    /// Addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// What the kernel lacks, in words.
    pub drift: Vec<String>,
    /// The sandbox's namespace is gone.
    pub netns_gone: bool,
}
