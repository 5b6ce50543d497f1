//! The `cloud-gateway` binary.

use std::process::ExitCode;

use cloud_gateway::app;
use mesh::run::{Service, main as run};

fn main() -> ExitCode {
    let service = Service {
        name: "cloud-gateway",
        version: env!("CARGO_PKG_VERSION"),
        threads: 2,
    };
    run(service, app::build)
}
