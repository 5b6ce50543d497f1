//! The one front door: `cargo xtask up | test | bench | chart | image | k8s | layers | checklist`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod chart;
mod checklist;
mod image;
mod k8s;
mod layers;
mod machine;
mod step;
mod suite;
mod up;

/// Runs, tests and measures Terway Mesh on this machine.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a cluster on this machine: simulated cloud and VPC, real services, real kernel.
    Up(up::Args),
    /// Install what is missing and pass all tests.
    Test(suite::Args),
    /// Measure against something real, in the same run.
    Bench(bench::Args),
    /// Render the Helm chart for every set of values, and check what it says.
    Chart(chart::Args),
    /// Make an image of every component, without an engine.
    Image(image::Args),
    /// Start a real Kubernetes on this machine, with the chart on it.
    K8s(k8s::Args),
    /// Check that imports point downwards only.
    Layers,
    /// Check that a test names every letter of the checklist of policy semantics.
    Checklist,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Up(args) => up::run(&args),
        Command::Test(args) => suite::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Chart(args) => chart::run(&args),
        Command::Image(args) => image::run(&args),
        Command::K8s(args) => k8s::run(&args),
        Command::Layers => layers::run(),
        Command::Checklist => checklist::run(),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            step::say(&format!("failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
