//! The ways in which the agent dies in the storm.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::scene::Scene;
use super::{DYING, Report, Size, agents, due, flush};

/// How often an agent gets to a crash point before it dies there.
const HITS: [u32; 4] = [1, 2, 3, 5];
/// Between two updates for an agent that is to die at a crash point.
const WORK: Duration = Duration::from_millis(20);
/// How long a flow that was not marked is listened to: it speaks every few milliseconds.
const LISTEN: Duration = Duration::from_millis(200);

/// Kills the agent: while an update is on its way, or between the kernel's answer and the marks. Flushes while it is
/// dead if that is due, and starts it again.
pub(super) async fn kill(
    scene: &mut Scene,
    size: &Size,
    report: &mut Report,
) -> anyhow::Result<()> {
    let aimed = report.kills % 2 == 1;
    report.kills = report.kills.saturating_add(1);
    if aimed {
        shut(scene, report).await?;
    } else {
        let documents = scene.documents(report.updates.saturating_add(1_000_001));
        let agents = agents(&mut scene.bed)?;
        agents.publish(&documents);
        agents.kill(0)?;
    }
    if aimed {
        listen(scene, report).await?;
    }
    let dead = size.flushes / 2;
    if due(report.flushes_dead, dead, report.kills, size.kills) {
        flush(scene).await?;
        report.flushes_dead = report.flushes_dead.saturating_add(1);
    }
    let agents = agents(&mut scene.bed)?;
    agents.run(0, &[])?;
    agents.settle().await?;
    if aimed {
        let cut = scene.wait_cut(Instant::now()).await?;
        report.cut = report.cut.max(cut);
    }
    Ok(())
}

/// Opens the door, shuts it as soon as flows were looked at, and kills as soon as the kernel has that: the next look
/// has to keep a pause.
async fn shut(scene: &mut Scene, report: &Report) -> anyhow::Result<()> {
    let number = report.kills.saturating_mul(2);
    let asked = Instant::now();
    scene.show(number.saturating_add(3_000_000)).await?;
    scene.wait_heard(asked).await?;
    scene.show(number.saturating_add(3_000_001)).await?;
    agents(&mut scene.bed)?.kill(0)
}

/// Counts the kill when the flow that is denied now is heard after it.
async fn listen(scene: &Scene, report: &mut Report) -> anyhow::Result<()> {
    // A word that was on its way when the agent died is none.
    let killed = Instant::now() + LISTEN / 4;
    while killed.elapsed() < LISTEN {
        if scene.last_heard()? > killed {
            report.kills_unmarked = report.kills_unmarked.saturating_add(1);
            break;
        }
        tokio::time::sleep(LISTEN / 40).await;
    }
    Ok(())
}

/// Restarts the agent with a crash point armed, gives it work until it dies there, and starts it again.
pub(super) async fn crash(scene: &mut Scene, report: &mut Report) -> anyhow::Result<()> {
    let points: Vec<_> = [
        policy_agent::enforcer::CRASH_POINTS,
        policy_agent::revoker::CRASH_POINTS,
    ]
    .concat();
    let which = usize::try_from(report.crashes)?;
    let point = points
        .get(which % points.len())
        .context("there are crash points")?;
    let hits = HITS
        .get((which / points.len()) % HITS.len())
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
        // The revoker looks some time after a change: the door is open at one look and shut at another.
        tokio::time::sleep(WORK).await;
        if begun.elapsed() > DYING {
            let log = agents(&mut scene.bed)?.log(0);
            bail!("the agent did not get to {point}:{hits} in {DYING:?}\n{log}");
        }
    }
    report.crashes = report.crashes.saturating_add(1);
    let agents = agents(&mut scene.bed)?;
    agents.run(0, &[])?;
    agents.settle().await
}
