//! A shard that this replica owns: its writer's handle and what its other tasks tell each other.
//!
//! Each cell has one writer: sessions say demand (each its own node's), the planner says shortfalls, the driver says
//! blocks and faults, the reconciler says what is absent. All are levels that can be read at any time.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::watch;
use types::op::ShardId;

use crate::demand::{Blocks, Demand, Shortfalls};
use crate::fault::Faults;
use crate::owner::Handle;
use crate::traces::Traces;

/// See the module.
#[derive(Debug)]
pub struct Owned {
    /// The writer.
    pub handle: Handle,
    /// What nodes want.
    pub demand: watch::Sender<Demand>,
    /// Why they do not get it.
    pub shortfalls: watch::Sender<Shortfalls>,
    /// What the cloud refuses for now.
    pub blocks: watch::Sender<Blocks>,
    /// What a person must mend.
    pub faults: watch::Sender<Faults>,
    /// Granted addresses that the cloud does not have on their ENI: not to be granted again.
    pub absent: watch::Sender<BTreeSet<IpAddr>>,
    /// What caused operations and grants.
    pub traces: Arc<Traces>,
}

impl Owned {
    /// A shard that was just claimed.
    pub fn new(handle: Handle, traces: Arc<Traces>) -> Self {
        Self {
            handle,
            demand: watch::Sender::default(),
            shortfalls: watch::Sender::default(),
            blocks: watch::Sender::default(),
            faults: watch::Sender::default(),
            absent: watch::Sender::default(),
            traces,
        }
    }

    /// Which shard.
    pub fn id(&self) -> &ShardId {
        self.handle.id()
    }
}
