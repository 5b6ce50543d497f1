//! Checklist B: selectors, and which pods count.

use rstest::rstest;
use serde_json::{Value, json};

use crate::fixture::{PODS, cluster, pod, policy};

fn from(peers: Value) -> Value {
    policy(
        "x",
        json!({"podSelector": {"matchLabels": {"pod": "a"}}, "ingress": [{"from": peers}]}),
    )
}

fn openers(peers: Value) -> String {
    let all = cluster().with(from(peers)).openers(PODS, "x/a");
    all.strip_prefix("x/a").unwrap().trim_start().to_owned()
}

// B1
#[rstest]
#[case(json!([{"podSelector": {"matchLabels": {"pod": "b"}}}]), "x/b")]
#[case(json!([{"podSelector": {}}]), "x/b x/c")]
#[case(json!([{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]), "y/a y/b y/c")]
#[case(json!([{"namespaceSelector": {}}]), "x/b x/c y/a y/b y/c z/a z/b z/c")]
#[case(
    json!([{"namespaceSelector": {"matchLabels": {"ns": "y"}}, "podSelector": {"matchLabels": {"pod": "b"}}}]),
    "y/b"
)]
#[case(
    json!([{"namespaceSelector": {"matchLabels": {"ns": "y"}}}, {"podSelector": {"matchLabels": {"pod": "b"}}}]),
    "x/b y/a y/b y/c"
)]
#[case(json!([{"namespaceSelector": null, "podSelector": {}}]), "x/b x/c")]
#[case(json!([{"namespaceSelector": {}, "podSelector": null}]), "x/b x/c y/a y/b y/c z/a z/b z/c")]
fn selectors_join_as_the_api_says(#[case] peers: Value, #[case] expected: &str) {
    assert_eq!(openers(peers), expected);
}

// B2
#[test]
fn not_in_matches_a_namespace_without_the_label() {
    let peers = json!([{"namespaceSelector": {"matchExpressions": [
        {"key": "ns", "operator": "NotIn", "values": ["x", "y"]},
    ]}}]);
    assert_eq!(openers(peers.clone()), "z/a z/b z/c");
    let bare = cluster().with(from(peers)).edit("Namespace", "", "y", |n| {
        n["metadata"]["labels"] = json!(null);
    });
    assert!(bare.opens("y/a", "x/a"));
}

// B3
#[test]
fn peer_selector_that_cannot_be_read_matches_nothing() {
    let bad = json!({"matchExpressions": [{"key": "ns", "operator": "Gt", "values": ["1"]}]});
    assert_eq!(openers(json!([{"namespaceSelector": bad}])), "");
    assert_eq!(
        openers(json!([{"namespaceSelector": bad}, {"podSelector": {}}])),
        "x/b x/c"
    );
}

// B3
#[test]
fn subject_selector_that_cannot_be_read_isolates_the_namespace() {
    let with = cluster().with(policy(
        "x",
        json!({"podSelector": {"matchExpressions": [{"key": "pod", "operator": "?"}]}}),
    ));
    for pod in ["x/a", "x/b", "x/c"] {
        assert!(!with.opens("y/a", pod));
    }
    assert!(with.opens("y/a", "y/b"));
    assert_eq!(with.world().problems().len(), 1);
}

// B3
#[test]
fn subject_selector_that_cannot_be_read_opens_nobody() {
    let with = cluster().with(policy(
        "x",
        json!({"podSelector": "pod=a", "policyTypes": ["Ingress"], "ingress": [{}]}),
    ));
    for pod in ["x/a", "x/b", "x/c"] {
        assert!(!with.opens("y/a", pod));
    }
}

// B4
#[test]
fn pod_whose_namespace_is_unknown_matches_no_namespace_selector() {
    for selector in [
        json!({}),
        json!({"matchExpressions": [{"key": "ns", "operator": "DoesNotExist"}]}),
    ] {
        let with = cluster()
            .with(from(json!([{"namespaceSelector": selector}])))
            .without("Namespace", "y");
        assert!(!with.opens("y/a", "x/a"));
        assert!(!with.opens("z/a", "x/a") || selector == json!({}));
    }
    let own = cluster()
        .with(from(json!([{"podSelector": {}}])))
        .without("Namespace", "x");
    assert!(own.opens("x/b", "x/a"));
}

// B4
#[test]
fn namespace_label_change_moves_all_its_pods() {
    let with = cluster()
        .with(from(
            json!([{"namespaceSelector": {"matchLabels": {"ns": "q"}}}]),
        ))
        .edit("Namespace", "", "z", |n| {
            n["metadata"]["labels"]["ns"] = json!("q");
        });
    assert_eq!(with.openers(PODS, "x/a"), "x/a z/a z/b z/c");
}

// B5, E9
#[test]
fn both_families_are_peers_and_subjects() {
    let with = cluster().with(from(
        json!([{"podSelector": {"matchLabels": {"pod": "b"}}}]),
    ));
    assert!(with.opens("x/b/6", "x/a/6"));
    assert!(!with.opens("x/c/6", "x/a/6"));
    assert!(with.opens("x/b", "x/a"));
    assert!(!with.opens("x/c", "x/a"));
}

// B6
#[test]
fn finished_pod_leaves_its_address_to_its_successor() {
    for phase in ["Succeeded", "Failed"] {
        let with = cluster()
            .with(from(
                json!([{"podSelector": {"matchLabels": {"pod": "b"}}}]),
            ))
            .edit("Pod", "x", "b", |p| p["status"]["phase"] = json!(phase))
            .with(pod("z", "new", &["10.1.0.2"]));
        assert!(!with.opens("x/b", "x/a"), "{phase}");
        assert!(!with.opens("10.1.0.2", "x/a"), "{phase}");
    }
}

// B6
#[test]
fn finished_pod_loses_its_own_policy() {
    let with = cluster()
        .with(policy("x", json!({"podSelector": {}})))
        .edit("Pod", "x", "a", |p| {
            p["status"]["phase"] = json!("Succeeded");
        });
    assert!(with.opens("y/a", "10.1.0.1"));
}

// B7
#[test]
fn terminating_pod_stays_peer_and_subject() {
    let leaving = |p: &mut Value| {
        p["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    };
    let with = cluster()
        .with(from(
            json!([{"podSelector": {"matchLabels": {"pod": "b"}}}]),
        ))
        .edit("Pod", "x", "a", leaving)
        .edit("Pod", "x", "b", leaving);
    assert_eq!(with.openers(PODS, "x/a"), "x/a x/b");
}

// B8
#[test]
fn address_held_by_two_pods_is_both_of_them() {
    let with = cluster()
        .with(from(
            json!([{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]),
        ))
        .with(pod("y", "twin", &["10.3.0.3"]));
    assert!(with.opens("z/c", "x/a"));
    assert!(!with.opens("z/b", "x/a"));
}

// B9
#[test]
fn host_network_pod_is_no_subject_and_no_pod_peer() {
    let host = |p: &mut Value| {
        p["spec"]["hostNetwork"] = json!(true);
        p["status"]["podIPs"] = json!([{"ip": "192.168.0.1"}]);
    };
    let with = cluster()
        .with(policy(
            "x",
            json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}),
        ))
        .edit("Pod", "x", "b", host);
    assert!(with.opens("y/a", "192.168.0.1"));
    // n1 reaches its own pods in any case; from its address the pods of n2 are not opened.
    assert!(!with.opens("192.168.0.1", "x/c"));
    assert!(!with.opens("node:n1", "x/c"));

    let block = cluster()
        .with(policy(
            "x",
            json!({"podSelector": {}, "ingress": [
                {"from": [{"ipBlock": {"cidr": "192.168.0.1/32"}}]},
            ]}),
        ))
        .edit("Pod", "x", "b", host);
    assert!(block.opens("node:n1", "x/c"));
    assert!(!block.opens("node:n2", "x/a"));
}

// B10
#[test]
fn later_document_of_a_pod_replaces_the_earlier() {
    let mut moved = pod("x", "b", &["10.1.0.99"]);
    moved["metadata"]["labels"] = json!({"pod": "other"});
    let with = cluster()
        .with(from(
            json!([{"podSelector": {"matchLabels": {"pod": "b"}}}]),
        ))
        .with(moved);
    assert!(!with.opens("10.1.0.2", "x/a"));
    assert!(!with.opens("10.1.0.99", "x/a"));
}
