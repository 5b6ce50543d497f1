//! Destinations that are not pods: the node-local DNS cache, the metadata service, networks of the node's own stack.

use std::net::IpAddr;

use policy_core::object::Event;
use serde_json::json;

use crate::bed::{Agent, Bed, BedPod, FAR_V4, Wants, namespace, policy, run};
use crate::traffic::{passes, received, udp};

/// Where the node answers DNS for its pods.
const DNS: &str = "169.254.20.10";
/// Where the cloud tells instances who they are.
const METADATA: &str = "100.100.100.200";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A node with a pod, its DNS cache, and the metadata service behind its uplink.
fn bed_with_pod() -> (Bed, BedPod) {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let (node, far) = (bed.node(), bed.far());
    run(&format!("ip -n {node} addr add {DNS}/32 dev lo"));
    run(&format!("ip -n {far} addr add {METADATA}/32 dev lo"));
    run(&format!(
        "ip -n {node} route add {METADATA}/32 via 10.45.0.9"
    ));
    (bed, pod)
}

/// Pods of `x` may send to this port of this address.
fn may_send(name: &str, to: &str, port: u16) -> Event {
    policy(
        name,
        &json!({
            "podSelector": {},
            "policyTypes": ["Egress"],
            "egress": [{
                "to": [{"ipBlock": {"cidr": format!("{to}/32")}}],
                "ports": [{"protocol": "UDP", "port": port}],
            }],
        }),
    )
}

fn marker() -> Event {
    may_send("marker", &FAR_V4.to_string(), 81)
}

/// Whether the pod reaches what listens in `namespace`.
fn reaches(bed: &Bed, pod: &BedPod, namespace: &str, to: &str, port: u16) -> bool {
    let from = udp(&pod.namespace, pod.v4, 0);
    let asked = udp(namespace, ip(to), port);
    let marker = udp(&bed.far(), FAR_V4, 81);
    passes(&from, &asked, &marker)
}

// E2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn isolated_pod_reaches_the_dns_cache_and_the_metadata_service_only_by_policy() {
    let (bed, pod) = bed_with_pod();
    let mut agent = Agent::start(&bed).await;
    agent
        .enforce(vec![namespace("x"), pod.object(&json!({}))])
        .await;
    agent.gate.ready(pod.attached("s1"), None).await.unwrap();
    let dns = || reaches(&bed, &pod, &bed.node(), DNS, 53);
    let metadata = || reaches(&bed, &pod, &bed.far(), METADATA, 80);
    assert!(dns() && metadata(), "denied without a policy");

    agent.enforce(vec![marker()]).await;
    assert!(!dns() && !metadata(), "allowed without a word");

    agent.enforce(vec![may_send("dns", DNS, 53)]).await;
    assert!(dns() && !metadata());

    agent
        .enforce(vec![may_send("metadata", METADATA, 80)])
        .await;
    assert!(dns() && metadata());
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn network_of_the_host_stack_is_open_to_known_pods_whatever_their_egress_and_to_no_others() {
    let (mut bed, pod) = bed_with_pod();
    let unknown = bed.pod("unknown");
    let mut wants = Wants::default();
    wants.settings.always_allowed = vec![format!("{DNS}/32").parse().unwrap()];
    let mut agent = Agent::start_with(&bed, wants).await;
    agent
        .enforce(vec![namespace("x"), pod.object(&json!({})), marker()])
        .await;
    agent.gate.ready(pod.attached("s1"), None).await.unwrap();

    assert!(reaches(&bed, &pod, &bed.node(), DNS, 53));
    assert!(!reaches(&bed, &pod, &bed.far(), METADATA, 80));
    let asked = udp(&bed.node(), ip(DNS), 54);
    for (from, word) in [(&unknown, "unknown"), (&pod, "known")] {
        let from = udp(&from.namespace, from.v4, 0);
        from.send_to(word.as_bytes(), (ip(DNS), 54)).unwrap();
    }
    // Had the first one passed, it would be the first to come.
    assert_eq!(received(&asked).0, b"known");
    agent.end().await;
}
