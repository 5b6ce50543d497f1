//! The node agent.

use std::process::ExitCode;

use mesh::run::Service;

const SERVICE: Service = Service {
    name: "node-agent",
    version: env!("CARGO_PKG_VERSION"),
    threads: 1,
};

fn main() -> ExitCode {
    mesh::run::main(SERVICE, node_agent::app::build)
}
