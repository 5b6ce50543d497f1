//! Checklist C: address ranges.

use rstest::rstest;
use serde_json::{Value, json};

use crate::fixture::{PODS, cluster, policy};

fn to(blocks: &[Value]) -> Value {
    let peers: Vec<Value> = blocks.iter().map(|b| json!({"ipBlock": b})).collect();
    policy(
        "x",
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": peers}]}),
    )
}

// C1
#[test]
fn block_matches_pods_and_nodes_by_their_address() {
    let with = cluster().with(to(&[
        json!({"cidr": "10.2.0.0/16"}),
        json!({"cidr": "192.168.0.2/32"}),
    ]));
    assert_eq!(with.reached("x/a", PODS), "x/a y/a y/b y/c");
    assert_eq!(with.reached("x/a", "node:n1 node:n2"), "node:n2");
    assert!(!with.opens("x/a", "8.8.8.8"));
}

// C2
#[test]
fn except_takes_away_from_its_own_block_alone() {
    let holed = json!({"cidr": "10.2.0.0/16", "except": ["10.2.0.2/31"]});
    assert_eq!(
        cluster()
            .with(to(std::slice::from_ref(&holed)))
            .reached("x/a", PODS),
        "x/a y/a"
    );
    let refilled = cluster().with(to(&[holed, json!({"cidr": "10.2.0.3/32"})]));
    assert_eq!(refilled.reached("x/a", PODS), "x/a y/a y/c");
}

// C3, E9
#[rstest]
#[case("0.0.0.0/0", "y/a", true)]
#[case("0.0.0.0/0", "y/a/6", false)]
#[case("::/0", "y/a", false)]
#[case("::/0", "y/a/6", true)]
#[case("10.2.0.77/16", "y/a", true)]
fn families_never_cross(#[case] cidr: &str, #[case] to_pod: &str, #[case] open: bool) {
    let source = if to_pod.ends_with('6') {
        "x/a/6"
    } else {
        "x/a"
    };
    let with = cluster().with(to(&[json!({"cidr": cidr})]));
    assert_eq!(with.opens(source, to_pod), open);
}

// C3
#[test]
fn except_of_the_whole_block_leaves_nothing() {
    let with = cluster().with(to(&[
        json!({"cidr": "10.2.0.0/16", "except": ["10.2.0.0/16"]}),
    ]));
    assert_eq!(with.reached("x/a", PODS), "x/a");
}

// C4
#[test]
fn translated_connection_is_judged_by_the_pod_behind_the_service() {
    let with = cluster().with(to(&[
        json!({"cidr": "10.96.0.0/12", "except": ["10.96.0.0/12"]}),
    ]));
    assert!(!with.opens("x/a", "y/a"));
    let pod_range = cluster().with(to(&[json!({"cidr": "10.2.0.0/16"})]));
    assert!(pod_range.opens("x/a", "y/a"));
}
