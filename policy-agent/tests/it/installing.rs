//! The first start on a node that is alive.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use policy_agent::attachments::Attachments;
use serde_json::json;

use crate::bed::{Agent, Bed, BedPod, namespace, policy, until};
use crate::traffic::{received, udp};

/// Asks and answers, each time as a new flow, until told to end. A packet that is lost is an answer that never comes.
fn talk(
    (client, server): (BedPod, BedPod),
    v4: bool,
    ends: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let (near, far) = if v4 {
            (client.v4, server.v4)
        } else {
            (client.v6, server.v6)
        };
        let answering = udp(&server.namespace, far, 80);
        while !ends.load(Ordering::Acquire) {
            let asking = udp(&client.namespace, near, 0);
            asking.send_to(b"question", (far, 80)).unwrap();
            let (question, from) = received(&answering);
            assert_eq!(question, b"question");
            answering.send_to(b"answer", from).unwrap();
            assert_eq!(received(&asking).0, b"answer");
            rounds.fetch_add(1, Ordering::AcqRel);
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_start_on_a_living_node_costs_allowed_pods_not_one_packet() {
    let mut bed = Bed::new();
    let (client, server) = (bed.pod("client"), bed.pod("server"));
    let mut list = Attachments::open(bed.folder.path()).unwrap();
    for (pod, sandbox) in [(&client, "s1"), (&server, "s2")] {
        list.insert(pod.attached(sandbox)).unwrap();
    }
    drop(list);
    let ends = Arc::new(AtomicBool::new(false));
    let mut talks = Vec::new();
    for v4 in [true, false] {
        let rounds = Arc::new(AtomicU64::new(0));
        let pods = (client.clone(), server.clone());
        let thread = talk(pods, v4, Arc::clone(&ends), Arc::clone(&rounds));
        talks.push((thread, rounds));
    }
    let more = async |talks: &[(std::thread::JoinHandle<()>, Arc<AtomicU64>)]| {
        for (thread, rounds) in talks {
            let from = rounds.load(Ordering::Acquire);
            until("they talk", async || {
                thread.is_finished() || rounds.load(Ordering::Acquire) > from + 20
            })
            .await;
            assert!(!thread.is_finished(), "a packet was lost");
        }
    };
    more(&talks).await;

    let mut agent = Agent::start(&bed).await;
    agent
        .enforce(vec![
            namespace("x"),
            client.object(&json!({"app": "client"})),
            server.object(&json!({"app": "server"})),
            policy(
                "server",
                &json!({
                    "podSelector": {"matchLabels": {"app": "server"}},
                    "policyTypes": ["Ingress", "Egress"],
                    "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}],
                }),
            ),
        ])
        .await;

    assert!(bed.listed().contains("terway_policy"));
    more(&talks).await;
    ends.store(true, Ordering::Release);
    for (thread, _) in talks {
        thread.join().unwrap();
    }
    agent.end().await;
}
