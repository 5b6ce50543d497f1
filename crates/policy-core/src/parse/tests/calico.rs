//! Calico's policies.

use rstest::rstest;
use serde_json::{Value, json};

use super::{denies_all, fields, is_void, only, policy};
use crate::flow::Protocol;
use crate::policy::{
    Action, NamespaceScope, Order, Peer, Peers, Policy, PolicyKind, Port, Ports, Tier,
};
use crate::selector::Selector;

fn global(spec: &Value) -> Policy {
    policy(&json!({
        "apiVersion": "crd.projectcalico.org/v1",
        "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "default.g"},
        "spec": spec,
    }))
}

fn namespaced(spec: &Value) -> Policy {
    policy(&json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": "NetworkPolicy",
        "metadata": {"name": "n", "namespace": "shop"},
        "spec": spec,
    }))
}

// F7
#[rstest]
#[case(json!({}), i64::MAX)]
#[case(json!({"order": 1000}), 1_000_000_000)]
#[case(json!({"order": -0.5}), -500_000)]
#[case(json!({"order": 1e300}), i64::MAX)]
#[case(json!({"order": -1e300}), i64::MIN)]
fn calico_policy_stands_by_its_order(#[case] spec: Value, #[case] order: i64) {
    let policy = global(&spec);
    assert_eq!(
        (policy.tier, policy.order),
        (Tier::Namespaced, Order(order))
    );
    assert_eq!(policy.problems, []);
}

// F7
#[test]
fn calico_policy_of_order_1000_comes_after_those_of_kubernetes() {
    let calico = global(&json!({"order": 1000}));
    let kubernetes = super::network_policy(&json!({}));
    assert!(kubernetes.place() < calico.place());
    assert!(global(&json!({"order": 999})).place() < kubernetes.place());
}

// F7
#[rstest]
#[case(json!({}), (true, false))]
#[case(json!({"egress": [{"action": "Allow"}]}), (false, true))]
#[case(json!({"ingress": [{"action": "Allow"}]}), (true, false))]
#[case(json!({"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]}), (true, true))]
#[case(json!({"types": ["Egress"]}), (false, true))]
#[case(json!({"types": ["Ingress", "Egress"]}), (true, true))]
#[case(json!({"types": ["Both"]}), (true, true))]
fn calico_types_missing_are_told_from_the_rules(#[case] spec: Value, #[case] types: (bool, bool)) {
    let policy = global(&spec);
    assert_eq!((policy.ingress.is_some(), policy.egress.is_some()), types);
}

// F7
#[test]
fn calico_subject_is_selected_by_pod_namespace_and_account() {
    let policy = global(&json!({
        "selector": "app == 'web'",
        "namespaceSelector": "team == 'x'",
        "serviceAccountSelector": "has(robot)",
    }));
    assert_eq!(policy.problems, []);
    assert!(matches!(
        policy.subject.namespaces,
        NamespaceScope::Matching(_)
    ));
    assert_eq!(*policy.subject.accounts, Selector::Has("robot".into()));
    assert_eq!(global(&json!({})).subject.namespaces, NamespaceScope::Any);
    let own = namespaced(&json!({"selector": "all()"}));
    assert_eq!(own.subject.namespaces, NamespaceScope::Own("shop".into()));
    assert_eq!(own.id.kind, PolicyKind::CalicoNamespaced);
}

// F7
#[rstest]
#[case("Allow", Action::Accept)]
#[case("Deny", Action::Deny)]
#[case("Pass", Action::Pass)]
#[case("Log", Action::Log)]
fn calico_rule_has_its_action(#[case] word: &str, #[case] action: Action) {
    let policy = global(&json!({"ingress": [{"action": word}]}));
    let rule = only(policy.ingress.as_ref());
    assert_eq!(
        (rule.action, rule.peers, rule.ports),
        (action, Peers::Anybody, Ports::Every)
    );
}

// F7
#[test]
fn calico_peer_meets_selectors_and_networks() {
    let policy = namespaced(&json!({"ingress": [
        {"action": "Allow", "source": {"selector": "a == 'b'"}},
        {"action": "Allow", "source": {"namespaceSelector": "all()"}},
        {"action": "Allow", "source": {"selector": "has(a)", "nets": ["10.0.0.0/8", "47.0.0.1"], "notNets": ["10.1.0.0/16"]}},
        {"action": "Allow", "source": {"notSelector": "has(a)"}},
        {"action": "Allow", "source": {"serviceAccounts": {"names": ["robot"], "selector": "has(b)"}}},
        {"action": "Allow", "ipVersion": 6, "source": {"nets": ["10.0.0.0/8"]}},
    ]}));
    assert_eq!(policy.problems, []);
    let own = NamespaceScope::Own("shop".into());
    let peers: Vec<Vec<Peer>> = policy
        .ingress
        .unwrap()
        .into_iter()
        .map(|rule| match rule.peers {
            Peers::OneOf(peers) => peers,
            Peers::Anybody => panic!("open"),
        })
        .collect();
    assert!(matches!(&peers[0][0], Peer::Pods(scope) if scope.namespaces == own));
    assert!(matches!(&peers[1][0], Peer::Pods(scope) if scope.namespaces != own));
    let Peer::Meet {
        pods,
        within,
        outside,
        not_pods,
    } = &peers[2][0]
    else {
        panic!("{peers:?}");
    };
    assert!(pods.is_some() && not_pods.is_none());
    assert_eq!((within.len(), outside.len()), (2, 1));
    let Peer::Meet { pods, not_pods, .. } = &peers[3][0] else {
        panic!("{peers:?}");
    };
    assert_eq!(pods.as_ref().map(|scope| &scope.namespaces), Some(&own));
    assert_eq!(
        not_pods.as_ref().map(|scope| &scope.namespaces),
        Some(&NamespaceScope::Any)
    );
    assert!(
        matches!(&peers[4][0], Peer::Pods(scope) if *scope.accounts == Selector::Has("b".into()))
    );
    assert_eq!(peers[5], []);
}

// F7
#[test]
fn calico_ports_have_a_protocol_and_may_exclude() {
    let policy = global(&json!({"egress": [
        {"action": "Allow", "protocol": "UDP", "destination": {"ports": [53, "8000:8010", "dns", "99"]}},
        {"action": "Allow", "protocol": 6, "destination": {"notPorts": [22]}},
        {"action": "Allow", "protocol": "ICMP"},
        {"action": "Allow", "notProtocol": "TCP"},
        {"action": "Allow", "protocol": "TCP", "notProtocol": "TCP"},
    ]}));
    assert_eq!(policy.problems, []);
    let rules = policy.egress.unwrap();
    assert_eq!(
        rules[0].ports,
        Ports::OneOf(vec![
            Port::Range(Protocol::UDP, 53, 53),
            Port::Range(Protocol::UDP, 99, 99),
            Port::Range(Protocol::UDP, 8000, 8010),
            Port::Named(Some(Protocol::UDP), "dns".into()),
        ])
    );
    assert_eq!(
        rules[1].ports,
        Ports::Except(
            vec![Port::All(Protocol::TCP)],
            vec![Port::Range(Protocol::TCP, 22, 22)]
        )
    );
    assert_eq!(
        rules[2].ports,
        Ports::OneOf(vec![Port::All(Protocol::ICMP)])
    );
    let Ports::OneOf(others) = &rules[3].ports else {
        panic!("{:?}", rules[3].ports);
    };
    assert_eq!(others.len(), 255);
    assert!(!others.contains(&Port::All(Protocol::TCP)));
    assert!(is_void(&rules[4]));
}

// F7
#[rstest]
#[case(json!({"source": {"ports": [1]}, "protocol": "TCP"}))]
#[case(json!({"destination": {"selector": "has(a)"}}))]
#[case(json!({"source": {"selector": "a ="}}))]
#[case(json!({"source": {"nets": ["x"]}}))]
#[case(json!({"source": {"services": {"name": "s"}}}))]
#[case(json!({"destination": {"ports": [80]}}))]
#[case(json!({"protocol": "TCP", "destination": {"ports": ["9:8"]}}))]
#[case(json!({"protocol": "TCP", "destination": {"ports": [0]}}))]
#[case(json!({"protocol": "GRE"}))]
#[case(json!({"protocol": "ICMP", "icmp": {"type": 8}}))]
#[case(json!({"http": {"methods": ["GET"]}}))]
#[case(json!({"ipVersion": 5}))]
fn calico_rule_that_is_not_supported_fails_closed(#[case] rule: Value) {
    let with = |action: &str| {
        let mut rule = rule.clone();
        rule["action"] = json!(action);
        let policy = global(&json!({"ingress": [rule]}));
        assert!(!policy.problems.is_empty());
        only(policy.ingress.as_ref())
    };
    assert!(is_void(&with("Allow")));
    assert!(is_void(&with("Log")));
    for action in ["Deny", "Pass", "Unheard"] {
        let rule = with(action);
        assert_eq!((rule.action, rule.peers), (Action::Deny, Peers::Anybody));
    }
}

// F7
#[rstest]
#[case("doNotTrack")]
#[case("preDNAT")]
#[case("applyOnForward")]
fn calico_policy_about_hosts_is_refused_without_effect(#[case] key: &str) {
    let refused = global(&json!({key: true, "ingress": [{"action": "Deny"}]}));
    assert_eq!((&refused.ingress, &refused.egress), (&None, &None));
    assert_eq!(fields(&refused), [format!("spec.{key}")]);
    let plain = global(&json!({key: false, "ingress": [{"action": "Deny"}]}));
    assert!(plain.ingress.is_some() && plain.problems.is_empty());
}

// F7
#[rstest]
#[case(json!({"selector": "a ="}))]
#[case(json!({"namespaceSelector": 3}))]
#[case(json!({"tier": "security"}))]
#[case(json!({"order": "first"}))]
#[case(json!({"future": 1}))]
#[case(json!({"types": ["Ingress", "Both"]}))]
fn calico_policy_of_unclear_reach_can_only_deny(#[case] part: Value) {
    let mut spec =
        json!({"ingress": [{"action": "Allow"}, {"action": "Pass"}, {"action": "Deny"}]});
    for (key, value) in part.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let policy = global(&spec);
    assert!(!policy.problems.is_empty());
    let rules = policy.ingress.unwrap();
    assert!(is_void(&rules[0]));
    assert_eq!(
        (rules[1].action, rules[2].action),
        (Action::Deny, Action::Deny)
    );
}

#[test]
fn calico_subject_that_cannot_be_read_stays_in_its_namespace() {
    let policy = namespaced(&json!({"selector": "a =", "ingress": [{"action": "Allow"}]}));
    assert_eq!(
        policy.subject.namespaces,
        NamespaceScope::Own("shop".into())
    );
    assert_eq!(*policy.subject.pods, Selector::Everything);
}

// A later policy must not allow what the list may have denied.
#[test]
fn calico_rule_list_that_cannot_be_read_denies_everything() {
    let policy = global(&json!({"ingress": 7}));
    assert!(denies_all(&only(policy.ingress.as_ref())));
    let policy = global(&json!(7));
    assert!(denies_all(&only(policy.ingress.as_ref())));
    assert!(denies_all(&only(policy.egress.as_ref())));
    assert_eq!(policy.order, Order::FIRST);
}
