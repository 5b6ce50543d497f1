//! Cases that vary one thing of one policy: its subject, its rules, its peers, its ports.
//!
//! The policy they vary selects x/a in both directions. It opens TCP 80 from and to y/b, and UDP 53
//! outwards.

use serde_json::{Value, json};

use crate::cases::case::Case;
use crate::cases::world::{case, expression, labelled, nine, policy, step};

const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

/// Subjects, rules, peers and ports.
pub(super) fn cases() -> Vec<Case> {
    [targets(), rules(), peers(), ports()].concat()
}

/// The rule that the others vary.
fn usual_rule(direction: &str) -> Value {
    let peers = if direction == "ingress" { "from" } else { "to" };
    json!({
        peers: [{"namespaceSelector": labelled("ns", "y"), "podSelector": labelled("pod", "b")}],
        "ports": [{"protocol": "TCP", "port": 80}],
    })
}

fn dns() -> Value {
    json!({"ports": [{"protocol": "UDP", "port": 53}]})
}

/// The policy that the others vary.
pub(super) fn usual_spec() -> Value {
    json!({
        "podSelector": labelled("pod", "a"),
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [usual_rule("ingress")],
        "egress": [usual_rule("egress"), dns()],
    })
}

/// The policy with other rules in one direction.
fn with_rules(direction: &str, rules: Value) -> Value {
    let mut spec = usual_spec();
    spec[direction] = rules;
    spec
}

/// The policy with one field of the rule of one direction replaced.
pub(super) fn with_field(direction: &str, field: &str, value: Value) -> Value {
    let mut rule = usual_rule(direction);
    rule[field] = value;
    let mut rules = vec![rule];
    if direction == "egress" {
        rules.push(dns());
    }
    with_rules(direction, Value::from(rules))
}

fn one(family: &'static str, name: &str, namespace: &str, spec: Value) -> Case {
    case(
        family,
        name,
        nine(),
        vec![step([policy(namespace, "vary", spec)])],
    )
}

fn targets() -> Vec<Case> {
    let mut cases = Vec::new();
    for namespace in ["x", "y", "z"] {
        let name = format!("namespace-{namespace}");
        cases.push(one("targets", &name, namespace, usual_spec()));
    }
    for (name, selector) in [
        ("every-pod", json!({})),
        ("pods-by-label", labelled("pod", "a")),
        ("pods-by-expression", expression("pod", "In", &["a", "b"])),
    ] {
        let mut spec = usual_spec();
        spec["podSelector"] = selector;
        cases.push(one("targets", name, "x", spec));
    }
    cases
}

fn rules() -> Vec<Case> {
    let mut cases = Vec::new();
    for (direction, _) in DIRECTIONS {
        for (name, rules) in [("no-rule", json!([])), ("empty-rule", json!([{}]))] {
            let name = format!("{direction}-{name}");
            cases.push(one("rules", &name, "x", with_rules(direction, rules)));
        }
    }
    cases
}

/// Ten peers; the block holds the pods of node n1, its hole the first of them.
fn ten_peers() -> Vec<(&'static str, Value)> {
    let pods = || labelled("pod", "c");
    let namespace = || labelled("ns", "x");
    vec![
        ("own-every", json!({"podSelector": {}})),
        ("own-labelled", json!({"podSelector": pods()})),
        ("all-namespaces", json!({"namespaceSelector": {}})),
        (
            "all-every",
            json!({"namespaceSelector": {}, "podSelector": {}}),
        ),
        (
            "all-labelled",
            json!({"namespaceSelector": {}, "podSelector": pods()}),
        ),
        ("one-namespace", json!({"namespaceSelector": namespace()})),
        (
            "one-every",
            json!({"namespaceSelector": namespace(), "podSelector": {}}),
        ),
        (
            "one-labelled",
            json!({"namespaceSelector": namespace(), "podSelector": pods()}),
        ),
        ("block", json!({"ipBlock": {"cidr": "10.0.1.0/24"}})),
        (
            "holed-block",
            json!({"ipBlock": {"cidr": "10.0.1.0/24", "except": ["10.0.1.0/27"]}}),
        ),
    ]
}

fn peers() -> Vec<Case> {
    let mut cases = Vec::new();
    let all = ten_peers();
    for (direction, key) in DIRECTIONS {
        let mut add = |name: String, peers: Value| {
            let spec = with_field(direction, key, peers);
            cases.push(one("peers", &format!("{direction}-{name}"), "x", spec));
        };
        add("none".to_owned(), json!([]));
        for (name, peer) in &all {
            add((*name).to_owned(), json!([peer]));
        }
        for (i, (first, one)) in all.iter().enumerate() {
            for (second, other) in all.iter().skip(i.saturating_add(1)) {
                add(format!("{first}+{second}"), json!([one, other]));
            }
        }
    }
    cases
}

fn ports() -> Vec<Case> {
    let mut singles = Vec::new();
    for protocol in [None, Some("TCP"), Some("UDP"), Some("SCTP")] {
        for port in [
            json!(null),
            json!(80),
            json!(81),
            json!("serve-81-tcp"),
            json!("serve-81-udp"),
            json!("serve-81-sctp"),
        ] {
            let mut entry = json!({});
            if let Some(protocol) = protocol {
                entry["protocol"] = json!(protocol);
            }
            let number = port.to_string().replace('"', "").replace("null", "any");
            if !port.is_null() {
                entry["port"] = port;
            }
            let protocol = protocol.unwrap_or("unsaid").to_lowercase();
            singles.push((format!("{protocol}-{number}"), entry));
        }
    }
    for (name, first, last) in [("tcp", 80, 81), ("udp", 79, 80), ("sctp", 81, 81)] {
        singles.push((
            format!("{name}-{first}-to-{last}"),
            json!({"protocol": name.to_uppercase(), "port": first, "endPort": last}),
        ));
    }
    let pairs = [
        (
            "tcp-80+udp-81",
            json!([{"port": 80}, {"protocol": "UDP", "port": 81}]),
        ),
        ("tcp-80+tcp-81", json!([{"port": 80}, {"port": 81}])),
        (
            "tcp-80-twice",
            json!([{"port": 80}, {"protocol": "TCP", "port": 80}]),
        ),
        (
            "tcp-any+sctp-80",
            json!([{}, {"protocol": "SCTP", "port": 80}]),
        ),
        (
            "named-tcp+named-udp",
            json!([{"port": "serve-80-tcp"}, {"protocol": "UDP", "port": "serve-81-udp"}]),
        ),
        (
            "named-sctp+tcp-80",
            json!([{"protocol": "SCTP", "port": "serve-80-sctp"}, {"port": 80}]),
        ),
        (
            "udp-range+tcp-named",
            json!([{"protocol": "UDP", "port": 80, "endPort": 90}, {"port": "serve-81-tcp"}]),
        ),
    ];
    let mut cases = Vec::new();
    for (direction, _) in DIRECTIONS {
        let mut add = |name: &str, ports: Value| {
            let spec = with_field(direction, "ports", ports);
            cases.push(one("ports", &format!("{direction}-{name}"), "x", spec));
        };
        add("none", json!([]));
        for (name, entry) in &singles {
            add(name, json!([entry]));
        }
        for (name, entries) in &pairs {
            add(name, entries.clone());
        }
    }
    cases
}
