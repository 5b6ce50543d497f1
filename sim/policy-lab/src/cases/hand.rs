//! Tables for letters A to E of the checklist, typed from their meaning.
//!
//! The letter is the first part of each name. On node n1 are x/a, x/c, y/b, z/a and z/c, on n2 the
//! others.

use serde_json::{Value, json};

use crate::cases::case::{Case, Step};
use crate::cases::world::{
    addresses, case, expression, labelled, nine, pod, pod_with, policy, step,
};

const FAMILY: &str = "hand";

type Named = (&'static str, Vec<Step>);

/// Tables for NetworkPolicy.
pub(super) fn cases() -> Vec<Case> {
    [
        isolation(),
        defaults(),
        selectors(),
        lifetimes(),
        blocks(),
        ports(),
        named_ports(),
        nodes(),
    ]
    .concat()
    .into_iter()
    .map(|(name, steps)| case(FAMILY, name, nine(), steps))
    .collect()
}

fn of_x(spec: Value) -> Value {
    policy("x", "p", spec)
}

fn of_a(spec: &Value) -> Value {
    let mut spec = spec.clone();
    spec["podSelector"] = labelled("pod", "a");
    of_x(spec)
}

fn one(name: &'static str, document: Value, table: &[&str]) -> Named {
    (name, vec![step([document]).table(table)])
}

fn isolation() -> Vec<Named> {
    let from = |pod: &str| json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": labelled("pod", pod)}]}]});
    vec![
        one(
            "a1-ingress-alone-is-closed",
            of_a(&json!({"policyTypes": ["Ingress"]})),
            &["* -> * : all", "* -> x/a : none"],
        ),
        one(
            "a1-egress-alone-is-closed",
            of_a(&json!({"policyTypes": ["Egress"]})),
            &["* -> * : all", "x/a -> * : none"],
        ),
        (
            "a2-three-policies-are-the-union",
            vec![
                step([
                    policy("x", "none", json!({"podSelector": {}})),
                    policy("x", "b", from("b")),
                    policy("x", "c", from("c")),
                ])
                .table(&[
                    "* -> * : all",
                    "* -> x/* : none",
                    "x/b,x/c -> x/* : all",
                ]),
                step([]).without(&[policy("x", "b", json!({}))]).table(&[
                    "* -> * : all",
                    "* -> x/* : none",
                    "x/c -> x/* : all",
                ]),
            ],
        ),
        (
            "a3-open-egress-does-not-open-ingress",
            vec![
                step([
                    of_x(json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]})),
                    policy("y", "closed", json!({"podSelector": {}})),
                    policy(
                        "z",
                        "closed-on-80",
                        json!({
                            "podSelector": {}, "ingress": [{"ports": [{"port": 81}]}],
                        }),
                    ),
                ])
                .table(&["* -> * : all", "* -> y/* : none", "* -> z/* : tcp/81"]),
            ],
        ),
    ]
}

fn defaults() -> Vec<Named> {
    let to_c = json!([{"to": [{"podSelector": labelled("pod", "c")}]}]);
    let closed_in = ["* -> * : all", "* -> x/* : none"];
    vec![
        one(
            "a4-no-types-and-no-egress-is-ingress",
            of_x(json!({"podSelector": {}})),
            &closed_in,
        ),
        one(
            "a4-no-types-and-an-egress-rule-is-both",
            of_x(json!({"podSelector": {}, "egress": to_c})),
            &["* -> * : all", "* -> x/* : none", "x/* -> * : none"],
        ),
        one(
            "a4-no-types-and-empty-egress-is-ingress",
            of_x(json!({"podSelector": {}, "policyTypes": [], "egress": []})),
            &closed_in,
        ),
        one(
            "a5-null-rules-allow-nothing",
            of_x(json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": null})),
            &closed_in,
        ),
        one(
            "a6-empty-lists-in-a-rule-restrict-nothing",
            of_x(json!({"podSelector": {}, "ingress": [{"from": [], "ports": []}]})),
            &["* -> * : all"],
        ),
        one(
            "a6-rules-of-a-direction-without-type-are-ignored",
            of_x(
                json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}], "egress": to_c}),
            ),
            &["* -> * : all"],
        ),
        one(
            "a7-no-selector-is-the-whole-namespace",
            of_x(json!({})),
            &closed_in,
        ),
        (
            "a8-terminating-namespace-is-still-closed",
            vec![
                step([
                    of_x(json!({"podSelector": {}})),
                    json!({
                        "apiVersion": "v1", "kind": "Namespace",
                        "metadata": {
                            "name": "x", "deletionTimestamp": "2026-01-01T00:00:00Z",
                            "labels": {"ns": "x", "kubernetes.io/metadata.name": "x"},
                        },
                        "status": {"phase": "Terminating"},
                    }),
                ])
                .table(&closed_in),
            ],
        ),
    ]
}

fn selectors() -> Vec<Named> {
    let from = |peers: Value| of_a(&json!({"ingress": [{"from": peers}]}));
    let bare_y = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "y"}});
    let unreadable =
        json!({"matchExpressions": [{"key": "pod", "operator": "Like", "values": ["b"]}]});
    vec![
        one(
            "b1-two-items-are-or",
            from(
                json!([{"namespaceSelector": labelled("ns", "y")}, {"podSelector": labelled("pod", "b")}]),
            ),
            &["* -> * : all", "* -> x/a : none", "y/*,x/b -> x/a : all"],
        ),
        one(
            "b1-one-item-is-and",
            from(
                json!([{"namespaceSelector": labelled("ns", "y"), "podSelector": labelled("pod", "b")}]),
            ),
            &["* -> * : all", "* -> x/a : none", "y/b -> x/a : all"],
        ),
        (
            "b2-not-in-matches-an-absent-key",
            vec![
                step([
                    bare_y.clone(),
                    from(json!([{"namespaceSelector": expression("ns", "NotIn", &["x", "z"])}])),
                ])
                .table(&["* -> * : all", "* -> x/a : none", "y/* -> x/a : all"]),
            ],
        ),
        (
            "b2-does-not-exist-and-exists",
            vec![
                step([
                    bare_y.clone(),
                    from(json!([{"namespaceSelector": expression("ns", "DoesNotExist", &[])}])),
                ])
                .table(&["* -> * : all", "* -> x/a : none", "y/* -> x/a : all"]),
                step([from(
                    json!([{"namespaceSelector": expression("ns", "Exists", &[])}]),
                )])
                .table(&["* -> * : all", "y/* -> x/a : none"]),
            ],
        ),
        one(
            "b2-labels-and-expressions-are-and",
            from(json!([{"namespaceSelector": {
                "matchLabels": {"ns": "y"},
                "matchExpressions": [{"key": "ns", "operator": "In", "values": ["y", "z"]}],
            }}])),
            &["* -> * : all", "* -> x/a : none", "y/* -> x/a : all"],
        ),
        one(
            "b3-unreadable-peer-matches-nothing",
            from(json!([{"podSelector": unreadable}, {"podSelector": labelled("pod", "c")}])),
            &["* -> * : all", "* -> x/a : none", "x/c -> x/a : all"],
        ),
        one(
            "b3-unreadable-subject-closes-the-namespace",
            of_x(json!({"podSelector": unreadable})),
            &["* -> * : all", "* -> x/* : none"],
        ),
        (
            "b4-pods-wait-for-their-namespace",
            vec![
                step([from(json!([{"namespaceSelector": {}}]))]).table(&["* -> * : all"]),
                step([])
                    .without(std::slice::from_ref(&bare_y))
                    .table(&["* -> * : all", "y/* -> x/a : none"]),
                step([bare_y]).table(&["* -> * : all"]),
            ],
        ),
    ]
}

fn lifetimes() -> Vec<Named> {
    let from_b = || of_a(&json!({"ingress": [{"from": [{"podSelector": labelled("pod", "b")}]}]}));
    let [four, six] = addresses("x", "b");
    let mut early = pod("x", "b", json!({"pod": "b"}));
    early["metadata"]["annotations"] = json!({"k8s.aliyun.com/pod-ips": format!("{four},{six}")});
    early["status"] = json!({"phase": "Pending"});
    let mut finished = pod("x", "b", json!({"pod": "b"}));
    finished["status"]["phase"] = json!("Succeeded");
    let mut successor = pod("z", "d", json!({"pod": "d"}));
    successor["spec"]["nodeName"] = finished["spec"]["nodeName"].clone();
    successor["status"] =
        json!({"phase": "Running", "podIP": four, "podIPs": [{"ip": four}, {"ip": six}]});
    let mut leaving = pod("x", "b", json!({"pod": "b"}));
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let open_for_b = ["* -> * : all", "* -> x/a : none", "x/b -> x/a : all"];
    let mut reborn = pod("x", "d", json!({"pod": "other"}));
    reborn["metadata"]["name"] = json!("b");
    reborn["metadata"]["uid"] = json!("uid-x-b-second");
    vec![
        (
            "b5-address-of-the-annotation-counts",
            vec![step([from_b(), early]).table(&open_for_b)],
        ),
        (
            "b6-successor-of-an-address-inherits-nothing",
            vec![
                step([from_b()]).table(&open_for_b),
                step([finished, successor]).table(&["* -> * : all", "* -> x/a : none"]),
            ],
        ),
        (
            "b7-terminating-pod-is-still-a-peer-and-a-subject",
            vec![
                step([
                    from_b(),
                    policy("x", "q", json!({"podSelector": labelled("pod", "b"), "policyTypes": ["Egress"], "egress": [
                        {"to": [{"podSelector": labelled("pod", "a")}]},
                    ]})),
                    leaving,
                ])
                .table(&["* -> * : all", "* -> x/a : none", "x/b -> * : none", "x/b -> x/a : all"]),
            ],
        ),
        (
            "b10-pod-of-the-same-name-is-another-pod",
            vec![
                step([from_b()]).table(&open_for_b),
                step([]).without(&[reborn.clone()]).table(&["* -> * : all", "* -> x/a : none"]),
                step([reborn]).table(&["* -> * : all", "* -> x/a : none"]),
            ],
        ),
    ]
}

fn blocks() -> Vec<Named> {
    let to = |blocks: Value| of_a(&json!({"policyTypes": ["Egress"], "egress": [{"to": blocks}]}));
    let block = |cidr: &str, except: &[&str]| json!({"ipBlock": {"cidr": cidr, "except": except}});
    let closed = "x/a -> * : none";
    let with_others = |name: &'static str, document: Value, table: &[&str]| {
        let step = step([document])
            .others(&["node:n1", "node:n2", "outside"])
            .table(table);
        (name, vec![step])
    };
    let open = [
        "* -> * : all",
        "node:*,outside -> * : all",
        "* -> node:*,outside : all",
    ];
    vec![
        one(
            "c1-block-holds-pods",
            to(json!([block("10.0.2.0/24", &[])])),
            &["* -> * : all", closed, "x/a -> x/b,y/a,y/c,z/b : v4"],
        ),
        with_others(
            "c1-block-holds-nodes",
            to(json!([
                block("192.168.0.12/32", &[]),
                block("fd00:192::b/128", &[])
            ])),
            &[
                &open[..],
                &[
                    closed,
                    "x/a -> node:*,outside : none",
                    "x/a -> node:n2 : v4",
                    "x/a -> node:n1 : v6",
                ],
            ]
            .concat(),
        ),
        one(
            "c2-except-takes-from-its-own-block-alone",
            to(json!([
                block("10.0.1.0/24", &["10.0.1.16/28", "10.0.1.40/30"]),
                block("10.0.1.27/32", &[]),
            ])),
            // x/c is .12, y/b is .27, z/a is .42, z/c is .44.
            &["* -> * : all", closed, "x/a -> x/c,y/b,z/c : v4"],
        ),
        one(
            "c3-families-never-cross",
            to(json!([block("0.0.0.0/0", &[])])),
            &["* -> * : all", "x/a -> * : v4"],
        ),
        one(
            "c3-all-of-ipv6-is-not-ipv4",
            to(json!([block("::/0", &["fd00:10:2::/64"])])),
            &["* -> * : all", closed, "x/a -> x/c,y/b,z/a,z/c : v6"],
        ),
        one(
            "c3-except-of-all-is-nothing",
            to(json!([block("10.0.0.0/8", &["10.0.0.0/8"])])),
            &["* -> * : all", closed],
        ),
        one(
            "c3-host-bits-are-masked-and-blocks-overlap",
            to(json!([
                block("10.0.1.200/25", &[]),
                block("10.0.1.77/24", &[]),
                block("10.0.1.12/32", &[])
            ])),
            &["* -> * : all", closed, "x/a -> x/c,y/b,z/a,z/c : v4"],
        ),
        with_others(
            "c4-outside-by-its-address",
            of_a(
                &json!({"ingress": [{"from": [block("203.0.113.0/24", &[]), block("2001:db8::/32", &["2001:db8::/64"])]}]}),
            ),
            &[
                &open[..],
                &[
                    "* -> x/a : none",
                    "outside -> x/a : v4",
                    "node:n2 -> x/a : none",
                ],
            ]
            .concat(),
        ),
    ]
}

fn ports() -> Vec<Named> {
    let on = |ports: Value| of_a(&json!({"ingress": [{"ports": ports}]}));
    let table = |what: &'static str| -> [&str; 2] { ["* -> * : all", what] };
    vec![
        one(
            "d1-protocol-unsaid-is-tcp",
            on(json!([{"port": 80}])),
            &table("* -> x/a : tcp/80"),
        ),
        one(
            "d1-no-port-is-all-of-the-protocol",
            on(json!([{"protocol": "UDP"}])),
            &table("* -> x/a : udp"),
        ),
        one(
            "d2-range-holds-both-its-ends",
            on(
                json!([{"port": 79, "endPort": 80}, {"protocol": "SCTP", "port": 81, "endPort": 81}]),
            ),
            &table("* -> x/a : tcp/80 sctp/81"),
        ),
        one(
            "d2-range-that-makes-no-sense-matches-nothing",
            on(
                json!([{"port": 81, "endPort": 80}, {"port": "serve-80-tcp", "endPort": 90}, {"protocol": "UDP", "port": 81}]),
            ),
            &table("* -> x/a : udp/81"),
        ),
        one(
            "d7-sctp-alone-closes-tcp",
            on(json!([{"protocol": "SCTP"}])),
            &table("* -> x/a : sctp"),
        ),
    ]
}

fn named_ports() -> Vec<Named> {
    let api = |namespace: &str, name: &str, port: u16| {
        let ports = json!([{"name": "api", "containerPort": port}]);
        pod_with(namespace, name, json!({"pod": name}), ports)
    };
    let out = |rule: Value| of_a(&json!({"policyTypes": ["Egress"], "egress": [rule]}));
    let mut double = api("x", "a", 80);
    double["spec"]["containers"] = json!([
        {"name": "one", "ports": [{"name": "api", "containerPort": 80}]},
        {"name": "two", "ports": [{"name": "api", "containerPort": 81}]},
    ]);
    let mut sidecar = api("x", "a", 80);
    sidecar["spec"]["initContainers"] = json!([
        {"name": "once", "ports": [{"name": "api", "containerPort": 81}]},
        {"name": "beside", "restartPolicy": "Always",
            "ports": [{"name": "api", "containerPort": 81, "protocol": "UDP"}]},
    ]);
    let on_api = || {
        of_a(
            &json!({"ingress": [{"ports": [{"port": "api"}, {"port": "api", "protocol": "UDP"}]}]}),
        )
    };
    let others = |step: Step| step.others(&["node:n1", "outside"]);
    vec![
        (
            "d3-name-is-the-number-of-each-subject",
            vec![step([
                api("x", "a", 80),
                api("x", "b", 81),
                api("y", "a", 81),
                of_x(json!({"podSelector": {}, "ingress": [{"ports": [{"port": "api"}]}]})),
            ])
            .table(&["* -> * : all", "* -> x/* : none", "* -> x/a : tcp/80", "* -> x/b : tcp/81"])],
        ),
        (
            "d4-name-is-the-number-of-each-destination",
            vec![step([
                api("y", "a", 80),
                api("y", "b", 81),
                out(json!({"to": [{"namespaceSelector": labelled("ns", "y")}], "ports": [{"port": "api"}]})),
            ])
            .table(&["* -> * : all", "x/a -> * : none", "x/a -> y/a : tcp/80", "x/a -> y/b : tcp/81"])],
        ),
        (
            "d5-name-to-anybody-is-every-pod-that-has-it",
            vec![others(step([
                api("y", "a", 80),
                api("z", "c", 81),
                out(json!({"ports": [{"port": "api"}]})),
            ]))
            .table(&[
                "* -> * : all",
                "node:*,outside -> * : all",
                "* -> node:*,outside : all",
                "x/a -> *,node:*,outside : none",
                "x/a -> y/a : tcp/80",
                "x/a -> z/c : tcp/81",
            ])],
        ),
        (
            "d5-name-to-a-block-is-the-pods-inside-that-have-it",
            vec![step([
                api("y", "b", 80),
                api("y", "a", 80),
                api("z", "c", 81),
                // Node n1 without z/c.
                out(json!({
                    "to": [{"ipBlock": {"cidr": "10.0.1.0/24", "except": ["10.0.1.44/32"]}}],
                    "ports": [{"port": "api"}],
                })),
            ])
            .table(&["* -> * : all", "x/a -> * : none", "x/a -> y/b : tcp/80/v4"])],
        ),
        one(
            "d6-name-that-nobody-has-matches-nothing",
            of_a(&json!({"ingress": [{"ports": [{"port": "nobody"}]}]})),
            &["* -> * : all", "* -> x/a : none"],
        ),
        one(
            "d6-name-of-another-protocol-matches-nothing",
            of_a(&json!({"ingress": [{"ports": [{"port": "serve-80-tcp", "protocol": "UDP"}, {"port": "serve-81-udp"}]}]})),
            &["* -> * : all", "* -> x/a : none"],
        ),
        (
            "d6-name-on-two-containers-is-both-numbers",
            vec![step([double, on_api()]).table(&["* -> * : all", "* -> x/a : tcp"])],
        ),
        (
            "d6-restartable-init-containers-count",
            vec![step([sidecar, on_api()]).table(&["* -> * : all", "* -> x/a : tcp/80 udp/81"])],
        ),
    ]
}

fn nodes() -> Vec<Named> {
    let others = ["node:n1", "node:n2"];
    let open = ["* -> * : all", "node:* -> * : all", "* -> node:* : all"];
    let mut host = pod("y", "h", json!({"pod": "h"}));
    host["spec"]["hostNetwork"] = json!(true);
    host["spec"]["nodeName"] = json!("n1");
    host["status"] = json!({
        "phase": "Running", "podIP": "192.168.0.11",
        "podIPs": [{"ip": "192.168.0.11"}, {"ip": "fd00:192::b"}],
    });
    vec![
        (
            "e1-node-reaches-its-own-closed-pods",
            vec![
                step([of_x(json!({"podSelector": {}}))])
                    .others(&others)
                    .table(
                        &[
                            &open[..],
                            &[
                                "*,node:* -> x/* : none",
                                "node:n1 -> x/a,x/c : all",
                                "node:n2 -> x/b : all",
                            ],
                        ]
                        .concat(),
                    ),
            ],
        ),
        (
            "e2-pod-to-its-own-node-is-judged",
            vec![
                step([of_a(&json!({"policyTypes": ["Egress"], "egress": [
                    {"to": [{"ipBlock": {"cidr": "192.168.0.0/24"}}], "ports": [{"port": 80}]},
                ]}))])
                .others(&others)
                .table(
                    &[
                        &open[..],
                        &["x/a -> *,node:* : none", "x/a -> node:* : tcp/80/v4"],
                    ]
                    .concat(),
                ),
            ],
        ),
        (
            "b9-host-network-pod-is-no-peer-and-no-subject",
            vec![
                step([
                    host,
                    policy(
                        "x",
                        "from-y",
                        json!({"podSelector": {}, "ingress": [
                            {"from": [{"namespaceSelector": labelled("ns", "y")}]},
                        ]}),
                    ),
                    policy(
                        "y",
                        "closed",
                        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
                    ),
                ])
                .others(&others)
                .table(
                    &[
                        &open[..],
                        &[
                            "*,node:* -> x/*,y/* : none",
                            "y/* -> *,node:* : none",
                            "node:n1 -> x/a,x/c,y/b : all",
                            "node:n2 -> x/b,y/a,y/c : all",
                        ],
                    ]
                    .concat(),
                ),
            ],
        ),
    ]
}
