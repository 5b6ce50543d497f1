//! The end-to-end shapes that are counted with the generated cases; the oracle says what holds, and
//! the lines typed here must hold as well.
#![expect(
    clippy::needless_pass_by_value,
    reason = "documents are written in place"
)]

use serde_json::{Value, json};

use crate::cases::case::{Case, Step};
use crate::cases::world::{case, expression, labelled, namespace, nine, pod, policy, step};

const FAMILY: &str = "upstream-e2e";

fn of_x(name: &str, spec: Value) -> Value {
    policy("x", name, spec)
}

fn ingress_of_a(rules: Value) -> Value {
    json!({"podSelector": labelled("pod", "a"), "policyTypes": ["Ingress"], "ingress": rules})
}

fn from_y_on(port: u16) -> Value {
    ingress_of_a(json!([{
        "from": [{"namespaceSelector": labelled("ns", "y")}],
        "ports": [{"port": port, "protocol": "TCP"}],
    }]))
}

fn whole_namespace(rules: Value) -> Value {
    json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": rules})
}

/// The thirteen.
pub(super) fn cases() -> Vec<Case> {
    [policies(), changes()]
        .concat()
        .into_iter()
        .map(|(name, steps)| case(FAMILY, name, nine(), steps))
        .collect()
}

fn policies() -> Vec<(&'static str, Vec<Step>)> {
    let both = json!({
        "podSelector": labelled("pod", "a"), "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": labelled("pod", "b")}]}],
        "egress": [{"ports": [{"port": 80}, {"protocol": "UDP", "port": 53}]}],
    });
    let to_ya = json!({
        "podSelector": labelled("pod", "a"), "policyTypes": ["Egress"],
        "egress": [
            {"to": [{"namespaceSelector": labelled("ns", "y"), "podSelector": labelled("pod", "a")}]},
            {"ports": [{"protocol": "UDP", "port": 53}]},
        ],
    });
    let from_xa = |subject: &str| {
        json!({
            "podSelector": labelled("pod", subject), "policyTypes": ["Ingress"],
            "ingress": [{"from": [
                {"namespaceSelector": labelled("ns", "x"), "podSelector": labelled("pod", "a")},
            ]}],
        })
    };
    vec![
        (
            "no-ingress",
            vec![
                step([of_x("p", whole_namespace(json!([])))])
                    .pins(&["* -> * : all", "* -> x/* : none"]),
            ],
        ),
        (
            "no-traffic-but-dns",
            vec![
                step([of_x(
                    "p",
                    json!({
                        "podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [],
                        "egress": [{"ports": [{"protocol": "UDP", "port": 53}]}],
                    }),
                )])
                .pins(&["* -> * : all", "* -> x/* : none", "x/* -> * : none"]),
            ],
        ),
        (
            "several-selectors",
            vec![
                step([of_x(
                    "p",
                    ingress_of_a(json!([{"from": [{
                        "namespaceSelector": expression("ns", "NotIn", &["x"]),
                        "podSelector": expression("pod", "In", &["b", "c"]),
                    }]}])),
                )])
                .pins(&["* -> x/a : none", "y/b,y/c,z/b,z/c -> x/a : all"]),
            ],
        ),
        (
            "policies-stacked",
            vec![
                step([of_x("on-81", from_y_on(81))])
                    .pins(&["* -> x/a : none", "y/* -> x/a : tcp/81"]),
                step([of_x("on-80", from_y_on(80))]).pins(&["* -> x/a : none", "y/* -> x/a : tcp"]),
            ],
        ),
        (
            "everything-allowed",
            vec![step([of_x("p", whole_namespace(json!([{}])))]).pins(&["* -> * : all"])],
        ),
        (
            "one-named-port",
            vec![
                step([of_x(
                    "p",
                    whole_namespace(json!([{"ports": [{"port": "serve-81-tcp"}]}])),
                )])
                .pins(&["* -> * : all", "* -> x/* : tcp/81"]),
            ],
        ),
        (
            "both-directions-together",
            vec![step([of_x("p", both)]).pins(&[
                "* -> x/a : none",
                "x/b -> x/a : all",
                "x/a -> y/*,z/*,x/b,x/c : tcp/80",
            ])],
        ),
        (
            "source-denies-what-destination-allows",
            vec![
                step([
                    of_x("to-ya", to_ya),
                    policy("y", "from-xa-on-a", from_xa("a")),
                    policy("y", "from-xa-on-b", from_xa("b")),
                ])
                .pins(&[
                    "* -> y/a,y/b : none",
                    "x/a -> * : none",
                    "x/a -> y/a : all",
                ]),
            ],
        ),
    ]
}

fn changes() -> Vec<(&'static str, Vec<Step>)> {
    let locked = of_x(
        "p",
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [], "egress": []}),
    );
    vec![
        (
            "policy-updated",
            vec![
                step([of_x("p", whole_namespace(json!([{}])))]).pins(&["* -> * : all"]),
                step([of_x("p", whole_namespace(json!([])))])
                    .pins(&["* -> * : all", "* -> x/* : none"]),
            ],
        ),
        (
            "namespace-updated",
            vec![
                step([of_x(
                    "p",
                    ingress_of_a(json!([{"from": [
                        {"namespaceSelector": labelled("season", "new")},
                    ]}])),
                )])
                .pins(&["* -> x/a : none"]),
                step([namespace("y", json!({"ns": "y", "season": "new"}))])
                    .pins(&["* -> x/a : none", "y/* -> x/a : all"]),
            ],
        ),
        (
            "peer-pod-updated",
            vec![
                step([of_x(
                    "p",
                    ingress_of_a(json!([{"from": [
                        {"podSelector": {"matchLabels": {"pod": "b", "season": "new"}}},
                    ]}])),
                )])
                .pins(&["* -> x/a : none"]),
                step([pod("x", "b", json!({"pod": "b", "season": "new"}))])
                    .pins(&["* -> x/a : none", "x/b -> x/a : all"]),
            ],
        ),
        (
            "subject-pod-updated",
            vec![
                step([of_x(
                    "p",
                    json!({"podSelector": labelled("target", "isolated"), "policyTypes": ["Ingress"]}),
                )])
                .pins(&["* -> * : all"]),
                step([pod("x", "a", json!({"target": "isolated"}))])
                    .pins(&["* -> * : all", "* -> x/a : none"]),
            ],
        ),
        (
            "policy-deleted",
            vec![
                step([locked.clone()])
                    .pins(&["* -> * : all", "* -> x/* : none", "x/* -> * : none"]),
                step([]).without(&[locked]).pins(&["* -> * : all"]),
            ],
        ),
    ]
}
