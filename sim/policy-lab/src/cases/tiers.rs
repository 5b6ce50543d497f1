//! What the conformance suite of ClusterNetworkPolicy asks, subtest by subtest, with typed tables.
//!
//! Four namespaces of two pods each. Subject is always `team-x`; rules treat `team-w` wholly, `team-y`
//! by a denied port, `team-z` by an accepted port before a denial of the rest.

use serde_json::{Value, json};

use crate::cases::case::{Case, Step};
use crate::cases::world::{
    addresses, case, cluster_policy, labelled, namespace, nodes, pod, policy, step,
};

const FAMILY: &str = "cluster-tiers";
const DIRECTIONS: [&str; 2] = ["egress", "ingress"];
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];

/// All subtests.
pub(super) fn cases() -> Vec<Case> {
    let mut subtests = Vec::new();
    for tier in ["Admin", "Baseline"] {
        for direction in DIRECTIONS {
            for protocol in PROTOCOLS {
                subtests.extend(one_protocol(tier, direction, protocol));
            }
        }
        subtests.extend(both_directions(tier));
        subtests.extend(networks(tier));
        subtests.extend(named_ports(tier));
        subtests.extend(node_peers(tier));
    }
    subtests.extend(priorities());
    subtests.extend(integration());
    subtests
        .into_iter()
        .map(|(name, steps)| case(FAMILY, &name, four_teams(), steps))
        .collect()
}

type Subtest = (String, Vec<Step>);

fn four_teams() -> Vec<Value> {
    let mut documents = nodes();
    for team in ["team-x", "team-y", "team-z", "team-w"] {
        documents.push(namespace(team, json!({"team": team})));
        for name in ["p0", "p1"] {
            documents.push(pod(team, name, json!({"team": team, "pod": name})));
        }
    }
    documents
}

fn team(letter: &str) -> Value {
    json!({"namespaces": labelled("team", &format!("team-{letter}"))})
}

/// A rule about a team, on ports or on all.
fn rule(action: &str, direction: &str, letter: &str, ports: &[(&str, u16)]) -> Value {
    rule_of(action, direction, &team(letter), ports)
}

fn rule_of(action: &str, direction: &str, peer: &Value, ports: &[(&str, u16)]) -> Value {
    let peers = if direction == "egress" { "to" } else { "from" };
    let mut rule = json!({"action": action, peers: [peer]});
    if !ports.is_empty() {
        rule["protocols"] = ports
            .iter()
            .map(|(protocol, port)| json!({*protocol: {"destinationPort": {"number": port}}}))
            .collect();
    }
    rule
}

/// A policy of team-x.
fn of_x(tier: &str, priority: u32, rules: &[(&str, Vec<Value>)]) -> Value {
    let name = format!("{}-{priority}", tier.to_lowercase());
    named(&name, tier, priority, rules)
}

fn named(name: &str, tier: &str, priority: u32, rules: &[(&str, Vec<Value>)]) -> Value {
    let mut spec = json!({"tier": tier, "priority": priority, "subject": team("x")});
    for (direction, rules) in rules {
        spec[*direction] = Value::from(rules.clone());
    }
    cluster_policy(name, spec)
}

/// The line about the connections of a team with team-x in that direction.
fn line(direction: &str, letter: &str, what: &str) -> String {
    if direction == "egress" {
        format!("team-x/* -> team-{letter}/* : {what}")
    } else {
        format!("team-{letter}/* -> team-x/* : {what}")
    }
}

fn table(step: Step, lines: &[String]) -> Step {
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    step.table(&lines)
}

fn title(tier: &str, group: &str, name: &str) -> String {
    format!("{}/{group}/{name}", tier.to_lowercase())
}

/// Everything but one port of one protocol.
fn all_but_80(protocol: &str) -> &'static str {
    match protocol {
        "tcp" => "tcp/81 udp sctp",
        "udp" => "tcp udp/81 sctp",
        _ => "tcp udp sctp/81",
    }
}

/// Order of rules and ports, for one direction and one protocol.
fn one_protocol(tier: &str, direction: &str, protocol: &str) -> Vec<Subtest> {
    let port = |number: u16| [(protocol, number)];
    let accept_w = || rule("Accept", direction, "w", &[]);
    let deny_w = || rule("Deny", direction, "w", &[]);
    let pass_w = || rule("Pass", direction, "w", &[]);
    let deny_y = || rule("Deny", direction, "y", &port(80));
    let pass_y = || rule("Pass", direction, "y", &port(80));
    let z = || {
        [
            rule("Accept", direction, "z", &port(81)),
            rule("Deny", direction, "z", &[]),
        ]
    };
    let expected = |w: &str, y: &str| {
        vec![
            "* -> * : all".to_owned(),
            line(direction, "w", w),
            line(direction, "y", y),
            line(direction, "z", &format!("{protocol}/81")),
        ]
    };
    let with = |rules: Vec<Value>| {
        let rules = rules.into_iter().chain(z()).collect();
        step([of_x(tier, 10, &[(direction, rules)])])
    };
    let but_80 = all_but_80(protocol);
    let group = format!("{direction}/{protocol}");
    let mut subtests = Vec::new();
    let mut add = |name: &str, steps: Vec<Step>| {
        subtests.push((title(tier, &group, name), steps));
    };
    if tier == "Baseline" {
        let first = || {
            table(
                with(vec![accept_w(), deny_w(), deny_y()]),
                &expected("all", but_80),
            )
        };
        let turned = || {
            table(
                with(vec![deny_w(), accept_w(), deny_y()]),
                &expected("none", but_80),
            )
        };
        add("accept-before-deny", vec![first()]);
        add("accept-on-a-port", vec![turned(), first()]);
        add("deny-before-accept", vec![first(), turned()]);
        add("deny-on-a-port", vec![turned()]);
        return subtests;
    }
    let first = || {
        let rules = vec![accept_w(), deny_w(), pass_w(), deny_y(), pass_y()];
        table(with(rules), &expected("all", but_80))
    };
    let denied = || {
        let rules = vec![deny_w(), accept_w(), pass_w(), deny_y(), pass_y()];
        table(with(rules), &expected("none", but_80))
    };
    let passed = || {
        let rules = vec![pass_w(), deny_w(), accept_w(), deny_y(), pass_y()];
        table(with(rules), &expected("all", but_80))
    };
    let passed_on_port = || {
        let rules = vec![pass_w(), deny_w(), accept_w(), pass_y(), deny_y()];
        table(with(rules), &expected("all", "all"))
    };
    add("accept-before-deny", vec![first()]);
    add("accept-on-a-port", vec![denied(), first()]);
    add("deny-before-accept", vec![first(), denied()]);
    add("deny-on-a-port", vec![passed_on_port(), denied()]);
    add("pass-before-deny", vec![denied(), passed()]);
    add("pass-on-a-port", vec![passed(), passed_on_port()]);
    subtests
}

/// Both directions in one policy, all protocols, with other ports for each direction.
fn both_directions(tier: &str) -> Vec<Subtest> {
    let ports = |number: u16| PROTOCOLS.map(|protocol| (protocol, number));
    let rules = |direction: &str, actions_w: &[&str], actions_y: &[&str]| -> (Vec<Value>, _) {
        let (closed, open) = if direction == "egress" {
            (80, 81)
        } else {
            (81, 80)
        };
        let mut rules: Vec<Value> = actions_w
            .iter()
            .map(|action| rule(action, direction, "w", &[]))
            .collect();
        for action in actions_y {
            rules.push(rule(action, direction, "y", &ports(closed)));
        }
        rules.push(rule("Accept", direction, "z", &ports(open)));
        rules.push(rule("Deny", direction, "z", &[]));
        (rules, open)
    };
    let with = |actions_w: &[&str], actions_y: &[&str]| {
        let mut both = Vec::new();
        let mut lines = vec!["* -> * : all".to_owned()];
        for direction in DIRECTIONS {
            let (rules, open) = rules(direction, actions_w, actions_y);
            both.push((direction, rules));
            let on_open = format!("tcp/{open} udp/{open} sctp/{open}");
            let denied = |actions: &[&str]| actions.first() == Some(&"Deny");
            if denied(actions_w) {
                lines.push(line(direction, "w", "none"));
            }
            if denied(actions_y) {
                lines.push(line(direction, "y", &on_open));
            }
            lines.push(line(direction, "z", &on_open));
        }
        table(step([of_x(tier, 10, &both)]), &lines)
    };
    let mut subtests = Vec::new();
    let mut add = |name: &str, steps: Vec<Step>| {
        subtests.push((title(tier, "both-directions", name), steps));
    };
    if tier == "Baseline" {
        let first = || with(&["Accept", "Deny"], &["Deny"]);
        let turned = || with(&["Deny", "Accept"], &["Deny"]);
        add("accept", vec![first()]);
        add("accept-on-ports", vec![turned(), first()]);
        add("deny", vec![first(), turned()]);
        add("deny-on-ports", vec![turned()]);
        return subtests;
    }
    let first = || with(&["Accept", "Deny", "Pass"], &["Deny", "Pass"]);
    let denied = || with(&["Deny", "Accept", "Pass"], &["Deny", "Pass"]);
    let passed = || with(&["Pass", "Deny", "Accept"], &["Deny", "Pass"]);
    let passed_on_ports = || with(&["Pass", "Deny", "Accept"], &["Pass", "Deny"]);
    add("accept", vec![first()]);
    add("accept-on-ports", vec![denied(), first()]);
    add("deny", vec![first(), denied()]);
    add("deny-on-ports", vec![passed_on_ports(), denied()]);
    add("pass", vec![denied(), passed()]);
    add("pass-on-ports", vec![passed(), passed_on_ports()]);
    subtests
}

/// Address ranges as destinations; they hold pods as well.
fn networks(tier: &str) -> Vec<Subtest> {
    let everywhere = json!({"networks": ["0.0.0.0/0", "::/0"]});
    let some: Vec<String> = ["team-w", "team-z"]
        .into_iter()
        .flat_map(|team| addresses(team, "p0"))
        .map(|address| {
            let bits = if address.contains(':') { 128 } else { 32 };
            format!("{address}/{bits}")
        })
        .collect();
    let rules = || {
        vec![
            rule("Accept", "egress", "y", &[]),
            rule_of("Deny", "egress", &everywhere, &[]),
        ]
    };
    let denied = || {
        step([of_x(tier, 10, &[("egress", rules())])]).table(&[
            "* -> * : all",
            "team-x/* -> * : none",
            "team-x/* -> team-y/* : all",
        ])
    };
    let mut widened = rules();
    widened.insert(
        0,
        rule_of("Accept", "egress", &json!({"networks": some}), &[]),
    );
    let accepted = step([of_x(tier, 10, &[("egress", widened)])]).table(&[
        "* -> * : all",
        "team-x/* -> * : none",
        "team-x/* -> team-y/*,team-w/p0,team-z/p0 : all",
    ]);
    vec![
        (title(tier, "egress/networks", "deny"), vec![denied()]),
        (
            title(tier, "egress/networks", "accept"),
            vec![denied(), accepted],
        ),
    ]
}

/// A port by the name that pods give it.
fn named_ports(tier: &str) -> Vec<Subtest> {
    DIRECTIONS
        .into_iter()
        .map(|direction| {
            let port = if tier == "Admin" {
                "serve-81-tcp"
            } else {
                "serve-80-udp"
            };
            let what = if tier == "Admin" { "tcp/81" } else { "udp/80" };
            let mut accept = rule("Accept", direction, "z", &[]);
            accept["protocols"] = json!([{"destinationNamedPort": port}]);
            let rules = vec![accept, rule("Deny", direction, "z", &[])];
            let with = step([of_x(tier, 10, &[(direction, rules)])]);
            let lines = ["* -> * : all".to_owned(), line(direction, "z", what)];
            let name = title(tier, direction, "named-port");
            (name, vec![table(with, &lines)])
        })
        .collect()
}

/// Nodes as destinations, by their addresses.
fn node_peers(tier: &str) -> Vec<Subtest> {
    let every = json!({"nodes": {}});
    let open = ["* -> * : all", "node:* -> * : all", "* -> node:* : all"];
    let subtest = |name: &str, rules: Vec<Value>, what: &str| {
        let last = format!("team-x/* -> node:* : {what}");
        let lines: Vec<&str> = open.into_iter().chain([last.as_str()]).collect();
        let with = step([of_x(tier, 10, &[("egress", rules)])])
            .others(&["node:n1", "node:n2"])
            .table(&lines);
        (title(tier, "egress/nodes", name), vec![with])
    };
    let accept = || rule_of("Accept", "egress", &every, &[("tcp", 80)]);
    let pass = || rule_of("Pass", "egress", &every, &[("udp", 81)]);
    let deny = || rule_of("Deny", "egress", &every, &[]);
    let mut subtests = vec![
        subtest("accept", vec![accept(), deny()], "tcp/80"),
        subtest("deny", vec![deny()], "none"),
    ];
    if tier == "Admin" {
        subtests.push(subtest(
            "pass",
            vec![accept(), pass(), deny()],
            "tcp/80 udp/81",
        ));
    }
    subtests
}

/// One action in both directions against team-y.
fn against_y(action: &str) -> Vec<(&'static str, Vec<Value>)> {
    DIRECTIONS
        .into_iter()
        .map(|direction| (direction, vec![rule(action, direction, "y", &[])]))
        .collect()
}

fn priorities() -> Vec<Subtest> {
    let world = |priority: u32| {
        step([
            named("strict", "Admin", 50, &against_y("Deny")),
            named("lenient", "Admin", priority, &against_y("Pass")),
            named("base", "Baseline", 10, &against_y("Accept")),
        ])
    };
    let closed = [
        "* -> * : all",
        "team-y/* -> team-x/* : none",
        "team-x/* -> team-y/* : none",
    ];
    let only = |direction: &'static str| {
        let rules = |action: &str| [(direction, vec![rule(action, direction, "y", &[])])];
        let with = step([
            named("strict", "Admin", 50, &rules("Deny")),
            named("lenient", "Admin", 60, &rules("Pass")),
            named("base", "Baseline", 10, &rules("Accept")),
        ]);
        table(
            with,
            &["* -> * : all".to_owned(), line(direction, "y", "none")],
        )
    };
    vec![
        (
            "admin/priority/deny-ingress".to_owned(),
            vec![only("ingress")],
        ),
        (
            "admin/priority/deny-egress".to_owned(),
            vec![only("egress")],
        ),
        (
            "admin/priority/lowered-number-wins".to_owned(),
            vec![world(60).table(&closed), world(40).table(&["* -> * : all"])],
        ),
    ]
}

/// Admin tier, NetworkPolicy and baseline tier together.
fn integration() -> Vec<Subtest> {
    let admin = |ingress: &str, egress: &str| {
        let rules = [
            ("ingress", vec![rule(ingress, "ingress", "y", &[])]),
            ("egress", vec![rule(egress, "egress", "y", &[])]),
        ];
        named("admin", "Admin", 50, &rules)
    };
    let network_policy = || {
        let y = json!([{"namespaceSelector": labelled("team", "team-y")}]);
        policy(
            "team-x",
            "only-y",
            json!({
                "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": y}], "egress": [{"to": y}],
            }),
        )
    };
    let baseline = || named("base", "Baseline", 10, &against_y("Deny"));
    let all =
        |ingress: &str, egress: &str| step([admin(ingress, egress), network_policy(), baseline()]);
    let isolated = |more: &[&str]| {
        let mut lines = vec![
            "* -> * : all",
            "* -> team-x/* : none",
            "team-x/* -> * : none",
        ];
        lines.extend(more);
        lines.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let (to_x, to_y) = ("team-y/* -> team-x/* : all", "team-x/* -> team-y/* : all");
    let (not_to_x, not_to_y) = ("team-y/* -> team-x/* : none", "team-x/* -> team-y/* : none");
    let gone = |put: Value, lines: &[&str]| step([put]).without(&[network_policy()]).table(lines);
    let closed = || table(all("Deny", "Deny"), &isolated(&[]));
    vec![
        (
            "admin/integration/deny-ingress".to_owned(),
            vec![table(all("Deny", "Pass"), &isolated(&[to_y]))],
        ),
        (
            "admin/integration/deny-egress".to_owned(),
            vec![table(all("Pass", "Deny"), &isolated(&[to_x]))],
        ),
        (
            "admin/integration/pass-ingress-to-network-policy".to_owned(),
            vec![
                closed(),
                table(step([admin("Pass", "Deny")]), &isolated(&[to_x])),
            ],
        ),
        (
            "admin/integration/pass-egress-to-network-policy".to_owned(),
            vec![
                closed(),
                table(step([admin("Deny", "Pass")]), &isolated(&[to_y])),
            ],
        ),
        (
            "admin/integration/pass-ingress-to-baseline".to_owned(),
            vec![
                table(all("Pass", "Accept"), &isolated(&[to_x, to_y])),
                gone(admin("Pass", "Accept"), &["* -> * : all", not_to_x]),
            ],
        ),
        (
            "admin/integration/pass-egress-to-baseline".to_owned(),
            vec![
                table(all("Accept", "Pass"), &isolated(&[to_x, to_y])),
                gone(admin("Accept", "Pass"), &["* -> * : all", not_to_y]),
            ],
        ),
    ]
}
