//! NetworkPolicy and ACK's GlobalNetworkPolicy.

use std::sync::Arc;

use rstest::rstest;
use serde_json::{Value, json};

use super::{fields, is_void, network_policy, only, policy};
use crate::flow::Protocol;
use crate::policy::{
    Action, NamespaceScope, Order, Peer, Peers, Policy, PolicyKind, Port, Ports, Tier,
};
use crate::selector::Selector;

fn own() -> NamespaceScope {
    NamespaceScope::Own(Arc::from("shop"))
}

// A4
#[rstest]
#[case(json!({}), (true, false))]
#[case(json!({"ingress": [{}]}), (true, false))]
#[case(json!({"egress": [{}]}), (true, true))]
#[case(json!({"egress": []}), (true, false))]
#[case(json!({"egress": null, "policyTypes": []}), (true, false))]
#[case(json!({"egress": "x"}), (true, true))]
#[case(json!({"policyTypes": ["Egress"]}), (false, true))]
#[case(json!({"policyTypes": ["Ingress"], "egress": [{}]}), (true, false))]
#[case(json!({"policyTypes": ["Egress", "Ingress"]}), (true, true))]
#[case(json!({"policyTypes": "Egress"}), (true, true))]
#[case(json!({"policyTypes": ["Egress", "Sideways"]}), (true, true))]
#[case(json!("x"), (true, true))]
fn policy_types_missing_are_told_from_the_rules(
    #[case] spec: Value,
    #[case] isolated: (bool, bool),
) {
    let policy = network_policy(&spec);
    assert_eq!(
        (policy.ingress.is_some(), policy.egress.is_some()),
        isolated
    );
    assert_eq!(policy.tier, Tier::Namespaced);
    assert_eq!(policy.order, Policy::KUBERNETES_ORDER);
}

// A5
#[rstest]
#[case(json!({"policyTypes": ["Ingress"]}))]
#[case(json!({"policyTypes": ["Ingress"], "ingress": []}))]
#[case(json!({"policyTypes": ["Ingress"], "ingress": null}))]
fn rule_list_missing_or_empty_isolates_and_allows_nothing(#[case] spec: Value) {
    let policy = network_policy(&spec);
    assert_eq!(policy.ingress, Some(Vec::new()));
    assert_eq!(policy.problems, []);
}

// A6
#[rstest]
#[case(json!({}))]
#[case(json!({"from": []}))]
#[case(json!({"ports": []}))]
#[case(json!({"from": null, "ports": null}))]
fn rule_without_restriction_allows_everything(#[case] rule: Value) {
    let policy = network_policy(&json!({"ingress": [rule]}));
    let rule = only(policy.ingress.as_ref());
    assert_eq!((rule.peers, rule.ports), (Peers::Anybody, Ports::Every));
    assert_eq!(rule.action, Action::Accept);
}

// A6
#[test]
fn rule_of_a_direction_not_in_policy_types_is_ignored() {
    let policy = network_policy(&json!({"policyTypes": ["Egress"], "ingress": [{}]}));
    assert_eq!(policy.ingress, None);
    assert_eq!(policy.egress, Some(Vec::new()));
}

// A7
#[rstest]
#[case(json!({}))]
#[case(json!({"podSelector": {}}))]
#[case(json!({"podSelector": null}))]
#[case(json!({"podSelector": {"matchLabels": null, "matchExpressions": []}}))]
fn subject_missing_or_empty_is_every_pod_of_the_namespace(#[case] spec: Value) {
    let policy = network_policy(&spec);
    assert_eq!(policy.subject.namespaces, own());
    assert_eq!(*policy.subject.pods, Selector::Everything);
    assert_eq!(policy.problems, []);
}

// B1
#[test]
fn peer_selectors_join_in_one_item_and_alternate_in_two() {
    let web = json!({"matchLabels": {"app": "web"}});
    let team = json!({"matchLabels": {"team": "x"}});
    let policy = network_policy(&json!({"ingress": [
        {"from": [{"podSelector": web, "namespaceSelector": team}]},
        {"from": [{"podSelector": web}, {"namespaceSelector": team}]},
        {"from": [{"podSelector": {}}, {"namespaceSelector": {}}]},
    ]}));
    let is =
        |key: &str, value: &str| Arc::new(Selector::In(Arc::from(key), [Arc::from(value)].into()));
    let all = || Arc::new(Selector::Everything);
    let pods = |namespaces, pods| {
        Peer::Pods(crate::policy::PodScope {
            namespaces,
            pods,
            accounts: all(),
        })
    };
    let rules = policy.ingress.unwrap();
    assert_eq!(
        rules[0].peers,
        Peers::OneOf(vec![pods(
            NamespaceScope::Matching(is("team", "x")),
            is("app", "web")
        )])
    );
    assert_eq!(
        rules[1].peers,
        Peers::OneOf(vec![
            pods(own(), is("app", "web")),
            pods(NamespaceScope::Matching(is("team", "x")), all()),
        ])
    );
    assert_eq!(
        rules[2].peers,
        Peers::OneOf(vec![
            pods(own(), all()),
            pods(NamespaceScope::Matching(all()), all())
        ])
    );
}

// B3
#[rstest]
#[case(json!({"podSelector": {"matchLabels": {"a": 1}}}), "ingress[0].from[0].podSelector.matchLabels.a")]
#[case(json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Like", "values": ["x"]}]}}), "ingress[0].from[0].podSelector.matchExpressions[0].operator")]
#[case(json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}), "ingress[0].from[0].podSelector.matchExpressions[0].values")]
#[case(json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["x"]}]}}), "ingress[0].from[0].podSelector.matchExpressions[0].values")]
#[case(json!({"podSelector": {"matchExpressions": [{"operator": "Exists"}]}}), "ingress[0].from[0].podSelector.matchExpressions[0].key")]
#[case(json!({"podSelector": {"matchLabel": {"a": "b"}}}), "ingress[0].from[0].podSelector.matchLabel")]
#[case(json!({"podSelector": "app=web"}), "ingress[0].from[0].podSelector")]
#[case(json!({}), "ingress[0].from[0]")]
#[case(json!({"podSelectr": {}}), "ingress[0].from[0].podSelectr")]
#[case(json!(null), "ingress[0].from[0]")]
#[case(json!({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}), "ingress[0].from[0].ipBlock")]
#[case(json!({"ipBlock": {}}), "ingress[0].from[0].ipBlock.cidr")]
#[case(json!({"ipBlock": {"cidr": "10.0.0.0"}}), "ingress[0].from[0].ipBlock.cidr")]
#[case(json!({"ipBlock": {"cidr": "10.0.0.0/33"}}), "ingress[0].from[0].ipBlock.cidr")]
#[case(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["x"]}}), "ingress[0].from[0].ipBlock.except[0]")]
#[case(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": "x"}}), "ingress[0].from[0].ipBlock.except")]
fn peer_that_cannot_be_read_matches_nothing_and_leaves_the_others(
    #[case] peer: Value,
    #[case] field: &str,
) {
    let policy = network_policy(&json!({"ingress": [{"from": [peer]}]}));
    assert!(is_void(&only(policy.ingress.as_ref())));
    assert_eq!(fields(&policy), [format!("spec.{field}")]);
    let good = json!({"podSelector": {}});
    let beside = network_policy(&json!({"ingress": [{"from": [peer, good]}]}));
    let Peers::OneOf(peers) = only(beside.ingress.as_ref()).peers else {
        panic!("open");
    };
    assert_eq!(peers.len(), 1);
}

// B3
#[test]
fn subject_that_cannot_be_read_is_the_namespace_and_allows_nothing() {
    let policy = network_policy(&json!({
        "podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{}],
        "egress": [{}],
    }));
    assert_eq!(policy.subject.namespaces, own());
    assert_eq!(*policy.subject.pods, Selector::Everything);
    assert_eq!(
        (policy.ingress, policy.egress),
        (Some(Vec::new()), Some(Vec::new()))
    );
}

#[rstest]
#[case(json!([null]), "spec.ingress[0]")]
#[case(json!([{"fromm": []}]), "spec.ingress[0].fromm")]
#[case(json!([{"from": {}}]), "spec.ingress[0].from")]
#[case(json!([{"ports": "80"}]), "spec.ingress[0].ports")]
fn rule_that_cannot_be_read_matches_nothing(#[case] rules: Value, #[case] field: &str) {
    let policy = network_policy(&json!({"ingress": rules}));
    assert!(is_void(&only(policy.ingress.as_ref())));
    assert_eq!(fields(&policy), [field]);
}

#[test]
fn rule_list_that_cannot_be_read_isolates_and_allows_nothing() {
    let policy = network_policy(&json!({"ingress": {}}));
    assert_eq!(policy.ingress, Some(Vec::new()));
    assert_eq!(fields(&policy), ["spec.ingress"]);
}

// C3
#[test]
fn block_has_no_host_bits_and_keeps_what_it_subtracts() {
    let policy = network_policy(&json!({"ingress": [{"from": [{"ipBlock": {
        "cidr": "10.1.2.3/8", "except": ["10.9.9.9/16", "192.168.0.0/16", "fd00::/8"],
    }}]}]}));
    assert_eq!(policy.problems, []);
    let Peers::OneOf(peers) = only(policy.ingress.as_ref()).peers else {
        panic!("open");
    };
    let [Peer::Block(block)] = peers.as_slice() else {
        panic!("{peers:?}");
    };
    assert_eq!(block.cidr, "10.0.0.0/8".parse().unwrap());
    assert_eq!(block.except, ["10.9.0.0/16".parse().unwrap()]);
}

// D1, D2
#[rstest]
#[case(json!({}), Port::All(Protocol::TCP))]
#[case(json!({"protocol": "UDP"}), Port::All(Protocol::UDP))]
#[case(json!({"port": 80}), Port::Range(Protocol::TCP, 80, 80))]
#[case(json!({"port": 80, "protocol": null}), Port::Range(Protocol::TCP, 80, 80))]
#[case(json!({"port": 80, "endPort": 80}), Port::Range(Protocol::TCP, 80, 80))]
#[case(json!({"port": 80, "endPort": 90, "protocol": "SCTP"}), Port::Range(Protocol::SCTP, 80, 90))]
#[case(json!({"port": 1, "endPort": 65535}), Port::Range(Protocol::TCP, 1, 65535))]
#[case(json!({"port": "web"}), Port::Named(Some(Protocol::TCP), "web".into()))]
fn port_defaults_to_tcp_and_includes_its_end(#[case] port: Value, #[case] wanted: Port) {
    let policy = network_policy(&json!({"ingress": [{"ports": [port]}]}));
    assert_eq!(
        only(policy.ingress.as_ref()).ports,
        Ports::OneOf(vec![wanted])
    );
    assert_eq!(policy.problems, []);
}

// D2
#[rstest]
#[case(json!({"port": 80, "endPort": 79}), "endPort")]
#[case(json!({"endPort": 80}), "endPort")]
#[case(json!({"port": "web", "endPort": 80}), "endPort")]
#[case(json!({"port": 80, "endPort": 70000}), "endPort")]
#[case(json!({"port": 0}), "port")]
#[case(json!({"port": -1}), "port")]
#[case(json!({"port": 65536}), "port")]
#[case(json!({"port": 1.5}), "port")]
#[case(json!({"port": ""}), "port")]
#[case(json!({"port": []}), "port")]
#[case(json!({"protocol": "tcp"}), "protocol")]
#[case(json!({"protocol": 6}), "protocol")]
#[case(json!({"prot": "TCP"}), "prot")]
fn port_that_cannot_be_read_matches_nothing_and_leaves_the_others(
    #[case] port: Value,
    #[case] field: &str,
) {
    let policy = network_policy(&json!({"ingress": [{"ports": [port, {"port": 443}]}]}));
    assert_eq!(
        only(policy.ingress.as_ref()).ports,
        Ports::OneOf(vec![Port::Range(Protocol::TCP, 443, 443)])
    );
    assert_eq!(
        fields(&policy),
        [format!("spec.ingress[0].ports[0].{field}")]
    );
    let alone = network_policy(&json!({"ingress": [{"ports": [port]}]}));
    assert!(is_void(&only(alone.ingress.as_ref())));
}

// D6
#[test]
fn port_name_that_no_pod_can_have_is_a_problem_and_stays_a_name() {
    let policy = network_policy(&json!({"ingress": [{"ports": [{"port": "80"}]}]}));
    assert_eq!(fields(&policy), ["spec.ingress[0].ports[0].port"]);
    assert_eq!(
        only(policy.ingress.as_ref()).ports,
        Ports::OneOf(vec![Port::Named(Some(Protocol::TCP), "80".into())])
    );
}

fn ack(version: &str, spec: &Value) -> Policy {
    policy(&json!({
        "apiVersion": format!("network.alibabacloud.com/{version}"),
        "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "g"},
        "spec": spec,
    }))
}

#[test]
fn ack_policy_selects_over_the_cluster() {
    let policy = ack(
        "v1beta2",
        &json!({
            "podSelector": {"matchLabels": {"a": "b"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"c": "d"}}}]}],
        }),
    );
    assert_eq!(policy.problems, []);
    assert_eq!(policy.id.kind, PolicyKind::AckGlobal);
    assert_eq!(
        (policy.tier, policy.order),
        (Tier::Namespaced, Order(1_000_000_000))
    );
    assert_eq!(policy.subject.namespaces, NamespaceScope::Any);
    let Peers::OneOf(peers) = only(policy.ingress.as_ref()).peers else {
        panic!("open");
    };
    assert!(
        matches!(peers.as_slice(), [Peer::Pods(scope)] if scope.namespaces == NamespaceScope::Any)
    );
}

#[rstest]
#[case("v1beta1", json!({}))]
#[case("v1beta2", json!(null))]
#[case("v1beta2", json!({"priority": 3}))]
fn ack_policy_of_unknown_meaning_is_refused_without_effect(
    #[case] version: &str,
    #[case] spec: Value,
) {
    let policy = ack(version, &spec);
    assert_eq!((&policy.ingress, &policy.egress), (&None, &None));
    assert_eq!(policy.problems.len(), 1);
}

#[test]
fn ack_policy_with_a_broken_subject_denies_within_what_is_readable() {
    let policy = ack(
        "v1beta2",
        &json!({
            "podSelector": "x",
            "namespaceSelector": {"matchLabels": {"a": "b"}},
            "ingress": [{}],
        }),
    );
    assert!(matches!(
        policy.subject.namespaces,
        NamespaceScope::Matching(_)
    ));
    assert_eq!(*policy.subject.pods, Selector::Everything);
    assert_eq!(policy.ingress, Some(Vec::new()));
}
