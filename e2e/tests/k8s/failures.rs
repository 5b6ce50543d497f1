//! Parts of a node, and the API server, go away and come back: pods do not notice.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::FutureExt as _;
use sandbox::k8s::bed::{Bed, text};
use sandbox::k8s::control::Part;
use sandbox::k8s::node::NodePart;
use sandbox::k8s::release::NAMESPACE;

use crate::Story;
use crate::library::{LIMIT, all_reach, consistent, new_pod_works, pods, reach, unchanged};

/// The node that is hurt.
const NODE: &str = "node-2";
/// How long the API server is away; with `TERWAY_LONG` set, the ten minutes that are promised. The clients of Kubernetes
/// itself wait longer the longer it was away, up to a minute.
const SHORT: Duration = Duration::from_secs(8);
const LONG: Duration = Duration::from_mins(10);

pub(crate) fn stories() -> Vec<Story> {
    vec![
        ("kubelet_restart_keeps_pods_and_their_addresses", |bed| {
            kubelet(bed).boxed_local()
        }),
        ("containerd_restart_keeps_pods_and_their_addresses", |bed| {
            containerd(bed).boxed_local()
        }),
        ("node_agent_restart_keeps_pods_and_their_addresses", |bed| {
            node_agent(bed).boxed_local()
        }),
        ("loss_of_the_api_server_disturbs_nothing_that_runs", |bed| {
            api_server(bed).boxed_local()
        }),
    ]
}

async fn kubelet(bed: &mut Bed) -> Result<()> {
    restart(bed, NodePart::Kubelet).await
}

async fn containerd(bed: &mut Bed) -> Result<()> {
    restart(bed, NodePart::Containerd).await
}

async fn restart(bed: &mut Bed, part: NodePart) -> Result<()> {
    let before = pods(bed, crate::library::HOME).await?;
    let node = bed.nodes.iter_mut().find(|node| node.plan().name == NODE);
    let node = node.context("no such node")?;
    node.kill_part(part).await?;
    node.start_part(part).await?;
    bed.nodes_ready().await?;
    unchanged(bed, &before).await?;
    new_pod_works(bed, NODE, "after-restart").await?;
    all_reach(bed).await?;
    consistent(bed).await
}

async fn node_agent(bed: &mut Bed) -> Result<()> {
    let before = pods(bed, crate::library::HOME).await?;
    let kube = bed.kube();
    let field = format!("spec.nodeName={NODE}");
    let label = "app.kubernetes.io/component=node";
    let words = [
        "pods",
        "-n",
        NAMESPACE,
        "-l",
        label,
        "--field-selector",
        &field,
    ];
    let old = kube.list(&words).await?;
    let old = old.first().context("the node has no agent")?;
    let uid = text(old, "/metadata/uid").to_owned();
    kube.run(&[
        "delete",
        "pod",
        sandbox::k8s::bed::name_of(old),
        "-n",
        NAMESPACE,
    ])
    .await?;
    kube.until(LIMIT, async |kube| {
        let now = kube.list(&words).await?;
        let now = now.first().context("there is no new agent")?;
        ensure!(text(now, "/metadata/uid") != uid, "the old agent is there");
        let ready = now
            .pointer("/status/containerStatuses")
            .and_then(|all| all.as_array().cloned());
        let ready = ready.unwrap_or_default();
        let all = ready.iter().all(|c| c.get("ready") == Some(&true.into()));
        ensure!(all && !ready.is_empty(), "the new agent is not ready");
        Ok(())
    })
    .await?;
    unchanged(bed, &before).await?;
    new_pod_works(bed, NODE, "after-agent").await?;
    all_reach(bed).await?;
    consistent(bed).await
}

async fn api_server(bed: &mut Bed) -> Result<()> {
    let before = pods(bed, crate::library::HOME).await?;
    let alive = bed.pods(crate::library::HOME).await?;
    let away = if std::env::var_os("TERWAY_LONG").is_some() {
        LONG
    } else {
        SHORT
    };
    bed.control.kill(Part::ApiServer).await?;
    let end = tokio::time::Instant::now() + away;
    // Pods go on talking all the while.
    while tokio::time::Instant::now() < end {
        reach(bed, &alive, &[])
            .await
            .context("while the API server is away")?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    bed.start_control().await?;
    bed.nodes_ready().await?;
    unchanged(bed, &before).await?;
    new_pod_works(bed, NODE, "after-loss").await?;
    all_reach(bed).await?;
    consistent(bed).await
}
