//! The cluster that cases begin with, and short ways to write documents.
//!
//! Namespaces x, y and z with pods a, b and c each, on two nodes so that every pod has neighbours on
//! its own node and on the other. Namespaces are labelled `ns`, pods `pod`; each port has a name,
//! `serve-80-tcp` and so on.
#![expect(
    clippy::needless_pass_by_value,
    reason = "documents are written in place"
)]

use policy_oracle::probe::End;
use serde_json::{Map, Value, json};

use crate::cases::case::{Case, Expected, Identity, PORTS, Step};

/// Names and addresses of the nodes.
pub(super) const NODES: [(&str, &str, &str); 2] = [
    ("n1", "192.168.0.11", "fd00:192::b"),
    ("n2", "192.168.0.12", "fd00:192::c"),
];

/// A host that is not of the cluster.
const OUTSIDE: [&str; 2] = ["203.0.113.7", "2001:db8::7"];

/// An end by its name in a table, once for each address; empty when nobody has that name.
pub(super) fn end(name: &str) -> Vec<End> {
    if name == "outside" {
        return OUTSIDE
            .iter()
            .filter_map(|address| address.parse().ok().map(End::Address))
            .collect();
    }
    let wanted = name.strip_prefix("node:").unwrap_or_default();
    NODES
        .iter()
        .filter(|(node, _, _)| *node == wanted)
        .flat_map(|(node, four, six)| {
            [four, six]
                .into_iter()
                .filter_map(move |address| address.parse().ok().map(|a| End::node(node, a)))
        })
        .collect()
}

/// Nodes, namespaces x, y and z, and their nine pods.
pub(super) fn nine() -> Vec<Value> {
    let mut documents = nodes();
    for namespace in ["x", "y", "z"] {
        documents.push(self::namespace(namespace, json!({"ns": namespace})));
        for name in ["a", "b", "c"] {
            documents.push(pod(namespace, name, json!({"pod": name})));
        }
    }
    documents
}

/// The two nodes.
pub(super) fn nodes() -> Vec<Value> {
    NODES
        .iter()
        .map(|(name, four, six)| {
            json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                "status": {"addresses": [
                    {"type": "Hostname", "address": name},
                    {"type": "InternalIP", "address": four},
                    {"type": "InternalIP", "address": six},
                ]},
            })
        })
        .collect()
}

/// A namespace; the label with its own name is added, as the API server does.
pub(super) fn namespace(name: &str, mut labels: Value) -> Value {
    labels["kubernetes.io/metadata.name"] = json!(name);
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// Places of pods: node and number. A letter each for the namespace and the pod, so that the place
/// of a pod never depends on the others.
fn place(namespace: &str, name: &str) -> (usize, u32) {
    let index = |text: &str, letters: &str| {
        let letter = text.chars().next_back().unwrap_or('a');
        letters.find(letter).unwrap_or(0)
    };
    let (n, p) = (index(namespace, "xyzwh"), index(name, "abcdefgh01234567"));
    let number = u32::try_from(10 + 16 * n + p).unwrap_or(10);
    ((n + p) % 2, number)
}

/// The IPv4 and IPv6 address of a pod.
pub(super) fn addresses(namespace: &str, name: &str) -> [String; 2] {
    let (node, number) = place(namespace, name);
    let net = node + 1;
    [
        format!("10.0.{net}.{number}"),
        format!("fd00:10:{net}::{number:x}"),
    ]
}

/// A running pod with both addresses that names and serves all ports.
pub(super) fn pod(namespace: &str, name: &str, labels: Value) -> Value {
    let mut ports = Vec::new();
    for protocol in ["TCP", "UDP", "SCTP"] {
        for port in PORTS {
            let name = format!("serve-{port}-{}", protocol.to_lowercase());
            ports.push(json!({"name": name, "containerPort": port, "protocol": protocol}));
        }
    }
    pod_with(namespace, name, labels, Value::from(ports))
}

/// The same with other names for its ports.
pub(super) fn pod_with(namespace: &str, name: &str, labels: Value, ports: Value) -> Value {
    let (node, _) = place(namespace, name);
    let node = NODES.get(node).map_or("n1", |(name, _, _)| name);
    let [four, six] = addresses(namespace, name);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": namespace, "name": name, "labels": labels,
            "uid": format!("uid-{namespace}-{name}"),
        },
        "spec": {"nodeName": node, "containers": [{"name": "server", "ports": ports}]},
        "status": {
            "phase": "Running", "podIP": four, "podIPs": [{"ip": four}, {"ip": six}],
        },
    })
}

/// A NetworkPolicy.
pub(super) fn policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    })
}

/// A ClusterNetworkPolicy.
pub(super) fn cluster_policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name}, "spec": spec,
    })
}

/// `{"matchLabels": {key: value}}`.
pub(super) fn labelled(key: &str, value: &str) -> Value {
    let labels: Map<String, Value> = [(key.to_owned(), json!(value))].into_iter().collect();
    json!({"matchLabels": labels})
}

/// A selector with one expression.
pub(super) fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
    if values.is_empty() {
        return json!({"matchExpressions": [{"key": key, "operator": operator}]});
    }
    json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})
}

/// A step that puts documents and leaves the answer to the oracle.
pub(super) fn step(put: impl IntoIterator<Item = Value>) -> Step {
    Step {
        put: put.into_iter().collect(),
        removed: Vec::new(),
        others: Vec::new(),
        expected: Expected::Oracle(Vec::new()),
    }
}

impl Step {
    /// The same with a table that says everything.
    pub(super) fn table(mut self, lines: &[&str]) -> Self {
        self.expected = Expected::Table(lines.iter().map(|line| (*line).to_owned()).collect());
        self
    }

    /// The same with lines that must hold beside what the oracle says.
    pub(super) fn pins(mut self, lines: &[&str]) -> Self {
        self.expected = Expected::Oracle(lines.iter().map(|line| (*line).to_owned()).collect());
        self
    }

    /// The same with further ends.
    pub(super) fn others(mut self, names: &[&str]) -> Self {
        self.others = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// The same with these objects gone.
    pub(super) fn without(mut self, documents: &[Value]) -> Self {
        self.removed = documents.iter().map(Identity::of).collect();
        self
    }
}

/// A case whose first step gets `base` in front.
pub(super) fn case(
    family: &'static str,
    name: &str,
    base: Vec<Value>,
    mut steps: Vec<Step>,
) -> Case {
    if let Some(first) = steps.first_mut() {
        first.put = [base, std::mem::take(&mut first.put)].concat();
    }
    Case {
        family,
        name: format!("{family}/{name}"),
        steps,
    }
}
