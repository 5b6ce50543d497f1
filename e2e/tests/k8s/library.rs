//! What stories have in common.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use sandbox::k8s::bed::{Bed, name_of, text};
use sandbox::k8s::matrix::Seen;
use sandbox::k8s::workload::{self, PORT, serving};
use serde_json::{Value, json};

use crate::say;

/// Namespace of what everybody has.
pub(crate) const HOME: &str = "bed";
/// How long pods may take to run.
pub(crate) const LIMIT: Duration = Duration::from_secs(130);

/// What a pod was at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Was {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) ip: String,
    restarts: u64,
}

/// The pods of a namespace that run, by what never names another: their UID.
pub(crate) async fn pods(bed: &Bed, namespace: &str) -> Result<BTreeMap<String, Was>> {
    let pods = bed.kube().list(&["pods", "-n", namespace]).await?;
    let running = pods
        .iter()
        .filter(|pod| text(pod, "/status/phase") == "Running");
    Ok(running
        .map(|pod| {
            let restarts = pod.pointer("/status/containerStatuses/0/restartCount");
            let was = Was {
                name: name_of(pod).to_owned(),
                node: text(pod, "/spec/nodeName").to_owned(),
                ip: text(pod, "/status/podIP").to_owned(),
                restarts: restarts.and_then(Value::as_u64).unwrap_or_default(),
            };
            (text(pod, "/metadata/uid").to_owned(), was)
        })
        .collect())
}

/// Fails if a pod is another one now, has another address, or was started again.
pub(crate) async fn unchanged(bed: &Bed, before: &BTreeMap<String, Was>) -> Result<()> {
    let now = pods(bed, HOME).await?;
    for (uid, was) in before {
        match now.get(uid) {
            None => bail!("{was:?} is gone"),
            Some(is) => ensure!(is == was, "{was:?} became {is:?}"),
        }
    }
    Ok(())
}

/// Fails unless every pod reaches every other, and Services.
pub(crate) async fn all_reach(bed: &Bed) -> Result<()> {
    let pods = bed.pods(HOME).await?;
    let services = bed.services_of(HOME).await?;
    reach(bed, &pods, &services).await
}

/// Fails unless these pods reach each other, and `more`.
pub(crate) async fn reach(bed: &Bed, pods: &[Seen], more: &[String]) -> Result<()> {
    let matrix = bed.matrix(pods, more).await?;
    ensure!(matrix.reached > 0, "nobody was asked");
    ensure!(
        matrix.failed.is_empty(),
        "{} of {} connections failed: {:?}",
        matrix.failed.len(),
        matrix.failed.len() + matrix.reached,
        matrix.failed.iter().take(5).collect::<Vec<_>>()
    );
    Ok(())
}

/// Starts a pod on a node, sees that it is reached, and deletes it.
pub(crate) async fn new_pod_works(bed: &Bed, node: &str, name: &str) -> Result<()> {
    let mut spec = serving(PORT);
    workload::set(&mut spec, "", "nodeName", json!(node));
    let mut pod = workload::pod(name, &json!({"app": "new"}), &spec);
    workload::set(&mut pod, "/metadata", "namespace", json!(HOME));
    let kube = bed.kube();
    kube.apply(&[pod]).await?;
    let target = format!("pod/{name}");
    let ready = [
        "wait",
        "--for=condition=Ready",
        &target,
        "-n",
        HOME,
        "--timeout=60s",
    ];
    kube.run_for(&ready, LIMIT).await?;
    let pods = bed.pods(HOME).await?;
    let target = pods
        .iter()
        .find(|pod| pod.name == name)
        .map(|pod| format!("tcp {}:{} {name}", pod.ip, pod.port()));
    let others: Vec<Seen> = pods.into_iter().filter(|pod| pod.app == "each").collect();
    reach(bed, &others, &target.into_iter().collect::<Vec<_>>()).await?;
    kube.run(&["delete", "pod", name, "-n", HOME, "--wait"])
        .await?;
    Ok(())
}

/// Addresses of pods are the cloud's, each is one pod's, and nodes have a link for each.
pub(crate) async fn consistent(bed: &Bed) -> Result<()> {
    bed.kube()
        .until(LIMIT, async |_| {
            let pods = bed.kube().list(&["pods", "-A"]).await?;
            let mut holders: BTreeMap<&str, &str> = BTreeMap::new();
            let mut per_node: BTreeMap<&str, usize> = BTreeMap::new();
            for pod in &pods {
                let phase = text(pod, "/status/phase");
                let host = pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true));
                if host || phase != "Running" {
                    continue;
                }
                if let Some(other) = holders.insert(text(pod, "/status/podIP"), name_of(pod)) {
                    bail!("{other} and {} have the same address", name_of(pod));
                }
                *per_node.entry(text(pod, "/spec/nodeName")).or_default() += 1;
            }
            let cloud: Vec<String> = bed
                .cloud()
                .dump()
                .enis
                .iter()
                .flat_map(|eni| eni.ipv4.iter().map(ToString::to_string).collect::<Vec<_>>())
                .collect();
            for (ip, name) in &holders {
                let times = cloud.iter().filter(|known| known == ip).count();
                ensure!(
                    times == 1,
                    "{name} has {ip}, which the cloud has {times} times"
                );
            }
            for node in &bed.nodes {
                let name = node.plan().name.as_str();
                let Ok(machine) = node.machine() else {
                    continue;
                };
                let view = sandbox::kernel::look(machine.network()).await?;
                let links = view
                    .links
                    .iter()
                    .filter(|link| link.name.starts_with("cali"))
                    .count();
                let wanted = per_node.get(name).copied().unwrap_or_default();
                ensure!(
                    links == wanted,
                    "{name} has {links} links for {wanted} pods"
                );
            }
            Ok(())
        })
        .await
}

/// What people would look at first.
pub(crate) async fn explain(bed: &Bed) {
    for words in [
        &["get", "nodes"][..],
        &["get", "pods", "-A", "-o", "wide"],
        &["get", "events", "-A", "--field-selector", "type=Warning"],
    ] {
        let told = bed.kube().run(words).await;
        say(&told.unwrap_or_else(|error| error.to_string()));
    }
}
