//! The ECS and VPC OpenAPI and the metadata service, simulated.

use std::process::ExitCode;

use clap::Parser;
use ecs_sim::app::{Args, refuse, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match Args::try_parse() {
        Ok(args) => run(args).await,
        Err(err) => refuse(&err),
    }
}
