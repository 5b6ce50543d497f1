//! vSwitches that run out.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::audit;
use e2e::story::tell;
use sandbox::cluster::Cluster;
use sandbox::options::{ClusterOptions, Service};

/// One node whose first pod vSwitch is so small that a second ENI finds no room in it.
fn narrow(spare: bool) -> ClusterOptions {
    ClusterOptions {
        nodes: 1,
        zones: 1,
        plain_hosts: 0,
        pod_vswitch_prefix: 28,
        shard_prefix: 28,
        spare_vswitch: spare,
        pool_min: 0,
        pool_max: 15,
        set: [(
            Service::Agent(1),
            vec![("waits.address_ms".to_owned(), "6000".to_owned())],
        )]
        .into(),
        ..ClusterOptions::default()
    }
}

/// Pods until one is refused, at most `limit`; and what the last one was told.
async fn fill(cluster: &Cluster, limit: usize) -> Result<(usize, String)> {
    for n in 0..limit {
        let mut pod = cluster
            .prepare_quiet_pod(1, "default", &format!("pod-{n}"))
            .await?;
        let output = cluster.add_pod(&mut pod).await?;
        if !output.is_ok() {
            ensure!(output.error_code() == Some(11), "{}", output.text());
            return Ok((n, output.text()));
        }
    }
    Ok((limit, String::new()))
}

#[test]
fn exhausted_vswitch_is_followed_by_the_next_one() {
    tell(narrow(true), async |cluster| {
        // A /28 has 12 addresses for ENIs.
        let (started, said) = fill(cluster, 20).await?;

        ensure!(started == 20, "only {started} pods: {said}");
        let dump = cluster.node_dump(1).await?;
        let vswitches: std::collections::BTreeSet<_> =
            dump.enis.iter().map(|e| e.vswitch_id.clone()).collect();
        ensure!(vswitches.len() == 2, "{vswitches:?}");
        audit::clean(cluster).await
    });
}

#[test]
fn exhausted_space_is_a_clear_error_and_a_freed_address_serves_again() {
    tell(narrow(false), async |cluster| {
        let (started, said) = fill(cluster, 20).await?;

        ensure!((8..=12).contains(&started), "{started} pods: {said}");
        ensure!(said.contains("no address"), "{said}");
        let dump = cluster.node_dump(1).await?;
        let freed = dump.bindings.first().and_then(|b| b.pod.clone());
        let freed = freed.ok_or_else(|| anyhow::anyhow!("nothing is bound"))?;
        let key = types::pod::PodKey::new(freed.namespace, freed.name);
        let sandbox = dump.bindings[0]
            .attachment
            .clone()
            .unwrap_or_default()
            .sandbox_id;
        let gone = cluster.cni(1, "DEL", &key, &sandbox, None).await?;
        ensure!(gone.is_ok(), "{}", gone.text());
        let mut late = cluster.prepare_quiet_pod(1, "default", "late").await?;
        let output = cluster.add_pod(&mut late).await?;
        ensure!(output.is_ok(), "{}", output.text());
        Ok(())
    });
}

#[test]
fn throttled_cloud_delays_pods_and_loses_none() {
    let options = ClusterOptions {
        nodes: 1,
        zones: 1,
        plain_hosts: 0,
        pool_min: 0,
        pool_max: 5,
        ..ClusterOptions::default()
    };
    tell(options, async |cluster| {
        use ecs_sim::faults::{Effect, Fault};
        let fault = Fault::everywhere(Effect::Throttle).during(Duration::from_secs(3));
        cluster.sim().handle().inject_fault(fault);

        let (started, said) = fill(cluster, 20).await?;

        ensure!(started == 20, "only {started} pods: {said}");
        audit::clean(cluster).await
    });
}
