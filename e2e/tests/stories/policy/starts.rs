//! Pods wait for their policy, and lose it with their end.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use e2e::audit;
use e2e::check::check;
use e2e::story::{eventually, tell};
use sandbox::options::{ClusterOptions, Service};
use sandbox::plugin::CniCall;
use sandbox::spans::Span;

use super::{
    FRIEND, LIMIT, SERVER, SPACE, apply, guarded, is_denied, pod, reaches, status, with_nodes,
};

/// CNI's "try again later".
const TRY_AGAIN: u64 = 11;
/// How long an ADD is watched that must not answer yet.
const HELD: Duration = Duration::from_secs(1);

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
            is_denied(cluster, &stranger, &server).await?;
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

// E6: the gate holds ADD for as long as the node's agent waits.
#[test]
fn add_is_held_until_the_policy_agent_is_back() {
    let patient = vec![("policy.wait_ms".to_owned(), "60000".to_owned())];
    let options = ClusterOptions {
        set: [(Service::Agent(1), patient)].into(),
        ..with_nodes(1)
    };
    tell(options, async |cluster| {
        let stranger = pod(cluster, 1, "stranger", &[]).await?;
        let friend = pod(cluster, 1, "friend", FRIEND).await?;
        apply(cluster, &guarded()).await?;
        cluster.kill(Service::Policy(1)).await?;
        let mut server = cluster
            .prepare_labelled_pod(1, SPACE, "server", SERVER)
            .await?;
        server.serve().await?;

        let added = {
            let mut add = Box::pin(cluster.add_pod(&mut server));
            let early = tokio::time::timeout(HELD, &mut add).await;
            ensure!(
                early.is_err(),
                "ADD answered while nobody made policy: {early:?}"
            );
            cluster.restart(Service::Policy(1)).await?;
            add.await?
        };

        ensure!(added.is_ok(), "{}", added.text());
        is_denied(cluster, &stranger, &server).await?;
        reaches(&friend, &server).await?;
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

// B10: a StatefulSet's pod comes back under its name, here or elsewhere, before the old sandbox's DEL.
#[test]
fn late_del_of_an_old_sandbox_leaves_the_policy_of_its_successor() {
    tell(with_nodes(2), async |cluster| {
        let friend = pod(cluster, 2, "friend", FRIEND).await?;
        let stranger = pod(cluster, 2, "stranger", &[]).await?;
        let mut current = pod(cluster, 1, "web-0", SERVER).await?;
        apply(cluster, &guarded()).await?;

        for node in [1, 2, 1] {
            let successor = pod(cluster, node, "web-0", SERVER).await?;
            let old = std::mem::replace(&mut current, successor);
            let late = cluster.del_pod(&old, true).await?;

            ensure!(late.is_ok(), "{}", late.text());
            is_denied(cluster, &stranger, &current).await?;
            reaches(&friend, &current).await?;
            let checked = check(cluster, &current).await?;
            ensure!(checked.is_ok(), "{}", checked.text());
            // Its manifest is the successor's by now.
            tokio::task::spawn_blocking(move || old.netns.delete()).await??;
        }
        audit::clean(cluster).await
    });
}

const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";

/// Names of the spans from one up to the root of its trace.
fn line_of<'a>(span: &'a Span, all: &'a [Span]) -> Vec<&'a str> {
    let parent = |of: &Span| all.iter().find(|s| s.span_id == of.parent_span_id);
    std::iter::successors(Some(span), |at| parent(at))
        .map(|s| s.name.as_str())
        .take(all.len())
        .collect()
}

#[test]
fn add_is_one_trace_down_to_the_transaction_of_its_policy() {
    tell(with_nodes(1), async |cluster| {
        let pod = cluster.prepare_quiet_pod(1, SPACE, "a").await?;
        let call = CniCall {
            command: "ADD".to_owned(),
            sandbox: Some(pod.sandbox.clone()),
            netns: Some(pod.netns.path()),
            pod: Some((pod.key.namespace.clone(), pod.key.name.clone())),
            conf: cluster.network_conf(1),
            traceparent: Some(format!("00-{TRACE_ID}-b7ad6b7169203331-01")),
        };

        let added = cluster.cni_call(1, &call).await?;

        ensure!(added.is_ok(), "{}", added.text());
        eventually(LIMIT, async || {
            let mut spans = cluster.traces()?;
            spans.retain(|span| span.trace_id == TRACE_ID);
            let commit = spans.iter().find(|span| span.name == "policy.commit");
            let commit = commit.with_context(|| format!("no transaction among {spans:#?}"))?;
            let line = line_of(commit, &spans);
            let expected = [
                "policy.commit",
                "policy.ready",
                "/terway.policy.v1.Gate/Ready",
                "agent.policy",
                "agent.add",
                "/terway.node.v1.Cni/Add",
                "cni.ADD",
            ];
            ensure!(line == expected, "{line:?}");
            Ok(())
        })
        .await?;
        audit::clean(cluster).await
    });
}
