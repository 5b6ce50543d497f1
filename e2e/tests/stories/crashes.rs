//! kill -9 between any two steps, listed by name; afterwards everybody agrees and nothing is lost.
//!
//! The cycle that each point is put into: a cold ADD (an ENI is made), the idle addresses go back, a second ADD (the
//! ENI grows), both DELs, and the ENI goes. So every point of ADD, DEL, bring-up, growth, shrinking and removal is met.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::audit;
use e2e::story::{eventually, tell};
use sandbox::cluster::Cluster;
use sandbox::options::{ClusterOptions, Service};
use sandbox::pods::Pod;
use tokio::time::Instant;

/// Longest wait for one stage of the cycle, restarts included.
const STAGE: Duration = Duration::from_secs(40);

const AGENT: &[&str] = &[
    "agent.add.before_bind",
    "agent.add.after_persist",
    "agent.add.after_kernel",
    "agent.add.before_reply",
    "agent.del.before_kernel",
    "agent.del.after_kernel",
    "agent.del.after_persist",
    "agent.eni.after_persist",
    "agent.eni.after_kernel",
    "agent.eni.after_ready",
    "agent.grant.after_persist",
    "agent.revoke.after_persist",
    "agent.remove_eni.after_kernel",
    "agent.remove_eni.after_persist",
];

const IPAM: &[&str] = &[
    "ipam.claim.after_commit",
    "ipam.fence.after_call",
    "ipam.append.before_commit",
    "ipam.append.after_commit",
    "ipam.intent.after_commit",
    "ipam.create.before_call",
    "ipam.create.after_call",
    "ipam.attach.before_call",
    "ipam.attach.after_call",
    "ipam.assign.before_call",
    "ipam.assign.after_call",
    "ipam.held.after_commit",
    "ipam.grant.before_send",
    "ipam.revoke.after_commit",
    "ipam.revoke.before_send",
    "ipam.revoked.after_commit",
    "ipam.unassign.before_call",
    "ipam.unassign.after_call",
    "ipam.detach.before_call",
    "ipam.detach.after_call",
    "ipam.delete.before_call",
    "ipam.delete.after_call",
    "ipam.gone.after_commit",
];

const GATEWAY: &[&str] = &[
    "gw.create.before_send",
    "gw.create.after_send",
    "gw.create.before_reply",
    "gw.attach.before_send",
    "gw.attach.after_send",
    "gw.attach.before_reply",
    "gw.detach.before_send",
    "gw.detach.after_send",
    "gw.detach.before_reply",
    "gw.delete.before_send",
    "gw.delete.after_send",
    "gw.delete.before_reply",
    "gw.assign.before_send",
    "gw.assign.after_send",
    "gw.assign.before_reply",
    "gw.unassign.before_send",
    "gw.unassign.after_send",
    "gw.unassign.before_reply",
];

/// A node that keeps nothing idle, so that every pod makes and every deletion removes.
fn restless() -> ClusterOptions {
    let set = |list: &[(&str, &str)]| {
        list.iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect::<Vec<_>>()
    };
    ClusterOptions {
        nodes: 1,
        zones: 1,
        plain_hosts: 0,
        pool_min: 0,
        pool_max: 0,
        cooldown: Duration::from_millis(300),
        set: [
            (
                Service::Agent(1),
                set(&[
                    ("waits.address_ms", "8000"),
                    ("reconcile.every_ms", "1000"),
                    ("reconcile.gone_after_ms", "2000"),
                ]),
            ),
            (Service::Ipam(1), set(&[("timing.shrink_after", "200")])),
        ]
        .into(),
        ..ClusterOptions::default()
    }
}

/// A service with an armed point; restarts it when it has died.
struct Armed<'a> {
    cluster: &'a Cluster,
    service: Service,
    point: &'static str,
    died: Cell<bool>,
}

impl Armed<'_> {
    async fn tend(&self) -> Result<()> {
        if self.cluster.pid(self.service).await.is_none() {
            self.died.set(true);
            self.cluster.restart(self.service).await?;
        }
        Ok(())
    }

    /// Repeats a call of the plug-in until it succeeds, as kubelet does.
    async fn call(&self, verb: &str, pod: &Pod) -> Result<()> {
        let deadline = Instant::now() + STAGE;
        loop {
            self.tend().await?;
            let netns = Some(&pod.netns);
            let output = self
                .cluster
                .cni(1, verb, &pod.key, &pod.sandbox, netns)
                .await?;
            if output.is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{verb} of {}: {}", pod.key, output.text());
            }
        }
    }

    /// Waits until the agent's addresses are as wanted.
    async fn until(&self, what: &str, wanted: impl Fn(usize) -> bool) -> Result<()> {
        eventually(STAGE, async || {
            self.tend().await?;
            let dump = self.cluster.node_dump(1).await?;
            let v4 = |ip: &&proto::types::v1::GrantedAddress| !ip.ip.contains(':');
            let held = dump
                .enis
                .iter()
                .flat_map(|e| &e.addresses)
                .filter(v4)
                .count();
            ensure!(wanted(held), "{what}: the node has {held} IPv4 addresses");
            Ok(())
        })
        .await
    }

    async fn cycle(&self) -> Result<()> {
        let serial = self.point.replace(['.', '_'], "-");
        let a = self
            .cluster
            .prepare_quiet_pod(1, "default", &format!("a-{serial}"))
            .await?;
        self.call("ADD", &a).await.context("cold ADD")?;
        self.until("shrinking", |held| held <= 2).await?;
        let b = self
            .cluster
            .prepare_quiet_pod(1, "default", &format!("b-{serial}"))
            .await?;
        let c = self
            .cluster
            .prepare_quiet_pod(1, "default", &format!("c-{serial}"))
            .await?;
        self.call("ADD", &b)
            .await
            .context("ADD that grows the ENI")?;
        self.call("ADD", &c)
            .await
            .context("ADD that grows the ENI again")?;
        for pod in [a, b, c] {
            self.call("DEL", &pod).await?;
            self.cluster.remove_pod(pod).await?;
        }
        self.until("removal", |held| held == 0).await
    }
}

async fn survive(cluster: &Cluster, service: Service, point: &'static str) -> Result<()> {
    let env = vec![("TERWAY_CRASH_AT".to_owned(), point.to_owned())];
    cluster.restart_with(service, env, &[]).await?;
    let armed = Armed {
        cluster,
        service,
        point,
        died: Cell::new(false),
    };
    armed.cycle().await?;
    eventually(STAGE, async || {
        armed.tend().await?;
        let left = cluster
            .sim()
            .dump()
            .enis
            .iter()
            .filter(|e| is_ours(e))
            .count();
        ensure!(left == 0, "{left} ENIs are left in the cloud");
        Ok(())
    })
    .await?;
    // The last points come after the cloud's answer, so the cloud can be empty a moment before the service dies.
    eventually(STAGE, async || {
        armed.tend().await?;
        ensure!(armed.died.get(), "the point was never reached");
        Ok(())
    })
    .await?;
    audit::clean(cluster).await
}

fn is_ours(eni: &ecs_sim::dump::EniDump) -> bool {
    eni.tags
        .get("creator")
        .is_some_and(|creator| creator == "terway-mesh")
}

// I3, I7, I8: a crash between any two steps leaves a state that recovers without a person.
fn survive_all(service: Service, points: &'static [&'static str]) {
    tell(restless(), async |cluster| {
        for point in points {
            survive(cluster, service, point)
                .await
                .with_context(|| (*point).to_owned())?;
        }
        Ok(())
    });
}

#[test]
fn agent_killed_at_every_point_leaves_agreement() {
    survive_all(Service::Agent(1), AGENT);
}

#[test]
fn ipam_killed_at_every_point_leaves_agreement() {
    survive_all(Service::Ipam(1), IPAM);
}

#[test]
fn gateway_killed_at_every_point_leaves_agreement() {
    survive_all(Service::Gateway, GATEWAY);
}
