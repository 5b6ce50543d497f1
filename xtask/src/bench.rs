//! `cargo xtask bench`: ours against something real, alternately, in the same run.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::step::{cargo, root, run as run_step, say};
use crate::{machine, up};

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// ADD and DEL of our plug-in against Debian's ptp with host-local.
    Cni {
        /// Rounds; each is an ADD and a DEL of either side.
        #[arg(long, default_value_t = 300)]
        rounds: u32,
    },
    /// What policy costs per packet, per event, in memory and after a restart.
    Policy {
        /// The never-open suite at its full size as well: half an hour and more.
        #[arg(long)]
        long: bool,
        /// A part alone: packets, events, crowd or members; may be given several times.
        #[arg(long = "only")]
        parts: Vec<String>,
    },
}

/// Builds with optimisation and runs the benchmark.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    machine::prepare()?;
    let profile = up::build(true)?;
    let target = root()?.join("target");
    match &args.what {
        What::Cni { rounds } => {
            build_small_plugin()?;
            let bin = target.join(profile);
            let mut bench = Command::new(bin.join("loadtests"));
            bench
                .arg("cni")
                .arg("--bin-dir")
                .arg(&bin)
                .arg("--plugin")
                .arg(target.join("cni").join("terway"))
                .arg("--rounds")
                .arg(rounds.to_string());
            finish(bench)
        }
        What::Policy { long, parts } => {
            let mut bench = Command::new(target.join(profile).join("loadtests"));
            bench.arg("policy").args(long.then_some("--long"));
            for part in parts {
                bench.arg("--only").arg(part);
            }
            finish(bench)
        }
    }
}

/// Runs the benchmark; its exit code is ours.
fn finish(mut bench: Command) -> Result<ExitCode> {
    let status = bench.status().with_context(|| format!("start {bench:?}"))?;
    Ok(ExitCode::from(
        u8::try_from(status.code().unwrap_or(1)).unwrap_or(1),
    ))
}

/// The plug-in as it is shipped: its own profile, made for size.
pub(crate) fn build_small_plugin() -> Result<()> {
    say("building the plug-in for size");
    run_step(cargo()?.args(["build", "-p", "cni", "--profile", "cni", "--locked"]))
}
