//! Random policies of the whole cluster: ClusterNetworkPolicy, its two predecessors, and Calico's basics.

use serde_json::{Value, json};

use crate::random::dice::Dice;
use crate::random::objects::{PORT_NAMES, Scene};
use crate::random::policies::{broken_selector, namespace_selector, selector};
use crate::random::probes::PORTS;

const NETWORKS: [&str; 8] = [
    "10.0.0.0/8",
    "10.0.1.0/24",
    "0.0.0.0/0",
    "192.168.0.11/32",
    "203.0.113.0/24",
    "::/0",
    "fd00:10:2::/48",
    "2001:db8::/32",
];

/// Which API a document is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Cluster,
    Admin,
    Baseline,
}

/// A policy of the cluster's tiers, called `c` and the number.
pub fn policy(dice: &mut Dice, scene: &Scene, number: usize, malformed: bool) -> Value {
    let kind = match dice.below(10) {
        0..=5 => Kind::Cluster,
        6..=8 => Kind::Admin,
        _ => Kind::Baseline,
    };
    let mut spec = json!({"subject": subject(dice, scene)});
    if kind != Kind::Baseline {
        // Few values: equal priorities must order by name.
        spec["priority"] = json!(dice.below(4) * 10);
    }
    if kind == Kind::Cluster {
        spec["tier"] = json!(dice.word(&["Admin", "Admin", "Baseline"]));
    }
    if malformed && dice.chance(30) {
        match dice.below(3) {
            0 => spec["subject"] = json!({}),
            1 => spec["subject"] = json!({"namespaces": broken_selector(dice)}),
            _ => spec["tier"] = json!("Middle"),
        }
    }
    if dice.chance(75) {
        spec["ingress"] = rules(dice, scene, kind, "from", malformed);
    }
    if dice.chance(75) {
        spec["egress"] = rules(dice, scene, kind, "to", malformed);
    }
    let (version, word, name) = match kind {
        Kind::Cluster => ("v1alpha2", "ClusterNetworkPolicy", format!("c{number}")),
        Kind::Admin => ("v1alpha1", "AdminNetworkPolicy", format!("c{number}")),
        Kind::Baseline => (
            "v1alpha1",
            "BaselineAdminNetworkPolicy",
            "default".to_owned(),
        ),
    };
    json!({
        "apiVersion": format!("policy.networking.k8s.io/{version}"), "kind": word,
        "metadata": {"name": name, "uid": format!("c-{number}")},
        "spec": spec,
    })
}

fn subject(dice: &mut Dice, scene: &Scene) -> Value {
    if dice.chance(50) {
        json!({"namespaces": namespace_selector(dice, scene)})
    } else {
        json!({"pods": pods(dice, scene)})
    }
}

fn pods(dice: &mut Dice, scene: &Scene) -> Value {
    json!({
        "namespaceSelector": namespace_selector(dice, scene),
        "podSelector": selector(dice),
    })
}

fn rules(dice: &mut Dice, scene: &Scene, kind: Kind, peers_key: &str, malformed: bool) -> Value {
    (0..dice.between(1, 3))
        .map(|number| {
            let action = match kind {
                Kind::Cluster => dice.word(&["Accept", "Deny", "Pass"]),
                Kind::Admin => dice.word(&["Allow", "Deny", "Pass"]),
                Kind::Baseline => dice.word(&["Allow", "Deny"]),
            };
            let mut rule = json!({"name": format!("r{number}"), "action": action});
            let peers: Vec<Value> = (0..dice.between(1, 2))
                .map(|_| peer(dice, scene, peers_key == "to", malformed))
                .collect();
            let addresses = peers
                .iter()
                .any(|p| p.get("networks").is_some() || p.get("nodes").is_some());
            rule[peers_key] = json!(peers);
            if dice.chance(60) {
                let list: Vec<Value> = (0..dice.between(1, 2))
                    .map(|_| match kind {
                        Kind::Cluster => protocol(dice, !addresses),
                        Kind::Admin | Kind::Baseline => port(dice, !addresses),
                    })
                    .collect();
                let key = if kind == Kind::Cluster {
                    "protocols"
                } else {
                    "ports"
                };
                rule[key] = json!(list);
            }
            rule
        })
        .collect()
}

fn peer(dice: &mut Dice, scene: &Scene, egress: bool, malformed: bool) -> Value {
    if malformed && dice.chance(40) {
        return match dice.below(3) {
            0 => json!({}),
            1 => json!({"stars": {}}),
            _ => json!({"namespaces": broken_selector(dice)}),
        };
    }
    match dice.below(if egress { 7 } else { 4 }) {
        0 | 1 => json!({"namespaces": namespace_selector(dice, scene)}),
        2 | 3 => json!({"pods": pods(dice, scene)}),
        4 => json!({"nodes": match dice.below(3) {
            0 => json!({}),
            1 => json!({"matchLabels": {"zone": "a"}}),
            _ => json!({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}),
        }}),
        _ => {
            let list: Vec<&str> = (0..dice.between(1, 2))
                .map(|_| dice.word(&NETWORKS))
                .collect();
            json!({"networks": list})
        }
    }
}

fn number_or_range(dice: &mut Dice) -> (u16, Option<u16>) {
    let first = dice.pick(&PORTS).copied().unwrap_or(80);
    let last = dice
        .chance(30)
        .then(|| first + 1 + u16::try_from(dice.below(3_000)).unwrap_or(0));
    (first, last)
}

fn protocol(dice: &mut Dice, named: bool) -> Value {
    if named && dice.chance(25) {
        return json!({"destinationNamedPort": dice.word(&PORT_NAMES)});
    }
    let key = dice.word(&["tcp", "tcp", "udp", "sctp"]);
    if dice.chance(20) {
        return json!({key: {}});
    }
    match number_or_range(dice) {
        (first, None) => json!({key: {"destinationPort": {"number": first}}}),
        (first, Some(last)) => {
            json!({key: {"destinationPort": {"range": {"start": first, "end": last}}}})
        }
    }
}

fn port(dice: &mut Dice, named: bool) -> Value {
    if named && dice.chance(25) {
        return json!({"namedPort": dice.word(&PORT_NAMES)});
    }
    let protocol = dice.word(&["TCP", "TCP", "UDP", "SCTP"]);
    match number_or_range(dice) {
        (first, None) => json!({"portNumber": {"protocol": protocol, "port": first}}),
        (first, Some(last)) => {
            json!({"portRange": {"protocol": protocol, "start": first, "end": last}})
        }
    }
}

/// A selector in Calico's language.
fn expression(dice: &mut Dice) -> String {
    let term = |dice: &mut Dice| match dice.below(9) {
        0 => "all()".to_owned(),
        1 => "has(team)".to_owned(),
        2 => "!has(app)".to_owned(),
        3 => format!("app == '{}'", dice.word(&["web", "db", "api"])),
        4 => format!("team != '{}'", dice.word(&["red", "blue"])),
        5 => format!("app in {{'web', '{}'}}", dice.word(&["db", "api"])),
        6 => "app not in {'web'}".to_owned(),
        7 => "app starts with 'w'".to_owned(),
        _ => "(app == 'db' || team contains 'lu')".to_owned(),
    };
    let first = term(dice);
    if dice.chance(30) {
        let second = term(dice);
        let joint = dice.word(&["&&", "||"]);
        format!("{first} {joint} {second}")
    } else {
        first
    }
}

fn calico_end(dice: &mut Dice, ports: bool) -> Value {
    let mut out = json!({});
    match dice.below(6) {
        0 => {}
        1 | 2 => out["selector"] = json!(expression(dice)),
        3 => out["namespaceSelector"] = json!(expression(dice)),
        4 => out["nets"] = json!([dice.word(&NETWORKS)]),
        _ => {
            out["selector"] = json!(expression(dice));
            out["notNets"] = json!([dice.word(&["10.0.1.0/24", "fd00:10:2::/48"])]);
        }
    }
    if ports {
        match dice.below(4) {
            0 => out["ports"] = json!([dice.pick(&PORTS).copied().unwrap_or(80), "79:82"]),
            1 => out["notPorts"] = json!([dice.pick(&PORTS).copied().unwrap_or(80)]),
            _ => {}
        }
    }
    out
}

/// A policy of Calico's: global or of a namespace, called `k` and the number.
pub fn calico(dice: &mut Dice, scene: &Scene, number: usize) -> Value {
    let global = dice.chance(70);
    let mut rules = |key: &str| -> Value {
        (0..dice.between(1, 2))
            .map(|_| {
                let mut rule = json!({
                    "action": dice.word(&["Allow", "Deny", "Pass", "Log"]),
                });
                let with_protocol = dice.chance(60);
                if with_protocol {
                    rule["protocol"] = json!(dice.word(&["TCP", "UDP", "SCTP"]));
                }
                let ingress = key == "ingress";
                let near = calico_end(dice, with_protocol && ingress);
                if ingress {
                    rule["source"] = calico_end(dice, false);
                    if let Some(ports) = near.get("ports") {
                        rule["destination"] = json!({"ports": ports});
                    }
                } else {
                    rule["destination"] = calico_end(dice, with_protocol);
                }
                rule
            })
            .collect()
    };
    let (ingress, egress) = (rules("ingress"), rules("egress"));
    let types = dice
        .pick(&[
            &["Ingress"][..],
            &["Egress"][..],
            &["Ingress", "Egress"][..],
        ])
        .copied()
        .unwrap_or(&["Ingress"]);
    let mut spec = json!({
        "selector": expression(dice),
        "order": dice.pick(&[10, 1_000, 2_000]).copied().unwrap_or(10),
        "types": types,
    });
    if types.contains(&"Ingress") {
        spec["ingress"] = ingress;
    }
    if types.contains(&"Egress") {
        spec["egress"] = egress;
    }
    let mut metadata = json!({"name": format!("k{number}"), "uid": format!("k-{number}")});
    if !global {
        metadata["namespace"] = json!(dice.pick(&scene.namespaces).copied().unwrap_or("x"));
    }
    json!({
        "apiVersion": "crd.projectcalico.org/v1",
        "kind": if global { "GlobalNetworkPolicy" } else { "NetworkPolicy" },
        "metadata": metadata, "spec": spec,
    })
}
