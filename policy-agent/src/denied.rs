//! Flows that policy denied lately. The kernel adds them up, by flow, with their packets; nothing is copied per
//! packet. They are read every few seconds, and those that are new are said in the log, a few at a time.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh::tasks::Tasks;
use policy_core::layout::Settings;
use policy_core::layout::names::denied_sets;
use policy_core::plan::Target;
use tokio::time::MissedTickBehavior;

use crate::enforcer::port::{OpenRules, Rules};
use crate::facts::{self, DeniedEntry};
use crate::metrics::Metrics;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(5);
/// Most lines of the log per look.
const LINES: usize = 20;

/// The flows could not be read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("read denied flows: {0}")]
pub struct DeniedError(pub String);

type Identity = (String, IpAddr, IpAddr, u8, u16);

/// Reads denied flows. Clones share the way.
#[derive(Clone)]
pub struct Denied {
    open: OpenRules,
    tasks: Tasks,
}

impl std::fmt::Debug for Denied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Denied").finish_non_exhaustive()
    }
}

impl Denied {
    /// Reads through rules that `open` opens.
    pub fn new(open: OpenRules, tasks: Tasks) -> Self {
        Self { open, tasks }
    }

    /// All that the kernel remembers, newest first.
    ///
    /// # Errors
    /// [`DeniedError`].
    pub async fn read(&self) -> Result<Vec<DeniedEntry>, DeniedError> {
        let open = Arc::clone(&self.open);
        let reading = self.tasks.spawn_blocking(move || {
            let mut rules = open().map_err(DeniedError)?;
            read(&mut *rules)
        });
        match reading.await {
            Ok(found) => found,
            Err(_) => Err(DeniedError("the reader panicked".to_owned())),
        }
    }

    /// Reads every few seconds, counts, and says what is new, until drain.
    pub async fn run(self, metrics: Metrics) {
        let stopping = self.tasks.stopping();
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said: BTreeSet<Identity> = BTreeSet::new();
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                _ = every.tick() => {}
            }
            match self.read().await {
                Ok(flows) => {
                    let count = i64::try_from(flows.len()).unwrap_or(i64::MAX);
                    metrics.denied_flows.set(count);
                    say(&flows, &said);
                    said = flows.iter().map(identity).collect();
                }
                Err(error) => tracing::debug!(%error, "denied flows are not known"),
            }
        }
    }
}

fn read(rules: &mut dyn Rules) -> Result<Vec<DeniedEntry>, DeniedError> {
    let mut found = Vec::new();
    for set in denied_sets(&Settings::default()) {
        let elements = rules
            .elements(&Target::Host, &set.name)
            .map_err(|e| DeniedError(e.to_string()))?;
        found.extend(facts::denied(&elements.unwrap_or_default(), &set.key));
    }
    found.sort_by_key(|entry: &DeniedEntry| std::cmp::Reverse(entry.left_ms));
    Ok(found)
}

fn identity(flow: &DeniedEntry) -> Identity {
    (
        flow.link.clone(),
        flow.source,
        flow.destination,
        flow.protocol,
        flow.port,
    )
}

fn say(flows: &[DeniedEntry], said: &BTreeSet<Identity>) {
    let fresh: Vec<&DeniedEntry> = flows
        .iter()
        .filter(|flow| !said.contains(&identity(flow)))
        .collect();
    for flow in fresh.iter().take(LINES) {
        tracing::info!(
            link = flow.link,
            source = %flow.source,
            destination = %flow.destination,
            protocol = flow.protocol,
            port = flow.port,
            packets = flow.packets,
            "denied"
        );
    }
    let more = fresh.len().saturating_sub(LINES);
    if more > 0 {
        tracing::info!(more, "denied flows that are not named here");
    }
}
