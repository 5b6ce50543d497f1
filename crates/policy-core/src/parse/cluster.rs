//! Namespaces, nodes and service accounts.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;

use super::field::Meta;
use crate::object::{Namespace, Node, ServiceAccount};

/// A namespace. Its labels are those of the object alone: `kubernetes.io/metadata.name` is not made up (B4).
pub(super) fn namespace(meta: &Meta<'_>) -> Namespace {
    Namespace {
        name: Arc::clone(&meta.name),
        labels: meta.labels(),
    }
}

/// A node with all addresses of its status, host names left out.
pub(super) fn node(meta: &Meta<'_>, status: &Value) -> Node {
    let mut ips: Vec<IpAddr> = status
        .get("addresses")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.get("address")?.as_str()?.parse().ok())
        .collect();
    ips.sort();
    ips.dedup();
    Node {
        name: Arc::clone(&meta.name),
        labels: meta.labels(),
        ips,
    }
}

/// A service account.
pub(super) fn service_account(meta: &Meta<'_>) -> ServiceAccount {
    ServiceAccount {
        namespace: Arc::clone(&meta.namespace),
        name: Arc::clone(&meta.name),
        labels: meta.labels(),
    }
}
