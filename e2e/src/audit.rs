//! `terwayctl audit` on a running cluster.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use sandbox::cluster::Cluster;
use sandbox::options::Service;
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

/// Fails unless the node's policy agent has written down exactly the sandboxes that are there, and the kernel has what
/// it should.
async fn policy_of(cluster: &Cluster, node: usize) -> Result<()> {
    let file = cluster.run_dir().service(Service::Policy(node))?;
    let list = match std::fs::read(file.join("policy-attachments.json")) {
        Ok(text) => serde_json::from_slice(&text).context("read attachments")?,
        // No pod was ever here.
        Err(error) if error.kind() == ErrorKind::NotFound => Value::Null,
        Err(error) => return Err(error).context("read attachments"),
    };
    let attached = list["attached"].as_array().into_iter().flatten();
    let known: BTreeSet<String> = attached
        .filter_map(|row| row.pointer("/attachment/sandbox")?.as_str())
        .map(ToOwned::to_owned)
        .collect();
    let bindings = cluster.node_dump(node).await?.bindings;
    let bound: BTreeSet<String> = bindings
        .into_iter()
        .filter_map(|binding| Some(binding.attachment?.sandbox_id))
        .collect();
    if known != bound {
        bail!("node {node} has the sandboxes {bound:?}, and its policy agent knows {known:?}");
    }
    let differences = cluster.policy_diff(node).await?;
    if !differences.is_empty() {
        bail!("the kernel of node {node} has not what policy says: {differences:?}");
    }
    Ok(())
}
