//! `cargo xtask up`: build, then hand over to the sandbox.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::machine;
use crate::step::{cargo, root, run as run_step, say};

/// Options of `cargo xtask up`; what follows is the sandbox's.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Build with optimisation.
    #[arg(long)]
    release: bool,
    /// Passed on to `sandbox up`, such as --check, --store etcd, --nodes 3.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    sandbox: Vec<String>,
}

/// Builds and starts the sandbox; its exit code is ours.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    machine::prepare()?;
    let profile = build(args.release)?;
    let bin = root()?.join("target").join(profile);
    let mut sandbox = Command::new(bin.join("sandbox"));
    sandbox
        .arg("up")
        .arg("--bin-dir")
        .arg(&bin)
        .args(&args.sandbox);
    let status = sandbox
        .status()
        .with_context(|| format!("start {sandbox:?}"))?;
    Ok(ExitCode::from(
        u8::try_from(status.code().unwrap_or(1)).unwrap_or(1),
    ))
}

/// Builds every binary of the workspace; gives the profile's folder below `target`.
pub(crate) fn build(release: bool) -> Result<&'static str> {
    say("building (the first time takes a few minutes)");
    let mut build = cargo()?;
    build.args(["build", "--workspace", "--bins", "--locked"]);
    if release {
        build.arg("--release");
    }
    run_step(&mut build)?;
    Ok(if release { "release" } else { "debug" })
}
