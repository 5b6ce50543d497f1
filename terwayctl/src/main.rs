//! The command line for people.

use std::process::ExitCode;

fn main() -> ExitCode {
    terwayctl::command::run(std::env::args_os())
}
