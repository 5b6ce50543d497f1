//! Flows that were allowed when they began.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nft_wire::conntrack::{Filter, Flow, Mark};
use policy_agent::revoker::port::{Flows, FlowsError};
use policy_agent::rules::{self, Place};
use policy_core::object::Event;
use serde_json::json;

use crate::bed::{
    Agent, Bed, BedPod, FAR_V4, FAR_V6, Wants, deny_ingress, gone, namespace, policy, until,
};
use crate::traffic::{connection, is_reset, is_silent, lives, passes, received, udp};

/// Only port 81 may be reached.
fn marker_only() -> Event {
    policy(
        "marker",
        &json!({
            "podSelector": {},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"protocol": "UDP", "port": 81}]}],
        }),
    )
}

async fn open_world(bed: &mut Bed, wants: Wants) -> (Agent, BedPod) {
    let pod = bed.pod("a");
    let mut agent = Agent::start_with(bed, wants).await;
    agent
        .enforce(vec![namespace("x"), pod.object(&json!({}))])
        .await;
    agent.gate.ready(pod.attached("s1"), None).await.unwrap();
    (agent, pod)
}

async fn looked(agent: &Agent, more_than: u64) {
    until("flows were looked at", async || {
        agent.revoker.done().passes > more_than
    })
    .await;
}

async fn connection_is_reset(address: fn(&BedPod) -> IpAddr) {
    let mut bed = Bed::new();
    let (mut agent, pod) = open_world(&mut bed, Wants::default()).await;
    let server = (pod.namespace.as_str(), address(&pod));
    let (mut near, mut far) = connection(&bed.far(), server, 80);
    let (mut near_marker, mut far_marker) = connection(&bed.far(), server, 8081);
    assert!(lives(&mut near, &mut far) && lives(&mut far, &mut near));

    let only_8081 = json!({
        "podSelector": {},
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": [{"port": 8081}]}],
    });
    agent.enforce(vec![policy("p", &only_8081)]).await;

    assert!(is_reset(&mut far), "the server speaks first");
    assert!(is_reset(&mut near));
    assert!(lives(&mut near_marker, &mut far_marker));
    assert!(lives(&mut far_marker, &mut near_marker));
    assert_eq!(agent.revoker.done().revoked, 1);
    agent.end().await;
}

// E5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_that_is_denied_now_is_reset_and_another_one_lives() {
    connection_is_reset(|pod| pod.v4).await;
}

// E5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_of_ipv6_that_is_denied_now_is_reset_and_another_one_lives() {
    connection_is_reset(|pod| pod.v6).await;
}

async fn datagrams_stop(far: IpAddr, near: fn(&BedPod) -> IpAddr, server_first: bool) {
    let mut bed = Bed::new();
    let (mut agent, pod) = open_world(&mut bed, Wants::default()).await;
    let near = near(&pod);
    let client = udp(&bed.far(), far, 0);
    let server = udp(&pod.namespace, near, 80);
    let marker = udp(&pod.namespace, near, 81);
    assert!(passes(&client, &server, &marker));
    let at_client = client.local_addr().unwrap();
    server.send_to(b"answer", at_client).unwrap();
    received(&client);

    agent.enforce(vec![marker_only()]).await;
    until("the flow is cut", async || agent.revoker.done().revoked > 0).await;

    if server_first {
        server.send_to(b"late", at_client).unwrap();
    }
    assert!(!passes(&client, &server, &marker));
    server.send_to(b"late", at_client).unwrap();
    // The marker's own flow goes the same way back.
    marker.send_to(b"marker", at_client).unwrap();
    assert_eq!(received(&client).0, b"marker");
    assert!(is_silent(&client));

    agent.enforce(vec![gone(&marker_only())]).await;
    until("the flow lives again", async || {
        agent.revoker.done().restored > 0
    })
    .await;

    assert!(passes(&client, &server, &marker));
    server.send_to(b"again", at_client).unwrap();
    assert_eq!(received(&client).0, b"again");
    agent.end().await;
}

// E5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_stop_when_the_server_speaks_first_and_go_on_when_allowed_again() {
    datagrams_stop(FAR_V4, |pod| pod.v4, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_stop_when_the_client_speaks_first_and_go_on_when_allowed_again() {
    datagrams_stop(FAR_V6, |pod| pod.v6, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_live_on_when_established_ones_are_kept() {
    let mut bed = Bed::new();
    let wants = Wants {
        judge: false,
        ..Wants::default()
    };
    let (mut agent, pod) = open_world(&mut bed, wants).await;
    let (mut near, mut far) = connection(&bed.far(), (&pod.namespace, pod.v4), 80);

    agent.enforce(vec![deny_ingress()]).await;

    assert!(lives(&mut near, &mut far) && lives(&mut far, &mut near));
    assert_eq!(agent.revoker.done().revoked, 0);
    agent.end().await;
}

// E1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flow_of_the_node_to_its_pod_is_never_cut() {
    let mut bed = Bed::new();
    let (mut agent, pod) = open_world(&mut bed, Wants::default()).await;
    let (mut near, mut far) = connection(&bed.node(), (&pod.namespace, pod.v4), 80);
    assert!(lives(&mut near, &mut far));
    let passes_before = agent.revoker.done().passes;

    agent.enforce(vec![deny_ingress()]).await;
    looked(&agent, passes_before).await;

    assert!(lives(&mut near, &mut far) && lives(&mut far, &mut near));
    assert_eq!(agent.revoker.done().revoked, 0);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flow_that_was_not_cut_because_the_agent_ended_is_cut_at_the_next_start() {
    let mut bed = Bed::new();
    let wants = Wants {
        // The first one ends before it looks.
        judge: false,
        ..Wants::default()
    };
    let (mut agent, pod) = open_world(&mut bed, wants).await;
    let (mut near, mut far) = connection(&bed.far(), (&pod.namespace, pod.v4), 80);
    agent.enforce(vec![deny_ingress()]).await;
    assert!(lives(&mut near, &mut far));
    agent.end().await;

    let mut agent = Agent::start(&bed).await;
    agent
        .enforce(vec![namespace("x"), pod.object(&json!({})), deny_ingress()])
        .await;

    assert!(is_reset(&mut far));
    assert!(is_reset(&mut near));
    assert_eq!(agent.transactions().await, 0);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flow_through_a_translated_address_is_cut_by_its_real_destination() {
    let mut bed = Bed::new();
    let (mut agent, pod) = open_world(&mut bed, Wants::default()).await;
    let node = bed.node();
    for command in [
        "add table ip nat".to_owned(),
        "add chain ip nat pre { type nat hook prerouting priority -100 ; }".to_owned(),
        format!(
            "add rule ip nat pre ip daddr 10.45.0.1 tcp dport 8000 dnat to {}:80",
            pod.v4
        ),
    ] {
        let ran = std::process::Command::new("ip")
            .args(["netns", "exec", &node, "nft", &command])
            .status()
            .unwrap();
        assert!(ran.success(), "{command}");
    }
    let listener = crate::bed::inside(&pod.namespace, || {
        std::net::TcpListener::bind((pod.v4, 80)).unwrap()
    });
    let mut near = crate::bed::inside(&bed.far(), || {
        std::net::TcpStream::connect(("10.45.0.1", 8000)).unwrap()
    });
    let (mut far, _) = listener.accept().unwrap();
    near.set_read_timeout(Some(crate::bed::PATIENCE)).unwrap();
    far.set_read_timeout(Some(crate::bed::PATIENCE)).unwrap();
    assert!(lives(&mut near, &mut far));

    agent.enforce(vec![deny_ingress()]).await;

    assert!(is_reset(&mut far));
    assert!(is_reset(&mut near));
    agent.end().await;
}

/// Flows that the first look does not see after the rules came to a generation, as though each were confirmed a moment
/// later.
struct Late {
    flows: Box<dyn Flows + Send>,
    place: Place,
    /// The generation; 0: every look sees all.
    from: Arc<AtomicU32>,
}

impl Flows for Late {
    fn dump(&mut self, filter: &Filter, each: &mut dyn FnMut(&Flow)) -> Result<(), FlowsError> {
        let from = self.from.load(Ordering::Acquire);
        if from > 0 && rules::generation(&self.place).unwrap() >= from {
            self.from.store(0, Ordering::Release);
            return Ok(());
        }
        self.flows.dump(filter, each)
    }

    fn mark(&mut self, changes: &[(Flow, Mark)]) -> Result<(), FlowsError> {
        self.flows.mark(changes)
    }

    fn delete(&mut self, flows: &[Flow]) -> Result<(), FlowsError> {
        self.flows.delete(flows)
    }

    fn node_addresses(&mut self) -> Vec<IpAddr> {
        self.flows.node_addresses()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flow_that_is_confirmed_after_the_first_look_is_cut_at_the_second() {
    let mut bed = Bed::new();
    let (from, place) = (Arc::<AtomicU32>::default(), bed.place());
    let wants = Wants {
        before_flows: Box::new({
            let from = Arc::clone(&from);
            move |flows| Box::new(Late { flows, place, from })
        }),
        ..Wants::default()
    };
    let (mut agent, pod) = open_world(&mut bed, wants).await;
    let (mut near, mut far) = connection(&bed.far(), (&pod.namespace, pod.v4), 80);
    assert!(lives(&mut near, &mut far));
    // One transaction for the chains, and one that leads to them.
    from.store(bed.generation() + 2, Ordering::Release);

    agent.enforce(vec![deny_ingress()]).await;

    assert!(is_reset(&mut far));
    assert!(is_reset(&mut near));
    assert_eq!(from.load(Ordering::Acquire), 0, "no look was blind");
    assert_eq!(agent.revoker.done().revoked, 1);
    agent.end().await;
}
