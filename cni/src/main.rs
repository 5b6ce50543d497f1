//! The CNI plug-in `terway`: reads the runtime's call, hands it to the node-agent, prints the answer.
//!
//! It decides nothing and touches no kernel state. It is started for every pod, so it stays small
//! and has one thread.

mod agent;
mod app;
mod config;
mod environment;
mod failure;
mod journal;
mod outcome;
mod reason;
mod trace;
mod version;

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let reply = app::run();
    // A runtime that closed the pipe does not want to know.
    let told = std::io::stdout().write_all(reply.output.as_bytes()).is_ok();
    if reply.succeeded && told {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
