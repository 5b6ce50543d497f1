//! Who reaches whom, over IPv4 and IPv6.

use std::time::Duration;

use anyhow::{Result, bail};
use e2e::audit;
use e2e::story::tell;
use sandbox::cluster::Cluster;
use sandbox::options::ClusterOptions;
use sandbox::reachability::{Place, all_pairs};

const LIMIT: Duration = Duration::from_secs(5);

/// Two pods on each of three nodes in two zones.
async fn six_pods(cluster: &Cluster) -> Result<Vec<sandbox::pods::Pod>> {
    let mut pods = Vec::new();
    for node in 1..=3 {
        for which in ["a", "b"] {
            pods.push(
                cluster
                    .create_pod(node, "default", &format!("{which}-{node}"))
                    .await?,
            );
        }
    }
    Ok(pods)
}

#[test]
fn pods_nodes_and_a_plain_host_reach_each_other_over_both_families() {
    tell(ClusterOptions::default(), async |cluster| {
        let pods = six_pods(cluster).await?;
        let mut places: Vec<Place> = pods.iter().map(sandbox::pods::Pod::place).collect();
        places.extend(cluster.nodes().iter().map(sandbox::cluster::Host::place));
        places.extend(
            cluster
                .plain_hosts()
                .iter()
                .map(sandbox::cluster::Host::place),
        );

        let matrix = all_pairs(&places, &places, LIMIT).await?;

        let failures = matrix.failures();
        if !failures.is_empty() {
            bail!(
                "{} of {} failed: {failures:?}",
                failures.len(),
                matrix.attempts.len()
            );
        }
        // Every place dials every other one over both families (a node without IPv6 is dialled over IPv4 only).
        if matrix.attempts.len() < pods.len() * (places.len() - 1) * 2 - places.len() * 2 {
            bail!(
                "only {} attempts for {} places",
                matrix.attempts.len(),
                places.len()
            );
        }
        audit::clean(cluster).await
    });
}

#[test]
fn forward_policy_of_drop_does_not_cut_pods_off() {
    tell(ClusterOptions::default(), async |cluster| {
        let node = cluster.node(1)?.namespace.clone();
        // As a container engine on the node does it.
        node.enter_async(|| {
            std::process::Command::new("iptables")
                .args(["-P", "FORWARD", "DROP"])
                .status()
        })
        .await??;
        cluster.restart(sandbox::options::Service::Agent(1)).await?;
        let limit = Duration::from_secs(20);
        cluster
            .wait_ready(sandbox::options::Service::Agent(1), limit)
            .await?;
        let pods = [
            cluster.create_pod(1, "default", "a").await?,
            cluster.create_pod(2, "default", "b").await?,
        ];
        let places: Vec<Place> = pods.iter().map(sandbox::pods::Pod::place).collect();

        let matrix = all_pairs(&places, &places, LIMIT).await?;

        if !matrix.failures().is_empty() {
            bail!("{:?}", matrix.failures());
        }
        Ok(())
    });
}
