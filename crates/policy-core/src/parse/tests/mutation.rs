//! Documents with something wrong at a random place: never a panic, never a lost identity, never a more open rule
//! without a problem.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{Parsed, document, documents};
use crate::object::Object;

/// Good documents of every kind.
fn good() -> Vec<Value> {
    let rule = json!({"from": [
        {"podSelector": {"matchLabels": {"a": "b"}}},
        {"namespaceSelector": {"matchExpressions": [{"key": "k", "operator": "NotIn", "values": ["v"]}]}},
        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
    ], "ports": [{"port": 80, "endPort": 90, "protocol": "UDP"}, {"port": "web"}]});
    let spec = json!({"podSelector": {"matchLabels": {"x": "y"}}, "policyTypes": ["Ingress"], "ingress": [rule]});
    vec![
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "p", "namespace": "shop"}, "spec": spec}),
        json!({"apiVersion": "network.alibabacloud.com/v1beta2", "kind": "GlobalNetworkPolicy",
            "metadata": {"name": "p"}, "spec": spec}),
        json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": "p"}, "spec": {"tier": "Admin", "priority": 3,
                "subject": {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"a": "b"}}}},
                "egress": [{"name": "r", "action": "Accept",
                    "to": [{"networks": ["10.0.0.0/8"]}, {"nodes": {}}, {"namespaces": {}}],
                    "protocols": [{"tcp": {"destinationPort": {"number": 80}}},
                        {"udp": {"destinationPort": {"range": {"start": 1, "end": 9}}}}]}]}}),
        json!({"apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "AdminNetworkPolicy",
            "metadata": {"name": "p"}, "spec": {"priority": 3, "subject": {"namespaces": {}},
                "ingress": [{"action": "Pass", "from": [{"namespaces": {"matchLabels": {"a": "b"}}}],
                    "ports": [{"portRange": {"start": 1, "end": 2}}, {"namedPort": "web"}]}]}}),
        json!({"apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "BaselineAdminNetworkPolicy",
            "metadata": {"name": "default"}, "spec": {"subject": {"namespaces": {}},
                "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}]}}),
        json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkPolicy",
            "metadata": {"name": "p"}, "spec": {"order": 5.5, "selector": "a == 'b' && !has(c)",
                "types": ["Ingress"], "ingress": [{"action": "Allow", "protocol": "TCP",
                    "source": {"selector": "x in {'y'}", "nets": ["10.0.0.0/8"], "namespaceSelector": "all()"},
                    "destination": {"ports": [80, "90:91", "web"], "notPorts": [81]}}]}}),
        json!({"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
            "metadata": {"name": "p", "namespace": "shop"}, "spec": {"selector": "all()",
                "egress": [{"action": "Deny", "destination": {"notSelector": "x starts with 'y'"}}]}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "shop",
                "labels": {"a": "b"}, "annotations": {"k8s.aliyun.com/pod-ips": "10.0.0.1"}},
            "spec": {"nodeName": "n", "containers": [{"ports": [{"name": "w", "containerPort": 1}]}]},
            "status": {"podIPs": [{"ip": "10.0.0.1"}], "phase": "Running"}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "p"},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}}),
        json!({"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "p", "labels": {"a": "b"}}}]}),
    ]
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
        "\\PC{0,6}".prop_map(Value::from),
        Just(json!("10.0.0.0/8")),
        Just(json!("all() && (")),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::hash_map("[a-zA-Z]{0,12}", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Puts a value at the place that `steps` lead to; answers whether that is inside of `spec`.
fn put(value: &mut Value, steps: &[usize], new: Value) -> bool {
    let Some((step, rest)) = steps.split_first() else {
        *value = new;
        return false;
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            let step = step % map.len();
            let (key, inner) = map.iter_mut().nth(step).unwrap();
            let is_spec = key == "spec";
            put(inner, rest, new) || is_spec
        }
        Value::Array(list) if !list.is_empty() => {
            let step = step % list.len();
            put(&mut list[step], rest, new)
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => {
            *value = new;
            false
        }
    }
}

#[test]
fn good_documents_have_no_problems() {
    for value in good() {
        for parsed in documents(&value) {
            let Parsed::Object(object) = parsed else {
                panic!("{parsed:?}");
            };
            if let Object::Policy(policy) = object {
                assert_eq!(policy.problems, [], "{value}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn document_with_a_random_wound_keeps_its_identity(
        which in any::<prop::sample::Index>(),
        wounds in prop::collection::vec((prop::collection::vec(0_usize..8, 0..9), anything()), 1..3),
    ) {
        let all = good();
        let before = which.get(&all);
        let mut value = before.clone();
        let mut inside = true;
        for (steps, new) in wounds {
            inside &= put(&mut value, &steps, new);
        }
        let parsed = documents(&value);
        if inside && let Parsed::Object(Object::Policy(old)) = document(before) {
            let [Parsed::Object(Object::Policy(new))] = parsed.as_slice() else {
                panic!("{parsed:?}");
            };
            prop_assert_eq!(&new.id, &old.id);
        }
    }

    #[test]
    fn anything_at_all_is_read_without_panic(value in anything()) {
        drop(documents(&value));
    }

    #[test]
    fn calico_text_is_read_without_panic(text in "[a-z!&|(){}'\",= ]{0,40}") {
        drop(crate::calico::selector(&text));
    }
}
