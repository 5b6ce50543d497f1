//! A storm over denied streams: nothing of them may arrive, whatever happens to the agent and to its tables.
//!
//! Three streams are denied (by ingress at the same node over IPv4, by ingress across nodes over IPv6, by egress) and
//! one is allowed, while every update makes new chains for the policies that deny them, the agent is killed at any
//! moment and at its crash points, foreigners flush the ruleset, and pods come and go. [`leaky`] runs the same streams
//! against two ways of writing that are known to let packets through, which proves that the harness can see.

pub mod scene;

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use fabric::shell;
use serde_json::json;

use crate::bed::Bed;
use crate::bed::agents::Agents;
use crate::bed::enforcer::{Enforcer, Kind};
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

/// Which of the things that are done to an agent are due, spread evenly over the updates.
fn due(done: u64, wanted: u64, progress: u64, of: u64) -> bool {
    let so_far = progress.saturating_mul(wanted) / of.max(1);
    done < so_far.min(wanted)
}

/// Runs the storm against real agents.
///
/// # Errors
/// The bed or an agent failed; what leaked is no error but in the report.
pub async fn run(size: Size) -> anyhow::Result<Report> {
    let mut scene = Scene::create(Kind::Agents(json!({}))).await?;
    scene.show(0).await?;
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
            kill(scene, size, report).await?;
            restarted = true;
        }
        if due(report.crashes, size.crashes, step, size.updates) {
            crash(scene, report).await?;
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
    Ok(())
}

fn agents(bed: &mut Bed) -> anyhow::Result<&mut Agents> {
    match bed.enforcer() {
        Enforcer::Agents(agents) => Ok(agents),
        Enforcer::Nobody | Enforcer::Hands(_) => bail!("no agents enforce on this bed"),
    }
}

/// Kills the agent while an update is on its way, flushes while it is dead if that is due, and starts it again.
async fn kill(scene: &mut Scene, size: Size, report: &mut Report) -> anyhow::Result<()> {
    let documents = scene.documents(report.updates.saturating_add(1_000_000));
    let agents = agents(&mut scene.bed)?;
    agents.publish(&documents);
    agents.kill(0)?;
    report.kills = report.kills.saturating_add(1);
    let dead = size.flushes / 2;
    if due(report.flushes_dead, dead, report.kills, size.kills) {
        flush(scene).await?;
        report.flushes_dead = report.flushes_dead.saturating_add(1);
    }
    let agents = self::agents(&mut scene.bed)?;
    agents.run(0, &[])?;
    agents.settle().await
}

/// Restarts the agent with a crash point armed, gives it work until it dies there, and starts it again.
async fn crash(scene: &mut Scene, report: &mut Report) -> anyhow::Result<()> {
    let points: Vec<_> = [
        policy_agent::enforcer::CRASH_POINTS,
        policy_agent::revoker::CRASH_POINTS,
    ]
    .concat();
    let which = usize::try_from(report.crashes)?;
    let point = points
        .get(which % points.len())
        .context("there are crash points")?;
    let hits = CRASH_HITS
        .get((which / points.len()) % CRASH_HITS.len())
        .copied()
        .unwrap_or(1);
    let armed = [(mesh::crash::VARIABLE.to_owned(), format!("{point}:{hits}"))];
    agents(&mut scene.bed)?.kill(0)?;
    agents(&mut scene.bed)?.run(0, &armed)?;
    let begun = Instant::now();
    let mut step = 0_u64;
    while !agents(&mut scene.bed)?.has_ended(0)? {
        step = step.saturating_add(1);
        let number = report.crashes.saturating_mul(10_000).saturating_add(step);
        let documents = scene.documents(number.saturating_add(2_000_000));
        agents(&mut scene.bed)?.publish(&documents);
        // The revoker looks some time after a change: each update has time for one look.
        tokio::time::sleep(Duration::from_millis(20)).await;
        if begun.elapsed() > DYING {
            bail!("the agent did not get to {point}:{hits} in {DYING:?}");
        }
    }
    report.crashes = report.crashes.saturating_add(1);
    let agents = agents(&mut scene.bed)?;
    agents.run(0, &[])?;
    agents.settle().await
}

/// What firewalld or an operator may do.
async fn flush(scene: &Scene) -> anyhow::Result<()> {
    let node = scene.bed.topology.node(0)?;
    shell::nft(&node.namespace, "flush ruleset\n").await?;
    Ok(())
}

/// What a foreign flush opens where the kernel has no owned tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Denied packets that arrived.
    pub delivered: u64,
    /// Time from the flush to the last of them; zero when there was none.
    pub open: Duration,
}

/// Flushes the ruleset of an agent whose table nobody owns, as on kernels without the flag, and measures how long
/// what is denied arrives.
///
/// # Errors
/// The bed or the agent failed, or it does not end.
pub async fn unowned_flush(rate: u64) -> anyhow::Result<Window> {
    let mut scene = Scene::create(Kind::Agents(json!({"policy": {"owned": false}}))).await?;
    scene.show(0).await?;
    let streams = scene.streams(rate)?;
    tokio::time::sleep(IDLE).await;
    if streams.denied().received > 0 {
        bail!("denied packets arrived before the flush");
    }
    let flushed = Instant::now();
    flush(&scene).await?;
    let (mut last, mut known) = (flushed, 0);
    while last.elapsed() < QUIET {
        let now = streams.denied().received;
        if now > known {
            (last, known) = (Instant::now(), now);
        }
        if flushed.elapsed() > DYING {
            bail!("{known} denied packets arrived after the flush, and there is no end to it");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (denied, _) = streams.finish()?;
    Ok(Window {
        delivered: denied.received,
        open: last.saturating_duration_since(flushed),
    })
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
