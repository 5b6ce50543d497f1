//! The ECS and VPC OpenAPI and the metadata service, simulated.

use std::process::ExitCode;

use clap::Parser;
use ecs_sim::app::{Args, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    run(Args::parse()).await
}
