//! A storm over denied streams: nothing of them may arrive, whatever happens to the agent and to its tables.
//!
//! Three streams are denied (by ingress at the same node over IPv4, by ingress across nodes over IPv6, by egress) and
//! one is allowed, while every update makes new chains for the policies that deny them, the agent is killed at any
//! moment, between the kernel's answer and the marks, and at its crash points, foreigners flush the ruleset, and pods
//! come and go. One flow is allowed and denied in turn, so that there is something to mark.
//!
//! [`leaky`] runs the same streams against two ways of writing that are known to let packets through, which proves
//! that the harness can see.

mod deaths;
mod leaks;
mod report;
pub mod scene;

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use fabric::shell;
use serde_json::{Value, json};

use crate::bed::Bed;
use crate::bed::agents::Agents;
use crate::bed::enforcer::{Enforcer, Kind};
use crate::never_open::scene::{Scene, Streams};

pub use self::leaks::{Window, leaky, unowned_flush};
pub use self::report::Report;

/// How long an armed agent may take to die.
const DYING: Duration = Duration::from_secs(20);
/// How long the idle control runs.
const IDLE: Duration = Duration::from_secs(1);

/// Deaths at crash points of a full storm.
const CRASHES_LONG: u64 = if cfg!(debug_assertions) { 24 } else { 0 };

/// How much of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Updates that each create chains, at least.
    pub updates: u64,
    /// Denied packets, at least: updates go on until so many were sent.
    pub denied_packets: u64,
    /// SIGKILLs, each followed by a restart: half at no particular moment, half between the kernel's answer and the
    /// marks.
    pub kills: u64,
    /// Deaths at crash points, each followed by a restart. Release builds have none.
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
        crashes: CRASHES_LONG,
        flushes: 100,
        pods: 500,
        rate: 90_000,
    };
}

/// Which of the things that are done to an agent are due, spread evenly over the updates.
fn due(done: u64, wanted: u64, progress: u64, of: u64) -> bool {
    let so_far = progress.saturating_mul(wanted) / of.max(1);
    done < so_far.min(wanted)
}

/// Runs the storm against real agents whose tables are owned.
///
/// # Errors
/// The bed or an agent failed; what leaked is no error but in the report.
pub async fn run(size: Size) -> anyhow::Result<Report> {
    run_with(size, json!({})).await
}

/// The same for agents whose tables nobody owns, as on kernels without the flag. Nobody flushes them:
/// [`unowned_flush`] says what that opens.
///
/// # Errors
/// As [`run`].
pub async fn run_unowned(size: Size) -> anyhow::Result<Report> {
    let size = Size { flushes: 0, ..size };
    run_with(size, json!({"policy": {"owned": false}})).await
}

async fn run_with(size: Size, overrides: Value) -> anyhow::Result<Report> {
    let mut scene = Scene::create(Kind::Agents(overrides)).await?;
    scene.show(0).await?;
    scene.begin_turning()?;
    let mut report = Report::default();
    let idle = scene.streams(size.rate)?;
    tokio::time::sleep(IDLE).await;
    let (denied, allowed) = idle.finish()?;
    report.idle_sent = allowed.sent;
    report.idle_lost = allowed.sent.saturating_sub(allowed.received);
    if denied.received > 0 {
        bail!(
            "{} denied packets arrived before the storm",
            denied.received
        );
    }
    let streams = scene.streams(size.rate)?;
    let started = Instant::now();
    let outcome = storm(&mut scene, size, &streams, &mut report).await;
    report.seconds = started.elapsed().as_secs_f64();
    let (denied, allowed) = streams.finish()?;
    report.take(denied, allowed);
    outcome.with_context(|| format!("after {report:?}"))?;
    Ok(report)
}

async fn storm(
    scene: &mut Scene,
    size: Size,
    streams: &Streams,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut last = agents(&mut scene.bed)?.status(0).await?.transactions;
    while report.updates < size.updates || streams.denied().sent < size.denied_packets {
        let step = report.updates.saturating_add(1);
        scene.show(step).await?;
        report.updates = step;
        let now = agents(&mut scene.bed)?.status(0).await?.transactions;
        report.transactions = report.transactions.saturating_add(now.saturating_sub(last));
        last = now;
        let mut restarted = false;
        if due(report.kills, size.kills, step, size.updates) {
            deaths::kill(scene, &size, report).await?;
            restarted = true;
        }
        if due(report.crashes, size.crashes, step, size.updates) {
            deaths::crash(scene, report).await?;
            restarted = true;
        }
        let alive = size.flushes / 2;
        if due(report.flushes_alive, alive, step, size.updates) {
            flush(scene).await?;
            report.flushes_alive = report.flushes_alive.saturating_add(1);
        }
        if due(report.pods, size.pods, step, size.updates) {
            scene.churn(report.pods).await?;
            report.pods = report.pods.saturating_add(1);
        }
        if restarted {
            last = agents(&mut scene.bed)?.status(0).await?.transactions;
        }
    }
    let even = report.updates.saturating_add(report.updates % 2);
    let asked = Instant::now();
    scene.show(even.saturating_add(2)).await?;
    report.back_last = scene.wait_heard(asked).await?;
    let asked = Instant::now();
    scene.show(even.saturating_add(1)).await?;
    report.cut_last = scene.wait_cut(asked).await?;
    Ok(())
}

fn agents(bed: &mut Bed) -> anyhow::Result<&mut Agents> {
    match bed.enforcer() {
        Enforcer::Agents(agents) => Ok(agents),
        Enforcer::Nobody | Enforcer::Hands(_) => bail!("no agents enforce on this bed"),
    }
}

/// What firewalld or an operator may do.
async fn flush(scene: &Scene) -> anyhow::Result<()> {
    let node = scene.bed.topology.node(0)?;
    shell::nft(&node.namespace, "flush ruleset\n").await?;
    Ok(())
}
