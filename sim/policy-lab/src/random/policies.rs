//! Random NetworkPolicies.

use serde_json::{Value, json};

use crate::random::dice::Dice;
use crate::random::objects::{PORT_NAMES, Scene};

const KEYS: [&str; 4] = ["name", "app", "team", "none"];
const VALUES: [&str; 9] = ["a", "b", "c", "web", "db", "api", "red", "blue", "x"];

/// A label selector that the API would accept; often `{}`.
pub fn selector(dice: &mut Dice) -> Value {
    let mut out = json!({});
    if dice.chance(22) {
        return out;
    }
    if dice.chance(55) {
        out["matchLabels"] = match dice.below(3) {
            0 => json!({"app": dice.word(&["web", "db", "api"])}),
            1 => json!({"team": dice.word(&["red", "blue"])}),
            _ => json!({"name": dice.word(&VALUES)}),
        };
    }
    if dice.chance(55) {
        let mut list = Vec::new();
        for _ in 0..dice.between(1, 2) {
            let key = dice.word(&KEYS);
            let operator = dice.word(&["In", "NotIn", "Exists", "DoesNotExist"]);
            let mut entry = json!({"key": key, "operator": operator});
            if matches!(operator, "In" | "NotIn") {
                let values: Vec<&str> = (0..dice.between(1, 3))
                    .map(|_| dice.word(&VALUES))
                    .collect();
                entry["values"] = json!(values);
            } else if dice.chance(20) {
                entry["values"] = json!([]);
            }
            list.push(entry);
        }
        out["matchExpressions"] = json!(list);
    } else if dice.chance(10) {
        out["matchExpressions"] = json!([]);
    }
    out
}

/// A selector of namespaces: labels as for pods, or the name that every namespace has as a label.
pub fn namespace_selector(dice: &mut Dice, scene: &Scene) -> Value {
    if dice.chance(35) {
        let name = dice.pick(&scene.namespaces).copied().unwrap_or("x");
        return json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
    }
    selector(dice)
}

/// A selector that cannot be read.
pub fn broken_selector(dice: &mut Dice) -> Value {
    match dice.below(4) {
        0 => json!({"matchExpressions": [{"key": "app", "operator": "Near", "values": ["web"]}]}),
        1 => json!({"matchExpressions": [{"key": "app", "operator": "In", "values": []}]}),
        2 => json!({"matchLabels": ["app"]}),
        _ => json!("app=web"),
    }
}

/// A CIDR and exceptions inside it.
pub fn block(dice: &mut Dice) -> Value {
    let (cidr, inside): (&str, &[&'static str]) = *dice
        .pick(&[
            (
                "10.0.0.0/8",
                &["10.0.1.0/24", "10.0.2.8/29", "10.0.0.0/8", "10.0.1.11/32"][..],
            ),
            (
                "10.0.1.0/24",
                &["10.0.1.10/31", "10.0.1.12/30", "10.0.1.16/32"][..],
            ),
            ("10.0.2.9/28", &["10.0.2.10/32", "10.0.2.0/30"][..]),
            (
                "0.0.0.0/0",
                &[
                    "10.0.0.0/16",
                    "192.168.0.0/24",
                    "128.0.0.0/1",
                    "203.0.113.7/32",
                ][..],
            ),
            ("192.168.0.0/28", &["192.168.0.11/32"][..]),
            ("203.0.113.0/24", &["203.0.113.128/25"][..]),
            ("10.0.1.12/32", &[][..]),
            ("::/0", &["fd00::/16", "fd00:10:1::/64", "8000::/1"][..]),
            ("fd00:10::/32", &["fd00:10:1::a/127", "fd00:10:2::/48"][..]),
            ("fd00:10:2::5/64", &["fd00:10:2::c/126"][..]),
            ("fd00:192::b/128", &[][..]),
            ("2001:db8::/32", &["2001:db8::/33"][..]),
        ])
        .unwrap_or(&("0.0.0.0/0", &[][..]));
    let mut out = json!({"cidr": cidr});
    if dice.chance(50) && !inside.is_empty() {
        let except: Vec<&str> = (0..dice.between(1, 2)).map(|_| dice.word(inside)).collect();
        out["except"] = json!(except);
    } else if dice.chance(20) {
        out["except"] = json!([]);
    }
    out
}

fn peer(dice: &mut Dice, scene: &Scene, malformed: bool) -> Value {
    if malformed && dice.chance(40) {
        return match dice.below(5) {
            0 => json!({"podSelector": broken_selector(dice)}),
            1 => json!({"namespaceSelector": broken_selector(dice)}),
            2 => json!({"ipBlock": {"cidr": "10.0.0.0/40"}}),
            3 => json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["not a network"]}}),
            _ => json!({}),
        };
    }
    match dice.below(8) {
        0 | 1 => json!({"podSelector": selector(dice)}),
        2 | 3 => json!({"namespaceSelector": namespace_selector(dice, scene)}),
        4 | 5 => json!({
            "podSelector": selector(dice),
            "namespaceSelector": namespace_selector(dice, scene),
        }),
        _ => json!({"ipBlock": block(dice)}),
    }
}

fn port(dice: &mut Dice, malformed: bool) -> Value {
    let mut out = json!({});
    if dice.chance(70) {
        out["protocol"] = json!(dice.word(&["TCP", "TCP", "UDP", "SCTP"]));
    }
    if malformed && dice.chance(40) {
        match dice.below(5) {
            0 => out["port"] = json!(70_000),
            1 => out["protocol"] = json!("GRE"),
            2 => {
                out["port"] = json!(90);
                out["endPort"] = json!(80);
            }
            3 => {
                out["port"] = json!("http");
                out["endPort"] = json!(90);
            }
            _ => out["port"] = json!([80]),
        }
        return out;
    }
    match dice.below(10) {
        0 | 1 => {}
        2..=4 => out["port"] = json!(dice.pick(&super::probes::PORTS).copied().unwrap_or(80)),
        5 | 6 => {
            let first = dice.pick(&super::probes::PORTS).copied().unwrap_or(80);
            let last = match dice.below(4) {
                0 => first,
                1 => first + 1,
                2 => 65_535,
                _ => first + u16::try_from(dice.below(4_000)).unwrap_or(0),
            };
            out["port"] = json!(first);
            out["endPort"] = json!(last);
        }
        7 => out["port"] = json!("nobody-has-this"),
        _ => out["port"] = json!(dice.word(&PORT_NAMES)),
    }
    out
}

fn rule(dice: &mut Dice, scene: &Scene, peers_key: &str, malformed: bool) -> Value {
    let mut out = json!({});
    match dice.below(10) {
        0 => {}
        1 => out[peers_key] = json!([]),
        2 => out[peers_key] = Value::Null,
        _ => {
            let list: Vec<Value> = (0..dice.between(1, 3))
                .map(|_| peer(dice, scene, malformed))
                .collect();
            out[peers_key] = json!(list);
        }
    }
    match dice.below(10) {
        0..=2 => {}
        3 => out["ports"] = json!([]),
        4 => out["ports"] = Value::Null,
        _ => {
            let list: Vec<Value> = (0..dice.between(1, 3))
                .map(|_| port(dice, malformed))
                .collect();
            out["ports"] = json!(list);
        }
    }
    out
}

fn rules(dice: &mut Dice, scene: &Scene, peers_key: &str, malformed: bool) -> Option<Value> {
    match dice.below(10) {
        0 | 1 => None,
        2 => Some(json!([])),
        3 => Some(Value::Null),
        _ => Some(
            (0..dice.between(1, 3))
                .map(|_| rule(dice, scene, peers_key, malformed))
                .collect(),
        ),
    }
}

/// A NetworkPolicy of a random namespace, called `p` and the number.
pub fn network_policy(dice: &mut Dice, scene: &Scene, number: usize, malformed: bool) -> Value {
    let namespace = dice.pick(&scene.namespaces).copied().unwrap_or("x");
    let mut spec = json!({});
    match dice.below(10) {
        0 => {}
        1 => spec["podSelector"] = Value::Null,
        _ => spec["podSelector"] = selector(dice),
    }
    if malformed && dice.chance(25) {
        spec["podSelector"] = broken_selector(dice);
    }
    match dice.below(8) {
        0 => {}
        1 => spec["policyTypes"] = json!([]),
        2 | 3 => spec["policyTypes"] = json!(["Ingress"]),
        4 | 5 => spec["policyTypes"] = json!(["Egress"]),
        _ => spec["policyTypes"] = json!(["Ingress", "Egress"]),
    }
    if malformed && dice.chance(10) {
        spec["policyTypes"] = json!(["Sideways"]);
    }
    if let Some(list) = rules(dice, scene, "from", malformed) {
        spec["ingress"] = list;
    }
    if let Some(list) = rules(dice, scene, "to", malformed) {
        spec["egress"] = list;
    }
    if malformed && dice.chance(10) {
        spec["ingress"] = json!("all of it");
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": format!("p{number}"), "uid": format!("p-{number}")},
        "spec": spec,
    })
}
