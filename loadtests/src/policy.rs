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
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    /// The full size of the never-open suite as well.
    pub(crate) long: bool,
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
    line("packets, ns of CPU per packet");
    packets::run(&mut promises).await?;
    line("events");
    events::run(&mut promises).await?;
    line("scale");
    scale::run(&mut promises).await?;
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
