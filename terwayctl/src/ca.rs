//! `terwayctl ca`: a certificate authority in a folder and certificates from it, and certificates from the control
//! plane.
//!
//! [`keep`] is the command that fetches and renews; [`ask`] is one question, [`proof`] the instance's word, [`folder`]
//! the files, [`schedule`] the times.

pub mod ask;
pub mod folder;
pub mod keep;
pub mod proof;
pub mod schedule;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use mesh::ca::{Authority, Leaf};
use mesh::clock;
use mesh::identity::Identity;

/// Life of the root unless said otherwise, in days: ten years.
const ROOT_DAYS: u32 = 3650;

/// Life of a certificate unless said otherwise, in days.
///
/// Source: IPAM design, §8: leaves of 24 hours where somebody renews them. Nobody does so for
/// files made by hand, so they live longer.
const LEAF_DAYS: u32 = 30;

/// Arguments of `terwayctl ca`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Makes a new authority: DIR/ca.crt and DIR/ca.key
    Init {
        /// Folder of the authority; made if it is not there
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Life of the root
        #[arg(long, value_name = "N", default_value_t = ROOT_DAYS, value_parser = days())]
        days: u32,
    },
    /// Issues a certificate with a fresh key: OUT/ca.crt, OUT/tls.crt and OUT/tls.key
    Issue {
        /// Folder of the authority
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Folder for the certificate; made if it is not there
        #[arg(long, value_name = "OUT")]
        out: PathBuf,
        /// Who it is for, such as `spiffe://terway.local/gateway/g1`
        #[arg(long, value_name = "URI")]
        identity: Identity,
        /// A DNS name or IP address besides, as etcd needs it; may be repeated
        #[arg(long = "san", value_name = "NAME")]
        sans: Vec<String>,
        /// Life of the certificate
        #[arg(long, value_name = "N", default_value_t = LEAF_DAYS, value_parser = days())]
        days: u32,
    },
    /// Fetches a certificate from the control plane, and renews it until it is ended
    Keep(keep::Args),
    /// Says whether there is a certificate that is valid now
    Check {
        /// Folder with ca.crt, tls.crt and tls.key
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
}

/// A day to a hundred years.
fn days() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=36_500)
}

/// Does it, and says on `output` what was made.
///
/// # Errors
/// Whatever failed, naming the file.
pub fn run(args: &Args, output: &mut dyn Write) -> anyhow::Result<()> {
    match &args.verb {
        Verb::Init { dir, days } => {
            Authority::init(dir, life(*days)).context("make a certificate authority")?;
            writeln!(output, "{}: certificate authority made", dir.display())?;
        }
        Verb::Issue {
            dir,
            out,
            identity,
            sans,
            days,
        } => {
            let authority = Authority::load(dir).context("open the certificate authority")?;
            let leaf = sans
                .iter()
                .fold(Leaf::new(identity, life(*days)), Leaf::host);
            let issued = authority.issue(&leaf).context("issue a certificate")?;
            issued.write(out).context("write the certificate")?;
            writeln!(output, "{}: certificate for {identity}", out.display())?;
        }
        Verb::Keep(args) => keep::run(args)?,
        Verb::Check { dir } => {
            let (identity, end) = folder::check(dir)?;
            let left = schedule::until(end, clock::wall());
            writeln!(
                output,
                "{}: certificate for {identity}, valid for {} minutes",
                dir.display(),
                left.as_secs() / 60
            )?;
        }
    }
    Ok(())
}

fn life(days: u32) -> Duration {
    Duration::from_hours(24 * u64::from(days))
}
