//! The `controlplane` binary.

use std::process::ExitCode;

use controlplane::app;
use mesh::run::{Service, main as run};

fn main() -> ExitCode {
    let service = Service {
        name: "controlplane",
        version: env!("CARGO_PKG_VERSION"),
        threads: 2,
    };
    run(service, app::build)
}
