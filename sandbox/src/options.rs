//! What a sandbox can be made of.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where ipam keeps its decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Store {
    /// In the process; gone with it.
    Memory,
    /// One file, one replica.
    #[default]
    Redb,
    /// A real etcd with mTLS; any number of replicas.
    Etcd,
}

impl Store {
    /// The word in configuration files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redb => "redb",
            Self::Etcd => "etcd",
        }
    }
}

/// How long the simulated cloud takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Latency {
    /// Milliseconds.
    #[default]
    Fast,
    /// Seconds, as the real one.
    Real,
}

impl Latency {
    /// The word on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Real => "real",
        }
    }
}

/// Where policy agents learn what is in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PolicyFeed {
    /// Each watches the folder of manifests.
    #[default]
    Folder,
    /// One relay watches it for all.
    Relay,
}

impl PolicyFeed {
    /// The word on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Folder => "folder",
            Self::Relay => "relay",
        }
    }
}

/// A process of the sandbox. Numbers start at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Service {
    /// The etcd server, if there is one.
    Etcd,
    /// cloud-gateway.
    Gateway,
    /// A replica of ipam-service.
    Ipam(usize),
    /// The relay of policy, if there is one.
    Relay,
    /// The policy-agent of a node, with policy on.
    Policy(usize),
    /// The node-agent of a node.
    Agent(usize),
}

impl Service {
    /// Its binary.
    pub const fn binary(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Gateway => "cloud-gateway",
            Self::Ipam(_) => "ipam-service",
            Self::Relay | Self::Policy(_) => "policy-agent",
            Self::Agent(_) => "node-agent",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Etcd | Self::Gateway => f.write_str(self.binary()),
            Self::Relay => f.write_str("policy-relay"),
            Self::Ipam(n) | Self::Policy(n) | Self::Agent(n) => write!(f, "{}-{n}", self.binary()),
        }
    }
}

/// What to start.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Nodes, 1 to 60, spread over the zones in turn.
    pub nodes: usize,
    /// Zones, 1 to 8.
    pub zones: usize,
    /// Instances of the VPC without an agent, for outside views; in the zones in turn.
    pub plain_hosts: usize,
    /// The type of the nodes.
    pub instance_type: String,
    /// ipam's store.
    pub store: Store,
    /// Replicas of ipam. More than one needs [`Store::Etcd`].
    pub ipam_replicas: usize,
    /// The cloud's latency.
    pub latency: Latency,
    /// From an attach until the link is in the node.
    pub link_lag: Duration,
    /// Prefix length of each zone's pod vSwitch, 16 to 28.
    pub pod_vswitch_prefix: u8,
    /// Prefix length of a shard's IPv4 block; at least the vSwitch's.
    pub shard_prefix: u8,
    /// Whether each zone has a second pod vSwitch, to which ipam falls over.
    pub spare_vswitch: bool,
    /// Whether pods get IPv6 too.
    pub dual_stack: bool,
    /// Idle addresses a node keeps at least.
    pub pool_min: u32,
    /// Idle addresses a node keeps at most.
    pub pool_max: u32,
    /// How long an address rests before another node gets it.
    pub cooldown: Duration,
    /// Where policy agents learn what is in the cluster. Without it there are none, and pods wait for no policy.
    pub policy: Option<PolicyFeed>,
    /// Environment of single processes, such as armed crash points. They do not survive a restart.
    pub env: BTreeMap<Service, Vec<(String, String)>>,
    /// Overrides of configuration keys of single processes, such as `("timing.reconcile_every", "1000")`. They
    /// survive restarts, and lose against what a restart sets.
    pub set: BTreeMap<Service, Vec<(String, String)>>,
    /// Where our binaries are; beside the running program when absent.
    pub bin_dir: Option<PathBuf>,
    /// Where the run's folder is made; the system's place for temporary files when absent.
    pub run_root: Option<PathBuf>,
    /// Whether the run's folder with its logs stays after a clean stop.
    pub keep_files: bool,
}

impl Default for ClusterOptions {
    /// Three nodes in two zones, two shards per vSwitch, dual stack, policy on, everything quick.
    fn default() -> Self {
        Self {
            nodes: 3,
            zones: 2,
            plain_hosts: 1,
            instance_type: "ecs.g7.xlarge".to_owned(),
            store: Store::default(),
            ipam_replicas: 1,
            latency: Latency::default(),
            link_lag: Duration::from_millis(30),
            pod_vswitch_prefix: 24,
            shard_prefix: 25,
            spare_vswitch: false,
            dual_stack: true,
            pool_min: 5,
            pool_max: 15,
            cooldown: Duration::from_secs(2),
            policy: Some(PolicyFeed::Folder),
            env: BTreeMap::new(),
            set: BTreeMap::new(),
            bin_dir: None,
            run_root: None,
            keep_files: false,
        }
    }
}

/// Options that do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{option}: {why}")]
pub struct InvalidOption {
    /// Which.
    pub option: &'static str,
    /// The rule it breaks.
    pub why: String,
}

impl ClusterOptions {
    /// Checks ranges and combinations.
    pub fn check(&self) -> Result<(), InvalidOption> {
        let fail = |option, why: &str| {
            Err(InvalidOption {
                option,
                why: why.to_owned(),
            })
        };
        if !(1..=60).contains(&self.nodes) {
            return fail("nodes", "1 to 60 are possible");
        }
        if !(1..=8).contains(&self.zones) {
            return fail("zones", "1 to 8 are possible");
        }
        if self.plain_hosts > 60 {
            return fail("plain_hosts", "at most 60 are possible");
        }
        if self.ipam_replicas == 0 {
            return fail("ipam_replicas", "at least one is needed");
        }
        if self.ipam_replicas > 1 && self.store != Store::Etcd {
            return fail("ipam_replicas", "more than one replica needs etcd");
        }
        if !(16..=28).contains(&self.pod_vswitch_prefix) {
            return fail("pod_vswitch_prefix", "16 to 28 are possible");
        }
        if !(self.pod_vswitch_prefix..=28).contains(&self.shard_prefix) {
            return fail("shard_prefix", "from the vSwitch's prefix to 28");
        }
        if self.pool_min > self.pool_max {
            return fail("pool_min", "it is above pool_max");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_replicas_on_redb_are_refused() {
        let options = ClusterOptions {
            ipam_replicas: 2,
            ..ClusterOptions::default()
        };

        assert_eq!(options.check().unwrap_err().option, "ipam_replicas");
    }

    #[test]
    fn default_options_are_valid() {
        assert_eq!(ClusterOptions::default().check(), Ok(()));
    }
}
