//! What came of a storm, and what it promises.

use std::time::Duration;

use super::Size;
use crate::stream::Count;

/// How long a flow that policy denies now may live on, and one that it allows again may be silent.
const GOAL: Duration = Duration::from_secs(1);

/// What came of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// Denied packets that were sent.
    pub denied_sent: u64,
    /// Denied packets that arrived; 0 is the only good number.
    pub denied_delivered: u64,
    /// Allowed packets that were sent during the storm.
    pub allowed_sent: u64,
    /// Allowed packets of the storm that did not arrive.
    pub allowed_lost: u64,
    /// Allowed packets that were sent before the storm.
    pub idle_sent: u64,
    /// Allowed packets of the time before the storm that did not arrive.
    pub idle_lost: u64,
    /// Updates that were in the kernel when the next thing happened.
    pub updates: u64,
    /// Transactions by which they came there, as far as agents that lived on could say.
    pub transactions: u64,
    /// SIGKILLs.
    pub kills: u64,
    /// SIGKILLs after the kernel's answer after which a flow that this answer denied was still heard: its mark was
    /// not set.
    pub kills_unmarked: u64,
    /// Deaths at crash points.
    pub crashes: u64,
    /// Foreign flushes with the agent alive.
    pub flushes_alive: u64,
    /// Foreign flushes with the agent dead.
    pub flushes_dead: u64,
    /// Pods started and stopped.
    pub pods: u64,
    /// Longest time from the end of a restart to the last word of a flow that was denied before.
    pub cut: Duration,
    /// Time from the last update to the last word of a flow that it denies.
    pub cut_last: Duration,
    /// Time from the update that allowed that flow once more to its next word.
    pub back_last: Duration,
    /// How long the storm took, in seconds.
    pub seconds: f64,
}

impl Report {
    /// Denied packets in a second.
    pub fn rate(&self) -> f64 {
        let sent = u32::try_from(self.denied_sent).unwrap_or(u32::MAX);
        f64::from(sent) / self.seconds.max(0.001)
    }

    /// Foreign flushes.
    pub const fn flushes(&self) -> u64 {
        self.flushes_alive.saturating_add(self.flushes_dead)
    }

    pub(super) fn take(&mut self, denied: Count, allowed: Count) {
        self.denied_sent = denied.sent;
        self.denied_delivered = denied.received;
        self.allowed_sent = allowed.sent;
        self.allowed_lost = allowed.sent.saturating_sub(allowed.received);
    }

    /// What a storm of that size promises: whether it was kept, and the figures.
    pub fn promises(&self, size: &Size) -> Vec<(bool, String)> {
        vec![
            self.nothing_delivered(size),
            self.updates_made_chains(size),
            self.all_happened(size),
            self.died_before_the_mark(),
            self.allowed_passed(),
            self.turned(),
        ]
    }

    fn nothing_delivered(&self, size: &Size) -> (bool, String) {
        let kept = self.denied_delivered == 0 && self.denied_sent >= size.denied_packets;
        let text = format!(
            "{} of {} denied packets delivered (at {:.0} a second for {:.0} s)",
            self.denied_delivered,
            self.denied_sent,
            self.rate(),
            self.seconds
        );
        (kept, text)
    }

    fn updates_made_chains(&self, size: &Size) -> (bool, String) {
        // One that creates chains, and one that moves elements to them.
        let kept =
            self.updates >= size.updates && self.transactions >= size.updates.saturating_mul(2);
        let text = format!(
            "{} updates, each creating chains, by {} transactions",
            self.updates, self.transactions
        );
        (kept, text)
    }

    fn all_happened(&self, size: &Size) -> (bool, String) {
        let kept = self.kills >= size.kills
            && self.crashes >= size.crashes
            && self.flushes() >= size.flushes
            && self.pods >= size.pods;
        let text = format!(
            "{} SIGKILLs and {} deaths at crash points; {} foreign flushes with the agent alive, {} with it dead; \
             {} pods came and went",
            self.kills, self.crashes, self.flushes_alive, self.flushes_dead, self.pods
        );
        (kept, text)
    }

    fn died_before_the_mark(&self) -> (bool, String) {
        // Half of the kills are aimed there.
        let kept = self.kills_unmarked.saturating_mul(4) >= self.kills;
        let text = format!(
            "{} of {} SIGKILLs fell between the kernel's answer and the mark",
            self.kills_unmarked, self.kills
        );
        (kept, text)
    }

    fn allowed_passed(&self) -> (bool, String) {
        // What the idle control loses, the machine loses; beyond that nothing may be lost.
        let share = (self.allowed_sent / self.idle_sent.max(1)).saturating_add(1);
        let kept =
            self.allowed_sent > 0 && self.allowed_lost <= self.idle_lost.saturating_mul(share);
        let text = format!(
            "{} of {} allowed packets lost, {} of {} while nothing changed",
            self.allowed_lost, self.allowed_sent, self.idle_lost, self.idle_sent
        );
        (kept, text)
    }

    fn turned(&self) -> (bool, String) {
        let kept = self.cut <= GOAL && self.cut_last <= GOAL && self.back_last <= GOAL;
        let text = format!(
            "a flow that is denied and allowed in turn is cut after {:?} (after a restart at most {:?}), and back after {:?}",
            self.cut_last, self.cut, self.back_last
        );
        (kept, text)
    }
}
