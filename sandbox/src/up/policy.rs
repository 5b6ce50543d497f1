//! The part of policy in `up`: who is denied and why, and what it costs a pod that starts.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;

use super::{DETAILS, SPAN_LIMIT};
use crate::cluster::Cluster;
use crate::options::Service;
use crate::percentile::Durations;
use crate::policy_proof::{self, Connection};
use crate::report::Report;
use crate::{echo, process};

/// The span of an ADD that waits for policy.
const WAIT_SPAN: &str = "agent.policy";
/// Where an explanation goes on with what the kernel has.
const KERNEL: &str = "kernel:";

/// Shows one policy: who may not reach the server does not, over both families, and it is said why.
pub(super) async fn check<W: Write>(
    cluster: &Cluster,
    report: &mut Report<W>,
) -> anyhow::Result<()> {
    report.step("a policy: default deny, and one label that is allowed");
    let proof = policy_proof::prove(cluster).await?;
    let head = ["from", "source", "to", "destination", "port", "verdict"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(proof.allowed.iter().chain(&proof.denied).map(row));
    report.table(&rows);
    let count =
        |of: &[Connection], so: fn(&Connection) -> bool| of.iter().filter(|c| so(c)).count();
    let text = format!(
        "{} of {} connections with the label pass, {} of {} without are dropped; in force {} ms after they were written",
        count(&proof.allowed, Connection::is_allowed),
        proof.allowed.len(),
        count(&proof.denied, Connection::is_denied),
        proof.denied.len(),
        proof.took.as_millis(),
    );
    report.check(proof.holds(), &text);
    if !proof.holds() {
        report.details(&[format!("{proof:?}")], 1);
    }
    report.check(
        proof.is_explained(),
        "terwayctl policy explain names what denies",
    );
    let words = proof.reasons.iter();
    let words: Vec<_> = words
        .take_while(|line| line.trim() != KERNEL)
        .cloned()
        .collect();
    report.details(&words, DETAILS);
    Ok(())
}

fn row(connection: &Connection) -> Vec<String> {
    let attempt = &connection.attempt;
    let verdict = if connection.is_allowed() {
        "allowed".to_owned()
    } else if connection.is_denied() {
        format!("denied (packets dropped: {})", connection.dropped)
    } else {
        format!(
            "{:?} (packets dropped: {})",
            attempt.outcome, connection.dropped
        )
    };
    vec![
        attempt.from.clone(),
        connection.source.to_string(),
        attempt.to.clone(),
        attempt.target.to_string(),
        echo::PORT.to_string(),
        verdict,
    ]
}

/// What is known before pods come and go.
#[derive(Debug)]
pub(super) struct Before {
    /// Milliseconds since 1970.
    at_ms: u64,
    /// CPU time of all policy agents.
    cpu: Duration,
}

/// Looks at the clocks before pods come and go.
pub(super) async fn before(cluster: &Cluster) -> anyhow::Result<Before> {
    Ok(Before {
        at_ms: mesh::clock::wall_ms(),
        cpu: cpu_of_agents(cluster).await?,
    })
}

async fn cpu_of_agents(cluster: &Cluster) -> anyhow::Result<Duration> {
    let mut all = Duration::ZERO;
    for node in 1..=cluster.nodes().len() {
        let service = Service::Policy(node);
        let pid = cluster.pid(service).await;
        let pid = pid.with_context(|| format!("{service} does not run"))?;
        all += process::cpu(pid).with_context(|| format!("look at {service}"))?;
    }
    Ok(all)
}

/// Shows how much of these ADDs was spent on waiting for policy, and what a pod that came and went cost its agent.
pub(super) async fn check_cost<W: Write>(
    cluster: &Cluster,
    adds: &Durations,
    before: &Before,
    report: &mut Report<W>,
) -> anyhow::Result<()> {
    let cpu = cpu_of_agents(cluster).await?.saturating_sub(before.cpu);
    let deadline = tokio::time::Instant::now() + SPAN_LIMIT;
    let mut look = tokio::time::interval(Duration::from_millis(100));
    let waits = loop {
        look.tick().await;
        let spans = cluster.traces()?.into_iter();
        let waits =
            spans.filter(|s| s.name == WAIT_SPAN && s.start_unix_nano / 1_000_000 >= before.at_ms);
        let waits: Vec<_> = waits.map(|s| s.duration()).collect();
        // Spans take a moment to their files.
        if waits.len() >= adds.count() || tokio::time::Instant::now() >= deadline {
            break Durations::new(waits);
        }
    };
    let ms = |d: Duration| format!("{:.1} ms", d.as_secs_f64() * 1e3);
    let pods = u32::try_from(adds.count()).unwrap_or(u32::MAX).max(1);
    let text = format!(
        "{} of these {} ADDs waited for their policy: p50 {}, p99 {}; a pod that came and went took {} of its policy agent's CPU",
        waits.count(),
        adds.count(),
        ms(waits.percentile(50)),
        ms(waits.percentile(99)),
        ms(cpu / pods),
    );
    report.check(waits.count() >= adds.count(), &text);
    Ok(())
}
