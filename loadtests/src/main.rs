//! The load suite and the benchmarks against peers.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod cni;
mod cost;
mod policy;
mod report;

#[derive(Debug, Parser)]
#[command(name = "loadtests")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// ADD and DEL of our plug-in against Debian's ptp with host-local, alternately.
    Cni {
        /// Where our binaries are.
        #[arg(long)]
        bin_dir: PathBuf,
        /// The plug-in as it is shipped.
        #[arg(long)]
        plugin: PathBuf,
        /// Where Debian's plug-ins are.
        #[arg(long, default_value = "/usr/lib/cni")]
        peers: PathBuf,
        /// Rounds; each is an ADD and a DEL of either side.
        #[arg(long, default_value_t = 300)]
        rounds: u32,
    },
    /// What policy costs, beside controls of the same run.
    Policy {
        /// The never-open suite at its full size as well.
        #[arg(long)]
        long: bool,
        /// A part alone; may be given several times.
        #[arg(long = "only", value_enum)]
        parts: Vec<policy::Part>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return report::failed(&error.into()),
    };
    let outcome = match cli.what {
        What::Cni {
            bin_dir,
            plugin,
            peers,
            rounds,
        } => runtime.block_on(cni::run(&cni::Setup {
            bin_dir,
            plugin,
            peers,
            rounds,
        })),
        What::Policy { long, parts } => {
            runtime.block_on(policy::run(&policy::Setup { long, parts }))
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => report::failed(&error),
    }
}
