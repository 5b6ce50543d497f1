//! Pods.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;
use types::pod::PodKey;

use super::field::{Meta, port_number};
use crate::flow::Protocol;
use crate::object::{NamedPort, Pod};

/// Annotation in which addresses of a pod stand before its status has them: addresses with commas between.
///
/// Source: Terway, `enable_patch_pod_ips`.
pub const EARLY_ADDRESSES: &str = "k8s.aliyun.com/pod-ips";

/// Annotation that turns the filter of source addresses off for a pod when it is `off` (or `false`, `no`, `0`,
/// `disabled`; case does not matter): for VPN end points, direct server return, nested pods. Any other text leaves
/// the filter on.
pub const SPOOF_CHECK: &str = "k8s.aliyun.com/spoof-check";

/// Reads a pod; what cannot be read of it is left out.
pub(super) fn read(meta: &Meta<'_>, spec: &Value, status: &Value) -> Pod {
    let text = |value: &Value, key: &str| {
        value
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let account = match text(spec, "serviceAccountName") {
        name if name.is_empty() => text(spec, "serviceAccount"),
        name => name,
    };
    Pod {
        key: PodKey::new(&*meta.namespace, &*meta.name),
        uid: Arc::from(meta.uid()),
        node: Arc::from(text(spec, "nodeName")),
        labels: meta.labels(),
        ips: addresses(meta, status),
        host_network: spec.get("hostNetwork").and_then(Value::as_bool) == Some(true),
        finished: matches!(text(status, "phase").as_str(), "Succeeded" | "Failed"),
        ports: named_ports(spec),
        service_account: Arc::from(if account.is_empty() {
            "default"
        } else {
            &account
        }),
        spoofs: meta.annotation(SPOOF_CHECK).is_some_and(is_off),
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::String(text) => ["off", "false", "no", "0", "disabled"]
            .iter()
            .any(|off| text.trim().eq_ignore_ascii_case(off)),
        Value::Bool(on) => !on,
        Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => false,
    }
}

fn addresses(meta: &Meta<'_>, status: &Value) -> Vec<IpAddr> {
    let listed = status
        .get("podIPs")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.get("ip")?.as_str());
    let single = status.get("podIP").and_then(Value::as_str);
    let early = meta
        .annotation(EARLY_ADDRESSES)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .split(|c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']' | '"'));
    let mut ips: Vec<IpAddr> = listed
        .chain(single)
        .chain(early)
        .filter_map(|text| text.parse().ok())
        .filter(|ip: &IpAddr| !ip.is_unspecified())
        .collect();
    ips.sort();
    ips.dedup();
    ips.shrink_to_fit();
    ips
}

fn named_ports(spec: &Value) -> Vec<NamedPort> {
    let containers = |key: &str| {
        spec.get(key)
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default()
    };
    // An init container that restarts runs as long as the pod does; others are over before anybody connects.
    let sidecars = containers("initContainers").iter().filter(|container| {
        container.get("restartPolicy").and_then(Value::as_str) == Some("Always")
    });
    let mut ports: Vec<NamedPort> = containers("containers")
        .iter()
        .chain(sidecars)
        .filter_map(|container| container.get("ports")?.as_array())
        .flatten()
        .filter_map(named_port)
        .collect();
    ports.sort();
    ports.dedup();
    ports.shrink_to_fit();
    ports
}

fn named_port(port: &Value) -> Option<NamedPort> {
    let name = port.get("name")?.as_str().filter(|name| !name.is_empty())?;
    let protocol = match port.get("protocol") {
        None | Some(Value::Null) => Protocol::TCP,
        Some(value) => Protocol::from_name(value.as_str()?)?,
    };
    Some(NamedPort {
        name: Arc::from(name),
        protocol,
        number: port_number(port.get("containerPort")?)?,
    })
}
