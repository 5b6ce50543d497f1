//! A pod whose link is in its own namespace alone: whole ENI, trunk member, ipvlan.

use policy_agent::attachments::Attached;
use serde_json::json;

use crate::bed::{Agent, Bed, BedPod, FAR_V4, deny_ingress, gone, namespace, policy, run};
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
