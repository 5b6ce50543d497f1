//! The tree of commands, and what their ends mean to a shell.
//!
//! A command is a module with an `Args` and a function that takes it; here it is one variant and
//! one arm. Exit codes: 0 done, 1 failed, 64 not understood; `status` has one more.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mesh::run::usage;

use crate::{audit, ca, policy, status};

/// Looks after a Terway Mesh.
#[derive(Debug, Parser)]
#[command(name = "terwayctl", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes certificates: of an authority in a folder, or of the control plane
    Ca(ca::Args),
    /// Compares cloud, shard logs, agents and kernels
    Audit(audit::run::Args),
    /// Says why flows are allowed or denied
    Policy(policy::run::Args),
    /// Says whether the installation is healthy, and what to do if not
    Status(status::run::Args),
}

/// Does what the arguments say and prints what comes of it.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    mesh::tls::install_provider();
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let code = |good: bool| {
        if good {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    };
    let out = &mut std::io::stdout();
    let done = match cli.command {
        Command::Ca(args) => ca::run(&args, out).map(|()| ExitCode::SUCCESS),
        Command::Audit(args) => audit::run::run(&args, out).map(code),
        Command::Policy(args) => policy::run::run(&args, out).map(code),
        Command::Status(args) => status::run::run(&args, out),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            // Nobody reads a closed stream.
            drop(writeln!(std::io::stderr(), "terwayctl: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn command_tree_is_consistent() {
        Cli::command().debug_assert();
    }
}
