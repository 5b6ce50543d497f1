//! Faults planted in a running cluster, each found by the audit under its kind.
//!
//! All kinds are planted one by one in the tests of the comparison itself; here the audit must see them through real
//! services, a real kernel and the simulated cloud.

use anyhow::{Context as _, Result, ensure};
use e2e::audit;
use e2e::story::tell;
use ecs_api::model::Pick;
use ecs_api::model::address::AssignPrivateIpAddresses;
use ecs_api::model::eni::{CreateNetworkInterface, DeleteNetworkInterface, EniKind};
use sandbox::cluster::Cluster;
use sandbox::options::{ClusterOptions, Service};

/// Longest wait until a fault shows.
const REST: std::time::Duration = std::time::Duration::from_secs(20);

/// Nobody repairs while faults are planted.
fn observed() -> ClusterOptions {
    let off = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
    ClusterOptions {
        nodes: 2,
        zones: 1,
        plain_hosts: 0,
        set: [
            (Service::Agent(1), off("reconcile.repair", "false")),
            (Service::Ipam(1), off("timing.reconcile_every", "3600000")),
        ]
        .into(),
        ..ClusterOptions::default()
    }
}

async fn on_node(cluster: &Cluster, node: usize, words: &[&str]) -> Result<()> {
    let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
    let said = words.join(" ");
    let done = cluster
        .node(node)?
        .namespace
        .enter_async(move || std::process::Command::new("ip").args(words).status())
        .await??;
    ensure!(done.success(), "ip {said} did not work");
    Ok(())
}

async fn finds(cluster: &Cluster, kind: &str) -> Result<()> {
    let found = audit::findings(cluster).await?;
    ensure!(
        found.iter().any(|(k, _)| k == kind),
        "{kind} is not among {found:?}"
    );
    Ok(())
}

#[test]
fn faults_planted_in_kernel_cloud_and_stores_are_found() {
    tell(observed(), async |cluster| {
        let pod = cluster.create_pod(1, "default", "a").await?;
        let gone = cluster.create_pod(1, "default", "gone").await?;
        let v4 = pod.address(true).context("no IPv4 address")?;
        audit::clean(cluster).await?;

        on_node(
            cluster,
            1,
            &["rule", "del", "priority", "512", "to", &v4.to_string()],
        )
        .await?;
        finds(cluster, "KernelDrift").await?;

        on_node(
            cluster,
            1,
            &[
                "link",
                "add",
                "caliplanted",
                "type",
                "veth",
                "peer",
                "name",
                "planted",
            ],
        )
        .await?;
        on_node(
            cluster,
            1,
            &[
                "link",
                "set",
                "caliplanted",
                "alias",
                "terway:0123456789ab/eth0",
            ],
        )
        .await?;
        finds(cluster, "KernelOrphan").await?;

        cluster.remove_pod(gone).await?;
        finds(cluster, "SandboxGone").await?;

        plant_in_cloud(cluster, v4).await
    });
}

/// Changes that somebody makes in the cloud behind our back.
async fn plant_in_cloud(cluster: &Cluster, bound: std::net::IpAddr) -> Result<()> {
    let sim = cluster.sim().handle().clone();
    let dump = sim.dump();
    let holds = |eni: &&ecs_sim::dump::EniDump| {
        eni.ipv4
            .iter()
            .any(|ip| ip.to_string() == bound.to_string())
    };
    let eni = dump
        .enis
        .iter()
        .find(holds)
        .context("no ENI has the address")?;
    let other = eni
        .ipv4
        .iter()
        .rev()
        .find(|ip| ip.to_string() != bound.to_string());
    let other = *other.context("the ENI has one address only")?;

    sim.unassign_behind_back(&eni.id, other.into()).await?;
    finds(cluster, "HeldNotInCloud").await?;

    let extra = AssignPrivateIpAddresses {
        eni: eni.id.clone(),
        ipv4: Pick::Listed(vec!["10.1.0.250".parse()?]),
        client_token: None,
    };
    cluster.sim().call(&extra).await?;
    finds(cluster, "CloudNotHeld").await?;

    let stray = CreateNetworkInterface {
        vswitch: eni.vswitch.clone(),
        security_groups: vec![cluster.layout().security_group.clone()],
        primary_ip: None,
        ipv4: Pick::Nothing,
        ipv6: Pick::Nothing,
        kind: EniKind::Secondary,
        name: String::new(),
        description: String::new(),
        tags: [("creator".to_owned(), "terway-mesh".to_owned())].into(),
        client_token: None,
    };
    cluster.sim().call(&stray).await?;
    finds(cluster, "EniUnknown").await?;

    sim.detach_behind_back(&eni.id).await?;
    finds(cluster, "EniElsewhere").await?;
    e2e::story::eventually(REST, async || finds(cluster, "LinkMissing").await).await?;

    cluster
        .sim()
        .call(&DeleteNetworkInterface {
            eni: eni.id.clone(),
        })
        .await?;
    sim.settled().await;
    finds(cluster, "EniMissing").await
}

#[test]
fn shard_log_that_was_lost_is_seen_as_used_and_not_held() {
    tell(observed(), async |cluster| {
        cluster.create_pod(1, "default", "a").await?;
        audit::clean(cluster).await?;
        cluster.kill(Service::Ipam(1)).await?;
        let folder = cluster.run_dir().service(Service::Ipam(1))?;
        let mut lost = 0;
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "redb") {
                std::fs::remove_file(path)?;
                lost += 1;
            }
        }
        ensure!(lost == 1, "{lost} stores were removed");
        cluster.restart(Service::Ipam(1)).await?;
        cluster.wait_ready(Service::Ipam(1), REST).await?;

        e2e::story::eventually(REST, async || {
            finds(cluster, "BoundNotHeld").await?;
            finds(cluster, "GrantedNotHeld").await
        })
        .await
    });
}

#[test]
fn store_that_was_lost_is_seen_as_held_and_not_granted() {
    tell(observed(), async |cluster| {
        cluster.create_pod(1, "default", "a").await?;
        audit::clean(cluster).await?;
        // ipam can not tell the agent anew while it is down, so the loss stays to be seen.
        cluster.kill(Service::Agent(1)).await?;
        cluster.kill(Service::Ipam(1)).await?;
        let folder = cluster.run_dir().service(Service::Agent(1))?;
        std::fs::remove_file(folder.join("agent.redb"))?;
        cluster.restart(Service::Ipam(1)).await?;
        cluster
            .wait_ready(Service::Ipam(1), std::time::Duration::from_secs(20))
            .await?;
        cluster
            .restart_with(
                Service::Agent(1),
                Vec::new(),
                &[("ipam.replicas", "[\"127.0.0.1:1\"]")],
            )
            .await?;
        e2e::story::eventually(std::time::Duration::from_secs(20), async || {
            cluster.node_dump(1).await.map(drop)
        })
        .await?;

        finds(cluster, "HeldNotGranted").await?;
        finds(cluster, "KernelOrphan").await
    });
}
