//! A policy shown: default deny plus one allowed label, in a namespace of its own, which is gone afterwards.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::cluster::{AUDITOR, Cluster};
use crate::pods::Pod;
use crate::policy_kernel;
use crate::reachability::{Attempt, Matrix, all_pairs};

/// Where it happens.
const NAMESPACE: &str = "guarded";
/// How long a connection may take that should work; and how long one is tried that should not.
const DIAL_LIMIT: Duration = Duration::from_millis(800);
/// How long policies may take to be in force.
const FORCE_LIMIT: Duration = Duration::from_secs(20);
/// Between two looks whether they are.
const LOOK: Duration = Duration::from_millis(5);

/// One connection under the policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// What was tried, and what came of it.
    pub attempt: Attempt,
    /// The dialer's address.
    pub source: IpAddr,
    /// Packets of it that the server's node counted as dropped.
    pub dropped: u64,
}

impl Connection {
    /// Whether it passed, and the kernel of the server's node dropped nothing of it.
    pub fn is_allowed(&self) -> bool {
        self.attempt.outcome.is_reached() && self.dropped == 0
    }

    /// Whether it did not pass, and that was policy: the kernel of the server's node counted what it dropped.
    pub fn is_denied(&self) -> bool {
        !self.attempt.outcome.is_reached() && self.dropped > 0
    }
}

/// What was seen.
#[derive(Debug)]
pub struct Proof {
    /// Connections of both clients before there was a policy.
    pub before: Matrix,
    /// Connections of the client with the label, under the policies.
    pub allowed: Vec<Connection>,
    /// Connections of the client without, under the policies.
    pub denied: Vec<Connection>,
    /// Connections of both clients when the policies were gone again.
    pub after: Matrix,
    /// From the moment the policies were written until the server's node had them in its kernel.
    pub took: Duration,
    /// What `terwayctl policy explain` says of the denied connection.
    pub reasons: Vec<String>,
}

impl Proof {
    /// Whether everybody reached the server but the one without the label, over as many families as there are.
    pub fn holds(&self) -> bool {
        let reached = |matrix: &Matrix| !matrix.attempts.is_empty() && matrix.failures().is_empty();
        let families = self.before.attempts.len() / 2;
        reached(&self.before)
            && reached(&self.after)
            && self.allowed.len() == families
            && self.allowed.iter().all(Connection::is_allowed)
            && self.denied.len() == families
            && self.denied.iter().all(Connection::is_denied)
    }

    /// Whether the reason names what denies.
    pub fn is_explained(&self) -> bool {
        let says = |word: &str| self.reasons.iter().any(|line| line.contains(word));
        says("DENIED") && says("default-deny")
    }
}

/// Everything in the namespace may send; nothing may be sent to.
pub fn default_deny(namespace: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": "default-deny"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    })
}

/// Pods of the namespace with this label may send to those with the label `app: server`.
pub fn allow_label(namespace: &str, key: &str, value: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": "allow-friends"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {key: value}}}]}],
        },
    })
}

/// A server on the first node, a client on the last with the label, one beside the server without.
pub async fn prove(cluster: &Cluster) -> anyhow::Result<Proof> {
    let last = cluster.nodes().len();
    let server = pod(cluster, 1, "server", &[("app", "server")]).await?;
    let friend = pod(cluster, last, "friend", &[("access", "granted")]).await?;
    let stranger = pod(cluster, 1, "stranger", &[]).await?;
    let before = dial(&[&friend, &stranger], &server).await?;
    let policies = [
        default_deny(NAMESPACE),
        allow_label(NAMESPACE, "access", "granted"),
    ];
    for policy in &policies {
        cluster.apply(policy)?;
    }
    let start = Instant::now();
    until(async || {
        let status = cluster.policy_status(1).await?;
        Ok((status.policies == 2 && status.applied == status.seen, ()))
    })
    .await?;
    let took = start.elapsed();
    let (denied, allowed) = until(async || {
        let denied = judged(cluster, &stranger, &server).await?;
        let allowed = judged(cluster, &friend, &server).await?;
        let there =
            denied.iter().all(Connection::is_denied) && allowed.iter().all(Connection::is_allowed);
        Ok((there, (denied, allowed)))
    })
    .await?;
    let reasons = explain(cluster, 1, &stranger, &server).await?;
    for policy in &policies {
        cluster.withdraw(policy)?;
    }
    let after = until(async || {
        let matrix = dial(&[&friend, &stranger], &server).await?;
        Ok((matrix.failures().is_empty(), matrix))
    })
    .await?;
    for pod in [server, friend, stranger] {
        cluster.delete_pod(pod).await?;
    }
    Ok(Proof {
        before,
        allowed,
        denied,
        after,
        took,
        reasons,
    })
}

async fn pod(
    cluster: &Cluster,
    node: usize,
    name: &str,
    labels: &[(&str, &str)],
) -> anyhow::Result<Pod> {
    cluster
        .create_labelled_pod(node, NAMESPACE, name, labels)
        .await
}

async fn dial(from: &[&Pod], to: &Pod) -> anyhow::Result<Matrix> {
    let from: Vec<_> = from.iter().map(|pod| pod.place()).collect();
    Ok(all_pairs(&from, &[to.place()], DIAL_LIMIT).await?)
}

/// Dials, and asks the kernel of the server's node what it dropped.
async fn judged(cluster: &Cluster, from: &Pod, to: &Pod) -> anyhow::Result<Vec<Connection>> {
    let node = &cluster.node(to.node)?.namespace;
    let mut connections = Vec::new();
    for attempt in dial(&[from], to).await?.attempts {
        let source = from.address(attempt.target.is_ipv4());
        let source = source.with_context(|| format!("{} has no such address", from.key))?;
        connections.push(Connection {
            dropped: policy_kernel::dropped(node, source, attempt.target).await?,
            attempt,
            source,
        });
    }
    Ok(connections)
}

/// Looks until it is as wanted, or for as long as that may take; the last look is the answer.
async fn until<T>(look: impl AsyncFn() -> anyhow::Result<(bool, T)>) -> anyhow::Result<T> {
    let deadline = tokio::time::Instant::now() + FORCE_LIMIT;
    let mut every = tokio::time::interval(LOOK);
    loop {
        every.tick().await;
        let (there, seen) = look().await?;
        if there || tokio::time::Instant::now() >= deadline {
            return Ok(seen);
        }
    }
}

/// What `terwayctl policy explain` says at a node of a connection between two pods.
pub async fn explain(
    cluster: &Cluster,
    node: usize,
    from: &Pod,
    to: &Pod,
) -> anyhow::Result<Vec<String>> {
    let output = tokio::process::Command::new(cluster.bin_dir().join(AUDITOR))
        .args(["policy", "explain"])
        .args([from.key.to_string(), to.key.to_string()])
        .arg(crate::echo::PORT.to_string())
        .arg("--socket")
        .arg(cluster.run_dir().policy_socket(node))
        .kill_on_drop(true)
        .output()
        .await
        .context("start terwayctl")?;
    // 0: allowed, 1: denied.
    if !matches!(output.status.code(), Some(0 | 1)) {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "terwayctl policy explain ended with {}: {said}",
            output.status
        );
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(ToOwned::to_owned).collect())
}
