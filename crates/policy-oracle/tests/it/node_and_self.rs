//! Checklist E, as far as it is about one packet: the node, the pod itself, Services.

use policy_oracle::probe::{Probe, Protocol};
use serde_json::{Value, json};

use crate::fixture::{Cluster, Tcp, cluster, cnp, end, policy};

fn locked() -> Cluster {
    cluster().with(policy(
        "x",
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
    ))
}

// E1
#[test]
fn node_reaches_its_own_pods_through_every_policy() {
    let with = locked().with(deny_all("Admin"));
    assert!(with.opens("node:n1", "x/a"));
    assert!(!with.opens("node:n2", "x/a"));
    assert!(with.opens("node:n2", "x/c"));
    assert!(with.allows("node:n1", "x/a/6", Protocol::Icmp, 0));
}

// E1
#[test]
fn host_network_pod_is_its_node() {
    let with = locked().edit("Pod", "y", "a", |p| {
        p["spec"]["hostNetwork"] = json!(true);
        p["status"]["podIPs"] = json!([{"ip": "192.168.0.1"}]);
    });
    assert!(with.opens("y/a", "x/a"));
    assert!(!with.opens("y/a", "x/c"));
}

// E1
#[test]
fn address_of_the_node_is_not_the_node() {
    assert!(!locked().opens("192.168.0.1", "x/a"));
}

// E2
#[test]
fn pod_to_its_own_node_is_judged() {
    assert!(!locked().opens("x/a", "node:n1"));
    let with = cluster().with(policy(
        "x",
        json!({"policyTypes": ["Egress"], "egress": [
            {"to": [{"ipBlock": {"cidr": "192.168.0.1/32"}}]},
        ]}),
    ));
    assert!(with.opens("x/a", "node:n1"));
    assert!(!with.opens("x/a", "node:n2"));
}

// E3
#[test]
fn pod_always_reaches_its_own_address() {
    let with = locked().with(deny_all("Admin"));
    assert!(with.opens("x/a", "x/a"));
    assert!(with.opens("x/a/6", "x/a/6"));
    assert!(!with.opens("x/a", "x/b"));
}

// E3
#[test]
fn pod_reaching_itself_through_a_service_is_exempt_from_network_policy_alone() {
    let hairpin = |with: &Cluster| {
        let probe = Probe::new(end("x/a"), end("x/a"), Tcp, 80).through_service();
        with.world().decide(&probe).allowed
    };
    assert!(hairpin(&cluster()));
    assert!(hairpin(&locked()));
    assert!(!hairpin(&cluster().with(deny_all("Admin"))));
    assert!(!hairpin(&cluster().with(deny_all("Baseline"))));
    // The tier of NetworkPolicies is final for pods that it isolates.
    assert!(hairpin(&locked().with(deny_all("Baseline"))));
}

// E3
#[test]
fn another_pod_through_a_service_is_judged_as_ever() {
    let probe = Probe::new(end("x/a"), end("x/b"), Tcp, 80).through_service();
    assert!(!locked().world().decide(&probe).allowed);
    assert!(cluster().world().decide(&probe).allowed);
}

fn deny_all(tier: &str) -> Value {
    let every = json!([{"namespaces": {}}]);
    cnp(
        "deny-all",
        json!({
            "tier": tier, "priority": 0, "subject": {"namespaces": {}},
            "ingress": [{"action": "Deny", "from": every}],
            "egress": [
                {"action": "Deny", "to": every},
                {"action": "Deny", "to": [{"networks": ["0.0.0.0/0", "::/0"]}]},
            ],
        }),
    )
}
