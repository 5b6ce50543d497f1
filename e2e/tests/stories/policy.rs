//! Pods wait for their policy, lose it with their end, and keep their connections whatever becomes of the agent.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::audit;
use e2e::story::{eventually, tell};
use proto::policy::v1::StatusResponse;
use sandbox::cluster::Cluster;
use sandbox::options::{ClusterOptions, PolicyFeed, Service};
use sandbox::pods::Pod;
use sandbox::policy_proof::{self, allow_label, default_deny};
use sandbox::reachability::{Matrix, all_pairs};
use serde_json::{Value, json};

/// How long anything may take that should come about.
const LIMIT: Duration = Duration::from_secs(20);
/// How long a connection is tried.
const DIAL: Duration = Duration::from_millis(800);
/// CNI's "try again later".
const TRY_AGAIN: u64 = 11;
/// The namespace of these stories.
const SPACE: &str = "guarded";

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
    ensure!(!matrix.attempts.is_empty(), "nothing was dialled");
    Ok(matrix)
}

async fn reaches(from: &Pod, to: &Pod) -> Result<()> {
    let matrix = dial(from, to).await?;
    let failures = matrix.failures();
    ensure!(failures.is_empty(), "{failures:?}");
    Ok(())
}

async fn is_denied(from: &Pod, to: &Pod) -> Result<()> {
    let matrix = dial(from, to).await?;
    let reached: Vec<_> = matrix
        .attempts
        .iter()
        .filter(|a| a.outcome.is_reached())
        .collect();
    ensure!(reached.is_empty(), "{reached:?}");
    Ok(())
}

// E6
#[test]
fn first_packet_of_a_pod_finds_its_policy() {
    tell(with_nodes(2), async |cluster| {
        let friend = pod(cluster, 2, "friend", &[("access", "granted")]).await?;
        let stranger = pod(cluster, 1, "stranger", &[]).await?;
        apply(cluster, &guarded()).await?;

        for round in 0..5 {
            let name = format!("server-{round}");
            let server = pod(cluster, 1, &name, &[("app", "server")]).await?;
            is_denied(&stranger, &server).await?;
            // It is the policy that denies: who is allowed gets through at the same time.
            reaches(&friend, &server).await?;
            cluster.delete_pod(server).await?;
        }
        audit::clean(cluster).await
    });
}

#[test]
fn add_without_the_policy_agent_asks_to_try_again_and_succeeds_once_it_is_back() {
    tell(with_nodes(1), async |cluster| {
        cluster.kill(Service::Policy(1)).await?;
        let mut pod = cluster.prepare_pod(1, SPACE, "a").await?;

        let refused = cluster.add_pod(&mut pod).await?;

        ensure!(
            refused.error_code() == Some(TRY_AGAIN),
            "{}",
            refused.text()
        );
        ensure!(refused.text().contains("policy"), "{}", refused.text());
        let bound = cluster.node_dump(1).await?.bindings.len();
        ensure!(bound == 0, "{bound} still bound");
        cluster.restart(Service::Policy(1)).await?;
        cluster.wait_ready(Service::Policy(1), LIMIT).await?;
        let added = cluster.add_pod(&mut pod).await?;
        ensure!(added.is_ok(), "{}", added.text());
        audit::clean(cluster).await
    });
}

#[test]
fn del_without_the_policy_agent_succeeds_and_is_told_when_it_is_back() {
    tell(with_nodes(1), async |cluster| {
        let pod = pod(cluster, 1, "a", &[]).await?;
        status(cluster, 1, |s| s.local_pods == 1).await?;
        cluster.kill(Service::Policy(1)).await?;

        let deleted = cluster.del_pod(&pod, true).await?;

        ensure!(deleted.is_ok(), "{}", deleted.text());
        cluster.remove_pod(pod).await?;
        cluster.restart(Service::Policy(1)).await?;
        cluster.wait_ready(Service::Policy(1), LIMIT).await?;
        status(cluster, 1, |s| s.local_pods == 0).await?;
        audit::clean(cluster).await
    });
}

/// A connection that stays: each byte that goes in comes out at the other end.
struct Line {
    client: TcpStream,
    server: TcpStream,
}

impl Line {
    async fn open(from: &Pod, to: &Pod, target: IpAddr) -> Result<Self> {
        let at = SocketAddr::new(target, 7100);
        let listener = to
            .netns
            .enter_async(move || TcpListener::bind(at))
            .await?
            .context("listen")?;
        let client = from
            .netns
            .enter_async(move || TcpStream::connect_timeout(&at, LIMIT))
            .await?
            .context("connect")?;
        let (server, _) = tokio::task::spawn_blocking(move || listener.accept()).await??;
        for end in [&client, &server] {
            end.set_read_timeout(Some(LIMIT))?;
            end.set_write_timeout(Some(LIMIT))?;
        }
        Ok(Self { client, server })
    }

    /// A byte there and one back.
    fn works(&mut self) -> Result<()> {
        let mut byte = [0];
        self.client.write_all(b"x").context("send")?;
        self.server.read_exact(&mut byte).context("receive")?;
        self.server.write_all(b"y").context("send back")?;
        self.client.read_exact(&mut byte).context("receive back")?;
        ensure!(byte == *b"y");
        Ok(())
    }
}

// E4
#[test]
fn restart_of_the_policy_agent_leaves_connections_and_opens_nothing() {
    tell(with_nodes(2), async |cluster| {
        let server = pod(cluster, 1, "server", &[("app", "server")]).await?;
        let friend = pod(cluster, 2, "friend", &[("access", "granted")]).await?;
        let stranger = pod(cluster, 2, "stranger", &[]).await?;
        apply(cluster, &guarded()).await?;
        let mut lines = Vec::new();
        for target in &server.addresses {
            lines.push(Line::open(&friend, &server, *target).await?);
        }
        ensure!(lines.len() == 2, "{} families", lines.len());

        for node in [1, 2] {
            cluster.kill(Service::Policy(node)).await?;
        }
        is_denied(&stranger, &server).await?;
        reaches(&friend, &server).await?;
        lines.iter_mut().try_for_each(Line::works)?;
        for node in [1, 2] {
            cluster.restart(Service::Policy(node)).await?;
        }
        for node in [1, 2] {
            cluster.wait_ready(Service::Policy(node), LIMIT).await?;
        }

        lines.iter_mut().try_for_each(Line::works)?;
        is_denied(&stranger, &server).await?;
        reaches(&friend, &server).await?;
        audit::clean(cluster).await
    });
}

#[test]
fn malformed_policy_fails_closed_and_is_named_once_in_the_cluster() {
    tell(with_nodes(2), async |cluster| {
        let server = pod(cluster, 1, "server", &[("app", "server")]).await?;
        let stranger = pod(cluster, 2, "stranger", &[]).await?;
        let other = cluster.create_pod(2, "default", "other").await?;
        reaches(&stranger, &server).await?;

        apply(
            cluster,
            &[json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"namespace": SPACE, "name": "crooked"},
                "spec": {
                    "podSelector": {"matchLabels": {"app": "server"}},
                    "ingress": [{"from": [{"ipBlock": {"cidr": "not-a-network"}}]}],
                },
            })],
        )
        .await?;

        for node in [1, 2] {
            status(cluster, node, |s| {
                s.problems.iter().any(|p| p.contains("crooked"))
            })
            .await?;
        }
        is_denied(&stranger, &server).await?;
        reaches(&server, &other).await?;
        let mut named = Vec::new();
        for node in [1, 2] {
            let log = cluster.run_dir().log(Service::Policy(node));
            let text = std::fs::read_to_string(&log)?;
            named.extend(
                text.lines()
                    .filter(|line| line.contains("crooked") && line.contains("malformed"))
                    .map(ToOwned::to_owned),
            );
        }
        ensure!(named.len() == 1, "named {} times: {named:#?}", named.len());
        audit::clean(cluster).await
    });
}

#[test]
fn policy_through_a_relay_is_in_force_and_outlives_the_relay() {
    let options = ClusterOptions {
        policy: Some(PolicyFeed::Relay),
        ..with_nodes(2)
    };
    tell(options, async |cluster| {
        let proof = policy_proof::prove(cluster).await?;
        ensure!(proof.holds(), "{proof:?}");
        let server = pod(cluster, 1, "server", &[("app", "server")]).await?;
        let friend = pod(cluster, 2, "friend", &[("access", "granted")]).await?;
        let stranger = pod(cluster, 2, "stranger", &[]).await?;
        apply(cluster, &guarded()).await?;

        cluster.kill(Service::Relay).await?;
        is_denied(&stranger, &server).await?;
        reaches(&friend, &server).await?;
        // What vanishes while nobody watches is a deletion all the same.
        for policy in &guarded() {
            cluster.withdraw(policy)?;
        }
        cluster.restart(Service::Relay).await?;

        eventually(LIMIT, async || reaches(&stranger, &server).await).await?;
        for node in [1, 2] {
            status(cluster, node, |s| s.policies == 0 && s.in_sync).await?;
        }
        audit::clean(cluster).await
    });
}

#[test]
fn shown_policy_is_explained() {
    tell(with_nodes(2), async |cluster| {
        let proof = policy_proof::prove(cluster).await?;

        if !proof.holds() || !proof.is_explained() {
            bail!("{proof:#?}");
        }
        audit::clean(cluster).await
    });
}
