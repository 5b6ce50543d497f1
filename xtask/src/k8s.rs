//! `cargo xtask k8s`: a real Kubernetes on this machine, with the chart on it.

pub(crate) mod binaries;
pub(crate) mod images;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::Subcommand;

use crate::image::Binaries;
use crate::step::{root, run as run_step, say};
use crate::{machine, up};

/// Options of `cargo xtask k8s`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: K8sCommand,
}

#[derive(Debug, Subcommand)]
enum K8sCommand {
    /// Build what is needed, start the cluster, install the chart, print `export KUBECONFIG=…`. With --check: verify
    /// everything, print, tear down.
    Up(Up),
    /// Stop it and remove all that it made.
    Down(Rest),
    /// Say whether it runs, and how its nodes and pods are.
    Status(Rest),
    /// Only provide the programs of Kubernetes and the images.
    Prepare,
}

#[derive(Debug, clap::Args)]
struct Up {
    /// Install the product built with optimisation, as it is released: for figures.
    #[arg(long)]
    release: bool,
    #[command(flatten)]
    rest: Rest,
}

#[derive(Debug, clap::Args)]
struct Rest {
    /// Passed on to `sandbox k8s`, such as --nodes 3, --check, --long, --keep, --dir DIR.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    sandbox: Vec<String>,
}

/// Does what the command line says; the sandbox's exit code is ours.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (word, rest) = match &args.command {
        K8sCommand::Up(up) => ("up", &up.rest),
        K8sCommand::Down(rest) => ("down", rest),
        K8sCommand::Status(rest) => ("status", rest),
        K8sCommand::Prepare => {
            prepare(false)?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    let mut sandbox = Command::new(root()?.join("target/debug/sandbox"));
    sandbox.args(["k8s", word]);
    if word == "up" {
        let release = matches!(&args.command, K8sCommand::Up(up) if up.release);
        let prepared = prepare(release)?;
        sandbox
            .arg("--kubernetes")
            .arg(prepared.programs)
            .arg("--images")
            .arg(prepared.images)
            .arg("--chart")
            .arg(root()?.join("helm/terway"));
    }
    let status = sandbox
        .args(&rest.sandbox)
        .status()
        .with_context(|| format!("start {sandbox:?}"))?;
    Ok(ExitCode::from(
        u8::try_from(status.code().unwrap_or(1)).unwrap_or(1),
    ))
}

/// What the test bed needs besides our binaries.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Folder of Kubernetes' programs.
    pub(crate) programs: PathBuf,
    /// Folder of images.
    pub(crate) images: PathBuf,
}

/// Installs, builds and makes all of it.
fn prepare(release: bool) -> Result<Prepared> {
    machine::prepare()?;
    machine::prepare_kubernetes()?;
    let programs = binaries::provide()?;
    up::build(false)?;
    let images = images::make(&programs, binaries_of(release))?;
    Ok(Prepared { programs, images })
}

/// For the tests: provides everything where it can be had. `None` where not, with the reason said.
///
/// # Errors
/// When it could be had and was not, and always on CI's machine.
pub(crate) fn prepare_for_tests() -> Result<Option<Prepared>> {
    if let Some(why) = binaries::out_of_reach()? {
        anyhow::ensure!(std::env::var_os("CI").is_none(), "{why}");
        say(&format!(
            "SKIPPED, and nothing is proved: tests with a real Kubernetes. {why}"
        ));
        return Ok(None);
    }
    machine::prepare_kubernetes()?;
    let programs = binaries::provide()?;
    let images = images::make(&programs, binaries_of(false))?;
    Ok(Some(Prepared { programs, images }))
}

const fn binaries_of(release: bool) -> Binaries {
    if release {
        Binaries::Static
    } else {
        Binaries::Debug
    }
}

/// Runs a tool and says what it is about.
fn loud(what: &str, command: &mut Command) -> Result<()> {
    say(what);
    run_step(command)
}
