//! Memory of the index at 100,000 pods, 5,000 namespaces and 10,000 policies.
//!
//! ```text
//! cargo run -p policy-core --example index_memory --release [-- unique]
//! ```
//!
//! With `unique` every pod has labels of its own, as those of a StatefulSet have, so that no two share a class.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use policy_core::index::{Index, PeerKey};
use policy_core::object::Event;
use policy_core::parse::{Parsed, document};
use policy_core::policy::{Peer, Peers, Policy};
use serde_json::{Value, json};

const NAMESPACES: u32 = 5_000;
const PODS: u32 = 100_000;
const POLICIES: u32 = 10_000;
const NODES: u32 = 1_000;
const LOCAL_PODS: u32 = 100;

fn kilobytes(field: &str) -> u64 {
    fs::read_to_string("/proc/self/status")
        .unwrap_or_default()
        .lines()
        .find_map(|line| {
            line.strip_prefix(field)?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or(0)
}

fn apply(index: &mut Index, value: &Value) {
    if let Parsed::Object(object) = document(value) {
        index.apply(Event::Upsert(object));
    }
}

fn pod(n: u32, unique: bool) -> Value {
    let namespace = n % NAMESPACES;
    let deployment = n / NAMESPACES % 4;
    let name = format!("deployment-{deployment}-7c9d8b6f5-{n:05x}");
    let node = if n < LOCAL_PODS { 0 } else { n % NODES };
    let mut labels = json!({
        "app.kubernetes.io/name": format!("service-{deployment}"),
        "app.kubernetes.io/instance": format!("service-{deployment}-{namespace}"),
        "app.kubernetes.io/part-of": format!("product-{}", namespace % 50),
        "app.kubernetes.io/managed-by": "helm",
        "app.kubernetes.io/version": format!("1.{}.0", namespace % 9),
        "helm.sh/chart": format!("service-{deployment}-3.1.4"),
        "pod-template-hash": format!("{:08x}", namespace.wrapping_mul(2_654_435_761).rotate_left(deployment)),
        "tier": if deployment.is_multiple_of(2) { "back" } else { "front" },
        "team": format!("team-{}", namespace % 100),
        "env": "production",
    });
    if unique {
        labels["statefulset.kubernetes.io/pod-name"] = json!(name);
    }
    let address = IpAddr::V4(Ipv4Addr::from_bits(0x0A00_0000 + n));
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": format!("namespace-{namespace}"),
            "uid": format!("6f1c2d3e-0000-4000-8000-{n:012x}"), "labels": labels,
        },
        "spec": {
            "nodeName": format!("cn-hangzhou.10.1.{}.{}", node / 256, node % 256),
            "serviceAccountName": "default",
            "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    })
}

fn policy(n: u32) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": format!("allow-service-{}", n / NAMESPACES), "namespace": format!("namespace-{}", n % NAMESPACES)},
        "spec": {
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": format!("service-{}", n / NAMESPACES)}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{
                "from": [
                    {"podSelector": {"matchLabels": {"tier": "front"}}},
                    {"namespaceSelector": {"matchLabels": {"team": format!("team-{}", n % 100)}}},
                ],
                "ports": [{"port": 8080}, {"port": 9090}],
            }],
            "egress": [
                {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}],
                 "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53}]},
                {"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.9.0.0/16"]}}]},
            ],
        },
    })
}

fn keys(policy: &Policy) -> impl Iterator<Item = PeerKey> {
    let rules = policy.ingress.iter().chain(&policy.egress).flatten();
    rules
        .flat_map(|rule| match &rule.peers {
            Peers::Anybody => &[],
            Peers::OneOf(peers) => peers.as_slice(),
        })
        .filter_map(|peer| match peer {
            Peer::Pods(scope) => Some(PeerKey::Pods(scope.clone(), None)),
            Peer::Nodes(selector) => Some(PeerKey::Nodes(Arc::clone(selector))),
            Peer::Block(_) | Peer::Meet { .. } => None,
        })
}

fn main() -> io::Result<()> {
    let unique = std::env::args().any(|argument| argument == "unique");
    let mut out = io::stdout().lock();
    let mut index = Index::new("cn-hangzhou.10.1.0.0");
    let mut before = kilobytes("VmRSS:");
    writeln!(out, "{before} KiB resident before anything")?;
    let mut since = Instant::now();
    let mut report = |what: &str, index: &Index| {
        let now = kilobytes("VmRSS:");
        let grown = now.saturating_sub(before);
        writeln!(
            out,
            "{what}: +{grown} KiB, {:?}, {:?}, about {} bytes",
            since.elapsed(),
            index.counts(),
            index.bytes()
        )?;
        before = now;
        since = Instant::now();
        Ok::<_, io::Error>(())
    };
    for n in 0..NAMESPACES {
        let name = format!("namespace-{n}");
        let team = format!("team-{}", n % 100);
        let labels =
            json!({"kubernetes.io/metadata.name": name, "team": team, "env": "production"});
        let metadata = json!({"name": name, "labels": labels});
        apply(
            &mut index,
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}),
        );
    }
    report("namespaces", &index)?;
    for n in 0..PODS {
        apply(&mut index, &pod(n, unique));
    }
    drop(index.take_changes());
    report("pods", &index)?;
    for n in 0..POLICIES {
        apply(&mut index, &policy(n));
    }
    drop(index.take_changes());
    report("policies", &index)?;
    let mut members = 0;
    for subject in index.subjects() {
        for key in subject.policies.iter().flat_map(|policy| keys(policy)) {
            let id = index.acquire(&key);
            members += index.members(id).len();
        }
    }
    report("sets of local pods", &index)?;
    for n in 0..PODS {
        let mut value = pod(n, unique);
        value["status"]["podIPs"][0]["ip"] =
            json!(IpAddr::V4(Ipv4Addr::from_bits(0x0B00_0000 + n)));
        apply(&mut index, &value);
        if n % 100 == 0 {
            drop(index.take_changes());
        }
    }
    report("every pod moved to another address", &index)?;
    writeln!(
        out,
        "{members} members read; {} KiB at most",
        kilobytes("VmHWM:")
    )
}
