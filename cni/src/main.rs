//! The CNI plug-in `terway`: reads the runtime's call, hands it to the node-agent, prints the answer.
//!
//! It decides nothing and touches no kernel state. It is started for every pod, so it stays small
//! and has one thread. With the argument `install` it puts itself where kubelet looks for it.

mod agent;
mod app;
mod arguments;
mod config;
mod environment;
mod failure;
mod install;
mod journal;
mod outcome;
mod reason;
mod trace;
mod version;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use crate::arguments::Task;

/// Exit code for arguments that are not understood.
///
/// Source: sysexits, EX_USAGE.
const EXIT_USAGE: u8 = 64;

/// This program's own file, also where no path leads to it.
const THIS: &str = "/proc/self/exe";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments::parse(&arguments) {
        Some(Task::Cni) => serve(),
        Some(Task::Install(folder)) => install(&folder),
        Some(Task::Version) => tell(&arguments::version()),
        None => {
            complain(arguments::USAGE);
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn serve() -> ExitCode {
    let reply = app::run();
    // A runtime that closed the pipe does not want to know.
    let told = std::io::stdout().write_all(reply.output.as_bytes()).is_ok();
    if reply.succeeded && told {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn install(folder: &Path) -> ExitCode {
    match install::install(Path::new(THIS), folder) {
        Ok((place, done)) => tell(&format!(
            "{} {}: {}",
            arguments::version(),
            done.as_str(),
            place.display()
        )),
        Err(error) => {
            complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn tell(text: &str) -> ExitCode {
    // Nobody reads a closed stream.
    drop(writeln!(std::io::stdout(), "{text}"));
    ExitCode::SUCCESS
}

fn complain(text: &str) {
    // Nobody reads a closed stream.
    drop(writeln!(std::io::stderr(), "terway: {text}"));
}
