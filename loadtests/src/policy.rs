//! What policy costs: per packet, per event, in memory, and after a restart.
//!
//! Every figure stands beside a control of the same run: conntrack with one accept for established flows, an empty
//! transaction, or `nft` itself. Packets are sent and received by one thread, whose CPU time is counted, so that
//! neighbours on the machine hardly matter.

mod events;
mod flows;
mod packets;
mod scale;
mod watcher;
mod world;

use anyhow::{Context as _, Result};

use crate::report::line;

/// What to run.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// The full size of the never-open suite as well.
    pub(crate) long: bool,
    /// These parts alone; none named: all.
    pub(crate) parts: Vec<Part>,
}

/// A part of the benchmark, for who works on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// What a packet costs.
    Packets,
    /// What an event costs.
    Events,
    /// A large cluster in view: memory, steady load, warm restart.
    Crowd,
    /// Sets with a million members: cold start.
    Members,
}

impl Setup {
    fn has(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }
}

/// Promises that were kept and that were not.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    broken: usize,
}

impl Promises {
    /// Notes one and prints it.
    pub(crate) fn check(&mut self, kept: bool, text: &str) {
        let word = if kept { "holds" } else { "BROKEN" };
        line(&format!("{word:>7}  {text}"));
        self.broken += usize::from(!kept);
    }
}

/// Runs and prints; whether all promises held.
pub(crate) async fn run(setup: &Setup) -> Result<bool> {
    let mut promises = Promises::default();
    line(&format!("load average at the start: {}", load()?));
    if setup.has(Part::Packets) {
        line("packets, ns of CPU per packet");
        packets::run(&mut promises).await?;
    }
    if setup.has(Part::Events) {
        line("events, 100 local pods, 100,000 elsewhere");
        events::run(&mut promises).await?;
    }
    if setup.has(Part::Crowd) {
        line("a large cluster");
        scale::crowded(&mut promises).await?;
    }
    if setup.has(Part::Members) {
        line("a million members");
        scale::members(&mut promises).await?;
    }
    if setup.long {
        line("never open, full size");
        world::never_open(&mut promises).await?;
    }
    line(&format!("load average at the end: {}", load()?));
    line(&format!("{} promises broken", promises.broken));
    Ok(promises.broken == 0)
}

/// How busy the machine is: over 1, 5 and 15 minutes.
fn load() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg").context("read the load average")?;
    Ok(text.split(' ').take(3).collect::<Vec<_>>().join(" "))
}
