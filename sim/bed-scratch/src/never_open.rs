//! A storm over denied streams: nothing of them may arrive, whatever happens to the agent and to its tables.
//!
//! Three streams are denied (by ingress at the same node over IPv4, by ingress across nodes over IPv6, by egress) and
//! one is allowed, while every update makes new chains for the policies that deny them, the agent is killed at any
//! moment and at its crash points, foreigners flush the ruleset, and pods come and go. [`leaky`] runs the same streams
//! against two ways of writing that are known to let packets through, which proves that the harness can see.

pub mod scene;

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::json;

use crate::bed::Bed;
use crate::bed::enforcer::Kind;
use crate::bed::hand::Manner;
use crate::never_open::scene::{Scene, Streams};
use crate::stream::Count;

/// Where an agent can be made to die, and how often it gets there before it does.
const CRASH_HITS: [u32; 4] = [1, 2, 3, 5];
/// How long an armed agent may take to die.
const DYING: Duration = Duration::from_secs(20);
/// When nothing arrived for so long, the window is closed.
const QUIET: Duration = Duration::from_secs(2);
/// How long the idle control runs.
const IDLE: Duration = Duration::from_secs(1);

/// How much of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Updates that each create chains, at least.
    pub updates: u64,
    /// Denied packets, at least: updates go on until so many were sent.
    pub denied_packets: u64,
    /// SIGKILLs at no particular moment, each followed by a restart.
    pub kills: u64,
    /// Deaths at crash points, each followed by a restart.
    pub crashes: u64,
    /// `nft flush ruleset` by somebody else: half with the agent alive, half with it dead.
    pub flushes: u64,
    /// Pods started and stopped.
    pub pods: u64,
    /// Denied packets in a second, of all streams together.
    pub rate: u64,
}

impl Size {
    /// What a CI run does.
    pub const CI: Self = Self {
        updates: 600,
        denied_packets: 600_000,
        kills: 10,
        crashes: 8,
        flushes: 6,
        pods: 20,
        rate: 90_000,
    };

    /// The full size.
    pub const LONG: Self = Self {
        updates: 10_000,
        denied_packets: 5_000_000,
        kills: 100,
        crashes: 24,
        flushes: 100,
        pods: 500,
        rate: 90_000,
    };
}

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
    /// Deaths at crash points.
    pub crashes: u64,
    /// Foreign flushes with the agent alive.
    pub flushes_alive: u64,
    /// Foreign flushes with the agent dead.
    pub flushes_dead: u64,
    /// Pods started and stopped.
    pub pods: u64,
    /// How long the storm took, in seconds.
    pub seconds: f64,
}

impl Report {
    /// Denied packets in a second.
    pub fn rate(&self) -> f64 {
        let sent = u32::try_from(self.denied_sent).unwrap_or(u32::MAX);
        f64::from(sent) / self.seconds.max(0.001)
    }

    fn take(&mut self, denied: Count, allowed: Count) {
        self.denied_sent = denied.sent;
        self.denied_delivered = denied.received;
        self.allowed_sent = allowed.sent;
        self.allowed_lost = allowed.sent.saturating_sub(allowed.received);
    }
}

/// Runs updates written in one manner, until something leaks or `updates` are done.
///
/// `neighbour` rules of another tool stand before ours in the same hooks: they accept everything, and a packet takes
/// its time with them. With enough of them a packet that has entered a hook before a transaction comes to our chain
/// after it, as it may on any busy node.
///
/// # Errors
/// The bed failed.
pub async fn leaky(
    manner: Manner,
    updates: u64,
    rate: u64,
    neighbour: u32,
) -> anyhow::Result<Report> {
    let mut scene = Scene::create(Kind::Hands(manner)).await?;
    scene.show(0).await?;
    scene.add_neighbour(neighbour).await?;
    let streams = scene.streams(rate)?;
    let started = Instant::now();
    let mut report = Report::default();
    while report.updates < updates && streams.denied().received == 0 {
        report.updates = report.updates.saturating_add(1);
        scene.show(report.updates).await?;
    }
    report.seconds = started.elapsed().as_secs_f64();
    let (denied, allowed) = streams.finish()?;
    report.take(denied, allowed);
    Ok(report)
}
