//! Clusters as documents.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use policy_lab::bed::topology::{NodeSpec, PodSpec};
use policy_lab::never_open::Size;
use serde_json::{Value, json};
use types::pod::PodKey;

use crate::policy::Promises;

/// Pod starts of the long suite.
const STARTS: u64 = 10_000;

/// The node of a bed with one node.
pub(crate) fn node() -> NodeSpec {
    NodeSpec {
        name: "node-1".to_owned(),
        v4: Ipv4Addr::new(10, 254, 0, 1),
        v6: Ipv6Addr::new(0xfd0e, 0, 0, 0, 0, 0, 0, 1),
    }
}

/// The document of that node.
pub(crate) fn node_document() -> Value {
    let node = node();
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name},
        "status": {"addresses": [
            {"type": "InternalIP", "address": node.v4},
            {"type": "InternalIP", "address": node.v6},
        ]},
    })
}

/// A namespace with its own name as label.
pub(crate) fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
    })
}

/// The `n`-th pod that really stands on the node.
pub(crate) fn local(n: u32) -> Result<PodSpec> {
    let low = u16::try_from(n).context("so many local pods")?;
    let [high, last] = low.to_be_bytes();
    Ok(PodSpec {
        key: PodKey::new("local", format!("pod-{n}")),
        uid: format!("local-{n}"),
        node: 0,
        v4: Some(Ipv4Addr::new(10, 200, high, last)),
        v6: Some(Ipv6Addr::new(0xfd0d, 0, 0, 0, 0, 0, 0, low)),
    })
}

/// Its document.
pub(crate) fn local_document(pod: &PodSpec, labels: &Value) -> Value {
    let ips: Vec<_> = pod.addresses().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": pod.key.namespace, "name": pod.key.name, "uid": pod.uid, "labels": labels,
        },
        "spec": {"nodeName": node().name, "containers": []},
        "status": {"phase": "Running", "podIPs": ips},
    })
}

/// The address of the `n`-th pod elsewhere.
pub(crate) fn remote_address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(11, 0, 0, 0)).saturating_add(n))
}

/// Labels of remote pods are of ten keys; the first two tell them apart.
pub(crate) fn remote(n: u32, namespaces: u32, app: u32) -> Value {
    let address = remote_address(n);
    let more = (0..8).map(|k| {
        (
            format!("label-{k}"),
            json!(format!("value-{}", (n + k) % 7)),
        )
    });
    let mut labels: serde_json::Map<String, Value> = more.collect();
    labels.insert("app".to_owned(), json!(format!("app-{app}")));
    labels.insert("all".to_owned(), json!("yes"));
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": format!("ns-{}", n % namespaces),
            "name": format!("remote-{n}"),
            "uid": format!("00000000-0000-4000-8000-{n:012}"),
            "labels": labels,
        },
        "spec": {"nodeName": format!("other-{}", n % 1_000), "containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    })
}

/// A policy in `namespace` for pods with `subject`, that lets pods with one of `apps` in at `port`.
pub(crate) fn policy(
    namespace: &str,
    name: &str,
    subject: &Value,
    apps: &[u32],
    port: u32,
) -> Value {
    let from: Vec<_> = apps
        .iter()
        .map(|app| {
            json!({
                "namespaceSelector": {},
                "podSelector": {"matchLabels": {"app": format!("app-{app}")}},
            })
        })
        .collect();
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "podSelector": {"matchLabels": subject},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": from, "ports": [{"protocol": "UDP", "port": port}]}],
        },
    })
}

/// The never-open suite and the starts of pods, at their full size.
pub(crate) async fn never_open(promises: &mut Promises) -> Result<()> {
    let size = Size::LONG;
    let report = policy_lab::never_open::run(size).await?;
    for (kept, text) in report.promises(&size) {
        promises.check(kept, &text);
    }
    let report = policy_lab::pod_starts::run(STARTS).await?;
    promises.check(
        report.starts >= STARTS && report.denied_delivered == 0 && report.lost == 0,
        &format!(
            "{} pod starts: {} denied packets sent, {} delivered; {} questions, {} answers lost; start p50 {:.1} ms p99 {:.1} ms",
            report.starts,
            report.denied_sent,
            report.denied_delivered,
            report.asked,
            report.lost,
            report.percentile(0.5),
            report.percentile(0.99)
        ),
    );
    Ok(())
}
