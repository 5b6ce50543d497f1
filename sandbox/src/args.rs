//! The command line of `sandbox`.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::k8s::args::K8sArgs;
use crate::options::{Latency, PolicyFeed, Store};

/// A cluster on one machine.
#[derive(Debug, Clone, Parser)]
#[command(name = "sandbox", version)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Starts a cluster, makes pods, proves that they reach each other, and stays until Ctrl-C.
    Up(UpArgs),
    /// A real Kubernetes on this machine.
    K8s(K8sArgs),
}

/// Arguments of `up`.
#[derive(Debug, Clone, Parser)]
pub struct UpArgs {
    /// Verify, print, tear down; the exit code tells.
    #[arg(long)]
    pub check: bool,
    /// Nodes, in two zones.
    #[arg(long, default_value_t = 3)]
    pub nodes: usize,
    /// Where ipam keeps its decisions; etcd starts two replicas.
    #[arg(long, value_enum, default_value_t = StoreArg::Redb)]
    pub store: StoreArg,
    /// How long the simulated cloud takes.
    #[arg(long, value_enum, default_value_t = LatencyArg::Fast)]
    pub latency: LatencyArg,
    /// Pods in all, at least one per node.
    #[arg(long, default_value_t = 12)]
    pub pods: usize,
    /// ADDs and DELs that are timed.
    #[arg(long, default_value_t = 201)]
    pub churn: usize,
    /// Where policy agents learn what is in the cluster.
    #[arg(long, value_enum, default_value_t = PolicyArg::Folder)]
    pub policy: PolicyArg,
    /// Where the run's folder is made.
    #[arg(long)]
    pub run_root: Option<PathBuf>,
    /// Keep the run's folder with its logs.
    #[arg(long)]
    pub keep: bool,
    /// Where our binaries are; beside this program when absent.
    #[arg(long)]
    pub bin_dir: Option<PathBuf>,
}

/// [`Store`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StoreArg {
    /// In the process.
    Memory,
    /// One file.
    Redb,
    /// A real etcd.
    Etcd,
}

impl From<StoreArg> for Store {
    fn from(arg: StoreArg) -> Self {
        match arg {
            StoreArg::Memory => Self::Memory,
            StoreArg::Redb => Self::Redb,
            StoreArg::Etcd => Self::Etcd,
        }
    }
}

/// [`PolicyFeed`], or none, on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PolicyArg {
    /// There are none, and no policies.
    Off,
    /// Each watches the folder of manifests.
    Folder,
    /// One relay watches it for all.
    Relay,
}

impl From<PolicyArg> for Option<PolicyFeed> {
    fn from(arg: PolicyArg) -> Self {
        match arg {
            PolicyArg::Off => None,
            PolicyArg::Folder => Some(PolicyFeed::Folder),
            PolicyArg::Relay => Some(PolicyFeed::Relay),
        }
    }
}

/// [`Latency`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LatencyArg {
    /// Milliseconds.
    Fast,
    /// Seconds.
    Real,
}

impl From<LatencyArg> for Latency {
    fn from(arg: LatencyArg) -> Self {
        match arg {
            LatencyArg::Fast => Self::Fast,
            LatencyArg::Real => Self::Real,
        }
    }
}
