//! Policies that cannot be read fail closed for their subjects and stop nobody else.

use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use crate::fixture::{Cluster, Tcp, cluster, cnp, gnp, named_policy, policy};

// A5, B3, D6
#[rstest]
#[case(json!("all"))]
#[case(json!({"podSelector": []}))]
#[case(json!({"podSelector": {}, "ingress": {}}))]
#[case(json!({"podSelector": {}, "ingress": [null]}))]
#[case(json!({"podSelector": {}, "ingress": ["all"]}))]
#[case(json!({"podSelector": {}, "ingress": [{"form": []}]}))]
#[case(json!({"podSelector": {}, "ingress": [{"from": {}}]}))]
#[case(json!({"podSelector": {}, "ingress": [{"from": [{}]}]}))]
#[case(json!({"podSelector": {}, "ingress": [{"from": [null]}]}))]
#[case(json!({"podSelector": {}, "ingress": [{"from": [{"serviceSelector": {}}]}]}))]
#[case(json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "all"}}]}]}))]
#[case(json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}, "podSelector": {}}]}]}))]
#[case(json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["x"]}}]}]}))]
#[case(json!({"podSelector": {}, "ingress": [{"ports": 80}]}))]
#[case(json!({"podSelector": {}, "ingress": [{"ports": [{"port": 99999}]}]}))]
#[case(json!({"podSelector": {}, "ingress": [{"ports": [{"protocol": "ANY"}]}]}))]
#[case(json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80, "endPort": 79}]}]}))]
#[case(json!({"podSelector": {}, "policyTypes": "Ingress"}))]
#[case(json!({"podSelector": {}, "policyTypes": ["ingress"]}))]
fn policy_that_cannot_be_read_denies_its_subjects_alone(#[case] spec: Value) {
    let with = cluster().with(policy("x", spec));
    assert!(!with.opens("y/a", "x/a"));
    assert!(with.opens("y/a", "y/b"));
    assert_eq!(with.world().problems().len(), 1);

    // Other policies of the same pod still allow.
    let helped = with.with(named_policy(
        "x",
        "good",
        json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}),
    ));
    assert!(helped.opens("y/a", "x/a"));
}

#[test]
fn readable_half_of_a_rule_still_allows() {
    let with = cluster().with(policy(
        "x",
        json!({"podSelector": {}, "ingress": [
            {"from": [{"bad": 1}, {"namespaceSelector": {"matchLabels": {"ns": "y"}}}]},
            "nonsense",
        ]}),
    ));
    assert!(with.opens("y/a", "x/a"));
    assert!(!with.opens("z/a", "x/a"));
    assert_eq!(with.world().problems().len(), 2);
}

#[rstest]
#[case(json!({"tier": "Top", "priority": 1, "subject": {"namespaces": {}}}))]
#[case(json!({"tier": "Admin", "priority": 1001, "subject": {"namespaces": {}}}))]
#[case(json!({"tier": "Admin", "priority": "1", "subject": {"namespaces": {}}}))]
#[case(json!({"tier": "Admin", "priority": 1}))]
#[case(json!({"tier": "Admin", "priority": 1, "subject": {}}))]
#[case(json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {"bad": {}}}}))]
fn cluster_policy_in_doubt_can_only_deny(#[case] mut spec: Value) {
    let peer = |ns: &str| json!([{"namespaces": {"matchLabels": {"ns": ns}}}]);
    spec["ingress"] = json!([
        {"action": "Accept", "from": peer("x")},
        {"action": "Deny", "from": peer("y")},
        {"action": "Pass", "from": peer("z")},
    ]);
    let with = cluster().with(cnp("p", spec)).with(policy(
        "x",
        json!({"podSelector": {"matchLabels": {"pod": "a"}}}),
    ));
    assert!(!with.opens("x/b", "x/a"), "accepts nothing");
    assert!(with.opens("x/a", "x/b"), "says nothing of x");
    assert!(!with.opens("y/a", "x/b"));
    assert!(!with.opens("z/a", "x/b"));
    assert!(!with.world().problems().is_empty());
}

fn accept_all(priority: u32) -> Value {
    json!({"tier": "Admin", "priority": priority, "subject": {"namespaces": {}},
        "ingress": [{"action": "Accept", "from": [{"namespaces": {}}]}]})
}

// F1, F2
#[rstest]
#[case(json!({"tier": "Top", "priority": 500}), 499, true)]
#[case(json!({"tier": "Top", "priority": 500}), 501, false)]
#[case(json!({"tier": "Admin", "priority": "1"}), 0, false)]
#[case(json!({"tier": "Baseline", "priority": "1"}), 0, true)]
#[case(json!({"tier": "Top"}), 0, false)]
fn cluster_policy_in_doubt_keeps_the_place_that_is_known(
    #[case] mut spec: Value,
    #[case] other: u32,
    #[case] open: bool,
) {
    spec["subject"] = json!({"namespaces": {}});
    spec["ingress"] = json!([{"action": "Deny", "from": [{"namespaces": {}}]}]);
    let with = cluster()
        .with(cnp("a", accept_all(other)))
        .with(cnp("b", spec));
    assert_eq!(with.opens("y/a", "x/a"), open);
}

#[test]
fn cluster_policy_whose_spec_is_no_object_denies_all() {
    let with = cluster()
        .with(cnp("a", accept_all(0)))
        .with(cnp("b", json!("all")));
    assert!(!with.opens("y/a", "x/a"));
}

#[rstest]
#[case(json!({"selector": "pod =", "ingress": [{"action": "Allow"}]}))]
#[case(json!({"tier": "security", "ingress": [{"action": "Allow"}]}))]
#[case(json!({"order": "first", "ingress": [{"action": "Allow"}]}))]
#[case(json!({"types": ["Both"], "ingress": [{"action": "Allow"}]}))]
#[case(json!({"ingress": {}}))]
#[case(json!({"ingress": [{"action": "Allow", "source": {"selector": "?"}}]}))]
#[case(json!({"ingress": [{"action": "Allow", "http": {"methods": ["GET"]}}]}))]
#[case(json!({"ingress": [{"action": "Allow", "source": {"services": {"name": "s"}}}]}))]
#[case(json!({"ingress": [{"action": "Allow", "destination": {"ports": [80]}}]}))]
#[case(json!({"ingress": [{"action": "Permit"}]}))]
#[case(json!({"ingress": [{"action": "Pass", "source": {"bad": 1}}]}))]
#[case(json!({"ingress": [{"action": "Deny", "source": {"bad": 1}}, {"action": "Allow"}]}))]
fn calico_policy_that_cannot_be_read_allows_nothing(#[case] spec: Value) {
    let with = cluster().with(gnp("g", spec));
    assert!(!with.opens("y/a", "x/a"));
    assert!(!with.world().problems().is_empty());
}

// F7
#[rstest]
#[case(json!("all"))]
#[case(json!({"order": 10, "ingress": {"action": "Deny"}}))]
fn calico_rules_that_cannot_be_read_deny_what_later_policies_allow(#[case] spec: Value) {
    let allow = named_policy("x", "good", json!({"podSelector": {}, "ingress": [{}]}));
    let with = cluster().with(allow).with(gnp("g", spec));
    assert!(!with.opens("y/a", "x/a"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        "podSelector",
        "namespaceSelector",
        "matchLabels",
        "matchExpressions",
        "ingress",
        "egress",
        "from",
        "to",
        "ports",
        "port",
        "endPort",
        "protocol",
        "protocols",
        "tcp",
        "ipBlock",
        "cidr",
        "except",
        "policyTypes",
        "Ingress",
        "Egress",
        "action",
        "Accept",
        "Allow",
        "Deny",
        "Pass",
        "tier",
        "Admin",
        "priority",
        "subject",
        "namespaces",
        "pods",
        "networks",
        "nodes",
        "order",
        "selector",
        "source",
        "destination",
        "nets",
        "10.0.0.0/8",
        "all()",
        "has(a)",
        "key",
        "values",
        "operator",
        "In",
        "TCP",
        "metadata",
        "labels",
        "annotations",
        "status",
        "podIPs",
        "ip",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        words.clone().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((words.clone(), inner), 0..6).prop_map(|pairs| {
                pairs
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value))
                    .collect::<serde_json::Map<_, _>>()
                    .into()
            }),
        ]
    })
}

const KINDS: [(&str, &str); 12] = [
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
    ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
    (
        "policy.networking.k8s.io/v1alpha1",
        "BaselineAdminNetworkPolicy",
    ),
    ("crd.projectcalico.org/v1", "GlobalNetworkPolicy"),
    ("projectcalico.org/v3", "NetworkPolicy"),
    ("network.alibabacloud.com/v1beta2", "GlobalNetworkPolicy"),
    ("v1", "Pod"),
    ("v1", "Namespace"),
    ("v1", "Node"),
    ("v1", "ServiceAccount"),
    ("v1", "List"),
];

proptest! {
    #[test]
    fn document_of_any_shape_is_survived(
        kind in prop::sample::select(KINDS.to_vec()),
        spec in any_json(),
        rest in any_json(),
    ) {
        let mut document = rest.clone();
        if !document.is_object() {
            document = json!({});
        }
        document["apiVersion"] = json!(kind.0);
        document["kind"] = json!(kind.1);
        document["spec"] = spec;
        let Cluster(mut documents) = cluster();
        documents.push(document);
        documents.push(rest);
        let with = Cluster(documents);
        for (from, to) in [("x/a", "y/b"), ("x/a/6", "y/b/6"), ("8.8.8.8", "x/a")] {
            let decision = with.decide(from, to, Tcp, 80);
            prop_assert!(!decision.egress.reasons.is_empty());
            prop_assert!(!decision.ingress.reasons.is_empty());
        }
    }
}
