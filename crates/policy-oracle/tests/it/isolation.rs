//! Checklist A: isolation and defaults.

use rstest::rstest;
use serde_json::{Value, json};

use crate::fixture::{PODS, Tcp, cluster, named_policy, pod, policy};

const PODS_BUT_XA: &str = "x/b x/c y/a y/b y/c z/a z/b z/c";

// A1
#[test]
fn pod_without_a_policy_is_open_both_ways() {
    assert_eq!(cluster().openers(PODS, "x/a"), PODS);
    assert!(cluster().opens("8.8.8.8", "x/a"));
    assert!(cluster().opens("x/a", "8.8.8.8"));
}

// A1
#[test]
fn isolation_holds_for_the_named_direction_alone() {
    let ingress = cluster().with(policy(
        "x",
        json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress"]}),
    ));
    assert_eq!(ingress.openers(PODS, "x/a"), "x/a");
    assert_eq!(ingress.reached("x/a", PODS), PODS);
    assert_eq!(ingress.openers(PODS, "x/b"), PODS);

    let egress = cluster().with(policy(
        "x",
        json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Egress"]}),
    ));
    assert_eq!(egress.openers(PODS, "x/a"), PODS);
    assert_eq!(egress.reached("x/a", PODS), "x/a");
}

// A2
#[test]
fn policies_add_up_and_none_takes_away() {
    let allow = |label: &str| {
        json!({"podSelector": {}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"pod": label}}}]},
        ]})
    };
    let both = cluster()
        .with(named_policy("x", "deny", json!({"podSelector": {}})))
        .with(named_policy("x", "b", allow("b")))
        .with(named_policy("x", "c", allow("c")));
    assert_eq!(both.openers(PODS_BUT_XA, "x/a"), "x/b x/c");
}

// A3
#[test]
fn connection_needs_both_sides() {
    let half = cluster()
        .with(policy(
            "x",
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}),
        ))
        .with(policy("y", json!({"podSelector": {}})));
    let decision = half.decide("x/a", "y/a", Tcp, 80);
    assert!(decision.egress.allowed);
    assert!(!decision.ingress.allowed);
    assert!(!decision.allowed);
}

// A4
#[rstest]
#[case(json!({}), true, false)]
#[case(json!({"ingress": [{}]}), true, false)]
#[case(json!({"egress": []}), true, false)]
#[case(json!({"egress": [{"to": [{"podSelector": {"matchLabels": {"pod": "c"}}}]}]}), true, true)]
#[case(json!({"policyTypes": []}), true, false)]
#[case(json!({"policyTypes": null}), true, false)]
#[case(json!({"policyTypes": ["Egress"]}), false, true)]
fn missing_policy_types_mean_ingress_and_egress_with_rules(
    #[case] spec: Value,
    #[case] ingress: bool,
    #[case] egress: bool,
) {
    let with = cluster().with(policy("x", spec.clone()));
    let allowed = spec["ingress"] == json!([{}]);
    assert_eq!(!with.opens("y/b", "x/a"), ingress && !allowed, "{spec}");
    assert_eq!(!with.opens("x/a", "y/b"), egress, "{spec}");
}

// A5
#[rstest]
#[case(json!({"podSelector": {}}))]
#[case(json!({"podSelector": {}, "ingress": null}))]
#[case(json!({"podSelector": {}, "ingress": []}))]
fn missing_null_and_empty_rules_all_allow_nothing(#[case] spec: Value) {
    assert_eq!(
        cluster().with(policy("x", spec)).openers(PODS, "x/a"),
        "x/a"
    );
}

// A6
#[rstest]
#[case(json!({}))]
#[case(json!({"from": [], "ports": []}))]
#[case(json!({"from": null, "ports": null}))]
fn empty_rule_allows_everything(#[case] rule: Value) {
    let with = cluster().with(policy("x", json!({"podSelector": {}, "ingress": [rule]})));
    assert_eq!(with.openers(PODS, "x/a"), PODS);
    assert!(with.opens("8.8.8.8", "x/a"));
}

// A6
#[test]
fn rule_of_a_direction_that_is_not_governed_is_ignored() {
    let with = cluster().with(policy(
        "x",
        json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}], "egress": [
            {"to": [{"podSelector": {"matchLabels": {"pod": "b"}}}]},
        ]}),
    ));
    assert_eq!(with.reached("x/a", PODS), PODS);
}

// A7
#[rstest]
#[case(json!({}))]
#[case(json!({"podSelector": null}))]
#[case(json!({"podSelector": {}}))]
fn missing_or_empty_pod_selector_selects_the_namespace(#[case] spec: Value) {
    let with = cluster().with(policy("x", spec));
    for pod in ["x/a", "x/b", "x/c"] {
        assert_eq!(with.openers("y/a", pod), "");
    }
    assert_eq!(with.openers("x/a", "y/a"), "x/a");
}

// A8
#[test]
fn policy_holds_in_a_namespace_that_is_terminating() {
    let with = cluster()
        .with(policy("x", json!({"podSelector": {}})))
        .edit("Namespace", "", "x", |namespace| {
            namespace["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            namespace["status"] = json!({"phase": "Terminating"});
        });
    assert!(!with.opens("y/a", "x/a"));
}

// A8
#[test]
fn policy_holds_for_a_pod_that_is_still_starting() {
    let mut young = pod("x", "a", &["10.1.0.1"]);
    young["status"] = json!({"phase": "Pending"});
    let with = cluster()
        .with(young)
        .with(policy("x", json!({"podSelector": {}})));
    assert!(!with.opens("y/a", "x/a"));
}
