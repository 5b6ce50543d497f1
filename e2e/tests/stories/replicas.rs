//! Two replicas on a real etcd.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use e2e::audit;
use e2e::story::{eventually, tell};
use sandbox::cluster::Cluster;
use sandbox::options::{ClusterOptions, Service, Store};
use sandbox::reachability::{Place, all_pairs};

fn two() -> ClusterOptions {
    ClusterOptions {
        store: Store::Etcd,
        ipam_replicas: 2,
        ..ClusterOptions::default()
    }
}

async fn owned(cluster: &Cluster) -> Result<usize> {
    Ok(cluster.shard_dumps().await?.len())
}

#[test]
fn two_replicas_on_etcd_share_the_shards_and_serve_all_pods() {
    tell(two(), async |cluster| {
        let mut pods = Vec::new();
        for n in 0..6 {
            pods.push(
                cluster
                    .create_pod(n % 3 + 1, "default", &format!("pod-{n}"))
                    .await?,
            );
        }
        let places: Vec<Place> = pods.iter().map(sandbox::pods::Pod::place).collect();

        let matrix = all_pairs(&places, &places, Duration::from_secs(5)).await?;

        ensure!(matrix.failures().is_empty(), "{:?}", matrix.failures());
        ensure!(
            owned(cluster).await? >= 4,
            "{} shards",
            owned(cluster).await?
        );
        audit::clean(cluster).await
    });
}

// I1, I8: the shards of a dead replica are taken over, and what was under way is finished.
#[test]
fn killed_replica_is_followed_by_the_other_one() {
    tell(two(), async |cluster| {
        let before = owned(cluster).await?;
        for node in 1..=3 {
            cluster
                .create_pod(node, "default", &format!("before-{node}"))
                .await?;
        }

        cluster.kill(Service::Ipam(1)).await?;

        // Pods keep starting from what the nodes have, whoever owns the shards.
        for node in 1..=3 {
            cluster
                .create_pod(node, "default", &format!("during-{node}"))
                .await?;
        }
        eventually(Duration::from_secs(40), async || {
            let now = owned(cluster).await?;
            if now != before {
                bail!("{now} of {before} shards are owned");
            }
            Ok(())
        })
        .await?;
        cluster.restart(Service::Ipam(1)).await?;
        cluster
            .wait_ready(Service::Ipam(1), Duration::from_secs(30))
            .await?;
        audit::clean(cluster).await
    });
}

#[test]
fn pods_start_from_the_pool_while_ipam_gateway_and_etcd_are_down() {
    tell(two(), async |cluster| {
        cluster.create_pod(1, "default", "before").await?;
        for service in [
            Service::Ipam(1),
            Service::Ipam(2),
            Service::Gateway,
            Service::Etcd,
        ] {
            cluster.kill(service).await?;
        }

        for n in 0..4 {
            cluster
                .create_pod(1, "default", &format!("alone-{n}"))
                .await?;
        }

        for service in [
            Service::Etcd,
            Service::Gateway,
            Service::Ipam(1),
            Service::Ipam(2),
        ] {
            cluster.restart(service).await?;
            cluster.wait_ready(service, Duration::from_secs(40)).await?;
        }
        audit::clean(cluster).await
    });
}
