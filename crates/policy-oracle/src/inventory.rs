//! The objects that policies talk about: pods, namespaces, nodes, service accounts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use crate::document::{self, Labels, Object};
use crate::probe::Protocol;

/// Annotation in which a pod's addresses are published before its status has them.
const EARLY_ADDRESSES: &str = "k8s.aliyun.com/pod-ips";

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) service_account: String,
    pub(crate) node: Option<String>,
    /// Sorted, without repetition.
    pub(crate) addresses: Vec<IpAddr>,
    host_network: bool,
    finished: bool,
    ports: Vec<(String, Protocol, u16)>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) labels: Labels,
    pub(crate) addresses: Vec<IpAddr>,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inventory {
    pub(crate) pods: BTreeMap<(String, String), Pod>,
    pub(crate) namespaces: BTreeMap<String, Labels>,
    pub(crate) nodes: BTreeMap<String, Node>,
    pub(crate) service_accounts: BTreeMap<(String, String), Labels>,
}

impl Pod {
    /// Reads a pod; what cannot be read counts as absent, and comes back as complaints.
    pub(crate) fn parse(document: &Object) -> (Self, Vec<String>) {
        let (namespace, name) = document::identity(document);
        let mut complaints = Vec::new();
        let mut note = |complaint: String| complaints.push(complaint);
        let empty = Object::new();
        let part = |key: &str| {
            document
                .get(key)
                .and_then(Value::as_object)
                .unwrap_or(&empty)
        };
        let (spec, status) = (part("spec"), part("status"));

        let mut addresses = addresses_of(part("metadata"), status, &mut note);
        addresses.sort_unstable();
        addresses.dedup();
        let pod = Self {
            namespace: if namespace.is_empty() {
                "default".to_owned()
            } else {
                namespace
            },
            name,
            labels: labels_of(document, &mut note),
            service_account: document::text(spec, "serviceAccountName")
                .ok()
                .flatten()
                .unwrap_or("default")
                .to_owned(),
            node: document::text(spec, "nodeName")
                .ok()
                .flatten()
                .map(str::to_owned),
            addresses,
            host_network: document::flag(spec, "hostNetwork").unwrap_or_else(|complaint| {
                note(complaint);
                false
            }),
            finished: matches!(
                document::text(status, "phase").ok().flatten(),
                Some("Succeeded" | "Failed")
            ),
            ports: ports_of(spec),
        };
        (pod, complaints)
    }

    /// Whether policies may select it, as subject or as peer: it runs, off the host network.
    pub(crate) fn counts(&self) -> bool {
        !self.host_network && !self.finished
    }

    /// Whether it shares its node's network, and runs.
    pub(crate) fn is_on_host(&self) -> bool {
        self.host_network && !self.finished
    }

    /// Whether one of its containers gave this port number of this protocol that name.
    pub(crate) fn has_port(&self, name: &str, protocol: Protocol, number: u16) -> bool {
        self.ports
            .iter()
            .any(|(n, p, i)| n == name && *p == protocol && *i == number)
    }
}

impl Node {
    /// Reads a node.
    pub(crate) fn parse(document: &Object) -> (Self, Vec<String>) {
        let mut complaints = Vec::new();
        let labels = labels_of(document, &mut |complaint| complaints.push(complaint));
        let addresses = document
            .get("status")
            .and_then(|status| status.get("addresses"))
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.get("address")?.as_str()?.parse().ok())
            .collect();
        (Self { labels, addresses }, complaints)
    }
}

impl Inventory {
    /// Pods that count and hold the address; more than one for a while after an address is reused.
    pub(crate) fn holders(&self, address: IpAddr) -> impl Iterator<Item = &Pod> {
        self.pods
            .values()
            .filter(move |pod| pod.counts() && pod.addresses.contains(&address))
    }

    /// Labels of the pod's namespace; `None` until the namespace is known.
    pub(crate) fn namespace_labels(&self, pod: &Pod) -> Option<&Labels> {
        self.namespaces.get(&pod.namespace)
    }

    /// Labels of the pod's service account; `None` until it is known.
    pub(crate) fn service_account_labels(&self, pod: &Pod) -> Option<&Labels> {
        self.service_accounts
            .get(&(pod.namespace.clone(), pod.service_account.clone()))
    }
}

/// Labels in the metadata of any object.
pub(crate) fn labels_of(document: &Object, note: &mut impl FnMut(String)) -> Labels {
    let read = document
        .get("metadata")
        .and_then(Value::as_object)
        .map(|metadata| document::string_map(metadata, "labels"));
    match read {
        None => Labels::new(),
        Some(Ok(labels)) => labels,
        Some(Err(complaint)) => {
            note(format!("{complaint}; taken as having no labels"));
            Labels::new()
        }
    }
}

fn addresses_of(metadata: &Object, status: &Object, note: &mut impl FnMut(String)) -> Vec<IpAddr> {
    let early = metadata
        .get("annotations")
        .and_then(|annotations| annotations.get(EARLY_ADDRESSES))
        .and_then(Value::as_str)
        .into_iter()
        .flat_map(|list| list.split(','));
    let all = document::list(status, "podIPs")
        .unwrap_or_default()
        .iter()
        .filter_map(|entry| entry.get("ip").and_then(Value::as_str));
    let first = status.get("podIP").and_then(Value::as_str);
    first
        .into_iter()
        .chain(all)
        .chain(early)
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .filter_map(|text| {
            let address = text.parse().ok();
            if address.is_none() {
                note(format!("{text:?} is not an address; passed over"));
            }
            address
        })
        .collect()
}

/// Named ports of containers, and of those init containers that go on running beside them.
fn ports_of(spec: &Object) -> Vec<(String, Protocol, u16)> {
    let list = |key: &str| document::list(spec, key).unwrap_or_default();
    let running = list("initContainers").iter().filter(|container| {
        container.get("restartPolicy").and_then(Value::as_str) == Some("Always")
    });
    let mut ports = Vec::new();
    for container in list("containers").iter().chain(running) {
        let declared = container.get("ports").and_then(Value::as_array);
        for port in declared.into_iter().flatten().filter_map(Value::as_object) {
            let name = document::text(port, "name").ok().flatten();
            let number = port
                .get("containerPort")
                .and_then(|n| document::port_number(n, "containerPort").ok());
            let protocol = match document::text(port, "protocol") {
                Ok(None | Some("TCP")) => Some(Protocol::Tcp),
                Ok(Some("UDP")) => Some(Protocol::Udp),
                Ok(Some("SCTP")) => Some(Protocol::Sctp),
                Ok(Some(_)) | Err(_) => None,
            };
            if let (Some(name), Some(protocol), Some(number)) = (name, protocol, number) {
                ports.push((name.to_owned(), protocol, number));
            }
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(value: &Value) -> Pod {
        Pod::parse(value.as_object().unwrap()).0
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    // B5
    #[test]
    fn addresses_come_from_all_three_places() {
        let pod = pod(&json!({
            "metadata": {"annotations": {"k8s.aliyun.com/pod-ips": "10.0.0.3, fd00::3"}},
            "status": {"podIP": "10.0.0.3", "podIPs": [{"ip": "10.0.0.3"}, {"ip": "fd00::3"}]},
        }));
        assert_eq!(pod.addresses, [ip("10.0.0.3"), ip("fd00::3")]);
    }

    // B5
    #[test]
    fn address_is_known_before_the_status_has_it() {
        let early = pod(&json!({
            "metadata": {"annotations": {"k8s.aliyun.com/pod-ips": "10.0.0.3"}},
        }));
        assert_eq!(early.addresses, [ip("10.0.0.3")]);
    }

    // B6, B9
    #[test]
    fn pod_counts_while_it_runs_off_the_host_network() {
        assert!(pod(&json!({"status": {"phase": "Running"}})).counts());
        assert!(pod(&json!({"status": {"phase": "Pending"}})).counts());
        assert!(!pod(&json!({"status": {"phase": "Succeeded"}})).counts());
        assert!(!pod(&json!({"status": {"phase": "Failed"}})).counts());
        assert!(!pod(&json!({"spec": {"hostNetwork": true}})).counts());
        assert!(pod(&json!({"spec": {"hostNetwork": true}})).is_on_host());
    }

    // B7
    #[test]
    fn terminating_pod_still_counts() {
        let leaving = json!({
            "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"phase": "Running"},
        });
        assert!(pod(&leaving).counts());
    }

    // D6
    #[test]
    fn named_ports_are_those_of_containers_that_keep_running() {
        let pod = pod(&json!({"spec": {
            "containers": [
                {"ports": [{"name": "web", "containerPort": 80}]},
                {"ports": [{"name": "web", "containerPort": 81, "protocol": "TCP"}]},
            ],
            "initContainers": [
                {"ports": [{"name": "once", "containerPort": 1}]},
                {"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 2}]},
            ],
        }}));
        assert!(pod.has_port("web", Protocol::Tcp, 80));
        assert!(pod.has_port("web", Protocol::Tcp, 81));
        assert!(!pod.has_port("web", Protocol::Udp, 80));
        assert!(!pod.has_port("once", Protocol::Tcp, 1));
        assert!(pod.has_port("side", Protocol::Tcp, 2));
    }
}
