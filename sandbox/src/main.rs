//! `sandbox`: a cluster on one machine.

use std::process::ExitCode;

use clap::Parser;
use sandbox::args::{Args, Command};
use sandbox::k8s::args::K8sCommand;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::builder()
                .with_default_directive(tracing::Level::WARN.into())
                .from_env_lossy(),
        )
        .init();
    let command = Args::parse().command;
    if let Command::K8s(args) = &command
        && let K8sCommand::Boot { plan } = &args.command
    {
        // Alone in its namespaces, and without threads.
        if let Err(error) = sandbox::k8s::boot::boot(plan) {
            tracing::error!("{error:#}");
        }
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let held = match runtime {
        Ok(runtime) => runtime.block_on(async {
            match &command {
                Command::Up(args) => sandbox::up::up(args, std::io::stdout()).await,
                Command::K8s(args) => {
                    sandbox::k8s::run::run(&args.command, std::io::stdout()).await
                }
            }
        }),
        Err(error) => Err(error.into()),
    };
    match held {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
