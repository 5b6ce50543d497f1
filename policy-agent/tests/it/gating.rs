//! The gate.

use std::time::Duration;

use policy_agent::enforcer::Unready;
use policy_agent::gate::GateError;
use serde_json::json;
use tokio::time::Instant;

use crate::bed::{Agent, Bed, FAR_V4, Wants, deny_ingress, namespace, until};
use crate::traffic::udp;

// E6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_waits_for_its_object_and_for_its_policy() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let wants = Wants {
        unknown: crate::bed::PATIENCE,
        ..Wants::default()
    };
    let mut agent = Agent::start_with(&bed, wants).await;
    agent.enforce(vec![namespace("x"), deny_ingress()]).await;
    let gate = agent.gate.clone();
    let attached = pod.attached("s1");
    let asked = agent.spawn(async move { gate.ready(attached, None).await });
    until("the pod waits", async || {
        agent.metric("terway_policy_pods_waiting") > 0.5
    })
    .await;

    agent.tell(vec![pod.object(&json!({}))]).await;

    let generation = asked.await.unwrap().unwrap();
    assert!(generation > 0);
    assert!(bed.listed().contains(&pod.link));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_pod_is_refused_as_unknown_and_may_come_again() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let mut agent = Agent::start(&bed).await;
    agent.enforce(vec![namespace("x"), deny_ingress()]).await;

    let refused = agent
        .gate
        .ready(pod.attached("s1"), None)
        .await
        .unwrap_err();
    let is_unknown = matches!(refused, GateError::Unready(Unready::PodUnknown(_)));
    assert!(is_unknown, "{refused:?}");

    agent.enforce(vec![pod.object(&json!({}))]).await;
    agent.gate.ready(pod.attached("s1"), None).await.unwrap();
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_does_not_start_before_everything_was_listed() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let mut agent = Agent::start(&bed).await;
    agent
        .batch(vec![namespace("x"), pod.object(&json!({}))], false)
        .await;
    let deadline = Instant::now() + Duration::from_millis(300);

    let refused = agent.gate.ready(pod.attached("s1"), Some(deadline)).await;

    let refused = refused.unwrap_err();
    assert!(
        matches!(refused, GateError::Unready(Unready::NotInSync)),
        "{refused:?}"
    );
    assert!(
        !bed.listed().contains("terway_policy"),
        "written before the list was whole"
    );
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn link_that_nobody_knows_passes_nothing() {
    let mut bed = Bed::new();
    let (known, unknown) = (bed.pod("known"), bed.pod("unknown"));
    let mut agent = Agent::start(&bed).await;
    agent
        .enforce(vec![namespace("x"), known.object(&json!({}))])
        .await;
    agent.gate.ready(known.attached("s1"), None).await.unwrap();
    let from = udp(&bed.far(), FAR_V4, 0);
    let asked = udp(&unknown.namespace, unknown.v4, 80);
    let marker = udp(&known.namespace, known.v4, 81);

    assert!(!crate::traffic::passes(&from, &asked, &marker));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_release_of_an_old_sandbox_leaves_its_successor_alone() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let mut agent = Agent::start(&bed).await;
    agent
        .enforce(vec![namespace("x"), pod.object(&json!({}))])
        .await;
    agent.gate.ready(pod.attached("old"), None).await.unwrap();
    agent.gate.ready(pod.attached("new"), None).await.unwrap();
    let before = bed.generation();

    let old = pod.attached("old").attachment;
    agent.gate.release(&old).await.unwrap();

    assert_eq!(bed.generation(), before, "something was written");
    let from = udp(&bed.far(), FAR_V4, 0);
    let asked = udp(&pod.namespace, pod.v4, 80);
    from.send_to(b"x", asked.local_addr().unwrap()).unwrap();
    assert_eq!(crate::traffic::received(&asked).0, b"x");
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn release_forgets_the_flows_of_its_addresses() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let mut agent = Agent::start(&bed).await;
    agent
        .enforce(vec![namespace("x"), pod.object(&json!({}))])
        .await;
    agent.gate.ready(pod.attached("s1"), None).await.unwrap();
    let from = udp(&bed.far(), FAR_V4, 0);
    let asked = udp(&pod.namespace, pod.v4, 80);
    from.send_to(b"x", asked.local_addr().unwrap()).unwrap();
    crate::traffic::received(&asked);
    assert!(bed.tracks(pod.v4));

    let attachment = pod.attached("s1").attachment;
    agent.gate.release(&attachment).await.unwrap();

    assert!(!bed.tracks(pod.v4));
    agent.gate.release(&attachment).await.unwrap();
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restore_drops_what_is_not_on_the_list() {
    let mut bed = Bed::new();
    let (stays, goes) = (bed.pod("stays"), bed.pod("goes"));
    let mut agent = Agent::start(&bed).await;
    agent
        .enforce(vec![namespace("x"), stays.object(&json!({}))])
        .await;
    agent.gate.ready(stays.attached("s1"), None).await.unwrap();
    drop(agent.gate.ready(goes.attached("s2"), None).await);

    agent
        .gate
        .restore(vec![stays.attached("s1")])
        .await
        .unwrap();

    let listed = bed.listed();
    assert!(listed.contains(&stays.link), "{listed}");
    assert!(!listed.contains(&goes.link), "{listed}");
    agent.end().await;
}
