//! Pods with an ENI of their own, beside pods that share ENIs on the same node.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::audit;
use e2e::check::check;
use e2e::story::{eventually, tell};
use ecs_sim::dump::EniDump;
use sandbox::cloud;
use sandbox::cluster::Cluster;
use sandbox::options::{ClusterOptions, Service};
use sandbox::pods::Pod;
use sandbox::policy_proof::{allow_label, default_deny};
use sandbox::reachability::{Place, all_pairs};

/// How long anything may take that should come about.
const LIMIT: Duration = Duration::from_secs(20);
/// How long a connection is tried.
const DIAL: Duration = Duration::from_secs(1);
/// The namespace of these stories.
const SPACE: &str = "guarded";
/// Labels of who is protected.
const SERVER: &[(&str, &str)] = &[("app", "server")];
/// Labels of who may reach it.
const FRIEND: &[(&str, &str)] = &[("access", "granted")];

fn one_node() -> ClusterOptions {
    ClusterOptions {
        nodes: 1,
        zones: 1,
        plain_hosts: 0,
        ..ClusterOptions::default()
    }
}

/// ENIs that are attached to the node beside its primary one.
fn enis(cluster: &Cluster) -> Result<Vec<EniDump>> {
    let instance = cluster.node(1)?.instance.clone();
    let dump = cluster.sim().dump();
    Ok(dump
        .enis
        .into_iter()
        .filter(|eni| eni.kind == "Secondary" && eni.instance.as_ref() == Some(&instance))
        .collect())
}

/// Those of them that a pod has for itself: pods that share get ENIs full of addresses, and these may come meanwhile.
fn own_enis(cluster: &Cluster) -> Result<Vec<EniDump>> {
    let mut own = enis(cluster)?;
    own.retain(|eni| eni.ipv4.len() == 1);
    Ok(own)
}

/// The ENI that has exactly the pod's addresses.
fn own_eni(cluster: &Cluster, pod: &Pod) -> Result<EniDump> {
    let own = enis(cluster)?
        .into_iter()
        .find(|eni| cloud::addresses(eni) == pod.addresses);
    own.with_context(|| format!("no ENI has the addresses {:?}", pod.addresses))
}

/// How many of the addresses are reached.
async fn reached(from: &Place, to: &Place) -> Result<(usize, usize)> {
    let matrix = all_pairs(std::slice::from_ref(from), std::slice::from_ref(to), DIAL).await?;
    let reached = matrix.attempts.iter().filter(|a| a.outcome.is_reached());
    Ok((reached.count(), matrix.attempts.len()))
}

async fn reaches(from: &Place, to: &Place) -> Result<()> {
    let (reached, tried) = reached(from, to).await?;
    ensure!(
        reached == tried && tried > 0,
        "{} reaches {} at {reached} of {tried} addresses",
        from.name,
        to.name
    );
    Ok(())
}

async fn is_denied(from: &Place, to: &Place) -> Result<()> {
    let (reached, tried) = reached(from, to).await?;
    ensure!(
        reached == 0 && tried > 0,
        "{} reaches {} at {reached} of {tried} addresses",
        from.name,
        to.name
    );
    Ok(())
}

/// The name and the hardware address of the link that has the pod's addresses, as the pod sees it.
async fn link_of(pod: &Pod) -> Result<(String, String)> {
    let text = fabric::shell::ip_json(&pod.netns, &["addr"]).await?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let has = |link: &serde_json::Value| {
        let addresses = link["addr_info"].as_array().cloned().unwrap_or_default();
        let local = addresses
            .iter()
            .filter_map(|a| a["local"].as_str()?.parse::<IpAddr>().ok());
        let local: Vec<IpAddr> = local.collect();
        pod.addresses.iter().all(|ip| local.contains(ip))
    };
    let link = links
        .as_array()
        .into_iter()
        .flatten()
        .find(|link| has(link));
    let link = link.context("no link has the pod's addresses")?;
    let text = |key: &str| link[key].as_str().unwrap_or_default().to_owned();
    Ok((text("ifname"), text("address")))
}

async fn gone_at_the_cloud(cluster: &Cluster, eni: &EniDump) -> Result<()> {
    eventually(LIMIT, async || {
        let there = cluster.sim().dump().enis;
        ensure!(
            there.iter().all(|e| e.id != eni.id),
            "{} is still there",
            eni.id
        );
        Ok(())
    })
    .await
}

// I1, I2, I4, I7.
#[test]
fn pod_gets_an_eni_of_its_own_and_gives_it_back() {
    tell(one_node(), async |cluster| {
        let friend = cluster
            .create_labelled_pod(1, SPACE, "friend", FRIEND)
            .await?;
        let stranger = cluster
            .create_labelled_pod(1, SPACE, "stranger", &[])
            .await?;
        ensure!(own_enis(cluster)?.is_empty(), "{:?}", enis(cluster)?);

        let mut server = cluster.create_whole_pod(1, SPACE, "server", SERVER).await?;

        let eni = own_eni(cluster, &server)?;
        ensure!(own_enis(cluster)?.len() == 1, "{:?}", enis(cluster)?);
        let link = link_of(&server).await?;
        ensure!(link == ("eth0".to_owned(), eni.mac.to_string()), "{link:?}");
        // Pods that share, on the same node, and the node itself, as kubelet's probes do.
        let node = cluster.node(1)?.place();
        for (from, to) in [
            (friend.place(), server.place()),
            (stranger.place(), server.place()),
            (server.place(), friend.place()),
            (node.clone(), server.place()),
            (server.place(), node.clone()),
        ] {
            reaches(&from, &to).await?;
        }
        // The same sandbox asks again.
        let first = server.addresses.clone();
        let again = cluster.add_pod(&mut server).await?;
        ensure!(
            again.is_ok() && server.addresses == first,
            "{}",
            again.text()
        );
        ensure!(own_enis(cluster)?.len() == 1, "{:?}", enis(cluster)?);

        cluster.apply(&default_deny(SPACE))?;
        cluster.apply(&allow_label(SPACE, "access", "granted"))?;
        eventually(LIMIT, async || {
            is_denied(&stranger.place(), &server.place()).await
        })
        .await?;
        reaches(&friend.place(), &server.place()).await?;
        reaches(&node, &server.place()).await?;

        // The agent is replaced: nothing moves.
        cluster.kill(Service::Agent(1)).await?;
        reaches(&friend.place(), &server.place()).await?;
        cluster.restart(Service::Agent(1)).await?;
        cluster.wait_ready(Service::Agent(1), LIMIT).await?;
        let checked = check(cluster, &server).await?;
        ensure!(checked.is_ok(), "{}", checked.text());
        ensure!(link_of(&server).await? == link, "the link was made anew");
        is_denied(&stranger.place(), &server.place()).await?;
        reaches(&friend.place(), &server.place()).await?;
        audit::clean(cluster).await?;

        cluster.delete_pod(server).await?;
        gone_at_the_cloud(cluster, &eni).await?;
        cluster.delete_pod(friend).await?;
        cluster.delete_pod(stranger).await?;
        audit::clean(cluster).await
    });
}

// The first packet of a pod finds its policy, in its own namespace too.
#[test]
fn policy_is_in_force_in_the_pods_namespace_before_it_starts() {
    tell(one_node(), async |cluster| {
        let friend = cluster
            .create_labelled_pod(1, SPACE, "friend", FRIEND)
            .await?;
        let stranger = cluster
            .create_labelled_pod(1, SPACE, "stranger", &[])
            .await?;
        cluster.apply(&default_deny(SPACE))?;
        cluster.apply(&allow_label(SPACE, "access", "granted"))?;
        eventually(LIMIT, async || {
            let status = cluster.policy_status(1).await?;
            ensure!(
                status.policies == 2 && status.applied == status.seen,
                "{status:?}"
            );
            Ok(())
        })
        .await?;

        let server = cluster.create_whole_pod(1, SPACE, "server", SERVER).await?;

        is_denied(&stranger.place(), &server.place()).await?;
        reaches(&friend.place(), &server.place()).await?;
        cluster.delete_pod(server).await?;
        audit::clean(cluster).await
    });
}

// A runtime that removed the namespace first, and an agent that was down: the link comes back by itself.
#[test]
fn eni_of_a_pod_whose_namespace_is_gone_comes_back() {
    tell(one_node(), async |cluster| {
        let pod = cluster.create_whole_pod(1, SPACE, "a", &[]).await?;
        let eni = own_eni(cluster, &pod)?;
        cluster.kill(Service::Agent(1)).await?;
        let netns = pod.netns.clone();
        tokio::task::spawn_blocking(move || netns.delete()).await??;

        let deleted = cluster.del_pod(&pod, false).await?;

        ensure!(deleted.is_ok(), "{}", deleted.text());
        cluster.remove_pod(pod).await?;
        cluster.restart(Service::Agent(1)).await?;
        gone_at_the_cloud(cluster, &eni).await?;
        audit::clean(cluster).await
    });
}

// kubelet makes a new sandbox of the same pod: it gets the ENI of the old one, without a rest.
#[test]
fn successor_of_a_sandbox_has_the_same_eni() {
    tell(one_node(), async |cluster| {
        let pod = cluster.create_whole_pod(1, SPACE, "a", &[]).await?;
        let eni = own_eni(cluster, &pod)?;

        let successor = cluster.create_whole_pod(1, SPACE, "a", &[]).await?;

        ensure!(
            own_eni(cluster, &successor)?.id == eni.id,
            "another ENI was made"
        );
        let late = cluster.del_pod(&pod, true).await?;
        ensure!(late.is_ok(), "{}", late.text());
        let checked = check(cluster, &successor).await?;
        ensure!(
            checked.is_ok(),
            "the successor was hurt: {}",
            checked.text()
        );
        cluster.delete_pod(successor).await?;
        gone_at_the_cloud(cluster, &eni).await?;
        Ok(())
    });
}

// I7: a reboot leaks nothing: the links are back on the node, nobody sends DEL, and the boot id is another one.
#[test]
fn reboot_gives_the_eni_back_and_the_next_pod_gets_one() {
    tell(one_node(), async |cluster| {
        let pod = cluster.create_whole_pod(1, SPACE, "a", &[]).await?;
        let eni = own_eni(cluster, &pod)?;
        cluster.kill(Service::Agent(1)).await?;
        cluster.remove_pod(pod).await?;

        cluster
            .restart_with(Service::Agent(1), Vec::new(), &[("node.boot_id", "boot-2")])
            .await?;

        cluster.wait_ready(Service::Agent(1), LIMIT).await?;
        gone_at_the_cloud(cluster, &eni).await?;
        let next = cluster.create_whole_pod(1, SPACE, "b", &[]).await?;
        own_eni(cluster, &next)?;
        audit::clean(cluster).await
    });
}

// I10: whatever is asked for, one ENI is left to pods that share; who comes too late is told to come again.
#[test]
fn pods_beyond_the_capacity_wait_and_ordinary_pods_start() {
    let options = ClusterOptions {
        set: [(
            Service::Agent(1),
            vec![("waits.address_ms".to_owned(), "1500".to_owned())],
        )]
        .into(),
        ..one_node()
    };
    tell(options, async |cluster| {
        // The type has three ENIs beside the primary one.
        let first = cluster.create_whole_pod(1, SPACE, "first", &[]).await?;
        let second = cluster.create_whole_pod(1, SPACE, "second", &[]).await?;

        let refused = cluster.create_whole_pod(1, SPACE, "third", &[]).await;

        let refused = refused.err().context("a third pod got an ENI")?;
        ensure!(format!("{refused:#}").contains("no address"), "{refused:#}");
        let ordinary = cluster
            .create_labelled_pod(1, SPACE, "ordinary", &[])
            .await?;
        reaches(&ordinary.place(), &first.place()).await?;
        reaches(&first.place(), &second.place()).await?;
        ensure!(enis(cluster)?.len() == 3, "{:?}", enis(cluster)?);
        Ok(())
    });
}
