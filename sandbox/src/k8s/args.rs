//! The command line of `sandbox k8s`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::k8s::bed::BedOptions;

/// Where the run's folder is, unless another is given.
const DIR: &str = "/tmp/terway-k8s";

/// What to do with a real Kubernetes on this machine.
#[derive(Debug, Clone, Parser)]
pub struct K8sArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: K8sCommand,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum K8sCommand {
    /// Starts it, installs the chart, and leaves it running.
    Up(UpArgs),
    /// Stops it, and removes all that it made.
    Down(DirArgs),
    /// Says whether it runs, and how its nodes and pods are.
    Status(DirArgs),
    /// What `up` leaves running.
    #[command(hide = true)]
    Serve(UpArgs),
    /// The first process of a node.
    #[command(hide = true)]
    Boot {
        /// What the node is made of.
        plan: PathBuf,
    },
}

/// Where a run is.
#[derive(Debug, Clone, Parser)]
pub struct DirArgs {
    /// The run's folder; beside it lie its state (.json) and what it says (.log).
    #[arg(long, default_value = DIR)]
    pub dir: PathBuf,
}

impl DirArgs {
    /// The file that says what runs.
    pub fn state(&self) -> PathBuf {
        self.dir.with_extension("json")
    }

    /// What it says.
    pub fn log(&self) -> PathBuf {
        self.dir.with_extension("log")
    }
}

/// What to start.
#[derive(Debug, Clone, Parser)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "a command line has as many switches as it has"
)]
pub struct UpArgs {
    /// Where.
    #[command(flatten)]
    pub place: DirArgs,
    /// Nodes, in two zones.
    #[arg(long, default_value_t = 3)]
    pub nodes: usize,
    /// Verify everything, print, tear down; the exit code tells.
    #[arg(long)]
    pub check: bool,
    /// Repeat what is measured more often.
    #[arg(long)]
    pub long: bool,
    /// Start the cluster alone, without the chart: nodes stay NotReady.
    #[arg(long)]
    pub bare: bool,
    /// Port of the API server on this machine's loopback; 0 takes any.
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// Keep the run's folder with its logs.
    #[arg(long)]
    pub keep: bool,
    /// Folder of kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy and helm.
    #[arg(long)]
    pub kubernetes: PathBuf,
    /// Folder of the archives of images.
    #[arg(long)]
    pub images: PathBuf,
    /// The chart.
    #[arg(long, default_value = "helm/terway")]
    pub chart: PathBuf,
}

impl UpArgs {
    /// As options of the library.
    ///
    /// # Errors
    /// When this program can not be found.
    pub fn options(&self) -> std::io::Result<BedOptions> {
        Ok(BedOptions {
            nodes: self.nodes,
            dir: std::path::absolute(&self.place.dir)?,
            kubernetes: std::path::absolute(&self.kubernetes)?,
            images: std::path::absolute(&self.images)?,
            sandbox: std::env::current_exe()?,
            port: self.port,
            chart: std::path::absolute(&self.chart)?,
            keep: self.keep,
        })
    }
}
