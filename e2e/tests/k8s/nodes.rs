//! Nodes reboot, are forgotten, and vanish.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::FutureExt as _;
use sandbox::k8s::bed::{Bed, text};
use sandbox::k8s::node::NodePart;
use serde_json::Value;
use types::cloud::{EniId, InstanceId};

use crate::Story;
use crate::library::{HOME, LIMIT, all_reach, consistent, new_pod_works};

/// How long the API server may take to see that a node has gone or come.
const SEEN: Duration = Duration::from_mins(2);
/// How long nothing must happen.
const QUIET: Duration = Duration::from_secs(10);

pub(crate) fn stories() -> Vec<Story> {
    vec![
        ("node_reboot_leaks_nothing_and_its_pods_run_again", |bed| {
            reboot(bed).boxed_local()
        }),
        (
            "node_object_that_is_deleted_keeps_its_enis_while_the_instance_lives",
            |bed| forgotten(bed).boxed_local(),
        ),
        (
            "instance_that_is_gone_gives_its_enis_back_when_its_node_is_deleted_and_not_before",
            |bed| gone(bed).boxed_local(),
        ),
    ]
}

fn restarts(pod: &Value) -> u64 {
    let count = pod.pointer("/status/containerStatuses/0/restartCount");
    count.and_then(Value::as_u64).unwrap_or_default()
}

/// All workloads run as they should.
async fn settled(bed: &Bed) -> Result<()> {
    bed.kube()
        .until(SEEN, async |kube| {
            let pods = kube.list(&["pods", "-n", HOME]).await?;
            for pod in &pods {
                let phase = text(pod, "/status/phase");
                let leaving = pod.pointer("/metadata/deletionTimestamp").is_some();
                let ready = pod.pointer("/status/containerStatuses/0/ready") == Some(&true.into());
                ensure!(
                    phase == "Succeeded" || (phase == "Running" && ready && !leaving),
                    "{} is {phase}",
                    sandbox::k8s::bed::name_of(pod)
                );
            }
            Ok(())
        })
        .await
}

async fn reboot(bed: &mut Bed) -> Result<()> {
    let name = "node-2";
    let field = format!("spec.nodeName={name}");
    let words = [
        "pods",
        "-n",
        HOME,
        "-l",
        "app=each",
        "--field-selector",
        &field,
    ];
    let before = bed.kube().list(&words).await?.iter().map(restarts).max();
    let node = bed.nodes.iter_mut().find(|node| node.plan().name == name);
    let node = node.context("no such node")?;
    node.reboot().await?;
    // Node and pods look well for a while after they went: that they were started again is seen by their counts.
    bed.kube()
        .until(SEEN, async |kube| {
            let restarts = kube.list(&words).await?.iter().map(restarts).max();
            ensure!(
                restarts > before,
                "no container of {name} was started again"
            );
            Ok(())
        })
        .await?;
    bed.nodes_ready().await?;
    settled(bed).await?;
    new_pod_works(bed, name, "after-reboot").await?;
    all_reach(bed).await?;
    consistent(bed).await
}

async fn forgotten(bed: &mut Bed) -> Result<()> {
    let name = "node-3";
    let instance = bed.node(name)?.plan().instance.clone();
    let enis = |bed: &Bed| {
        let dump = bed.cloud().dump();
        let of = dump.instances.into_iter().find(|i| i.id == instance);
        of.map(|i| i.enis).unwrap_or_default()
    };
    let before = enis(bed);
    bed.kube().run(&["delete", "node", name]).await?;
    // Its pods are taken for lost, since nobody answers for them.
    bed.kube()
        .until(SEEN, async |kube| {
            let field = format!("spec.nodeName={name}");
            let left = kube
                .list(&["pods", "-n", HOME, "--field-selector", &field])
                .await?;
            ensure!(
                left.is_empty(),
                "{} pods are on a node that is not there",
                left.len()
            );
            Ok(())
        })
        .await?;
    ensure!(
        enis(bed) == before,
        "ENIs were given back while the instance lives"
    );
    let node = bed.nodes.iter_mut().find(|node| node.plan().name == name);
    let node = node.context("no such node")?;
    node.kill_part(NodePart::Kubelet).await?;
    node.start_part(NodePart::Kubelet).await?;
    bed.kube()
        .until(LIMIT, async |kube| {
            kube.run(&["get", "node", name]).await.map(drop)
        })
        .await?;
    bed.nodes_ready().await?;
    settled(bed).await?;
    new_pod_works(bed, name, "after-return").await?;
    all_reach(bed).await?;
    consistent(bed).await
}

/// ENIs of pods on an instance.
fn enis_of_pods(bed: &Bed, instance: &InstanceId) -> Vec<EniId> {
    let dump = bed.cloud().dump();
    let of = dump.instances.into_iter().find(|i| i.id == *instance);
    of.map(|i| i.enis.into_iter().skip(1).collect())
        .unwrap_or_default()
}

async fn gone(bed: &mut Bed) -> Result<()> {
    let name = "node-3";
    let instance = bed.node(name)?.plan().instance.clone();
    let enis = enis_of_pods(bed, &instance);
    ensure!(!enis.is_empty(), "the node had no ENIs for pods");
    let node = bed.nodes.iter_mut().find(|node| node.plan().name == name);
    node.context("no such node")?.switch_off().await?;
    bed.cloud().release_instance(&instance).await?;
    let held = |bed: &Bed| {
        let dump = bed.cloud().dump();
        dump.enis
            .iter()
            .filter(|eni| enis.contains(&eni.id))
            .count()
    };
    let left = held(bed);
    // Long enough for a controller that does not ask whether the Node object lives.
    tokio::time::sleep(QUIET).await;
    ensure!(
        held(bed) == left,
        "ENIs were given back while the Node object lives"
    );
    bed.kube().run(&["delete", "node", name]).await?;
    // Its pods want a node each.
    let fewer = ["scale", "deployment/mapped", "--replicas=2", "-n", HOME];
    bed.kube().run(&fewer).await?;
    bed.kube()
        .until(SEEN, async |_| {
            let held = held(bed);
            ensure!(held == 0, "{held} of {} ENIs are there", enis.len());
            Ok(())
        })
        .await?;
    // What ran there runs elsewhere.
    settled(bed).await?;
    consistent(bed).await
}
