//! What a cluster's documents mean for the bed: which pods have a sandbox, where, and with which addresses.

use std::net::IpAddr;

use anyhow::{Context, bail};
use serde_json::Value;
use types::pod::PodKey;

use crate::bed::topology::{NodeSpec, PodSpec};

fn text<'a>(document: &'a Value, pointer: &str) -> &'a str {
    document
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Pods that have a sandbox of their own: placed on a node of the bed, not finished, with an address, and not in the
/// node's network.
///
/// # Errors
/// A pod that the bed can not build, such as one with two addresses of a family.
pub fn pods(documents: &[Value], nodes: &[NodeSpec]) -> anyhow::Result<Vec<PodSpec>> {
    let mut pods = Vec::new();
    for document in documents.iter().filter(|d| text(d, "/kind") == "Pod") {
        let finished = ["Succeeded", "Failed"].contains(&text(document, "/status/phase"));
        let host = document.pointer("/spec/hostNetwork") == Some(&Value::Bool(true));
        let place = text(document, "/spec/nodeName");
        let addresses = addresses(document);
        if finished || host || addresses.is_empty() || place.is_empty() {
            continue;
        }
        let node = nodes.iter().position(|n| n.name == place);
        let key = PodKey::new(
            text(document, "/metadata/namespace"),
            text(document, "/metadata/name"),
        );
        let node = node.with_context(|| format!("{key} is on {place}, which the bed has not"))?;
        let mut spec = PodSpec {
            uid: text(document, "/metadata/uid").to_owned(),
            node,
            v4: None,
            v6: None,
            key,
        };
        for address in addresses {
            let second = match address {
                IpAddr::V4(v4) => spec.v4.replace(v4).is_some(),
                IpAddr::V6(v6) => spec.v6.replace(v6).is_some(),
            };
            if second {
                bail!("{} has two addresses of one family", spec.key);
            }
        }
        pods.push(spec);
    }
    Ok(pods)
}

/// The addresses that a pod's document gives it, each once.
fn addresses(document: &Value) -> Vec<IpAddr> {
    let list = document.pointer("/status/podIPs").and_then(Value::as_array);
    let early = document
        .pointer("/metadata/annotations")
        .and_then(|all| all.get("k8s.aliyun.com/pod-ips"));
    let mut found: Vec<IpAddr> = list
        .into_iter()
        .flatten()
        .map(|entry| text(entry, "/ip"))
        .chain([text(document, "/status/podIP")])
        .chain(early.and_then(Value::as_str).unwrap_or_default().split(','))
        .filter_map(|ip| ip.trim().parse().ok())
        .collect();
    found.sort();
    found.dedup();
    found
}
