//! What agents learn, from the folder and through a relay, and what they say of it.

use anyhow::{bail, ensure};
use e2e::audit;
use e2e::story::{eventually, tell};
use sandbox::options::{ClusterOptions, PolicyFeed, Service};
use sandbox::policy_proof;
use serde_json::json;

use super::{LIMIT, SPACE, apply, guarded, is_denied, pod, reaches, status, with_nodes};

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
        is_denied(cluster, &stranger, &server).await?;
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
        is_denied(cluster, &stranger, &server).await?;
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
