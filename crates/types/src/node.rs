//! Nodes as the cluster and the machine name them.

use serde::{Deserialize, Serialize};

use crate::cloud::{ClusterId, InstanceId};

/// A node: cluster, instance and boot. The Kubernetes name is for people; it is reused, so it decides nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The instance it runs on.
    pub instance: InstanceId,
}
