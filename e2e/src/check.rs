//! CHECK as a runtime calls it: with the result of the ADD.

use anyhow::{Context as _, Result};
use sandbox::cluster::Cluster;
use sandbox::plugin::{CniCall, CniOutput};
use sandbox::pods::Pod;

/// Calls CHECK of a pod that was added.
///
/// # Errors
/// When the pod was not added, or the plug-in could not be run.
pub async fn check(cluster: &Cluster, pod: &Pod) -> Result<CniOutput> {
    let added = pod.add.as_ref().and_then(|add| add.json.clone());
    let mut conf = cluster.network_conf(pod.node);
    conf["prevResult"] = added.context("the pod was not added")?;
    let call = CniCall {
        command: "CHECK".to_owned(),
        sandbox: Some(pod.sandbox.clone()),
        netns: Some(pod.netns.path()),
        pod: Some((pod.key.namespace.clone(), pod.key.name.clone())),
        conf,
        traceparent: None,
    };
    cluster.cni_call(pod.node, &call).await
}
