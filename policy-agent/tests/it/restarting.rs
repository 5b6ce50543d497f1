//! What a restart does to the kernel: nothing.

use serde_json::json;

use crate::bed::{Agent, Bed, BedPod, FAR_V4, Wants, deny_ingress, namespace, policy, until};
use crate::traffic::{passes, udp};

fn world(pod: &BedPod) -> Vec<policy_core::object::Event> {
    vec![
        namespace("x"),
        pod.object(&json!({"app": "a"})),
        policy(
            "p",
            &json!({
                "podSelector": {},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [
                    {"ports": [{"protocol": "UDP", "port": 81}]},
                    {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.45.0.0/16"]}}]},
                    {"from": [{"podSelector": {"matchLabels": {"app": "a"}}}]},
                ],
                "egress": [{"to": [{"namespaceSelector": {}}]}],
            }),
        ),
    ]
}

async fn restarts_without_a_write(owned: bool) {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let wants = || {
        let mut wants = Wants::default();
        wants.settings.owner = owned;
        wants.settings.persist = owned;
        wants
    };
    let mut agent = Agent::start_with(&bed, wants()).await;
    agent.enforce(world(&pod)).await;
    agent.gate.ready(pod.attached("s1"), None).await.unwrap();
    agent.end().await;
    let before = bed.listed_without_counters();

    // Nobody tells the new one what is attached: it was written down.
    let mut agent = Agent::start_with(&bed, wants()).await;
    agent.enforce(world(&pod)).await;

    assert_eq!(agent.transactions().await, 0);
    assert_eq!(bed.listed_without_counters(), before);
    let from = udp(&bed.far(), FAR_V4, 0);
    let denied = udp(&pod.namespace, pod.v4, 80);
    let marker = udp(&pod.namespace, pod.v4, 81);
    assert!(!passes(&from, &denied, &marker));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_with_equal_state_writes_nothing() {
    restarts_without_a_write(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_adopts_the_orphan_of_an_owned_table_and_writes_nothing() {
    restarts_without_a_write(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_holds_while_no_agent_runs_and_the_next_one_writes_the_difference_alone() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let mut agent = Agent::start(&bed).await;
    agent.enforce(world(&pod)).await;
    agent.gate.ready(pod.attached("s1"), None).await.unwrap();
    agent.end().await;
    let from = udp(&bed.far(), FAR_V4, 0);
    let denied = udp(&pod.namespace, pod.v4, 80);
    let marker = udp(&pod.namespace, pod.v4, 81);
    assert!(!passes(&from, &denied, &marker), "open while no agent runs");

    let mut agent = Agent::start(&bed).await;
    let mut events = world(&pod);
    events.push(policy(
        "more",
        &json!({
            "podSelector": {},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"protocol": "UDP", "port": 80}]}],
        }),
    ));
    agent.enforce(events).await;

    let transactions = agent.transactions().await;
    assert!((1..=3).contains(&transactions), "{transactions}");
    assert!(passes(&from, &denied, &marker));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_before_the_feed_has_told_all_leaves_the_kernel_alone() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let mut agent = Agent::start(&bed).await;
    agent.enforce(world(&pod)).await;
    agent.gate.ready(pod.attached("s1"), None).await.unwrap();
    agent.end().await;
    let before = bed.listed_without_counters();

    let mut agent = Agent::start(&bed).await;
    let sequence = agent
        .batch(vec![namespace("x"), deny_ingress()], false)
        .await;
    until("the batch was read", async || {
        agent.handle.progress().await.unwrap().seen >= sequence
    })
    .await;

    assert_eq!(agent.transactions().await, 0);
    assert_eq!(bed.listed_without_counters(), before);
    agent.end().await;
}
