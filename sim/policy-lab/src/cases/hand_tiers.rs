//! Tables for letter F of the checklist, typed from its meaning: tiers of the cluster, and Calico.
#![expect(
    clippy::needless_pass_by_value,
    reason = "documents are written in place"
)]

use serde_json::{Value, json};

use crate::cases::case::{Case, Step};
use crate::cases::world::{case, cluster_policy, labelled, nine, pod, pod_with, policy, step};

const FAMILY: &str = "hand";

type Named = (&'static str, Vec<Step>);

/// Tables for tiers.
pub(super) fn cases() -> Vec<Case> {
    [
        order(),
        directions(),
        peers(),
        fail_closed(),
        old_version(),
        calico_order(),
        calico_rules(),
    ]
    .concat()
    .into_iter()
    .map(|(name, steps)| case(FAMILY, name, nine(), steps))
    .collect()
}

fn ns(name: &str) -> Value {
    json!({"namespaces": labelled("ns", name)})
}

/// A policy about ingress of namespace x.
fn into_x(name: &str, tier: &str, priority: u32, rules: &[(&str, Value)]) -> Value {
    let rules: Vec<Value> = rules
        .iter()
        .map(|(action, peer)| json!({"action": action, "from": [peer]}))
        .collect();
    cluster_policy(
        name,
        json!({"tier": tier, "priority": priority, "subject": ns("x"), "ingress": rules}),
    )
}

/// An admin policy about egress of namespace x.
fn out_of_x(rules: Value) -> Value {
    cluster_policy(
        "out",
        json!({"tier": "Admin", "priority": 5, "subject": ns("x"), "egress": rules}),
    )
}

fn closed(namespace: &str) -> Value {
    policy(namespace, "closed", json!({"podSelector": {}}))
}

fn order() -> Vec<Named> {
    vec![
        (
            "f1-admin-accept-goes-before-network-policy",
            vec![step([closed("x"), into_x("a", "Admin", 1, &[("Accept", ns("y"))])])
                .table(&["* -> * : all", "* -> x/* : none", "y/* -> x/* : all"])],
        ),
        (
            "f1-baseline-is-for-pods-that-network-policy-leaves",
            vec![step([
                policy("x", "open-a", json!({"podSelector": labelled("pod", "a"), "ingress": [{}]})),
                into_x("b", "Baseline", 1, &[("Deny", ns("y"))]),
            ])
            .table(&["* -> * : all", "y/* -> x/* : none", "y/* -> x/a : all"])],
        ),
        (
            "f1-cluster-policy-isolates-nothing",
            vec![step([into_x("a", "Admin", 1, &[("Accept", ns("y"))])]).table(&["* -> * : all"])],
        ),
        (
            "f2-lower-priority-number-first",
            vec![
                step([
                    into_x("a", "Admin", 20, &[("Deny", ns("y"))]),
                    into_x("b", "Admin", 10, &[("Accept", ns("y"))]),
                ])
                .table(&["* -> * : all"]),
                step([into_x("b", "Admin", 30, &[("Accept", ns("y"))])])
                    .table(&["* -> * : all", "y/* -> x/* : none"]),
            ],
        ),
        (
            "f2-first-rule-that-matches",
            vec![step([into_x("a", "Admin", 1, &[
                ("Accept", json!({"pods": {"namespaceSelector": labelled("ns", "y"), "podSelector": labelled("pod", "a")}})),
                ("Deny", ns("y")),
                ("Accept", ns("y")),
            ])])
            .table(&["* -> * : all", "y/* -> x/* : none", "y/a -> x/* : all"])],
        ),
        (
            "f2-equal-priority-goes-by-name",
            vec![step([
                into_x("m", "Admin", 7, &[("Accept", ns("y")), ("Deny", ns("z"))]),
                into_x("n", "Admin", 7, &[("Deny", ns("y")), ("Accept", ns("z"))]),
            ])
            .table(&["* -> * : all", "z/* -> x/* : none"])],
        ),
    ]
}

fn directions() -> Vec<Named> {
    vec![
        (
            "f3-accept-of-egress-is-not-of-ingress",
            vec![step([
                closed("y"),
                policy("x", "locked", json!({"podSelector": {}, "policyTypes": ["Egress"]})),
                out_of_x(json!([{"action": "Accept", "to": [ns("y")]}, {"action": "Accept", "to": [ns("z")]}])),
            ])
            .table(&["* -> * : all", "* -> y/* : none", "x/* -> x/* : none"])],
        ),
        (
            "f3-pass-leaves-the-tier",
            vec![step([
                into_x("a", "Admin", 1, &[("Pass", ns("y"))]),
                into_x("b", "Admin", 2, &[("Deny", ns("y")), ("Deny", ns("z"))]),
                into_x("c", "Baseline", 1, &[("Deny", json!({"pods": {
                    "namespaceSelector": labelled("ns", "y"), "podSelector": labelled("pod", "c"),
                }}))]),
            ])
            .table(&["* -> * : all", "z/* -> x/* : none", "y/c -> x/* : none"])],
        ),
    ]
}

fn peers() -> Vec<Named> {
    let mut host = pod("y", "h", json!({"pod": "h"}));
    host["spec"]["hostNetwork"] = json!(true);
    host["spec"]["nodeName"] = json!("n2");
    host["status"] =
        json!({"phase": "Running", "podIPs": [{"ip": "192.168.0.12"}, {"ip": "fd00:192::c"}]});
    let others = ["node:n1", "node:n2", "outside"];
    let open = [
        "* -> * : all",
        "node:*,outside -> * : all",
        "* -> node:*,outside : all",
    ];
    let deny = |peer: Value| out_of_x(json!([{"action": "Deny", "to": [peer]}]));
    let api = |ports: Value| pod_with("x", "a", json!({"pod": "a"}), ports);
    let mut named = json!({"action": "Deny", "from": [{"namespaces": {}}]});
    named["protocols"] = json!([{"destinationNamedPort": "api"}]);
    vec![
        (
            "f4-networks-hold-pods-nodes-and-the-world",
            vec![
                step([deny(json!({"networks": ["0.0.0.0/0", "fd00:10:1::/64"]}))])
                    .others(&others)
                    .table(
                        &[
                            &open[..],
                            &[
                                "x/* -> *,node:*,outside : v6",
                                "x/* -> x/a,x/c,y/b,z/a,z/c : none",
                            ],
                        ]
                        .concat(),
                    ),
            ],
        ),
        (
            "f4-nodes-are-their-addresses",
            vec![
                step([deny(
                    json!({"nodes": labelled("kubernetes.io/hostname", "n2")}),
                )])
                .others(&others)
                .table(&[&open[..], &["x/* -> node:n2 : none"]].concat()),
            ],
        ),
        (
            "f4-host-network-pod-is-in-no-pod-peer",
            vec![
                step([host, deny(json!({"namespaces": {}}))])
                    .others(&others)
                    .table(&[&open[..], &["x/* -> * : none"]].concat()),
            ],
        ),
        (
            "f6-named-port-is-of-any-protocol",
            vec![
                step([
                    api(json!([
                        {"name": "api", "containerPort": 80, "protocol": "TCP"},
                        {"name": "api", "containerPort": 81, "protocol": "SCTP"},
                    ])),
                    cluster_policy(
                        "named",
                        json!({
                            "tier": "Admin", "priority": 1, "subject": ns("x"), "ingress": [named],
                        }),
                    ),
                ])
                .table(&["* -> * : all", "* -> x/a : tcp/81 udp sctp/80"]),
            ],
        ),
    ]
}

fn fail_closed() -> Vec<Named> {
    let strange = || json!({"workloads": {"kind": "Deployment"}});
    vec![
        (
            "f5-accept-of-an-unknown-peer-accepts-nothing",
            vec![
                step([
                    closed("x"),
                    into_x("a", "Admin", 1, &[("Accept", strange())]),
                ])
                .table(&["* -> * : all", "* -> x/* : none"]),
            ],
        ),
        (
            "f5-deny-of-an-unknown-peer-denies-everything",
            vec![
                step([into_x("a", "Admin", 1, &[("Deny", strange())])])
                    .table(&["* -> * : all", "* -> x/* : none"]),
            ],
        ),
    ]
}

fn old_version() -> Vec<Named> {
    let old = |kind: &str, spec: Value| {
        json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": kind,
            "metadata": {"name": "default"}, "spec": spec,
        })
    };
    let tcp_80 = json!([{"portNumber": {"protocol": "TCP", "port": 80}}]);
    let udp_range = json!([{"portRange": {"protocol": "UDP", "start": 80, "end": 81}}]);
    vec![(
        "f3-v1alpha1-allow-pass-deny",
        vec![step([
            old("AdminNetworkPolicy", json!({"priority": 10, "subject": ns("x"), "ingress": [
                {"action": "Allow", "from": [ns("y")], "ports": tcp_80},
                {"action": "Pass", "from": [ns("z")], "ports": udp_range},
                {"action": "Deny", "from": [ns("y"), ns("z")]},
            ]})),
            old("BaselineAdminNetworkPolicy", json!({"subject": ns("x"), "ingress": [
                {"action": "Deny", "from": [{"pods": {
                    "namespaceSelector": labelled("ns", "z"), "podSelector": labelled("pod", "c"),
                }}]},
            ]})),
        ])
        .table(&["* -> * : all", "y/* -> x/* : tcp/80", "z/* -> x/* : udp", "z/c -> x/* : none"])],
    )]
}

fn gnp(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkPolicy",
        "metadata": {"name": name}, "spec": spec,
    })
}

/// Ingress of namespace x, for Calico.
fn calico_x(order: Value, rules: Value) -> Value {
    json!({"order": order, "namespaceSelector": "ns == 'x'", "types": ["Ingress"], "ingress": rules})
}

fn calico_order() -> Vec<Named> {
    let from_y = || {
        policy(
            "x",
            "from-y",
            json!({"podSelector": {}, "ingress": [
                {"from": [{"namespaceSelector": labelled("ns", "y")}]},
            ]}),
        )
    };
    let about = |action: &str, ns: &str| json!([{"action": action, "source": {"namespaceSelector": format!("ns == '{ns}'")}}]);
    vec![
        (
            "f7-calico-before-network-policy",
            vec![step([from_y(), gnp("early", calico_x(json!(10), about("Deny", "y")))])
                .table(&["* -> * : all", "* -> x/* : none"])],
        ),
        (
            "f7-calico-after-network-policy",
            vec![step([from_y(), gnp("late", calico_x(json!(2000), about("Allow", "z")))])
                .table(&["* -> * : all", "* -> x/* : none", "y/*,z/* -> x/* : all"])],
        ),
        (
            "f7-calico-without-order-is-last",
            vec![step([from_y(), gnp("last", calico_x(json!(null), about("Deny", "y")))])
                .table(&["* -> * : all", "* -> x/* : none", "y/* -> x/* : all"])],
        ),
        (
            "f7-calico-end-of-tier-denies",
            vec![step([gnp("alone", calico_x(json!(5), about("Allow", "z")))])
                .table(&["* -> * : all", "* -> x/* : none", "z/* -> x/* : all"])],
        ),
        (
            "f7-calico-pass-goes-to-the-baseline",
            vec![step([
                gnp("pass", calico_x(json!(5), json!([{"action": "Log"}, {"action": "Pass", "source": {"selector": "pod != 'a'"}}]))),
                into_x("b", "Baseline", 1, &[("Deny", ns("z"))]),
            ])
            .table(&["* -> * : all", "z/*,*/a -> x/* : none"])],
        ),
    ]
}

fn calico_rules() -> Vec<Named> {
    let rules = |rules: Value| step([gnp("g", calico_x(json!(5), rules))]);
    let mut robot = pod("y", "b", json!({"pod": "b"}));
    robot["spec"]["serviceAccountName"] = json!("robot");
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"namespace": "y", "name": "robot", "labels": {"kind": "machine"}},
    });
    vec![
        (
            "f7-calico-nets-and-not-nets",
            vec![rules(json!([{"action": "Allow", "source": {
                "nets": ["10.0.1.0/24", "fd00:10:2::/64"], "notNets": ["10.0.1.27/32"],
            }}]))
            .table(&["* -> * : all", "* -> x/* : v6",
                "x/a,x/c,z/a,z/c -> x/* : v4", "y/b -> x/* : none"])],
        ),
        (
            "f7-calico-ports-and-not-ports",
            vec![rules(json!([
                {"action": "Deny", "protocol": "UDP", "destination": {"notPorts": [80]}},
                {"action": "Allow", "protocol": "UDP"},
                {"action": "Allow", "protocol": "TCP", "destination": {"ports": ["81:90", "serve-80-tcp"]}},
            ]))
            .table(&["* -> * : all", "* -> x/* : udp/80 tcp"])],
        ),
        (
            "f7-calico-selector-language",
            vec![rules(json!([{"action": "Allow", "source": {
                "selector": "(pod in {'a', 'b'} && !has(absent)) || pod starts with 'c' && absent == 'x'",
                "namespaceSelector": "ns not in {'z'}",
            }}]))
            .table(&["* -> * : all", "* -> x/* : none", "x/a,x/b,y/a,y/b -> x/* : all"])],
        ),
        (
            "f7-calico-service-accounts",
            vec![step([
                robot,
                account,
                gnp("g", calico_x(json!(5), json!([
                    {"action": "Allow", "source": {"serviceAccounts": {"selector": "kind == 'machine'"}}},
                ]))),
            ])
            .table(&["* -> * : all", "* -> x/* : none", "y/b -> x/* : all"])],
        ),
        (
            "f7-calico-policy-of-a-namespace",
            vec![step([json!({
                "apiVersion": "crd.projectcalico.org/v1", "kind": "NetworkPolicy",
                "metadata": {"namespace": "x", "name": "n"},
                "spec": {"selector": "pod == 'a'", "types": ["Ingress", "Egress"],
                    "ingress": [{"action": "Allow", "source": {"selector": "pod != 'c'"}}],
                    "egress": [{"action": "Deny", "destination": {"namespaceSelector": "all()"}}, {"action": "Allow"}]},
            })])
            .table(&["* -> * : all", "* -> x/a : none", "x/b -> x/a : all", "x/a -> * : none"])],
        ),
        (
            "f7-calico-rule-for-hosts-changes-nothing-for-pods",
            vec![step([gnp("hosts", json!({
                "selector": "all()", "preDNAT": true, "applyOnForward": true,
                "types": ["Ingress"], "ingress": [{"action": "Deny"}],
            }))])
            .table(&["* -> * : all"])],
        ),
    ]
}
