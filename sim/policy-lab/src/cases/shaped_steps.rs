//! Cases of several objects or several steps: changes, policies that disagree, namespaces by name.

use serde_json::{Value, json};

use crate::cases::case::Case;
use crate::cases::shaped::{usual_spec, with_field};
use crate::cases::world::{case, expression, labelled, namespace, nine, pod, policy, step};

/// Examples, actions, conflicts and namespaces by their own name.
pub(super) fn cases() -> Vec<Case> {
    [examples(), actions(), conflicts(), namespaces()].concat()
}

fn examples() -> Vec<Case> {
    let named = policy(
        "x",
        "one-named-port",
        json!({
            "podSelector": {}, "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"port": "serve-81-tcp"}]}],
        }),
    );
    let newcomer = [
        namespace("w", json!({"ns": "w"})),
        pod("w", "a", json!({"pod": "a"})),
    ];
    vec![case(
        "examples",
        "named-port-while-a-namespace-comes-and-goes",
        nine(),
        vec![
            step([named]),
            step(newcomer.clone()),
            step([]).without(&newcomer[1..]),
            step([]).without(&newcomer[..1]),
        ],
    )]
}

fn usual() -> Value {
    policy("x", "vary", usual_spec())
}

fn actions() -> Vec<Case> {
    let relabelled = |labels: Value| namespace("y", labels);
    let newcomers = [
        namespace("extra-w", json!({"ns": "y"})),
        pod("extra-w", "a", json!({"pod": "a"})),
        pod("extra-w", "b", json!({"pod": "b"})),
    ];
    let by_namespace_label = with_field(
        "ingress",
        "from",
        json!([{"namespaceSelector": labelled("season", "new")}]),
    );
    let by_pod_label = with_field(
        "ingress",
        "from",
        json!([{
            "podSelector": labelled("season", "new"),
            "namespaceSelector": expression("ns", "In", &["y", "z"]),
        }]),
    );
    let udp = with_field(
        "ingress",
        "ports",
        json!([{"protocol": "UDP", "port": "serve-81-udp"}]),
    );
    let steps = [
        (
            "policy-made-and-deleted",
            vec![step([usual()]), step([]).without(&[usual()])],
        ),
        (
            "policy-made-and-changed",
            vec![step([usual()]), step([policy("x", "vary", udp)])],
        ),
        (
            "namespace-made-and-deleted",
            vec![
                step([usual()]),
                step(newcomers.clone()),
                step([]).without(&newcomers),
            ],
        ),
        (
            "namespace-labelled-and-back",
            vec![
                step([policy("x", "vary", by_namespace_label)]),
                step([relabelled(json!({"ns": "y", "season": "new"}))]),
                step([relabelled(json!({"ns": "y"}))]),
            ],
        ),
        (
            "pod-made-and-deleted",
            vec![
                step([usual()]),
                step([pod("x", "d", json!({"pod": "d"}))]),
                step([]).without(&[pod("x", "d", json!({}))]),
            ],
        ),
        (
            "pod-labelled-and-back",
            vec![
                step([policy("x", "vary", by_pod_label)]),
                step([pod("y", "b", json!({"pod": "b", "season": "new"}))]),
                step([pod("y", "b", json!({"pod": "b"}))]),
            ],
        ),
    ];
    steps
        .into_iter()
        .map(|(name, steps)| case("actions", name, nine(), steps))
        .collect()
}

/// What a policy of a conflict says about its one direction.
#[derive(Clone, Copy)]
enum Says {
    Everything,
    Nothing,
    EveryPod,
    EveryAddress,
    NoAddress,
    NoPod,
}

impl Says {
    fn name(self) -> &'static str {
        match self {
            Self::Everything => "everything",
            Self::Nothing => "nothing",
            Self::EveryPod => "every-pod",
            Self::EveryAddress => "every-address",
            Self::NoAddress => "no-address",
            Self::NoPod => "no-pod",
        }
    }

    fn rules(self, peers: &str) -> Value {
        let peer = match self {
            Self::Everything => return json!([{}]),
            Self::Nothing => return json!([]),
            Self::EveryPod => json!({"namespaceSelector": {}}),
            Self::EveryAddress => json!({"ipBlock": {"cidr": "0.0.0.0/0"}}),
            Self::NoAddress => json!({"ipBlock": {"cidr": "0.0.0.0/31"}}),
            Self::NoPod => json!({"namespaceSelector": labelled("never", "seen")}),
        };
        json!([{peers: [peer]}])
    }
}

/// A policy of x/b or of y/c about one direction.
fn saying(namespace: &str, direction: &str, says: Says) -> Value {
    let (kind, peers) = if direction == "ingress" {
        ("Ingress", "from")
    } else {
        ("Egress", "to")
    };
    let subject = if namespace == "x" { "b" } else { "c" };
    let mut spec = json!({"podSelector": labelled("pod", subject), "policyTypes": [kind]});
    spec[direction] = says.rules(peers);
    policy(namespace, &format!("{direction}-{}", says.name()), spec)
}

fn conflicts() -> Vec<Case> {
    use Says::{EveryAddress, EveryPod, Everything, NoAddress, NoPod, Nothing};
    let mut cases = Vec::new();
    let mut add = |name: &str, policies: Vec<Value>| {
        cases.push(case("conflicts", name, nine(), vec![step(policies)]));
    };
    add(
        "source-says-nothing-destination-everything",
        vec![
            saying("x", "egress", Nothing),
            saying("y", "ingress", Everything),
        ],
    );
    add(
        "source-says-everything-destination-nothing",
        vec![
            saying("x", "egress", Everything),
            saying("y", "ingress", Nothing),
        ],
    );
    for direction in ["egress", "ingress"] {
        // Both ends of the direction's connections: x/b sends, y/c receives.
        let namespace = if direction == "egress" { "x" } else { "y" };
        for (first, second) in [
            (Nothing, Everything),
            (Nothing, EveryPod),
            (Nothing, EveryAddress),
            (NoAddress, EveryPod),
            (NoPod, EveryAddress),
        ] {
            add(
                &format!("{direction}-{}-and-{}", first.name(), second.name()),
                vec![
                    saying(namespace, direction, first),
                    saying(namespace, direction, second),
                ],
            );
        }
        for says in [NoAddress, NoPod] {
            add(
                &format!("{direction}-{}", says.name()),
                vec![saying(namespace, direction, says)],
            );
        }
    }
    cases
}

fn namespaces() -> Vec<Case> {
    [("ingress", "from"), ("egress", "to")]
        .into_iter()
        .map(|(direction, key)| {
            let peer = json!([{
                "namespaceSelector": labelled("kubernetes.io/metadata.name", "z"),
            }]);
            let spec = with_field(direction, key, peer);
            case(
                "namespace",
                &format!("{direction}-by-the-name-of-the-namespace"),
                nine(),
                vec![step([policy("x", "vary", spec)])],
            )
        })
        .collect()
}
