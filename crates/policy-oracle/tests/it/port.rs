//! Checklist D: ports and protocols.

use policy_oracle::probe::Protocol;
use rstest::rstest;
use serde_json::{Value, json};

use crate::fixture::{Icmp, NeighbourDiscovery, Sctp, Tcp, Udp, cluster, pod, policy};

fn ingress(rule: Value) -> Value {
    policy("x", json!({"podSelector": {}, "ingress": [rule]}))
}

fn egress(rule: Value) -> Value {
    policy(
        "x",
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [rule]}),
    )
}

fn serving(namespace: &str, name: &str, address: &str, ports: Value) -> Value {
    let mut pod = pod(namespace, name, &[address]);
    pod["spec"]["containers"] = json!([{"ports": ports}]);
    pod
}

// D1, D2, D7
#[rstest]
#[case(json!({"port": 80}), &[(Tcp, 80)])]
#[case(json!({}), &[(Tcp, 80), (Tcp, 81), (Tcp, 82)])]
#[case(json!({"protocol": "UDP"}), &[(Udp, 80), (Udp, 81), (Udp, 82)])]
#[case(json!({"protocol": "SCTP", "port": 81}), &[(Sctp, 81)])]
#[case(json!({"port": 80, "endPort": 81}), &[(Tcp, 80), (Tcp, 81)])]
#[case(json!({"port": 81, "endPort": 81}), &[(Tcp, 81)])]
#[case(json!({"port": 82, "endPort": 65535, "protocol": "UDP"}), &[(Udp, 82)])]
fn port_entry_allows_its_protocol_and_numbers(
    #[case] port: Value,
    #[case] expected: &[(Protocol, u16)],
) {
    let with = cluster().with(ingress(json!({"ports": [port]})));
    let mut allowed = Vec::new();
    for protocol in [Tcp, Udp, Sctp] {
        for port in [80, 81, 82] {
            if with.allows("y/b", "x/a", protocol, port) {
                allowed.push((protocol, port));
            }
        }
    }
    assert_eq!(allowed, expected);
}

// D3
#[test]
fn name_in_ingress_means_the_number_of_each_subject() {
    let name = |port: u16| json!([{"name": "api", "containerPort": port}]);
    let with = cluster()
        .with(serving("x", "a", "10.1.0.1", name(1000)))
        .with(serving("x", "b", "10.1.0.2", name(2000)))
        .with(serving("y", "a", "10.2.0.1", name(3000)))
        .with(ingress(json!({"ports": [{"port": "api"}]})));
    for (to, port, open) in [
        ("x/a", 1000, true),
        ("x/a", 2000, false),
        ("x/a", 3000, false),
        ("x/b", 2000, true),
        ("x/b", 1000, false),
    ] {
        assert_eq!(with.allows("y/a", to, Tcp, port), open, "{to} {port}");
    }
}

// D4
#[test]
fn name_in_egress_means_the_number_of_each_destination() {
    let name = |port: u16| json!([{"name": "api", "containerPort": port}]);
    let with = cluster()
        .with(serving("y", "a", "10.2.0.1", name(1000)))
        .with(serving("y", "b", "10.2.0.2", name(2000)))
        .with(egress(json!({
            "to": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}],
            "ports": [{"port": "api"}],
        })));
    for (to, port, open) in [
        ("y/a", 1000, true),
        ("y/a", 2000, false),
        ("y/b", 2000, true),
        ("y/b", 1000, false),
        ("y/c", 1000, false),
    ] {
        assert_eq!(with.allows("x/a", to, Tcp, port), open, "{to} {port}");
    }
}

// D5
#[test]
fn name_in_egress_without_peers_means_every_pod_that_has_it() {
    let with = cluster().with(egress(json!({"ports": [{"port": "web"}]})));
    assert!(with.allows("x/a", "z/c", Tcp, 80));
    assert!(!with.allows("x/a", "z/c", Tcp, 81));
    assert!(!with.allows("x/a", "8.8.8.8", Tcp, 80));
    assert!(!with.allows("x/a", "node:n2", Tcp, 80));
}

// D5
#[test]
fn name_in_egress_to_a_block_means_the_pods_inside_that_have_it() {
    let with = cluster().with(egress(json!({
        "to": [{"ipBlock": {"cidr": "10.2.0.0/15", "except": ["10.2.0.2/32"]}}],
        "ports": [{"port": "web"}],
    })));
    assert!(with.allows("x/a", "y/a", Tcp, 80));
    assert!(!with.allows("x/a", "y/b", Tcp, 80));
    assert!(with.allows("x/a", "z/a", Tcp, 80));
    assert!(!with.allows("x/a", "10.2.0.200", Tcp, 80));
}

// D6
#[rstest]
#[case(json!({"port": "web"}), Tcp, 80, true)]
#[case(json!({"port": "web", "protocol": "UDP"}), Udp, 80, false)]
#[case(json!({"port": "web", "protocol": "UDP"}), Tcp, 80, false)]
#[case(json!({"port": "dns", "protocol": "UDP"}), Udp, 53, true)]
#[case(json!({"port": "dns"}), Tcp, 53, false)]
#[case(json!({"port": "nobody"}), Tcp, 80, false)]
fn name_and_protocol_must_both_match(
    #[case] port: Value,
    #[case] protocol: Protocol,
    #[case] number: u16,
    #[case] open: bool,
) {
    for rule in [ingress, egress] {
        let with = cluster().with(rule(json!({"ports": [port]})));
        let (from, to) = if with.0.last().unwrap()["spec"]["egress"].is_null() {
            ("y/b", "x/a")
        } else {
            ("x/a", "y/b")
        };
        assert_eq!(with.allows(from, to, protocol, number), open);
    }
}

// D6
#[test]
fn name_on_two_containers_means_both_numbers() {
    let mut double = pod("x", "a", &["10.1.0.1"]);
    double["spec"]["containers"] = json!([
        {"ports": [{"name": "api", "containerPort": 1000}]},
        {"ports": [{"name": "api", "containerPort": 2000}]},
    ]);
    let with = cluster()
        .with(double)
        .with(ingress(json!({"ports": [{"port": "api"}]})));
    assert!(with.allows("y/a", "x/a", Tcp, 1000));
    assert!(with.allows("y/a", "x/a", Tcp, 2000));
    assert!(!with.allows("y/a", "x/a", Tcp, 3000));
}

// D8
#[test]
fn other_protocols_pass_rules_without_ports_alone() {
    for protocol in [Icmp, Protocol::Other(47)] {
        let open = cluster().with(ingress(json!({"from": [{"namespaceSelector": {}}]})));
        assert!(open.allows("y/a", "x/a", protocol, 0));
        let ports = cluster().with(ingress(json!({"ports": [{}, {"protocol": "UDP"}]})));
        assert!(!ports.allows("y/a", "x/a", protocol, 0));
        assert!(cluster().allows("y/a", "x/a", protocol, 0));
    }
}

// D8
#[test]
fn neighbour_discovery_is_always_allowed() {
    let with = cluster().with(policy(
        "x",
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
    ));
    assert!(with.allows("x/a/6", "x/c/6", NeighbourDiscovery, 0));
    assert!(!with.allows("x/a/6", "x/c/6", Icmp, 0));
}

// D1
#[test]
fn reason_names_the_port_that_would_have_been_allowed() {
    let with = cluster()
        .with(crate::fixture::named_policy("x", "deny-all", json!({"policyTypes": ["Egress"]})))
        .with(crate::fixture::named_policy(
            "x",
            "allow-dns",
            json!({"policyTypes": ["Egress"], "egress": [{"ports": [{"protocol": "UDP", "port": 53}]}]}),
        ));
    assert_eq!(
        with.decide("x/a", "y/a", Tcp, 80).egress.reasons,
        [
            "egress of x/a: selected by NetworkPolicy x/allow-dns, NetworkPolicy x/deny-all",
            "NetworkPolicy x/allow-dns rule 1 matched the peer, but TCP 80 is not UDP 53",
            "NetworkPolicy x/deny-all allows nothing",
            "no policy that selects the pod allows it: denied",
        ]
    );
}
