//! Terway's switch.

use anyhow::{Context as _, Result, ensure};
use e2e::audit;
use e2e::story::tell;
use sandbox::cluster::Cluster;
use sandbox::options::Service;
use sandbox::policy_kernel::tables;

use super::{FRIEND, LIMIT, SERVER, apply, guarded, is_denied, pod, reaches, status, with_nodes};

/// Terway's key, a file where `eni-config` is mounted.
const SWITCH: &str = "disable_network_policy";

/// As a rolling update of the daemon set does.
async fn roll(cluster: &Cluster, service: Service) -> Result<()> {
    cluster.terminate(service).await?;
    cluster.restart(service).await?;
    cluster.wait_ready(service, LIMIT).await
}

#[test]
fn disabled_policy_leaves_no_table_and_starts_pods_and_comes_back_for_all_of_them() {
    tell(with_nodes(2), async |cluster| {
        let server = pod(cluster, 1, "server", SERVER).await?;
        let friend = pod(cluster, 2, "friend", FRIEND).await?;
        let stranger = pod(cluster, 2, "stranger", &[]).await?;
        apply(cluster, &guarded()).await?;
        is_denied(cluster, &stranger, &server).await?;
        let switch = cluster.run_dir().eni_config().join(SWITCH);

        std::fs::write(&switch, "true").context("throw the switch")?;
        for node in [1, 2] {
            roll(cluster, Service::Policy(node)).await?;
            let left = tables(&cluster.node(node)?.namespace).await?;
            ensure!(left.is_empty(), "node {node} still has {left:?}");
            status(cluster, node, |s| !s.enabled && s.reason.contains(SWITCH)).await?;
        }
        reaches(&stranger, &server).await?;
        // The gate is asked and says that nothing is to wait for.
        let asked = pod(cluster, 1, "asked", SERVER).await?;
        reaches(&stranger, &asked).await?;
        // Without the gate nobody is needed to say so.
        cluster.kill(Service::Policy(1)).await?;
        let off = [("policy.enabled", "false")];
        cluster
            .restart_with(Service::Agent(1), Vec::new(), &off)
            .await?;
        cluster.wait_ready(Service::Agent(1), LIMIT).await?;
        let unasked = pod(cluster, 1, "unasked", SERVER).await?;
        reaches(&stranger, &unasked).await?;

        std::fs::remove_file(&switch).context("put the switch back")?;
        roll(cluster, Service::Policy(2)).await?;
        cluster.restart(Service::Policy(1)).await?;
        cluster.wait_ready(Service::Policy(1), LIMIT).await?;
        roll(cluster, Service::Agent(1)).await?;
        status(cluster, 1, |s| s.enabled && s.local_pods == 3).await?;
        for server in [&server, &asked, &unasked] {
            is_denied(cluster, &stranger, server).await?;
            reaches(&friend, server).await?;
        }
        audit::clean(cluster).await
    });
}
