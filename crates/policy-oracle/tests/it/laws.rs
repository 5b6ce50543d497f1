//! What must hold for every set of policies.

use policy_oracle::probe::{Probe, Protocol};
use policy_oracle::world::World;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fixture::{Cluster, Icmp, Sctp, Tcp, Udp, cluster, cnp, end, named_policy};

fn selector() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec!["ns", "pod", "absent"]);
    let value = prop::sample::select(vec!["x", "y", "z", "a", "b", "c"]);
    prop_oneof![
        Just(json!({})),
        (key.clone(), value.clone()).prop_map(|(k, v)| json!({"matchLabels": {k: v}})),
        (
            key.clone(),
            prop::sample::select(vec!["In", "NotIn"]),
            prop::collection::vec(value, 1..3)
        )
            .prop_map(
                |(k, o, v)| json!({"matchExpressions": [{"key": k, "operator": o, "values": v}]})
            ),
        (key, prop::sample::select(vec!["Exists", "DoesNotExist"]))
            .prop_map(|(k, o)| json!({"matchExpressions": [{"key": k, "operator": o}]})),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        selector().prop_map(|s| json!({"podSelector": s})),
        selector().prop_map(|s| json!({"namespaceSelector": s})),
        (selector(), selector())
            .prop_map(|(n, p)| json!({"namespaceSelector": n, "podSelector": p})),
        prop::sample::select(vec![
            json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.2.0.0/16"]}}),
            json!({"ipBlock": {"cidr": "10.1.0.0/30"}}),
            json!({"ipBlock": {"cidr": "::/0", "except": ["fd00:1::/64"]}}),
        ]),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!({}),
        json!({"port": 80}),
        json!({"port": "web"}),
        json!({"port": "dns", "protocol": "UDP"}),
        json!({"protocol": "UDP"}),
        json!({"protocol": "SCTP", "port": 80, "endPort": 81}),
    ])
}

fn rules(peers_key: &'static str) -> impl Strategy<Value = Value> {
    let rule = (
        prop::collection::vec(peer(), 0..3),
        prop::collection::vec(port(), 0..3),
    )
        .prop_map(move |(peers, ports)| json!({peers_key: peers, "ports": ports}));
    prop::collection::vec(rule, 0..3).prop_map(Value::from)
}

fn spec() -> impl Strategy<Value = Value> {
    let types = prop::sample::select(vec![
        json!(null),
        json!(["Ingress"]),
        json!(["Egress"]),
        json!(["Ingress", "Egress"]),
    ]);
    (selector(), types, rules("from"), rules("to")).prop_map(|(pods, types, ingress, egress)| {
        json!({"podSelector": pods, "policyTypes": types, "ingress": ingress, "egress": egress})
    })
}

fn policies() -> impl Strategy<Value = Vec<Value>> {
    let namespace = prop::sample::select(vec!["x", "y"]);
    prop::collection::vec((namespace, spec()), 0..4).prop_map(|policies| {
        (0..)
            .zip(policies)
            .map(|(i, (namespace, spec))| named_policy(namespace, &format!("p{i}"), spec))
            .collect()
    })
}

fn with(policies: impl IntoIterator<Item = Value>) -> Cluster {
    let mut cluster = cluster();
    cluster.0.extend(policies);
    cluster
}

fn probes() -> Vec<Probe> {
    let mut probes = Vec::new();
    for from in [
        "x/a", "x/b", "y/a", "y/c/6", "8.8.8.8", "node:n1", "node:n2",
    ] {
        for to in ["x/a", "x/b", "y/a", "x/a/6", "y/b/6", "8.8.8.8", "node:n1"] {
            if end(from).address().is_ipv4() != end(to).address().is_ipv4() {
                continue;
            }
            for (protocol, port) in [(Tcp, 80), (Tcp, 81), (Udp, 53), (Sctp, 80), (Icmp, 0)] {
                probes.push(Probe::new(end(from), end(to), protocol, port));
            }
        }
    }
    probes
}

fn isolated(world: &World, probe: &Probe, ingress: bool) -> bool {
    let decision = world.decide(probe);
    let side = if ingress {
        decision.ingress
    } else {
        decision.egress
    };
    side.reasons
        .iter()
        .any(|reason| reason.contains("selected by"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    // A1, A2
    #[test]
    fn one_more_policy_takes_from_open_pods_and_gives_to_isolated_ones(
        before in policies(),
        added in spec(),
    ) {
        let old = with(before.clone()).world();
        let more = before.into_iter().chain([named_policy("x", "more", added)]);
        let new = with(more).world();
        for probe in probes() {
            let (was, is) = (old.decide(&probe), new.decide(&probe));
            for (ingress, was, is) in [
                (true, was.ingress.allowed, is.ingress.allowed),
                (false, was.egress.allowed, is.egress.allowed),
            ] {
                if isolated(&old, &probe, ingress) {
                    prop_assert!(is || !was, "took away: {probe}");
                } else {
                    prop_assert!(was || !is, "gave: {probe}");
                    prop_assert!(is == was || isolated(&new, &probe, ingress), "{probe}");
                }
            }
        }
    }

    // A2
    #[test]
    fn order_and_repetition_of_documents_change_nothing(policies in policies()) {
        let straight = with(policies);
        let mut turned = straight.clone();
        turned.0.reverse();
        let doubled = Cluster([straight.0.clone(), turned.0.clone()].concat());
        let (straight, turned, doubled) = (straight.world(), turned.world(), doubled.world());
        for probe in probes() {
            let expected = straight.decide(&probe);
            prop_assert_eq!(&turned.decide(&probe), &expected);
            prop_assert_eq!(&doubled.decide(&probe), &expected);
        }
    }

    // A2, A6
    #[test]
    fn policy_split_into_one_policy_for_each_rule_means_the_same(namespace in "[xy]", spec in spec()) {
        let whole = with([named_policy(&namespace, "whole", spec.clone())]).world();
        // The parts keep the types that the whole has.
        let types = if !spec["policyTypes"].is_null() {
            spec["policyTypes"].clone()
        } else if spec["egress"] == json!([]) {
            json!(["Ingress"])
        } else {
            json!(["Ingress", "Egress"])
        };
        let part = |name: String, key: &str, rules: Value| {
            let mut part = json!({"podSelector": spec["podSelector"], "policyTypes": types});
            part[key] = rules;
            named_policy(&namespace, &name, part)
        };
        let mut parts = vec![part("none".to_owned(), "ingress", json!([]))];
        for key in ["ingress", "egress"] {
            for (i, rule) in spec[key].as_array().unwrap().iter().enumerate() {
                parts.push(part(format!("{key}-{i}"), key, json!([rule])));
            }
        }
        let parts = with(parts).world();
        for probe in probes() {
            prop_assert_eq!(
                whole.decide(&probe).allowed,
                parts.decide(&probe).allowed,
                "{}",
                probe
            );
        }
    }

    // B1
    #[test]
    fn policies_of_one_namespace_leave_the_others_alone(spec in spec()) {
        let world = with([named_policy("z", "p", spec)]).world();
        for probe in probes() {
            prop_assert!(world.decide(&probe).allowed);
        }
    }

    // F1, F3
    #[test]
    fn admin_pass_of_everything_is_no_admin_tier_and_deny_of_everything_is_no_traffic(
        policies in policies(),
    ) {
        let admin = |name: &str, priority: u32, action: &str| {
            cnp(name, json!({
                "tier": "Admin", "priority": priority, "subject": {"namespaces": {}},
                "ingress": [{"action": action, "from": [{"namespaces": {}}]}],
                "egress": [{"action": action, "to": [{"networks": ["0.0.0.0/0", "::/0"]}]}],
            }))
        };
        let plain = with(policies.clone()).world();
        let passed = with(policies.clone())
            .with(admin("pass", 1, "Pass"))
            .with(admin("deny", 2, "Deny"))
            .world();
        let denied = with(policies).with(admin("deny", 2, "Deny")).world();
        for probe in probes() {
            prop_assert_eq!(plain.decide(&probe).allowed, passed.decide(&probe).allowed);
            let decision = denied.decide(&probe);
            let (from, to) = (probe.source.to_string(), probe.destination.to_string());
            if from.contains('/') && from != to {
                prop_assert!(!decision.egress.allowed, "{}", probe);
            }
        }
    }

    // E1, E3
    #[test]
    fn own_node_and_own_address_always_pass(policies in policies(), port in any::<u16>()) {
        let world = with(policies).world();
        for protocol in [Tcp, Udp, Sctp, Icmp, Protocol::Other(47)] {
            let probe = |from: &str, to: &str| Probe::new(end(from), end(to), protocol, port);
            prop_assert!(world.decide(&probe("node:n1", "x/a")).allowed);
            prop_assert!(world.decide(&probe("x/a", "x/a")).allowed);
            prop_assert!(world.decide(&probe("y/b/6", "y/b/6")).allowed);
        }
    }
}
