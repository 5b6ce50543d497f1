//! Checklist F: tiers of the cluster, and Calico's policies.

use policy_oracle::probe::{Probe, Protocol};
use rstest::rstest;
use serde_json::{Value, json};

use crate::fixture::{
    Cluster, Icmp, PODS, Tcp, Udp, cluster, cnp, end, gnp, named_policy, pod, policy,
};

fn ns(name: &str) -> Value {
    json!({"namespaces": {"matchLabels": {"ns": name}}})
}

/// A policy about ingress of everything in `x`.
fn into_x(name: &str, tier: &str, priority: u32, rules: Value) -> Value {
    cnp(
        name,
        json!({"tier": tier, "priority": priority, "subject": ns("x"), "ingress": rules}),
    )
}

/// A policy about egress of everything in `x`.
fn out_of_x(name: &str, tier: &str, rules: Value) -> Value {
    cnp(
        name,
        json!({"tier": tier, "priority": 5, "subject": ns("x"), "egress": rules}),
    )
}

fn rule(action: &str, peer: Value) -> Value {
    json!({"action": action, "from": [peer]})
}

fn to(action: &str, peer: Value) -> Value {
    json!({"action": action, "to": [peer]})
}

// F1
#[test]
fn admin_comes_before_network_policy_and_baseline_after() {
    let deny_np = || policy("x", json!({"podSelector": {"matchLabels": {"pod": "a"}}}));
    let admin =
        cluster()
            .with(deny_np())
            .with(into_x("a", "Admin", 1, json!([rule("Accept", ns("y"))])));
    assert_eq!(admin.openers(PODS, "x/a"), "x/a y/a y/b y/c");

    let baseline = cluster().with(deny_np()).with(into_x(
        "a",
        "Baseline",
        1,
        json!([rule("Accept", ns("y"))]),
    ));
    assert_eq!(baseline.openers(PODS, "x/a"), "x/a");

    let denied = cluster()
        .with(policy(
            "x",
            json!({"podSelector": {"matchLabels": {"pod": "a"}}, "ingress": [{}]}),
        ))
        .with(into_x("a", "Baseline", 1, json!([rule("Deny", ns("y"))])));
    assert_eq!(denied.openers(PODS, "x/a"), PODS);
    assert_eq!(denied.openers("x/b y/a z/a", "x/b"), "x/b z/a");
}

// F1
#[test]
fn cluster_policy_isolates_nothing_by_itself() {
    let with = cluster().with(into_x("a", "Admin", 1, json!([rule("Accept", ns("y"))])));
    assert_eq!(with.openers(PODS, "x/a"), PODS);
}

// F2
#[test]
fn lower_priority_and_earlier_rule_win() {
    let with = cluster()
        .with(into_x("b", "Admin", 20, json!([rule("Deny", ns("y"))])))
        .with(into_x(
            "c",
            "Admin",
            10,
            json!([rule("Accept", ns("y")), rule("Deny", ns("y"))]),
        ));
    assert!(with.opens("y/a", "x/a"));
    let turned = cluster()
        .with(into_x("b", "Admin", 20, json!([rule("Accept", ns("y"))])))
        .with(into_x(
            "c",
            "Admin",
            10,
            json!([rule("Deny", ns("y")), rule("Accept", ns("y"))]),
        ));
    assert!(!turned.opens("y/a", "x/a"));
}

// F2
#[test]
fn equal_priority_goes_by_name() {
    for (first, second, open) in [("a", "b", true), ("b", "a", false)] {
        let with = cluster()
            .with(into_x(first, "Admin", 7, json!([rule("Accept", ns("y"))])))
            .with(into_x(second, "Admin", 7, json!([rule("Deny", ns("y"))])));
        assert_eq!(with.opens("y/a", "x/a"), open);
    }
}

// F3
#[test]
fn accept_ends_its_own_direction_alone() {
    let with = cluster()
        .with(out_of_x("out", "Admin", json!([to("Accept", ns("y"))])))
        .with(policy("y", json!({"podSelector": {}})));
    let decision = with.decide("x/a", "y/a", Tcp, 80);
    assert!(decision.egress.allowed);
    assert!(!decision.allowed);
}

// F3
#[test]
fn pass_leaves_the_rest_of_the_tier() {
    let with = |np: Option<Value>| {
        let mut cluster = cluster()
            .with(into_x("a", "Admin", 1, json!([rule("Pass", ns("y"))])))
            .with(into_x(
                "b",
                "Admin",
                2,
                json!([rule("Deny", ns("y")), rule("Deny", ns("z"))]),
            ))
            .with(into_x("c", "Baseline", 1, json!([rule("Deny", ns("y"))])));
        cluster.0.extend(np);
        cluster
    };
    assert_eq!(with(None).openers("y/a z/a", "x/a"), "");
    let np = policy("x", json!({"podSelector": {}, "ingress": [{}]}));
    assert_eq!(with(Some(np)).openers("y/a z/a", "x/a"), "y/a");
}

// F3
#[test]
fn pass_in_baseline_ends_in_allow() {
    let with = cluster().with(into_x(
        "a",
        "Baseline",
        1,
        json!([rule("Pass", ns("y")), rule("Deny", ns("y"))]),
    ));
    assert!(with.opens("y/a", "x/a"));
}

// F4
#[rstest]
#[case(json!({"namespaces": {"matchLabels": {"ns": "y"}}}), "y/a y/b y/c")]
#[case(json!({"pods": {"namespaceSelector": {"matchLabels": {"ns": "y"}}, "podSelector": {"matchLabels": {"pod": "b"}}}}), "y/b")]
#[case(json!({"pods": {"podSelector": {"matchLabels": {"pod": "b"}}}}), "x/b y/b z/b")]
#[case(json!({"networks": ["10.2.0.0/31", "10.3.0.3/32"]}), "y/a z/c")]
#[case(json!({"nodes": {"matchLabels": {"node": "n2"}}}), "node:n2")]
#[case(json!({"nodes": {}}), "node:n1 node:n2")]
fn egress_peer_names_its_destinations(#[case] peer: Value, #[case] denied: &str) {
    let everybody = "x/b x/c y/a y/b y/c z/a z/b z/c node:n1 node:n2 8.8.8.8";
    let with = cluster().with(out_of_x("p", "Admin", json!([to("Deny", peer)])));
    let open = with.reached("x/a", everybody);
    let expected: Vec<&str> = everybody
        .split(' ')
        .filter(|destination| !denied.split(' ').any(|d| d == *destination))
        .collect();
    assert_eq!(open, expected.join(" "));
}

// F4
#[test]
fn host_network_pod_is_in_no_pod_peer_and_no_subject() {
    let with = cluster()
        .with(out_of_x(
            "p",
            "Admin",
            json!([to("Deny", json!({"namespaces": {}}))]),
        ))
        .with(cnp(
            "q",
            json!({"tier": "Admin", "priority": 1, "subject": ns("y"),
            "egress": [to("Deny", json!({"networks": ["0.0.0.0/0"]}))]}),
        ))
        .edit("Pod", "y", "a", |p| {
            p["spec"]["hostNetwork"] = json!(true);
            p["status"]["podIPs"] = json!([{"ip": "192.168.0.1"}]);
        });
    assert!(with.opens("x/a", "192.168.0.1"));
    assert!(with.opens("y/a", "z/a"));
    assert!(!with.opens("y/b", "z/a"));
}

// F4, D8
#[test]
fn rule_without_protocols_matches_icmp_and_one_with_does_not() {
    let networks = json!({"networks": ["0.0.0.0/0", "::/0"]});
    let all = cluster().with(out_of_x(
        "p",
        "Admin",
        json!([to("Deny", networks.clone())]),
    ));
    assert!(!all.allows("x/a", "y/a", Icmp, 0));
    assert!(!all.allows("x/a/6", "y/a/6", Icmp, 0));
    let mut tcp = to("Deny", networks);
    tcp["protocols"] = json!([{"tcp": {}}]);
    let tcp = cluster().with(out_of_x("p", "Admin", json!([tcp])));
    assert!(tcp.allows("x/a", "y/a", Icmp, 0));
    assert!(!tcp.opens("x/a", "y/a"));
}

// F5
#[rstest]
#[case("Accept", true)]
#[case("Deny", false)]
#[case("Pass", false)]
fn peer_with_unknown_fields_fails_closed(#[case] action: &str, #[case] open: bool) {
    let strange = json!({"serviceNames": ["web"]});
    let with = cluster().with(into_x(
        "p",
        "Admin",
        1,
        json!([rule(action, strange.clone())]),
    ));
    assert_eq!(with.opens("y/a", "x/a"), open);
    assert_eq!(with.world().problems().len(), 1);
    let behind = with.with(into_x("q", "Admin", 2, json!([rule("Deny", ns("y"))])));
    assert!(!behind.opens("y/a", "x/a"));
}

// F5
#[test]
fn accept_beside_an_unknown_peer_accepts_nothing() {
    let mixed = json!({"action": "Accept", "from": [ns("y"), {"strange": {}}]});
    let with = cluster()
        .with(into_x("p", "Admin", 1, json!([mixed])))
        .with(policy("x", json!({"podSelector": {}})));
    assert!(!with.opens("y/a", "x/a"));
}

// F6
#[test]
fn named_port_of_a_cluster_policy_is_of_any_protocol() {
    let mut both = pod("x", "a", &["10.1.0.1"]);
    both["spec"]["containers"] = json!([{"ports": [
        {"name": "api", "containerPort": 1000, "protocol": "TCP"},
        {"name": "api", "containerPort": 2000, "protocol": "UDP"},
    ]}]);
    let mut deny = rule("Deny", ns("y"));
    deny["protocols"] = json!([{"destinationNamedPort": "api"}]);
    let with = cluster()
        .with(both)
        .with(into_x("p", "Admin", 1, json!([deny])));
    for (protocol, port, open) in [
        (Tcp, 1000, false),
        (Udp, 2000, false),
        (Tcp, 2000, true),
        (Udp, 1000, true),
    ] {
        assert_eq!(
            with.allows("y/a", "x/a", protocol, port),
            open,
            "{protocol} {port}"
        );
    }
}

// F3, F6
#[test]
fn v1alpha1_says_allow_and_ports() {
    let old = |kind: &str, name: &str, spec: Value| {
        json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": kind,
            "metadata": {"name": name}, "spec": spec,
        })
    };
    let with = cluster()
        .with(old("AdminNetworkPolicy", "a", json!({
            "priority": 5, "subject": ns("x"), "ingress": [
                {"action": "Allow", "from": [ns("y")], "ports": [
                    {"portNumber": {"protocol": "TCP", "port": 80}},
                    {"portRange": {"protocol": "UDP", "start": 10, "end": 20}},
                    {"namedPort": "dns"},
                ]},
                {"action": "Pass", "from": [ns("z")]},
                {"action": "Deny", "from": [{"namespaces": {}}]},
            ],
        })))
        .with(old("BaselineAdminNetworkPolicy", "default", json!({
            "subject": ns("x"), "ingress": [{"action": "Deny", "from": [
                {"pods": {"namespaceSelector": {"matchLabels": {"ns": "z"}}, "podSelector": {"matchLabels": {"pod": "b"}}}},
            ]}],
        })));
    for (from, protocol, port, open) in [
        ("y/a", Tcp, 80, true),
        ("y/a", Tcp, 81, false),
        ("y/a", Udp, 20, true),
        ("y/a", Udp, 21, false),
        ("y/a", Udp, 53, true),
        ("z/a", Tcp, 81, true),
        ("z/b", Tcp, 81, false),
        ("8.8.8.8", Tcp, 81, true),
    ] {
        assert_eq!(
            with.allows(from, "x/a", protocol, port),
            open,
            "{from} {protocol} {port}"
        );
    }
    assert_eq!(with.world().problems(), []);
}

fn calico_into_x(order: Value, rules: Value) -> Value {
    json!({"order": order, "namespaceSelector": "ns == 'x'", "types": ["Ingress"], "ingress": rules})
}

// F7
#[test]
fn calico_policy_stands_around_network_policies_by_order() {
    let allow_z = json!([{"action": "Allow", "source": {"namespaceSelector": "ns == 'z'"}}]);
    let deny_y = json!([{"action": "Deny", "source": {"namespaceSelector": "ns == 'y'"}}]);
    let np = || {
        policy(
            "x",
            json!({"podSelector": {}, "ingress": [{"from": [
                {"namespaceSelector": {"matchLabels": {"ns": "y"}}},
            ]}]}),
        )
    };
    let late = cluster()
        .with(np())
        .with(gnp("late", calico_into_x(json!(2000), allow_z.clone())));
    assert_eq!(late.openers(PODS, "x/a"), "x/a y/a y/b y/c z/a z/b z/c");
    let early = cluster()
        .with(np())
        .with(gnp("early", calico_into_x(json!(10), deny_y.clone())));
    assert_eq!(early.openers(PODS, "x/a"), "x/a");
    let unordered = cluster()
        .with(np())
        .with(gnp("none", calico_into_x(json!(null), deny_y)));
    assert_eq!(unordered.openers(PODS, "x/a"), "x/a y/a y/b y/c");
    let alone = cluster().with(gnp("alone", calico_into_x(json!(5), allow_z)));
    assert_eq!(alone.openers(PODS, "x/a"), "x/a z/a z/b z/c");
}

// F7
#[test]
fn calico_pass_leads_to_the_baseline_tier() {
    let pass = json!([{"action": "Log"}, {"action": "Pass", "source": {"selector": "pod == 'a'"}}]);
    let with = cluster()
        .with(gnp("g", calico_into_x(json!(5), pass)))
        .with(into_x("b", "Baseline", 1, json!([rule("Deny", ns("z"))])));
    assert_eq!(with.openers("y/a y/b z/a", "x/a"), "y/a");
}

// F7
#[rstest]
#[case(json!({"source": {"nets": ["10.2.0.0/16"], "notNets": ["10.2.0.3"]}}), "x/a y/a y/b")]
#[case(json!({"source": {"selector": "pod in {'a', 'b'}"}}), "x/a x/b y/a y/b z/a z/b")]
#[case(json!({"source": {"notSelector": "pod == 'a'"}}), "x/a x/b x/c y/b y/c z/b z/c 8.8.8.8")]
#[case(json!({"source": {"namespaceSelector": "all()"}}), "x/a x/b x/c y/a y/b y/c z/a z/b z/c")]
#[case(json!({"source": {"namespaceSelector": "global()"}}), "x/a")]
#[case(json!({"source": {"serviceAccounts": {"names": ["robot"]}}}), "x/a y/b")]
#[case(json!({"source": {"serviceAccounts": {"selector": "kind == 'machine'"}}}), "x/a y/b")]
#[case(json!({"protocol": "TCP", "destination": {"ports": [80, "90:99"]}}), "x/a x/b x/c y/a y/b y/c z/a z/b z/c 8.8.8.8")]
#[case(json!({"protocol": "TCP", "destination": {"ports": ["web"]}}), "x/a x/b x/c y/a y/b y/c z/a z/b z/c 8.8.8.8")]
#[case(json!({"protocol": "TCP", "destination": {"notPorts": [80]}}), "x/a")]
#[case(json!({"notProtocol": "TCP"}), "x/a")]
#[case(json!({"protocol": 6, "ipVersion": 6}), "x/a")]
fn calico_rule_matches_as_its_manual_says(#[case] criteria: Value, #[case] expected: &str) {
    let mut allow = criteria;
    allow["action"] = json!("Allow");
    let with = cluster()
        .with(gnp("g", calico_into_x(json!(5), json!([allow]))))
        .edit("Pod", "y", "b", |p| {
            p["spec"]["serviceAccountName"] = json!("robot");
        })
        .with(json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"namespace": "y", "name": "robot", "labels": {"kind": "machine"}},
        }));
    assert_eq!(with.world().problems(), []);
    assert_eq!(with.openers(&format!("{PODS} 8.8.8.8"), "x/a"), expected);
}

// F7
#[test]
fn calico_namespaced_policy_looks_at_its_own_namespace() {
    let calico_np = |rule: Value| {
        json!({
            "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "n"},
            "spec": {"selector": "pod == 'a'", "ingress": [rule]},
        })
    };
    for (source, expected) in [
        (json!({"selector": "pod != 'z'"}), "x/a x/b x/c"),
        (json!({"notSelector": "pod == 'b'"}), "x/a x/c"),
        (
            json!({"selector": "pod == 'b'", "namespaceSelector": "ns in {'y', 'z'}"}),
            "x/a y/b z/b",
        ),
        (
            json!({"namespaceSelector": "projectcalico.org/name == 'y'"}),
            "x/a y/a y/b y/c",
        ),
    ] {
        let with = cluster().with(calico_np(json!({"action": "Allow", "source": source})));
        assert_eq!(with.openers(PODS, "x/a"), expected, "{source}");
        assert!(with.opens("y/a", "x/b"));
    }
}

// F7
#[test]
fn calico_source_port_is_known_or_unknown() {
    let allow = json!([{"action": "Allow", "protocol": "TCP", "source": {"ports": ["1000:2000"]}}]);
    let world = cluster()
        .with(gnp("g", calico_into_x(json!(5), allow)))
        .world();
    let probe = Probe::new(end("y/a"), end("x/a"), Tcp, 80);
    assert!(!world.decide(&probe).allowed);
    assert!(world.decide(&probe.clone().from_port(1500)).allowed);
    assert!(!world.decide(&probe.from_port(2500)).allowed);
}

// F7
#[test]
fn calico_icmp_type_is_compared() {
    let allow = json!([
        {"action": "Allow", "protocol": "ICMP", "icmp": {"type": 8}},
        {"action": "Allow", "protocol": "ICMPv6", "notICMP": {"type": 128}},
    ]);
    let with = cluster().with(gnp("g", calico_into_x(json!(5), allow)));
    assert!(with.allows("y/a", "x/a", Icmp, 0));
    assert!(!with.allows("y/a/6", "x/a/6", Icmp, 0));
    assert!(!with.allows("y/a", "x/a", Protocol::Other(1), 0));
}

// F7
#[rstest]
#[case("doNotTrack")]
#[case("preDNAT")]
#[case("applyOnForward")]
fn calico_policy_about_hosts_is_refused(#[case] field: &str) {
    let mut spec = calico_into_x(json!(5), json!([{"action": "Deny"}]));
    spec[field] = json!(true);
    let with = cluster().with(gnp("g", spec.clone()));
    assert!(with.opens("y/a", "x/a"));
    assert_eq!(with.world().problems().len(), 1);
    spec[field] = json!(false);
    assert!(!cluster().with(gnp("g", spec)).opens("y/a", "x/a"));
}

// F7
#[test]
fn calico_types_follow_the_rules_when_missing() {
    let types = |spec: Value| {
        let with = cluster().with(gnp("g", spec));
        (!with.opens("x/a", "8.8.8.8"), !with.opens("8.8.8.8", "x/a"))
    };
    let nothing = json!([{"action": "Allow", "source": {"nets": ["203.0.113.0/24"]}}]);
    assert_eq!(types(json!({})), (false, true));
    assert_eq!(types(json!({"ingress": nothing})), (false, true));
    assert_eq!(types(json!({"egress": nothing})), (true, false));
    assert_eq!(
        types(json!({"egress": nothing, "ingress": nothing})),
        (true, true)
    );
}

// F7
#[test]
fn ack_policy_is_a_network_policy_for_the_cluster_or_refused() {
    let ack = |version: &str, spec: Value| -> Cluster {
        cluster().with(json!({
            "apiVersion": format!("network.alibabacloud.com/{version}"),
            "kind": "GlobalNetworkPolicy", "metadata": {"name": "g"}, "spec": spec,
        }))
    };
    let spec = json!({
        "podSelector": {"matchLabels": {"pod": "a"}},
        "namespaceSelector": {"matchExpressions": [{"key": "ns", "operator": "NotIn", "values": ["z"]}]},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]}],
    });
    let with = ack("v1beta2", spec.clone());
    assert_eq!(with.openers(PODS, "x/a"), "x/a y/a y/b y/c");
    assert_eq!(with.openers("x/b", "z/a"), "x/b");
    assert_eq!(with.world().problems(), []);

    let mut odd = spec.clone();
    odd["order"] = json!(5);
    for refused in [ack("v1beta9", spec), ack("v1beta2", odd)] {
        assert_eq!(refused.openers(PODS, "x/a"), PODS);
        assert_eq!(refused.world().problems().len(), 1);
    }
}

// A2, F7
#[test]
fn calico_policy_isolates_beside_network_policies() {
    let with = cluster()
        .with(gnp("g", calico_into_x(json!(5), json!([]))))
        .with(named_policy(
            "x",
            "n",
            json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}),
        ));
    assert_eq!(with.openers(PODS, "x/a"), "x/a x/b x/c");
}
