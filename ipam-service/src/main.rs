//! The `ipam-service` binary.

use std::process::ExitCode;

use ipam_service::app;
use mesh::run::{Service, main as run};

fn main() -> ExitCode {
    let service = Service {
        name: "ipam-service",
        version: env!("CARGO_PKG_VERSION"),
        threads: 2,
    };
    run(service, app::build)
}
