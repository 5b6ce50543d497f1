//! What does leak: ways of writing that others use, and a foreign flush where tables have no owner.

use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::json;

use super::scene::Scene;
use super::{DYING, IDLE, Report, flush};
use crate::bed::enforcer::Kind;
use crate::bed::hand::Manner;

/// When nothing arrived for so long, the window is closed.
const QUIET: Duration = Duration::from_secs(2);

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
/// `neighbour` rules of another tool stand at the end of each way before ours in the same hook: they accept
/// everything, and a packet takes its time with them. So a packet that has entered the hook before a transaction
/// comes to our chains after it, as it may on any busy node; it goes on with the chains that were there when it
/// entered. `rate` is that of the denied streams together, and has to leave the machine time when packets are slow.
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
