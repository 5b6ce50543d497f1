//! Nodes, namespaces and pods of a random world.

use serde_json::{Map, Value, json};

use crate::random::Stack;
use crate::random::dice::Dice;

/// Names of the two nodes.
pub const NODES: [&str; 2] = ["n1", "n2"];

const NAMESPACES: [&str; 4] = ["x", "y", "z", "w"];
const PODS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
const APPS: [&str; 3] = ["web", "db", "api"];
const TEAMS: [&str; 2] = ["red", "blue"];

/// Names that ports have; not every pod has every name.
pub const PORT_NAMES: [&str; 4] = ["http", "dns", "peer", "metrics"];

/// The objects that policies of a world speak of.
#[derive(Debug, Clone)]
pub struct Scene {
    /// Address families.
    pub stack: Stack,
    /// Namespace names in use.
    pub namespaces: Vec<&'static str>,
    objects: Vec<Value>,
}

/// Addresses of pod `number` on a node, one for each family of the stack.
pub fn pod_addresses(stack: Stack, node: usize, number: usize) -> Vec<String> {
    let four = format!("10.0.{}.{}", node + 1, number + 10);
    let six = format!("fd00:10:{}::{:x}", node + 1, number + 10);
    match stack {
        Stack::V4 => vec![four],
        Stack::V6 => vec![six],
        Stack::Dual => vec![four, six],
    }
}

/// Addresses of a node, one for each family of the stack.
pub fn node_addresses(stack: Stack, node: usize) -> Vec<String> {
    let four = format!("192.168.0.{}", node + 11);
    let six = format!("fd00:192::{:x}", node + 11);
    match stack {
        Stack::V4 => vec![four],
        Stack::V6 => vec![six],
        Stack::Dual => vec![four, six],
    }
}

/// Labels of a namespace or of a pod: few keys and few values, so that selectors hit.
pub fn labels(dice: &mut Dice, name: &str) -> Map<String, Value> {
    let mut labels = Map::new();
    if dice.chance(85) {
        labels.insert("name".to_owned(), json!(name));
    }
    if dice.chance(70) {
        labels.insert("app".to_owned(), json!(dice.word(&APPS)));
    }
    if dice.chance(50) {
        labels.insert("team".to_owned(), json!(dice.word(&TEAMS)));
    }
    labels
}

impl Scene {
    /// Objects of a random cluster with two nodes.
    pub fn generate(dice: &mut Dice, stack: Stack) -> Self {
        let count = dice.between(2, 4);
        let namespaces: Vec<&'static str> = NAMESPACES.into_iter().take(count).collect();
        let mut objects = Vec::new();
        for (index, name) in NODES.into_iter().enumerate() {
            let addresses: Vec<Value> = node_addresses(stack, index)
                .into_iter()
                .map(|address| json!({"type": "InternalIP", "address": address}))
                .chain([json!({"type": "Hostname", "address": name})])
                .collect();
            let zone = if dice.chance(50) { "a" } else { "b" };
            objects.push(json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": zone}},
                "status": {"addresses": addresses},
            }));
        }
        for name in &namespaces {
            // Pods may be there before their namespace.
            if dice.chance(96) {
                objects.push(namespace(dice, name));
            }
        }
        let pods = dice.between(4, 12);
        let mut previous: Option<Vec<String>> = None;
        for (number, name) in PODS.into_iter().take(pods).enumerate() {
            let space = dice.pick(&namespaces).copied().unwrap_or("x");
            let pod = pod(dice, stack, space, name, number, previous.as_deref());
            // Nobody takes over the addresses of a node.
            if pod.pointer("/spec/hostNetwork").is_none() {
                previous = addresses_of(&pod);
            }
            objects.push(pod);
        }
        Self {
            stack,
            namespaces,
            objects,
        }
    }

    /// All of them.
    pub fn documents(&self) -> Vec<Value> {
        self.objects.clone()
    }
}

/// A namespace with random labels.
pub fn namespace(dice: &mut Dice, name: &str) -> Value {
    let mut labels = labels(dice, name);
    labels.insert("kubernetes.io/metadata.name".to_owned(), json!(name));
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn addresses_of(pod: &Value) -> Option<Vec<String>> {
    let list = pod.pointer("/status/podIPs")?.as_array()?;
    let found: Vec<String> = list
        .iter()
        .filter_map(|entry| entry.get("ip")?.as_str().map(str::to_owned))
        .collect();
    (!found.is_empty()).then_some(found)
}

/// A random pod. `previous` are addresses that it may have taken over from a pod that has finished.
pub fn pod(
    dice: &mut Dice,
    stack: Stack,
    namespace: &str,
    name: &str,
    number: usize,
    previous: Option<&[String]>,
) -> Value {
    let node = dice.below(2);
    let host_network = dice.chance(6);
    let finished = dice.chance(6);
    let mut addresses = if host_network {
        node_addresses(stack, node)
    } else {
        pod_addresses(stack, node, number)
    };
    // Addresses are used again at once: a finished pod keeps the one of a running pod in its status.
    if finished
        && !host_network
        && dice.chance(70)
        && let Some(previous) = previous
    {
        addresses = previous.to_vec();
    }
    let early = dice.chance(8);
    let without = !early && dice.chance(5);
    let mut metadata = json!({
        "namespace": namespace, "name": name,
        "uid": format!("u-{namespace}-{name}-{}", dice.below(1_000_000)),
        "labels": labels(dice, name),
    });
    if dice.chance(8) {
        metadata["deletionTimestamp"] = json!("2024-05-01T00:00:00Z");
    }
    if early {
        metadata["annotations"] = json!({"k8s.aliyun.com/pod-ips": addresses.join(",")});
    }
    let mut spec = json!({
        "nodeName": NODES.get(node).copied().unwrap_or("n1"),
        "containers": containers(dice),
    });
    if host_network {
        spec["hostNetwork"] = json!(true);
    }
    if dice.chance(20) {
        let mut sidecar = json!({"name": "side", "ports": ports(dice)});
        if dice.chance(50) {
            sidecar["restartPolicy"] = json!("Always");
        }
        spec["initContainers"] = json!([sidecar]);
    }
    if dice.chance(30) {
        spec["serviceAccountName"] = json!(dice.word(&["reader", "writer"]));
    }
    let mut status = json!({"phase": if finished {
        dice.word(&["Succeeded", "Failed"])
    } else {
        dice.word(&["Running", "Running", "Running", "Pending"])
    }});
    if !early && !without {
        status["podIP"] = json!(addresses.first());
        status["podIPs"] = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status})
}

fn containers(dice: &mut Dice) -> Value {
    (0..dice.between(1, 2))
        .map(|number| json!({"name": format!("c{number}"), "ports": ports(dice)}))
        .collect()
}

fn ports(dice: &mut Dice) -> Value {
    (0..dice.below(4))
        .map(|_| {
            let mut port =
                json!({"containerPort": dice.pick(&super::probes::PORTS).copied().unwrap_or(80)});
            if dice.chance(80) {
                port["name"] = json!(dice.word(&PORT_NAMES));
            }
            if dice.chance(60) {
                port["protocol"] = json!(dice.word(&["TCP", "TCP", "UDP", "SCTP"]));
            }
            port
        })
        .collect()
}
