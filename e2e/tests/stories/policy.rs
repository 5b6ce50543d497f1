//! Policy through the whole system: from manifests and ADD to the kernel, whatever becomes of the agents.

mod feeds;
mod restarts;
mod starts;
mod switches;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::story::eventually;
use proto::policy::v1::StatusResponse;
use sandbox::cluster::Cluster;
use sandbox::options::ClusterOptions;
use sandbox::pods::Pod;
use sandbox::policy_kernel::dropped;
use sandbox::policy_proof::{allow_label, default_deny};
use sandbox::reachability::{Matrix, all_pairs};
use serde_json::Value;

/// How long anything may take that should come about.
const LIMIT: Duration = Duration::from_secs(20);
/// How long a connection is tried.
const DIAL: Duration = Duration::from_millis(800);
/// The namespace of these stories.
const SPACE: &str = "guarded";
/// Labels of who is protected.
const SERVER: &[(&str, &str)] = &[("app", "server")];
/// Labels of who may reach it.
const FRIEND: &[(&str, &str)] = &[("access", "granted")];

fn with_nodes(nodes: usize) -> ClusterOptions {
    ClusterOptions {
        nodes,
        zones: 1,
        plain_hosts: 0,
        ..ClusterOptions::default()
    }
}

async fn status(
    cluster: &Cluster,
    node: usize,
    so: impl Fn(&StatusResponse) -> bool,
) -> Result<()> {
    eventually(LIMIT, async || {
        let status = cluster.policy_status(node).await?;
        ensure!(so(&status), "the policy agent says {status:?}");
        Ok(())
    })
    .await
}

/// Writes policies and waits until the agents of all nodes have them.
async fn apply(cluster: &Cluster, policies: &[Value]) -> Result<()> {
    for policy in policies {
        cluster.apply(policy)?;
    }
    for node in 1..=cluster.nodes().len() {
        status(cluster, node, |s| {
            usize::try_from(s.policies).is_ok_and(|n| n == policies.len()) && s.applied == s.seen
        })
        .await?;
    }
    Ok(())
}

fn guarded() -> [Value; 2] {
    [default_deny(SPACE), allow_label(SPACE, "access", "granted")]
}

async fn pod(cluster: &Cluster, node: usize, name: &str, labels: &[(&str, &str)]) -> Result<Pod> {
    cluster.create_labelled_pod(node, SPACE, name, labels).await
}

async fn dial(from: &Pod, to: &Pod) -> Result<Matrix> {
    let matrix = all_pairs(&[from.place()], &[to.place()], DIAL).await?;
    ensure!(matrix.attempts.len() == 2, "{:?}", matrix.attempts);
    Ok(matrix)
}

async fn reaches(from: &Pod, to: &Pod) -> Result<()> {
    let matrix = dial(from, to).await?;
    let failures = matrix.failures();
    ensure!(failures.is_empty(), "{failures:?}");
    Ok(())
}

/// Nothing gets through, and it is policy that keeps it: the kernel of the server's node counts it.
async fn is_denied(cluster: &Cluster, from: &Pod, to: &Pod) -> Result<()> {
    let before = drops(cluster, from, to).await?;
    let matrix = dial(from, to).await?;
    let reached: Vec<_> = matrix
        .attempts
        .iter()
        .filter(|a| a.outcome.is_reached())
        .collect();
    ensure!(reached.is_empty(), "{reached:?}");
    let after = drops(cluster, from, to).await?;
    for (before, after) in before.iter().zip(&after) {
        // A flow that was forgotten meanwhile is counted anew.
        ensure!(
            *after > 0 && after != before,
            "{} did not reach {}, and it is not policy: {before} dropped packets are {after}",
            from.key,
            to.key
        );
    }
    Ok(())
}

/// Dropped packets by the server's addresses.
async fn drops(cluster: &Cluster, from: &Pod, to: &Pod) -> Result<Vec<u64>> {
    let node = &cluster.node(to.node)?.namespace;
    let mut counts = Vec::new();
    for target in &to.addresses {
        let source = from.address(target.is_ipv4());
        let source = source.with_context(|| format!("{} has no such address", from.key))?;
        counts.push(dropped(node, source, *target).await?);
    }
    Ok(counts)
}
