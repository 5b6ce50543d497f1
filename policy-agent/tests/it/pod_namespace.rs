//! A pod whose link is in its own namespace alone: whole ENI, trunk member, ipvlan.

use policy_agent::attachments::Attached;
use serde_json::json;

use crate::bed::{
    Agent, Bed, BedPod, FAR_V4, FAR_V6, Wants, deny_ingress, gone, namespace, policy, run,
};
use crate::traffic::{passes, udp};

fn without_link(pod: &BedPod) -> Attached {
    let mut attached = pod.attached("s1");
    attached.host_link = String::new();
    attached
}

fn listed(pod: &BedPod) -> String {
    run(&format!("ip netns exec {} nft list ruleset", pod.namespace))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_of_a_pod_without_a_link_on_the_node_stand_in_its_own_namespace() {
    let mut bed = Bed::new();
    let pod = bed.exclusive_pod("whole");
    let mut agent = Agent::start(&bed).await;
    let marker_only = policy(
        "p",
        &json!({
            "podSelector": {},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"protocol": "UDP", "port": 81}]}],
        }),
    );
    agent
        .enforce(vec![
            namespace("x"),
            pod.object(&json!({})),
            marker_only.clone(),
        ])
        .await;
    let from = udp(&bed.far(), FAR_V4, 0);
    let asked = udp(&pod.namespace, pod.v4, 80);
    let marker = udp(&pod.namespace, pod.v4, 81);

    agent.gate.ready(without_link(&pod), None).await.unwrap();

    assert!(!passes(&from, &asked, &marker));
    agent.enforce(vec![gone(&marker_only)]).await;
    assert!(passes(&from, &asked, &marker));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespace_that_went_away_holds_nobody_up() {
    let mut bed = Bed::new();
    let (gone_one, stays) = (bed.exclusive_pod("gone"), bed.pod("stays"));
    let mut agent = Agent::start(&bed).await;
    agent
        .enforce(vec![
            namespace("x"),
            gone_one.object(&json!({})),
            stays.object(&json!({})),
        ])
        .await;
    let mut attached = without_link(&gone_one);
    attached.netns.push_str("-that-is-not-there");

    let refused = agent
        .gate
        .ready(
            attached,
            Some(tokio::time::Instant::now() + std::time::Duration::from_millis(300)),
        )
        .await;

    assert!(refused.is_err(), "{refused:?}");
    agent.gate.ready(stays.attached("s2"), None).await.unwrap();
    agent.enforce(vec![deny_ingress()]).await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn release_of_a_pod_without_a_link_lets_its_namespace_go() {
    let mut bed = Bed::new();
    let pod = bed.exclusive_pod("whole");
    let mut agent = Agent::start(&bed).await;
    agent
        .enforce(vec![namespace("x"), pod.object(&json!({})), deny_ingress()])
        .await;
    agent.gate.ready(without_link(&pod), None).await.unwrap();
    assert!(listed(&pod).contains("terway_policy"));

    let attachment = without_link(&pod).attachment;
    agent.gate.release(&attachment).await.unwrap();

    agent.enforce(vec![gone(&pod.object(&json!({})))]).await;
    agent.end().await;
}

/// Pods of `x` may send to this, and to nothing else.
fn egress_to(rule: &serde_json::Value) -> policy_core::object::Event {
    policy(
        "out",
        &json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [rule]}),
    )
}

// B9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_families_and_both_directions_are_judged_inside_and_the_node_still_reaches_the_pod() {
    let mut bed = Bed::new();
    let pod = bed.exclusive_pod("whole");
    let mut agent = Agent::start(&bed).await;
    let only_81 = json!({"ports": [{"protocol": "UDP", "port": 81}]});
    agent
        .enforce(vec![
            namespace("x"),
            pod.object(&json!({})),
            deny_ingress(),
            egress_to(&only_81),
        ])
        .await;
    agent.gate.ready(without_link(&pod), None).await.unwrap();

    for (far, near) in [(FAR_V4, pod.v4), (FAR_V6, pod.v6)] {
        let from = udp(&pod.namespace, near, 0);
        let denied = udp(&bed.far(), far, 80);
        let marker = udp(&bed.far(), far, 81);
        assert!(!passes(&from, &denied, &marker), "egress of {near}");

        // A new flow of the far machine is denied; the node's own, sent after it, comes first.
        let asked = udp(&pod.namespace, near, 90);
        let stranger = udp(&bed.far(), far, 0);
        let node = udp(&bed.node(), near_node(near.is_ipv4()), 0);
        stranger.send_to(b"stranger", (near, 90)).unwrap();
        node.send_to(b"node", (near, 90)).unwrap();
        assert_eq!(crate::traffic::received(&asked).0, b"node", "{near}");
    }
    agent.end().await;
}

/// The node's own address towards the machine elsewhere.
fn near_node(v4: bool) -> std::net::IpAddr {
    let text = if v4 { "10.45.0.1" } else { "fd45::1" };
    text.parse().unwrap()
}

// C4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_of_a_pod_without_a_link_is_judged_behind_its_address_on_the_nodes_side() {
    let mut bed = Bed::new();
    let (pod, good, bad) = (bed.exclusive_pod("whole"), bed.pod("good"), bed.pod("bad"));
    // What leads to services: a second link whose other end is the node's, where addresses are translated.
    let node = bed.node();
    let link = datapath::names::host_link("", &pod.key, "eth0").unwrap();
    run(&format!(
        "ip -n {node} link add {link} address 02:00:00:00:46:01 type veth peer name svc0 netns {}",
        pod.namespace
    ));
    run(&format!("ip -n {node} link set {link} up"));
    run(&format!("ip -n {} link set svc0 up", pod.namespace));
    for words in [
        "route add 169.254.1.2 dev svc0",
        "neigh add 169.254.1.2 lladdr 02:00:00:00:46:01 dev svc0 nud permanent",
        &format!(
            "route add 10.96.0.0/16 via 169.254.1.2 dev svc0 src {}",
            pod.v4
        ),
    ] {
        run(&format!("ip -n {} {words}", pod.namespace));
    }
    run(&format!("ip netns exec {node} nft add table ip services"));
    run(&format!(
        "ip netns exec {node} nft add chain ip services pre {{ type nat hook prerouting priority -100; }}"
    ));
    for (vip, backend) in [("10.96.0.1", &good), ("10.96.0.2", &bad)] {
        run(&format!(
            "ip netns exec {node} nft add rule ip services pre ip daddr {vip} dnat to {}",
            backend.v4
        ));
    }
    let mut agent = Agent::start(&bed).await;
    agent
        .enforce(vec![
            namespace("x"),
            pod.object(&json!({"app": "client"})),
            good.object(&json!({"app": "good"})),
            bad.object(&json!({"app": "bad"})),
            egress_to(&json!({"to": [{"podSelector": {"matchLabels": {"app": "good"}}}]})),
        ])
        .await;
    let mut service_side = pod.attached("s1");
    service_side.attachment = types::pod::AttachmentKey::new("s1", "svc0").unwrap();
    service_side.host_link.clone_from(&link);
    agent.gate.ready(without_link(&pod), None).await.unwrap();
    agent.gate.ready(service_side, None).await.unwrap();
    for (other, sandbox) in [(&good, "s2"), (&bad, "s3")] {
        agent
            .gate
            .ready(other.attached(sandbox), None)
            .await
            .unwrap();
    }

    let from = udp(&pod.namespace, pod.v4, 0);
    let allowed = udp(&good.namespace, good.v4, 80);
    let denied = udp(&bad.namespace, bad.v4, 80);
    from.send_to(b"denied", "10.96.0.2:80").unwrap();
    from.send_to(b"allowed", "10.96.0.1:80").unwrap();
    assert_eq!(crate::traffic::received(&allowed).0, b"allowed");
    assert!(
        crate::traffic::is_silent(&denied),
        "a denied service was reached"
    );
    // Without the service, by the pod's own link: the same.
    let denied = udp(&bad.namespace, bad.v4, 81);
    let marker = udp(&good.namespace, good.v4, 81);
    assert!(!passes(&from, &denied, &marker));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_can_not_flush_the_owned_rules_of_its_own_namespace() {
    let mut bed = Bed::new();
    let pod = bed.exclusive_pod("whole");
    let mut wants = Wants::default();
    wants.settings.owner = true;
    wants.settings.persist = true;
    let mut agent = Agent::start_with(&bed, wants).await;
    agent
        .enforce(vec![namespace("x"), pod.object(&json!({})), deny_ingress()])
        .await;
    agent.gate.ready(without_link(&pod), None).await.unwrap();

    run(&format!(
        "ip netns exec {} nft flush ruleset",
        pod.namespace
    ));

    assert!(listed(&pod).contains("terway_policy"), "{}", listed(&pod));
    agent.end().await;
}
