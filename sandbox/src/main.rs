//! `sandbox`: a cluster on one machine.

use std::process::ExitCode;

use clap::Parser;
use sandbox::args::{Args, Command};

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::builder()
                .with_default_directive(tracing::Level::WARN.into())
                .from_env_lossy(),
        )
        .init();
    let Command::Up(args) = Args::parse().command;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let held = match runtime {
        Ok(runtime) => runtime.block_on(sandbox::up::up(&args, std::io::stdout())),
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
