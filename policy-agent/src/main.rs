//! The policy agent.

use std::process::ExitCode;

use mesh::run::Service;
use tikv_jemallocator::Jemalloc;

/// A hundred thousand pods are many small things that stay, between others that go at once: with the usual allocator
/// they take a tenth more room, and twice the time of a start.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const SERVICE: Service = Service {
    name: "policy-agent",
    version: env!("CARGO_PKG_VERSION"),
    threads: 1,
};

fn main() -> ExitCode {
    mesh::run::main(SERVICE, policy_agent::app::build)
}
