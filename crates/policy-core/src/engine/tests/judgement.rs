use serde_json::{Value, json};

use super::world::{World, allow, flow, ip, namespace, placed, pod, policy, settings, with_ports};
use crate::flow::{Direction, Protocol};
use crate::judge::Verdict;
use crate::layout::Settings;
use types::pod::PodKey;

const T: Protocol = Protocol::TCP;
const U: Protocol = Protocol::UDP;

fn world(policies: &[Value]) -> World {
    let mut world = World::new();
    let ports = |number: u16| json!([{"name": "web", "containerPort": number}]);
    world.put(&with_ports(
        pod("a", "n1", &["10.0.0.1", "fd00::1"], &json!({"app": "a"})),
        &ports(80),
    ));
    world.put(&with_ports(
        pod("b", "n1", &["10.0.0.2", "fd00::2"], &json!({"app": "b"})),
        &ports(8080),
    ));
    world.put(&with_ports(
        pod("c", "n2", &["10.0.0.3", "fd00::3"], &json!({"app": "c"})),
        &ports(9090),
    ));
    world
        .engine
        .set_node_addresses([ip("10.9.0.1"), ip("fd00:9::1")]);
    for one in policies {
        world.put(one);
    }
    world.settle_clean();
    world
}

fn tcp(world: &World, from: &str, to: &str, port: u16) -> bool {
    world.engine.allows(&flow(from, to, T, port))
}

// A1, A5, E1
#[test]
fn a_pod_under_deny_all_is_reached_by_its_own_node_alone() {
    let world = world(&[policy("deny", &json!({"podSelector": {}, "ingress": []}))]);
    assert!(!tcp(&world, "10.0.0.3", "10.0.0.1", 80));
    assert!(!tcp(&world, "fd00::3", "fd00::1", 80));
    assert!(tcp(&world, "10.9.0.1", "10.0.0.1", 80));
    assert!(!tcp(&world, "10.9.0.2", "10.0.0.1", 80));
    assert!(tcp(&world, "10.0.0.1", "10.0.0.3", 80));
}

// D3
#[test]
fn a_named_port_of_ingress_is_that_of_each_destination() {
    let world = world(&[policy(
        "web",
        &json!({"podSelector": {}, "ingress": [{"ports": [{"port": "web"}]}]}),
    )]);
    assert!(tcp(&world, "10.0.0.3", "10.0.0.1", 80));
    assert!(!tcp(&world, "10.0.0.3", "10.0.0.1", 8080));
    assert!(tcp(&world, "10.0.0.3", "10.0.0.2", 8080));
    assert!(!tcp(&world, "10.0.0.3", "10.0.0.2", 80));
}

// D4, D5, D6
#[test]
fn a_named_port_of_egress_is_that_of_each_destination_and_of_no_outsider() {
    let world = world(&[policy(
        "web",
        &json!({
            "podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"],
            "egress": [{"ports": [{"port": "web"}]}],
        }),
    )]);
    assert!(tcp(&world, "10.0.0.1", "10.0.0.2", 8080));
    assert!(!tcp(&world, "10.0.0.1", "10.0.0.2", 9090));
    assert!(tcp(&world, "fd00::1", "fd00::3", 9090));
    assert!(!tcp(&world, "10.0.0.1", "192.0.2.1", 9090));
    assert!(!world.engine.allows(&flow("10.0.0.1", "10.0.0.2", U, 8080)));
    assert!(world.units().iter().any(|u| u.starts_with("n4_")));
}

// E3
#[test]
fn a_pod_reaches_itself_whatever_its_policies_say() {
    let world = world(&[policy(
        "deny",
        &json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
    )]);
    assert!(tcp(&world, "10.0.0.1", "10.0.0.1", 80));
    assert!(!tcp(&world, "10.0.0.1", "10.0.0.2", 80));
}

// C2, C3, C1
#[test]
fn an_exception_subtracts_from_its_own_network_and_pods_count_as_addresses() {
    let world = world(&[policy(
        "cidr",
        &json!({"podSelector": {}, "ingress": [{"from": [
            {"ipBlock": {"cidr": "10.0.0.0/24", "except": ["10.0.0.2/31"]}},
            {"ipBlock": {"cidr": "10.0.0.3/32"}},
        ]}]}),
    )]);
    assert!(tcp(&world, "10.0.0.3", "10.0.0.1", 80));
    assert!(!tcp(&world, "10.0.0.2", "10.0.0.1", 80));
    assert!(!tcp(&world, "fd00::3", "fd00::1", 80));
}

fn cluster_policy(name: &str, tier: &str, action: &str, peer: &Value) -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": {
            "tier": tier, "priority": 10,
            "subject": {"namespaces": {}},
            "ingress": [{"action": action, "from": [{"namespaces": peer}]}],
        },
    })
}

// F1, F3
#[test]
fn tiers_are_judged_in_order_and_pass_leaves_its_own() {
    let deny = policy("deny", &json!({"podSelector": {}}));
    let all = json!({});
    let accepting = world(&[deny.clone(), cluster_policy("p", "Admin", "Accept", &all)]);
    assert!(tcp(&accepting, "10.0.0.3", "10.0.0.1", 80));
    let passing = world(&[deny, cluster_policy("p", "Admin", "Pass", &all)]);
    assert!(!tcp(&passing, "10.0.0.3", "10.0.0.1", 80));
    let baseline = world(&[cluster_policy("p", "Baseline", "Deny", &all)]);
    assert!(!tcp(&baseline, "10.0.0.3", "10.0.0.1", 80));
    // E3: the tiers of administrators apply to a pod and itself as well.
    assert!(!tcp(&baseline, "10.0.0.1", "10.0.0.1", 80));
}

// E2
#[test]
fn egress_to_the_own_node_is_judged_and_so_are_metadata_and_the_dns_cache() {
    let isolated = policy(
        "deny",
        &json!({"podSelector": {}, "policyTypes": ["Egress"]}),
    );
    let world_of = world(std::slice::from_ref(&isolated));
    for to in ["10.9.0.1", "100.100.100.200", "169.254.20.10"] {
        assert!(!tcp(&world_of, "10.0.0.1", to, 53), "{to}");
    }
    let mut allowing = World::with(Settings {
        always_allowed: vec!["169.254.20.10/32".parse().unwrap()],
        ..settings()
    });
    allowing.put(&pod("a", "n1", &["10.0.0.1"], &json!({})));
    allowing.put(&isolated);
    allowing.settle_clean();
    assert!(tcp(&allowing, "10.0.0.1", "169.254.20.10", 53));
    assert!(!tcp(&allowing, "10.0.0.1", "169.254.20.11", 53));
}

// E9, D7, D8
#[test]
fn a_rule_without_ports_matches_every_protocol_and_one_with_ports_its_own() {
    let world = world(&[
        allow("p", "b", 80),
        policy(
            "q",
            &json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "c"}}}]}]}),
        ),
    ]);
    let icmp = flow("10.0.0.3", "10.0.0.1", Protocol::ICMP, 0);
    assert!(world.engine.allows(&icmp));
    assert!(
        !world
            .engine
            .allows(&flow("10.0.0.2", "10.0.0.1", Protocol::ICMP, 0))
    );
    assert!(
        !world
            .engine
            .allows(&flow("10.0.0.2", "10.0.0.1", Protocol::SCTP, 80))
    );
    assert!(world.engine.allows(&flow("fd00::2", "fd00::1", T, 80)));
}

#[test]
fn explanations_name_policies_rules_and_the_set_that_lacks_the_address() {
    let world = world(&[allow("p", "b", 80)]);
    let flow = flow("10.0.0.3", "10.0.0.1", T, 80);
    let told = world.engine.explain(&flow);
    assert_eq!(told.verdict(), Verdict::Denied);
    assert_eq!(told.destination, Some(PodKey::new("x", "a")));
    let text: Vec<&str> = told.reasons.iter().map(|r| r.text.as_str()).collect();
    assert!(
        text.iter()
            .any(|t| t.contains("isolated by NetworkPolicy x/p")),
        "{text:?}"
    );
    assert!(
        text.iter().any(|t| t.contains("lacks 10.0.0.3")),
        "{text:?}"
    );
    let chain = told.reasons.iter().find_map(|r| r.chain.clone()).unwrap();
    assert!(world.units().contains(&chain));
    let view = world.engine.show_pod(&PodKey::new("x", "a")).unwrap();
    let ingress = &view.profiles[0];
    assert!(ingress.isolated && world.units().contains(ingress.chain.as_ref().unwrap()));
    assert!(ingress.sets.iter().all(|set| world.units().contains(set)));
}

#[test]
fn judgement_and_explanation_agree() {
    let world = world(&[
        allow("p", "b", 80),
        cluster_policy("q", "Admin", "Pass", &json!({})),
        policy(
            "e",
            &json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": 1, "endPort": 90}]}]}),
        ),
    ]);
    let ips = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.9.0.1", "192.0.2.1"];
    for from in ips {
        for to in ips {
            for port in [0, 80, 90, 91] {
                let flow = flow(from, to, T, port);
                let told = world.engine.explain(&flow).verdict() == Verdict::Allowed;
                assert_eq!(told, world.engine.allows(&flow), "{flow:?}");
            }
        }
    }
}

#[test]
fn a_pod_whose_object_is_not_known_passes_nothing() {
    let mut world = World::new();
    world.engine.place(placed("ghost", "s1", &["10.0.0.7"]));
    world.settle_clean();
    assert!(!tcp(&world, "10.0.0.7", "192.0.2.1", 80));
    let ghost = PodKey::new("x", "ghost");
    let to = flow("192.0.2.1", "10.0.0.7", T, 80);
    assert_eq!(
        world.engine.judge(&ghost, Direction::Ingress, &to),
        Verdict::Denied
    );
    assert!(!world.engine.is_ready(&super::world::attachment("s1")));
    world.put(&pod("ghost", "n1", &["10.0.0.7"], &json!({})));
    world.settle_clean();
    assert!(tcp(&world, "10.0.0.7", "192.0.2.1", 80));
}

// E5
#[test]
fn whose_flows_are_judged_again_is_told_after_the_transaction() {
    let mut world = world(&[allow("p", "c", 80)]);
    drop(world.engine.take_disturbance());
    world.put(&pod(
        "c",
        "n2",
        &["10.0.0.3", "fd00::3"],
        &json!({"app": "other"}),
    ));
    world.settle_clean();
    let told = world.engine.take_disturbance();
    assert!(told.lost.contains(&ip("10.0.0.3")) && told.locals.is_empty());
    world.put(&allow("p", "b", 80));
    world.settle_clean();
    let told = world.engine.take_disturbance();
    assert!(told.locals.contains(&ip("10.0.0.1")) && told.locals.contains(&ip("fd00::2")));
    world.put(&pod("d", "n2", &["10.0.0.5"], &json!({"app": "b"})));
    world.settle_clean();
    assert!(
        world
            .engine
            .take_disturbance()
            .gained
            .contains(&ip("10.0.0.5"))
    );
    world.drop_pod("a");
    world.settle_clean();
    assert!(
        world
            .engine
            .take_disturbance()
            .gone
            .contains(&ip("10.0.0.1"))
    );
    assert!(world.engine.take_disturbance().is_empty());
}

#[test]
fn calico_rules_meet_networks_selectors_and_excluded_ports() {
    let mut world = World::new();
    world.put(&namespace("x", &json!({})));
    world.put(&pod("a", "n1", &["10.0.0.1"], &json!({"app": "a"})));
    world.put(&pod("c", "n2", &["10.0.0.3"], &json!({"app": "c"})));
    world.put(&json!({
        "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "g"},
        "spec": {
            "selector": "app == 'a'", "order": 10, "types": ["Ingress"],
            "ingress": [
                {"action": "Allow", "protocol": "TCP", "source": {"notNets": ["10.0.0.0/28"]},
                 "destination": {"notPorts": [80, "100:110"]}},
                {"action": "Allow", "protocol": "TCP", "source": {"selector": "app == 'c'"},
                 "destination": {"ports": [100]}},
            ],
        },
    }));
    world.settle_clean();
    assert!(tcp(&world, "192.0.2.1", "10.0.0.1", 81));
    assert!(!tcp(&world, "192.0.2.1", "10.0.0.1", 80));
    assert!(!tcp(&world, "192.0.2.1", "10.0.0.1", 105));
    assert!(!tcp(&world, "10.0.0.3", "10.0.0.1", 81));
    assert!(tcp(&world, "10.0.0.3", "10.0.0.1", 100));
    assert!(!world.engine.allows(&flow("192.0.2.1", "10.0.0.1", U, 81)));
}
