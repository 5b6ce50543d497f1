//! ClusterNetworkPolicy, AdminNetworkPolicy, BaselineAdminNetworkPolicy.

use rstest::rstest;
use serde_json::{Value, json};

use super::{denies_all, fields, is_void, only, policy};
use crate::flow::Protocol;
use crate::policy::{Action, NamespaceScope, Order, Peer, Peers, Policy, Port, Ports, Tier};
use crate::selector::Selector;

fn cluster(change: impl FnOnce(&mut Value)) -> Policy {
    let mut spec = json!({
        "tier": "Admin",
        "priority": 10,
        "subject": {"namespaces": {}},
    });
    change(&mut spec);
    policy(&json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "c"},
        "spec": spec,
    }))
}

fn with_rule(action: &str, rule: &Value) -> Policy {
    cluster(|spec| {
        let mut rule = rule.clone();
        rule["action"] = json!(action);
        spec["egress"] = json!([rule]);
    })
}

fn old(kind: &str, spec: &Value) -> Policy {
    policy(&json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": "default"},
        "spec": spec,
    }))
}

// F1, F2
#[test]
fn cluster_policy_stands_in_its_tier_by_priority() {
    let admin = cluster(|_| ());
    assert_eq!((admin.tier, admin.order), (Tier::Admin, Order(10)));
    assert!(!admin.isolates());
    assert_eq!((&admin.ingress, &admin.egress), (&None, &None));
    let baseline = cluster(|spec| spec["tier"] = json!("Baseline"));
    assert_eq!(baseline.tier, Tier::Baseline);
    assert!(admin.place() < baseline.place());
    let later = cluster(|spec| spec["priority"] = json!(11));
    assert!(admin.place() < later.place());
}

// F2
#[test]
fn policies_of_equal_priority_are_sorted_by_name() {
    let mut first = cluster(|_| ());
    let mut second = old(
        "AdminNetworkPolicy",
        &json!({"priority": 10, "subject": {"namespaces": {}}}),
    );
    first.id.name = "b".into();
    second.id.name = "a".into();
    assert!(second.place() < first.place());
}

// F3
#[rstest]
#[case("Accept", Action::Accept)]
#[case("Deny", Action::Deny)]
#[case("Pass", Action::Pass)]
fn cluster_rule_has_its_action_and_name(#[case] word: &str, #[case] action: Action) {
    let policy = with_rule(word, &json!({"name": "dns", "to": [{"namespaces": {}}]}));
    let rule = only(policy.egress.as_ref());
    assert_eq!((rule.action, &*rule.name), (action, "dns"));
    assert_eq!(policy.problems, []);
}

// F3
#[test]
fn admin_policy_says_allow_where_cluster_policy_says_accept() {
    let spec = |action: &str| {
        json!({"priority": 1, "subject": {"namespaces": {}},
            "ingress": [{"action": action, "from": [{"namespaces": {}}]}]})
    };
    let allow = old("AdminNetworkPolicy", &spec("Allow"));
    assert_eq!(only(allow.ingress.as_ref()).action, Action::Accept);
    let accept = old("AdminNetworkPolicy", &spec("Accept"));
    assert!(denies_all(&only(accept.ingress.as_ref())));
}

// F1
#[test]
fn baseline_admin_policy_comes_last_and_cannot_pass() {
    let policy = old(
        "BaselineAdminNetworkPolicy",
        &json!({"subject": {"namespaces": {}}, "ingress": [
            {"action": "Pass", "from": [{"namespaces": {}}]},
        ]}),
    );
    assert_eq!(policy.tier, Tier::Baseline);
    let cluster = cluster(|spec| {
        spec["tier"] = json!("Baseline");
        spec["priority"] = json!(1000);
    });
    assert!(cluster.place() < policy.place());
    assert!(denies_all(&only(policy.ingress.as_ref())));
}

// F4
#[test]
fn egress_peers_are_pods_nodes_and_networks() {
    let policy = with_rule(
        "Deny",
        &json!({"to": [
            {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"a": "b"}}}},
            {"nodes": {"matchExpressions": [{"key": "edge", "operator": "Exists"}]}},
            {"networks": ["10.0.0.1/8", "fd00::/8"]},
        ]}),
    );
    assert_eq!(policy.problems, []);
    let Peers::OneOf(peers) = only(policy.egress.as_ref()).peers else {
        panic!("open");
    };
    assert_eq!(peers.len(), 4);
    assert!(peers.contains(&Peer::Nodes(Selector::Has("edge".into()).into())));
    let networks = peers.iter().filter(|p| matches!(p, Peer::Block(_))).count();
    assert_eq!(networks, 2);
}

// F4
#[test]
fn domain_names_match_nothing_in_an_accept_and_everything_otherwise() {
    let rule = json!({"to": [{"domainNames": ["x.org"]}]});
    let accept = with_rule("Accept", &rule);
    assert!(is_void(&only(accept.egress.as_ref())));
    assert_eq!(fields(&accept), ["spec.egress[0].to[0].domainNames"]);
    assert!(denies_all(&only(with_rule("Deny", &rule).egress.as_ref())));
}

// F5
#[rstest]
#[case(json!({"to": [{"future": {}}]}), "to[0].future")]
#[case(json!({"to": [{}]}), "to[0]")]
#[case(json!({"to": [{"namespaces": {}, "nodes": {}}]}), "to[0]")]
#[case(json!({"to": [{"namespaces": {}}, {"networks": ["x"]}]}), "to[1].networks[0]")]
#[case(json!({"to": [{"networks": "10.0.0.0/8"}]}), "to[0].networks")]
#[case(json!({"to": [{"pods": {"namespaceSelector": {}}}]}), "to[0].pods.podSelector")]
#[case(json!({"to": [{"namespaces": {"matchLabels": {"a": 1}}}]}), "to[0].namespaces.matchLabels.a")]
#[case(json!({"to": []}), "to")]
#[case(json!({}), "to")]
#[case(json!({"to": [{"namespaces": {}}], "protocols": [{"future": {}}]}), "protocols[0].future")]
#[case(json!({"to": [{"namespaces": {}}], "protocols": [{"tcp": {"sourcePort": 1}}]}), "protocols[0].tcp.sourcePort")]
#[case(json!({"to": [{"namespaces": {}}], "protocols": [{"tcp": {"destinationPort": {"number": 0}}}]}), "protocols[0].tcp.destinationPort.number")]
#[case(json!({"to": [{"namespaces": {}}], "protocols": [{"tcp": {"destinationPort": {"range": {"start": 9, "end": 8}}}}]}), "protocols[0].tcp.destinationPort.range.end")]
#[case(json!({"to": [{"nodes": {}}], "protocols": [{"destinationNamedPort": "web"}]}), "protocols")]
#[case(json!({"to": [{"namespaces": {}}], "when": {}}), "when")]
fn cluster_rule_that_cannot_be_read_fails_closed(#[case] rule: Value, #[case] field: &str) {
    let accept = with_rule("Accept", &rule);
    assert!(is_void(&only(accept.egress.as_ref())));
    assert_eq!(fields(&accept), [format!("spec.egress[0].{field}")]);
    for action in ["Deny", "Pass", "Unheard"] {
        assert!(
            denies_all(&only(with_rule(action, &rule).egress.as_ref())),
            "{action}"
        );
    }
}

#[test]
fn ingress_peer_of_nodes_is_not_known() {
    let policy = cluster(|spec| {
        spec["ingress"] = json!([{"action": "Accept", "from": [{"nodes": {}}]}]);
    });
    assert!(is_void(&only(policy.ingress.as_ref())));
}

#[test]
fn cluster_rule_list_that_cannot_be_read_denies_everything() {
    let policy = cluster(|spec| spec["ingress"] = json!("x"));
    assert!(denies_all(&only(policy.ingress.as_ref())));
}

#[rstest]
#[case("subject", json!(null))]
#[case("subject", json!({}))]
#[case("subject", json!({"namespaces": {"matchLabels": 3}}))]
#[case("subject", json!({"pods": {"namespaceSelector": {"x": 1}, "podSelector": {}}}))]
#[case("tier", json!("Top"))]
#[case("tier", json!(null))]
#[case("priority", json!(1001))]
#[case("priority", json!(-1))]
#[case("priority", json!("1"))]
fn cluster_policy_of_unclear_reach_can_only_deny(#[case] key: &str, #[case] value: Value) {
    let policy = cluster(|spec| {
        let rule = |action: &str| json!({"action": action, "from": [{"namespaces": {}}]});
        spec["ingress"] = json!([rule("Accept"), rule("Pass"), rule("Deny")]);
        spec[key] = value;
    });
    assert_eq!(policy.problems.len(), 1);
    let rules = policy.ingress.unwrap();
    assert!(is_void(&rules[0]));
    assert_eq!(rules[1].action, Action::Deny);
    assert_eq!(rules[2].action, Action::Deny);
    if key == "subject" {
        assert_eq!(policy.subject.namespaces, NamespaceScope::Any);
        assert_eq!(*policy.subject.pods, Selector::Everything);
    }
}

// F1, F2
#[rstest]
#[case(json!({"tier": null, "priority": 500}), Tier::Admin, Order(500))]
#[case(json!({"tier": "Top"}), Tier::Admin, Order(10))]
#[case(json!({"priority": "1"}), Tier::Admin, Order::FIRST)]
#[case(json!({"tier": "Baseline", "priority": -1}), Tier::Baseline, Order::FIRST)]
#[case(json!({"tier": 1, "priority": 1001}), Tier::Admin, Order::FIRST)]
#[case(json!({"tier": "Baseline", "subject": {}}), Tier::Baseline, Order(10))]
fn cluster_policy_keeps_what_is_known_of_its_place_and_is_heard_first_otherwise(
    #[case] change: Value,
    #[case] tier: Tier,
    #[case] order: Order,
) {
    let policy = cluster(|spec| {
        for (key, value) in change.as_object().unwrap() {
            spec[key] = value.clone();
        }
    });
    assert!(!policy.problems.is_empty());
    assert_eq!((policy.tier, policy.order), (tier, order));
}

#[rstest]
#[case(json!("all"))]
#[case(json!([]))]
#[case(json!(7))]
fn cluster_policy_whose_spec_is_no_object_denies_everything(#[case] spec: Value) {
    let policy = cluster(|slot| *slot = spec);
    assert!(denies_all(&only(policy.ingress.as_ref())));
    assert!(denies_all(&only(policy.egress.as_ref())));
    assert_eq!(policy.subject.namespaces, NamespaceScope::Any);
    assert_eq!((policy.tier, policy.order), (Tier::Admin, Order::FIRST));
    assert_eq!(fields(&policy), ["spec"]);
}

// F6, D1
#[rstest]
#[case(json!({"destinationNamedPort": "web"}), Port::Named(None, "web".into()))]
#[case(json!({"udp": {}}), Port::All(Protocol::UDP))]
#[case(json!({"sctp": {"destinationPort": {"number": 7}}}), Port::Range(Protocol::SCTP, 7, 7))]
#[case(json!({"tcp": {"destinationPort": {"range": {"start": 8, "end": 9}}}}), Port::Range(Protocol::TCP, 8, 9))]
fn cluster_port_without_protocol_means_any_of_that_name(#[case] port: Value, #[case] wanted: Port) {
    let rule = json!({"to": [{"namespaces": {}}], "protocols": [port]});
    let policy = with_rule("Accept", &rule);
    assert_eq!(policy.problems, []);
    assert_eq!(
        only(policy.egress.as_ref()).ports,
        Ports::OneOf(vec![wanted])
    );
}

// F6
#[rstest]
#[case(json!({"namedPort": "web"}), Port::Named(None, "web".into()))]
#[case(json!({"portNumber": {"protocol": "UDP", "port": 7}}), Port::Range(Protocol::UDP, 7, 7))]
#[case(json!({"portRange": {"start": 8, "end": 9}}), Port::Range(Protocol::TCP, 8, 9))]
fn admin_port_is_a_number_a_range_or_a_name(#[case] port: Value, #[case] wanted: Port) {
    let policy = old(
        "AdminNetworkPolicy",
        &json!({"priority": 1, "subject": {"namespaces": {}},
            "ingress": [{"action": "Allow", "from": [{"namespaces": {}}], "ports": [port]}]}),
    );
    assert_eq!(policy.problems, []);
    assert_eq!(
        only(policy.ingress.as_ref()).ports,
        Ports::OneOf(vec![wanted])
    );
}
