//! Flows that policy denied lately. The kernel adds them up, by flow, with their packets; nothing is copied per
//! packet. They are read every few seconds, and those that are new are said in the log, a few at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh::tasks::Tasks;
use policy_core::layout::Settings;
use policy_core::layout::names::denied_sets;
use policy_core::plan::Target;
use tokio::time::MissedTickBehavior;

use crate::attachments::Attached;
use crate::enforcer::port::{DumpError, OpenRules, Rules};
use crate::facts::{self, DeniedEntry};
use crate::gate::Gate;
use crate::metrics::Metrics;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(5);
/// Most lines of the log per look.
const LINES: usize = 20;

/// The flows could not be read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("read denied flows: {0}")]
pub struct DeniedError(pub String);

/// A denied flow, and the namespace whose rules denied it.
pub type DeniedAt = (Target, DeniedEntry);

type Identity = (Target, String, IpAddr, IpAddr, u8, u16);

/// Reads denied flows. Clones share the way.
#[derive(Clone)]
pub struct Denied {
    open: OpenRules,
    gate: Gate,
    tasks: Tasks,
}

impl std::fmt::Debug for Denied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Denied").finish_non_exhaustive()
    }
}

impl Denied {
    /// Reads through rules that `open` opens, in the node's namespace and in those of pods that `gate` knows to
    /// have their rules inside.
    pub const fn new(open: OpenRules, gate: Gate, tasks: Tasks) -> Self {
        Self { open, gate, tasks }
    }

    /// All that the kernel remembers, newest first.
    ///
    /// # Errors
    /// [`DeniedError`].
    pub async fn read(&self) -> Result<Vec<DeniedAt>, DeniedError> {
        let open = Arc::clone(&self.open);
        let known = self.gate.known();
        let inside: BTreeSet<Target> = known.iter().filter_map(Attached::own_namespace).collect();
        let reading = self.tasks.spawn_blocking(move || {
            let mut rules = open().map_err(DeniedError)?;
            read(&mut *rules, inside)
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
        let mut said: BTreeMap<Identity, u64> = BTreeMap::new();
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
                    let now: BTreeMap<Identity, u64> =
                        flows.iter().map(|f| (identity(f), f.1.packets)).collect();
                    metrics.denied_packets.inc_by(more(&said, &now));
                    said = now;
                }
                Err(error) => tracing::debug!(%error, "denied flows are not known"),
            }
        }
    }
}

fn read(rules: &mut dyn Rules, inside: BTreeSet<Target>) -> Result<Vec<DeniedAt>, DeniedError> {
    let mut found = Vec::new();
    for target in std::iter::once(Target::Host).chain(inside) {
        for set in denied_sets(&Settings::default()) {
            let elements = match rules.elements(&target, &set.name) {
                Ok(elements) => elements.unwrap_or_default(),
                // Its pod has just ended.
                Err(DumpError::NamespaceGone) => continue,
                Err(DumpError::Failed(why)) => return Err(DeniedError(why)),
            };
            let entries = facts::denied(&elements, &set.key).into_iter();
            found.extend(entries.map(|entry| (target.clone(), entry)));
        }
    }
    found.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.left_ms));
    Ok(found)
}

fn identity((target, flow): &DeniedAt) -> Identity {
    (
        target.clone(),
        flow.link.clone(),
        flow.source,
        flow.destination,
        flow.protocol,
        flow.port,
    )
}

/// Packets that came between two looks. One that was forgotten and denied again meanwhile counts anew.
fn more(before: &BTreeMap<Identity, u64>, now: &BTreeMap<Identity, u64>) -> u64 {
    let grown = now.iter().map(|(flow, packets)| {
        let before = before.get(flow).copied().unwrap_or(0);
        packets.checked_sub(before).unwrap_or(*packets)
    });
    grown.fold(0, u64::saturating_add)
}

fn say(flows: &[DeniedAt], said: &BTreeMap<Identity, u64>) {
    let fresh: Vec<&DeniedAt> = flows
        .iter()
        .filter(|flow| !said.contains_key(&identity(flow)))
        .collect();
    for (target, flow) in fresh.iter().take(LINES) {
        tracing::info!(
            ?target,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: u16) -> Identity {
        let ip = IpAddr::from([10, 0, 0, 1]);
        (Target::Host, "cali1".to_owned(), ip, ip, 6, port)
    }

    #[test]
    fn packets_between_two_looks_are_what_grew_and_what_is_new() {
        let before = BTreeMap::from([(flow(1), 5), (flow(2), 9), (flow(3), 7)]);
        // The second was forgotten and came again, the third is forgotten, the fourth is new.
        let now = BTreeMap::from([(flow(1), 8), (flow(2), 2), (flow(4), 4)]);

        assert_eq!(more(&before, &now), 3 + 2 + 4);
        assert_eq!(more(&now, &now), 0);
    }
}
