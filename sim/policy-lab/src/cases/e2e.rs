//! The truth tables of the Kubernetes end-to-end suite, typed anew for nine pods, three protocols and
//! two families. Every table says everything.
#![expect(
    clippy::needless_pass_by_value,
    reason = "documents are written in place"
)]

use serde_json::{Value, json};

use crate::cases::case::{Case, Step};
use crate::cases::world::{
    addresses, case, expression, labelled, namespace, nine, pod, policy, step,
};

const FAMILY: &str = "netpol-e2e";

type Named = (&'static str, Vec<Step>);

/// All tables.
pub(super) fn cases() -> Vec<Case> {
    [
        defaults(),
        selectors(),
        own_names(),
        ports(),
        stacked(),
        changes(),
        egress(),
        blocks(),
        protocols(),
    ]
    .concat()
    .into_iter()
    .map(|(name, steps)| case(FAMILY, name, nine(), steps))
    .collect()
}

fn of_x(spec: Value) -> Value {
    policy("x", "p", spec)
}

/// A policy about ingress of x/a.
fn into_a(rules: Value) -> Value {
    of_x(json!({"podSelector": labelled("pod", "a"), "policyTypes": ["Ingress"], "ingress": rules}))
}

/// The same with one rule of one peer.
fn into_a_from(peer: Value) -> Value {
    into_a(json!([{"from": [peer]}]))
}

/// A policy about egress of x/a.
fn out_of_a(rules: Value) -> Value {
    of_x(json!({"podSelector": labelled("pod", "a"), "policyTypes": ["Egress"], "egress": rules}))
}

fn one(name: &'static str, document: Value, table: &[&str]) -> Named {
    (name, vec![step([document]).table(table)])
}

fn defaults() -> Vec<Named> {
    vec![
        one(
            "deny-all-ingress-of-a-namespace",
            of_x(json!({"podSelector": {}, "policyTypes": ["Ingress"]})),
            &["* -> * : all", "* -> x/* : none"],
        ),
        one(
            "deny-all-egress-of-a-namespace",
            of_x(json!({"podSelector": {}, "policyTypes": ["Egress"]})),
            &["* -> * : all", "x/* -> * : none"],
        ),
        one(
            "deny-all-of-a-namespace",
            of_x(json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})),
            &["* -> * : all", "* -> x/* : none", "x/* -> * : none"],
        ),
        one(
            "allow-all-ingress-of-a-namespace",
            of_x(json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]})),
            &["* -> * : all"],
        ),
        (
            "allow-ingress-of-one-pod-in-a-closed-namespace",
            vec![
                step([
                    policy(
                        "x",
                        "close",
                        json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
                    ),
                    into_a_from(json!({"podSelector": {}, "namespaceSelector": {}})),
                ])
                .table(&["* -> * : all", "* -> x/* : none", "* -> x/a : all"]),
            ],
        ),
        (
            "policy-stops-with-its-deletion",
            vec![
                step([of_x(
                    json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
                )])
                .table(&["* -> * : all", "* -> x/* : none", "x/* -> * : none"]),
                step([])
                    .without(&[of_x(json!({}))])
                    .table(&["* -> * : all"]),
            ],
        ),
    ]
}

fn selectors() -> Vec<Named> {
    vec![
        one(
            "from-pods-of-the-own-namespace",
            into_a_from(json!({"podSelector": labelled("pod", "b")})),
            &["* -> * : all", "* -> x/a : none", "x/b -> x/a : all"],
        ),
        one(
            "from-pods-by-expression",
            into_a_from(json!({"podSelector": expression("pod", "In", &["b"])})),
            &["* -> * : all", "* -> x/a : none", "x/b -> x/a : all"],
        ),
        one(
            "from-every-namespace",
            into_a_from(json!({"namespaceSelector": {}})),
            &["* -> * : all"],
        ),
        one(
            "from-another-namespace-alone",
            into_a_from(json!({"namespaceSelector": labelled("ns", "y")})),
            &["* -> * : all", "* -> x/a : none", "y/* -> x/a : all"],
        ),
        one(
            "from-namespaces-by-expression",
            into_a_from(json!({"namespaceSelector": expression("ns", "In", &["y"])})),
            &["* -> * : all", "* -> x/a : none", "y/* -> x/a : all"],
        ),
        one(
            "from-pods-or-namespaces",
            into_a(json!([{"from": [
                {"namespaceSelector": expression("ns", "NotIn", &["x"])},
                {"podSelector": labelled("pod", "b")},
            ]}])),
            &["* -> * : all", "x/c -> x/a : none"],
        ),
        one(
            "from-pods-and-namespaces",
            into_a_from(json!({
                "namespaceSelector": expression("ns", "NotIn", &["x"]),
                "podSelector": labelled("pod", "b"),
            })),
            &["* -> * : all", "* -> x/a : none", "y/b,z/b -> x/a : all"],
        ),
        one(
            "from-several-pods-and-namespaces",
            into_a_from(json!({
                "namespaceSelector": expression("ns", "NotIn", &["x"]),
                "podSelector": expression("pod", "In", &["b", "c"]),
            })),
            &[
                "* -> * : all",
                "* -> x/a : none",
                "y/b,y/c,z/b,z/c -> x/a : all",
            ],
        ),
        one(
            "from-either-of-two-labels",
            into_a(json!([{"from": [
                {"podSelector": labelled("pod", "b")},
                {"podSelector": labelled("pod", "c")},
            ]}])),
            &["* -> * : all", "* -> x/a : none", "x/b,x/c -> x/a : all"],
        ),
        one(
            "from-one-pod-of-another-namespace",
            into_a_from(json!({
                "namespaceSelector": labelled("ns", "y"), "podSelector": labelled("pod", "a"),
            })),
            &["* -> * : all", "* -> x/a : none", "y/a -> x/a : all"],
        ),
        one(
            "not-from-other-namespaces",
            of_x(json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]})),
            &["* -> * : all", "* -> x/* : none", "x/* -> x/* : all"],
        ),
    ]
}

fn own_names() -> Vec<Named> {
    let key = "kubernetes.io/metadata.name";
    vec![
        one(
            "from-a-namespace-by-its-name",
            into_a_from(json!({"namespaceSelector": labelled(key, "y")})),
            &["* -> * : all", "* -> x/a : none", "y/* -> x/a : all"],
        ),
        one(
            "from-namespaces-but-one-by-its-name",
            into_a_from(json!({"namespaceSelector": expression(key, "NotIn", &["x"])})),
            &["* -> * : all", "x/b,x/c -> x/a : none"],
        ),
    ]
}

fn ports() -> Vec<Named> {
    let from_y = || json!([{"namespaceSelector": labelled("ns", "y")}]);
    vec![
        one(
            "from-a-namespace-on-one-port",
            into_a(json!([{"from": from_y(), "ports": [{"port": 81, "protocol": "TCP"}]}])),
            &["* -> * : all", "* -> x/a : none", "y/* -> x/a : tcp/81"],
        ),
        one(
            "on-one-named-port",
            of_x(json!({"podSelector": {}, "ingress": [{"ports": [{"port": "serve-81-tcp"}]}]})),
            &["* -> * : all", "* -> x/* : tcp/81"],
        ),
        one(
            "from-a-namespace-on-one-named-port",
            into_a(json!([{"from": from_y(), "ports": [{"port": "serve-80-tcp"}]}])),
            &["* -> * : all", "* -> x/a : none", "y/* -> x/a : tcp/80"],
        ),
        one(
            "to-one-named-port",
            out_of_a(json!([{"ports": [{"port": "serve-80-tcp"}]}])),
            &["* -> * : all", "x/a -> * : tcp/80"],
        ),
        one(
            "on-a-range-of-ports",
            into_a(json!([{"ports": [{"port": 81, "endPort": 82, "protocol": "TCP"}]}])),
            &["* -> * : all", "* -> x/a : tcp/81"],
        ),
        one(
            "to-a-range-of-ports",
            out_of_a(json!([{"ports": [{"port": 79, "endPort": 80, "protocol": "TCP"}]}])),
            &["* -> * : all", "x/a -> * : tcp/80"],
        ),
        one(
            "on-every-port-of-one-protocol",
            into_a(json!([{"ports": [{"protocol": "UDP"}]}])),
            &["* -> * : all", "* -> x/a : udp"],
        ),
    ]
}

fn stacked() -> Vec<Named> {
    let from_y_on = |port: u16| {
        json!([{
            "from": [{"namespaceSelector": labelled("ns", "y")}],
            "ports": [{"port": port, "protocol": "TCP"}],
        }])
    };
    let second = |spec: Value| policy("x", "q", spec);
    vec![
        (
            "policies-with-the-same-subject-add-up",
            vec![
                step([into_a(from_y_on(81))]).table(&[
                    "* -> * : all",
                    "* -> x/a : none",
                    "y/* -> x/a : tcp/81",
                ]),
                step([second(json!({
                    "podSelector": labelled("pod", "a"), "policyTypes": ["Ingress"],
                    "ingress": from_y_on(80),
                }))])
                .table(&[
                    "* -> * : all",
                    "* -> x/a : none",
                    "y/* -> x/a : tcp",
                ]),
            ],
        ),
        (
            "allow-all-ingress-wins-over-a-narrow-policy",
            vec![
                step([of_x(json!({"podSelector": {}, "ingress": [
                    {"from": [{"podSelector": labelled("pod", "b")}]},
                ]}))])
                .table(&[
                    "* -> * : all",
                    "* -> x/* : none",
                    "x/b -> x/* : all",
                ]),
                step([second(json!({"podSelector": {}, "ingress": [{}]}))])
                    .table(&["* -> * : all"]),
            ],
        ),
        (
            "allow-all-egress-wins-over-a-narrow-policy",
            vec![
                step([of_x(json!({
                    "podSelector": {}, "policyTypes": ["Egress"],
                    "egress": [{"ports": [{"port": 80}]}],
                }))])
                .table(&["* -> * : all", "x/* -> * : tcp/80"]),
                step([second(json!({
                    "podSelector": {}, "policyTypes": ["Egress"], "egress": [{}],
                }))])
                .table(&["* -> * : all"]),
            ],
        ),
        one(
            "both-directions-in-one-policy",
            of_x(json!({
                "podSelector": labelled("pod", "a"), "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [{"podSelector": labelled("pod", "b")}]}],
                "egress": [{"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}],
            })),
            &[
                "* -> * : all",
                "* -> x/a : none",
                "x/b -> x/a : all",
                "x/a -> * : tcp/80",
            ],
        ),
        (
            "directions-of-one-pod-are-independent",
            vec![
                step([of_x(json!({
                    "podSelector": labelled("pod", "a"), "policyTypes": ["Egress"],
                    "egress": [{"to": [{"podSelector": labelled("pod", "b")}]}],
                }))])
                .table(&[
                    "* -> * : all",
                    "x/a -> * : none",
                    "x/a -> x/b : all",
                ]),
                step([second(json!({
                    "podSelector": labelled("pod", "a"), "policyTypes": ["Ingress"],
                    "ingress": [{"from": [{"podSelector": labelled("pod", "b")}]}],
                }))])
                .table(&[
                    "* -> * : all",
                    "* -> x/a : none",
                    "x/b -> x/a : all",
                    "x/a -> * : none",
                    "x/a -> x/b : all",
                ]),
            ],
        ),
    ]
}

fn changes() -> Vec<Named> {
    vec![
        (
            "policy-is-updated",
            vec![
                step([of_x(json!({"podSelector": {}, "ingress": [{}]}))]).table(&["* -> * : all"]),
                step([of_x(json!({"podSelector": {}, "ingress": []}))])
                    .table(&["* -> * : all", "* -> x/* : none"]),
            ],
        ),
        (
            "namespace-gets-the-label",
            vec![
                step([into_a_from(
                    json!({"namespaceSelector": labelled("season", "new")}),
                )])
                .table(&["* -> * : all", "* -> x/a : none"]),
                step([namespace("y", json!({"ns": "y", "season": "new"}))]).table(&[
                    "* -> * : all",
                    "* -> x/a : none",
                    "y/* -> x/a : all",
                ]),
            ],
        ),
        (
            "namespace-loses-the-label",
            vec![
                step([into_a_from(
                    json!({"namespaceSelector": labelled("ns", "y")}),
                )])
                .table(&["* -> * : all", "* -> x/a : none", "y/* -> x/a : all"]),
                step([namespace("y", json!({"ns": "other"}))])
                    .table(&["* -> * : all", "* -> x/a : none"]),
            ],
        ),
        (
            "source-pod-gets-the-label",
            vec![
                step([into_a_from(
                    json!({"podSelector": labelled("season", "new")}),
                )])
                .table(&["* -> * : all", "* -> x/a : none"]),
                step([pod("x", "b", json!({"pod": "b", "season": "new"}))]).table(&[
                    "* -> * : all",
                    "* -> x/a : none",
                    "x/b -> x/a : all",
                ]),
            ],
        ),
        (
            "subject-pod-gets-the-label",
            vec![
                step([of_x(json!({
                    "podSelector": labelled("target", "closed"), "policyTypes": ["Ingress"],
                }))])
                .table(&["* -> * : all"]),
                step([pod("x", "a", json!({"pod": "a", "target": "closed"}))])
                    .table(&["* -> * : all", "* -> x/a : none"]),
                step([pod("x", "a", json!({"pod": "a"}))]).table(&["* -> * : all"]),
            ],
        ),
    ]
}

fn egress() -> Vec<Named> {
    let a_of_y =
        || json!([{"namespaceSelector": labelled("ns", "y"), "podSelector": labelled("pod", "a")}]);
    let y_accepts = policy(
        "y",
        "accept-xa",
        json!({"podSelector": labelled("pod", "a"), "ingress": [{"from": [
            {"namespaceSelector": labelled("ns", "x"), "podSelector": labelled("pod", "a")},
        ]}]}),
    );
    vec![
        one(
            "no-egress-of-one-pod",
            out_of_a(json!([])),
            &["* -> * : all", "x/a -> * : none"],
        ),
        one(
            "egress-to-one-pod-of-another-namespace",
            out_of_a(json!([{"to": a_of_y()}])),
            &["* -> * : all", "x/a -> * : none", "x/a -> y/a : all"],
        ),
        (
            "egress-denied-although-the-server-allows",
            vec![step([out_of_a(json!([])), y_accepts.clone()]).table(&[
                "* -> * : all",
                "* -> y/a : none",
                "x/a -> * : none",
            ])],
        ),
        (
            "egress-and-ingress-agree",
            vec![
                step([out_of_a(json!([{"to": a_of_y()}])), y_accepts]).table(&[
                    "* -> * : all",
                    "* -> y/a : none",
                    "x/a -> * : none",
                    "x/a -> y/a : all",
                ]),
            ],
        ),
    ]
}

fn blocks() -> Vec<Named> {
    let [four, six] = addresses("y", "b");
    let exactly = || json!([{"ipBlock": {"cidr": format!("{four}/32")}}, {"ipBlock": {"cidr": format!("{six}/128")}}]);
    // 10.0.1.0/24 and fd00:10:1::/64 are the pods of node n1: x/a x/c y/b z/a z/c.
    let n1_but_yb = || {
        json!([
            {"ipBlock": {"cidr": "10.0.1.0/24", "except": [format!("{four}/32")]}},
            {"ipBlock": {"cidr": "fd00:10:1::/64", "except": [format!("{six}/128")]}},
        ])
    };
    vec![
        one(
            "egress-to-a-block",
            out_of_a(json!([{"to": exactly()}])),
            &["* -> * : all", "x/a -> * : none", "x/a -> y/b : all"],
        ),
        one(
            "egress-to-a-block-but-a-part-of-it",
            out_of_a(json!([{"to": n1_but_yb()}])),
            &[
                "* -> * : all",
                "x/a -> * : none",
                "x/a -> x/c,z/a,z/c : all",
            ],
        ),
        (
            "excepted-address-is-allowed-by-another-policy",
            vec![
                step([out_of_a(json!([{"to": n1_but_yb()}]))]).table(&[
                    "* -> * : all",
                    "x/a -> * : none",
                    "x/a -> x/c,z/a,z/c : all",
                ]),
                step([policy(
                    "x",
                    "q",
                    json!({
                        "podSelector": labelled("pod", "a"), "policyTypes": ["Egress"],
                        "egress": [{"to": exactly()}],
                    }),
                )])
                .table(&[
                    "* -> * : all",
                    "x/a -> * : none",
                    "x/a -> x/c,y/b,z/a,z/c : all",
                ]),
            ],
        ),
    ]
}

fn protocols() -> Vec<Named> {
    let ports =
        |protocol: &str, port: u16| json!([{"ports": [{"protocol": protocol, "port": port}]}]);
    let server_in = |protocol: &str| {
        into_a(json!([{
            "from": [{"namespaceSelector": labelled("ns", "y"), "podSelector": labelled("pod", "b")}],
            "ports": [{"protocol": protocol, "port": 80}],
        }]))
    };
    vec![
        one(
            "sctp-is-not-taken-for-tcp",
            into_a(ports("SCTP", 80)),
            &["* -> * : all", "* -> x/a : sctp/80"],
        ),
        one(
            "sctp-alone-still-isolates",
            into_a(json!([{"ports": [{"protocol": "SCTP"}]}])),
            &["* -> * : all", "* -> x/a : sctp"],
        ),
        one(
            "udp-alone-keeps-tcp-out",
            into_a(ports("UDP", 81)),
            &["* -> * : all", "* -> x/a : udp/81"],
        ),
        one(
            "udp-from-one-pod-of-another-namespace",
            server_in("UDP"),
            &["* -> * : all", "* -> x/a : none", "y/b -> x/a : udp/80"],
        ),
        one(
            "sctp-from-one-pod-of-another-namespace",
            server_in("SCTP"),
            &["* -> * : all", "* -> x/a : none", "y/b -> x/a : sctp/80"],
        ),
        one(
            "udp-out-of-a-namespace-on-one-port",
            of_x(json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": ports("UDP", 80)})),
            &["* -> * : all", "x/* -> * : udp/80"],
        ),
        one(
            "sctp-out-of-a-namespace-on-one-port",
            of_x(
                json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": ports("SCTP", 80)}),
            ),
            &["* -> * : all", "x/* -> * : sctp/80"],
        ),
    ]
}
