//! `terwayctl audit` on a running cluster.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use sandbox::cluster::Cluster;
use serde_json::Value;

use crate::story::eventually;

/// Longest wait for a cluster to come to rest.
const REST_LIMIT: Duration = Duration::from_secs(45);

/// The findings of one audit, as `(kind, subject)`.
///
/// # Errors
/// When the audit itself did not work.
pub async fn findings(cluster: &Cluster) -> Result<Vec<(String, String)>> {
    let words = cluster.audit_command()?;
    let output = tokio::task::spawn_blocking(move || {
        let (program, args) = words.split_first().context("the command is empty")?;
        Command::new(program)
            .args(args)
            .output()
            .context("start terwayctl")
    })
    .await??;
    let said = String::from_utf8_lossy(&output.stdout);
    let Ok(Value::Array(rows)) = serde_json::from_str(&said) else {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!(
            "terwayctl audit ended with {}: {said} {error}",
            output.status
        );
    };
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let found: Vec<_> = rows
        .iter()
        .map(|row| (text(row, "kind"), text(row, "subject")))
        .collect();
    let expected = if found.is_empty() { Some(0) } else { Some(1) };
    if output.status.code() != expected {
        bail!(
            "terwayctl audit ended with {} and {} findings",
            output.status,
            found.len()
        );
    }
    Ok(found)
}

/// Waits until an audit finds nothing, and the kernels have the policy of exactly the pods that are there.
///
/// # Errors
/// What is still found when the wait is over.
pub async fn clean(cluster: &Cluster) -> Result<()> {
    eventually(REST_LIMIT, async || {
        let found = findings(cluster).await?;
        if !found.is_empty() {
            bail!("the audit finds {found:?}");
        }
        if cluster.has_policy() {
            for node in 1..=cluster.nodes().len() {
                policy_of(cluster, node).await?;
            }
        }
        Ok(())
    })
    .await
}

/// Fails unless the node's policy agent knows the pods that are there, and the kernel has what it should.
async fn policy_of(cluster: &Cluster, node: usize) -> Result<()> {
    let known = cluster.policy_status(node).await?.local_pods;
    let bound = cluster.node_dump(node).await?.bindings.len();
    if usize::try_from(known) != Ok(bound) {
        bail!("node {node} has {bound} pods, and its policy agent knows {known}");
    }
    let differences = cluster.policy_diff(node).await?;
    if !differences.is_empty() {
        bail!("the kernel of node {node} has not what policy says: {differences:?}");
    }
    Ok(())
}
