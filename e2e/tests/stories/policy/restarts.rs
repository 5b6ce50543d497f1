//! Connections and denials outlive the agents, and nobody else takes the rules away meanwhile.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use e2e::audit;
use e2e::story::{eventually, tell};
use sandbox::cluster::Cluster;
use sandbox::options::Service;
use sandbox::pods::Pod;
use sandbox::policy_kernel::{TABLE, nft, tables};

use super::{FRIEND, LIMIT, SERVER, apply, guarded, is_denied, pod, reaches, status, with_nodes};

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
        is_denied(cluster, &stranger, &server).await?;
        reaches(&friend, &server).await?;
        lines.iter_mut().try_for_each(Line::works)?;
        for node in [1, 2] {
            cluster.restart(Service::Policy(node)).await?;
        }
        for node in [1, 2] {
            cluster.wait_ready(Service::Policy(node), LIMIT).await?;
        }

        lines.iter_mut().try_for_each(Line::works)?;
        is_denied(cluster, &stranger, &server).await?;
        reaches(&friend, &server).await?;
        audit::clean(cluster).await
    });
}

/// Sockets of a process, by inode.
fn sockets(pid: i32) -> Result<BTreeSet<String>> {
    let folder = Path::new("/proc").join(pid.to_string()).join("fd");
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        // A descriptor can be closed while we look.
        let Ok(target) = std::fs::read_link(entry?.path()) else {
            continue;
        };
        let target = target.display().to_string();
        if target.starts_with("socket:") {
            found.insert(target);
        }
    }
    Ok(found)
}

/// Waits until both agents of the node have the socket that owns the rules in hand.
async fn socket_is_in_two_hands(cluster: &Cluster, node: usize) -> Result<()> {
    eventually(LIMIT, async || {
        let mut pids = Vec::new();
        for service in [Service::Policy(node), Service::Agent(node)] {
            let pid = cluster.pid(service).await;
            pids.push(pid.with_context(|| format!("{service} does not run"))?);
        }
        let both = sockets(pids[0])?.intersection(&sockets(pids[1])?).count();
        ensure!(
            both > 0,
            "the agents of node {node} have no socket in common"
        );
        Ok(())
    })
    .await
}

#[test]
fn foreign_flush_takes_nothing_while_one_of_both_agents_lives() {
    tell(with_nodes(2), async |cluster| {
        let server = pod(cluster, 1, "server", SERVER).await?;
        let friend = pod(cluster, 2, "friend", FRIEND).await?;
        let stranger = pod(cluster, 2, "stranger", &[]).await?;
        apply(cluster, &guarded()).await?;
        status(cluster, 1, |s| s.owned && s.persistent).await?;
        let node = &cluster.node(1)?.namespace;
        let stands = async || {
            is_denied(cluster, &stranger, &server).await?;
            reaches(&friend, &server).await
        };
        let flush = async || nft(node, &["flush", "ruleset"]).await;
        socket_is_in_two_hands(cluster, 1).await?;

        flush().await?;
        stands().await.context("both agents alive")?;
        cluster.kill(Service::Agent(1)).await?;
        flush().await?;
        stands().await.context("node-agent dead")?;
        cluster.restart(Service::Agent(1)).await?;
        cluster.wait_ready(Service::Agent(1), LIMIT).await?;
        socket_is_in_two_hands(cluster, 1).await?;
        cluster.kill(Service::Policy(1)).await?;
        flush().await?;
        stands().await.context("policy-agent dead")?;
        let deleted = nft(node, &["delete", "table", "inet", TABLE]).await;
        ensure!(deleted.is_err(), "somebody else deleted the table");
        cluster.restart(Service::Policy(1)).await?;
        cluster.wait_ready(Service::Policy(1), LIMIT).await?;
        socket_is_in_two_hands(cluster, 1).await?;
        flush().await?;
        stands().await.context("policy-agent back")?;

        // With both dead the table stays, and is nobody's: the same flush now takes it.
        cluster.kill(Service::Agent(1)).await?;
        cluster.kill(Service::Policy(1)).await?;
        stands().await.context("both agents dead")?;
        flush().await?;
        let left = tables(node).await?;
        ensure!(
            left.is_empty(),
            "{left:?} outlived a flush that nobody kept off"
        );
        reaches(&stranger, &server).await?;
        for service in [Service::Policy(1), Service::Agent(1)] {
            cluster.restart(service).await?;
            cluster.wait_ready(service, LIMIT).await?;
        }
        stands().await.context("both agents back")?;
        audit::clean(cluster).await
    });
}
