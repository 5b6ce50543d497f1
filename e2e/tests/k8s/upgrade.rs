//! The release changes while pods run.

use anyhow::{Result, ensure};
use futures::FutureExt as _;
use sandbox::k8s::bed::Bed;
use sandbox::k8s::release::{self, NAMESPACE, RELEASE};
use sandbox::k8s::workload;
use serde_json::json;

use crate::Story;
use crate::library::{HOME, all_reach, consistent, new_pod_works, pods, unchanged};

pub(crate) fn stories() -> Vec<Story> {
    vec![(
        "upgrade_and_rollback_of_the_release_keep_pods_and_their_addresses",
        |bed| upgrade(bed).boxed_local(),
    )]
}

async fn upgrade(bed: &Bed) -> Result<()> {
    let before = pods(bed, HOME).await?;
    let mut values = release::values(bed);
    workload::set(&mut values, "/telemetry", "logFilter", json!("debug"));
    workload::set(
        &mut values,
        "",
        "node",
        json!({"maxUnavailable": "100%", "pool": {"batch": 8}}),
    );
    bed.upgrade(&values).await?;
    rolled_out(bed).await?;
    unchanged(bed, &before).await?;
    new_pod_works(bed, "node-1", "after-upgrade").await?;
    bed.helm(&["rollback", RELEASE, "--wait", "--timeout", "180s"])
        .await?;
    rolled_out(bed).await?;
    unchanged(bed, &before).await?;
    new_pod_works(bed, "node-1", "after-rollback").await?;
    all_reach(bed).await?;
    consistent(bed).await
}

/// Every pod of the DaemonSet is of the newest kind.
async fn rolled_out(bed: &Bed) -> Result<()> {
    let set = format!("daemonset/{RELEASE}-node");
    let words = ["rollout", "status", &set, "-n", NAMESPACE, "--timeout=55s"];
    let said = bed.kube().run(&words).await?;
    ensure!(said.contains("successfully rolled out"), "{said}");
    Ok(())
}
