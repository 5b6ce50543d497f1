//! The policy agent.

use std::process::ExitCode;

use mesh::run::Service;

const SERVICE: Service = Service {
    name: "policy-agent",
    version: env!("CARGO_PKG_VERSION"),
    threads: 1,
};

fn main() -> ExitCode {
    mesh::run::main(SERVICE, policy_agent::app::build)
}
