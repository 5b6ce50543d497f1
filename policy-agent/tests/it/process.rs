//! The program's life on a node: on, off, killed, removed, refused, and two of it.

use serde_json::json;
use tonic::Code;

use crate::bed::{Bed, BedPod, FAR_V4, run, until};
use crate::program::{Site, taken};
use crate::traffic::{passes, udp};

/// Everybody may send to port 81 of the pods of `x`, and nobody elsewhere.
fn guard(site: &Site) {
    site.write(&json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "marker-only"},
        "spec": {
            "podSelector": {},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"protocol": "UDP", "port": 81}]}],
        },
    }));
}

/// Whether a denied port of the pod is reached.
fn is_open(bed: &Bed, pod: &BedPod) -> bool {
    let from = udp(&bed.far(), FAR_V4, 0);
    let denied = udp(&pod.namespace, pod.v4, 80);
    let marker = udp(&pod.namespace, pod.v4, 81);
    passes(&from, &denied, &marker)
}

fn has_table(bed: &Bed) -> bool {
    let listed = bed.listed();
    listed.contains("terway_policy") || listed.contains("terway_spoof")
}

/// A guarded pod under an agent of these settings.
async fn guarded(sets: &[&str]) -> (Bed, BedPod, Site, crate::program::Program) {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let site = Site::new(&bed);
    site.write(&pod.document(&json!({})));
    guard(&site);
    let program = site.start("first.log", sets);
    site.until("policy is in force", |s| s.enabled && s.in_sync)
        .await;
    let generation = site.ready(&pod, "s1").await.unwrap();
    assert!(generation > 0);
    assert!(!is_open(&bed, &pod));
    (bed, pod, site, program)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_of_terway_takes_the_tables_away_and_lets_pods_start_without_policy() {
    let (bed, pod, site, program) = guarded(&[]).await;
    // Readiness is looked at twice a second.
    until("ready for Felix' probes", async || {
        site.probe("/readiness") == "HTTP/1.1 204 No Content"
    })
    .await;
    program.terminate().await;
    assert!(
        has_table(&bed) && !is_open(&bed, &pod),
        "open without an agent"
    );
    site.say("disable_network_policy", "true\n");

    let program = site.start("second.log", &[]);
    site.until("policy is off", |s| {
        !s.enabled && s.reason.contains("disable_network_policy")
    })
    .await;

    assert!(!has_table(&bed), "{}", bed.listed());
    assert!(is_open(&bed, &pod));
    assert_eq!(site.ready(&pod, "s2").await.unwrap(), 0);
    site.release("s2").await.unwrap();
    assert_eq!(site.probe("/readiness"), "HTTP/1.1 204 No Content");
    program.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registered_cluster_has_no_policy_unless_it_is_switched_on() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let site = Site::new(&bed);
    site.write(&pod.document(&json!({})));
    guard(&site);
    let program = site.start("off.log", &["policy.registered=true"]);
    site.until("policy is off", |s| s.reason.contains("registered"))
        .await;
    assert!(!has_table(&bed));
    program.terminate().await;

    let on = ["policy.registered=true", "policy.enabled=true"];
    let program = site.start("on.log", &on);
    site.until("policy is in force", |s| s.enabled && s.in_sync)
        .await;
    site.ready(&pod, "s1").await.unwrap();

    assert!(!is_open(&bed, &pod));
    program.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removal_refuses_beside_a_living_agent_and_takes_everything_after_it() {
    let (bed, pod, site, program) = guarded(&[]).await;
    let holder = site.hold();
    holder.until(true).await;
    let (status, log) = site.start("early.log", &["mode=remove"]).ended().await;
    assert!(!status.success(), "{log}");
    assert!(log.contains("another policy agent runs"), "{log}");
    assert!(has_table(&bed) && !is_open(&bed, &pod));
    program.terminate().await;

    // node-agent still holds the socket that owns the table, and hands it over.
    let (status, log) = site.start("remove.log", &["mode=remove"]).ended().await;

    assert!(status.success(), "{log}");
    assert!(!has_table(&bed), "{}", bed.listed());
    assert!(is_open(&bed, &pod));
    // Nobody owns a name of ours any more: another program may use it.
    let node = bed.node();
    run(&format!(
        "ip netns exec {node} nft add table inet terway_policy"
    ));
    run(&format!(
        "ip netns exec {node} nft delete table inet terway_policy"
    ));
    holder.until(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_agent_leaves_a_table_that_nobody_can_flush_and_takes_it_up_without_a_write() {
    let (bed, pod, site, program) = guarded(&[]).await;
    let holder = site.hold();
    let owned = site.status().await.unwrap();
    assert!(owned.owned && owned.persistent, "{owned:?}");
    holder.until(true).await;
    let mut program = program;
    for life in 0..3 {
        program.kill().await;

        run(&format!("ip netns exec {} nft flush ruleset", bed.node()));
        assert!(has_table(&bed), "life {life}: flushed");
        assert!(!is_open(&bed, &pod), "life {life}: open");

        program = site.start(&format!("life-{life}.log"), &[]);
        site.until("policy is in force again", |s| s.enabled && s.in_sync)
            .await;
        let status = site.status().await.unwrap();
        assert_eq!(status.transactions, 0, "life {life}: {status:?}");
        assert!(status.owned, "life {life}: {status:?}");
    }
    program.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_agent_of_a_node_ends_with_the_reason_and_the_first_goes_on() {
    let (bed, pod, site, program) = guarded(&["policy.owned=false"]).await;
    let elsewhere = format!("node.socket={}", site.path("other.sock").display());
    let sets = [
        elsewhere.as_str(),
        "policy.owned=false",
        "felix_health.enabled=false",
    ];

    let (status, log) = site.start("second.log", &sets).ended().await;

    assert!(!status.success(), "{log}");
    assert!(log.contains("another policy agent runs"), "{log}");
    assert!(site.status().await.unwrap().enabled);
    assert!(!is_open(&bed, &pod));
    program.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calico_of_the_node_is_not_fought_and_its_end_is_noticed() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let node = bed.node();
    run(&format!("ip netns exec {node} nft add table ip filter"));
    run(&format!(
        "ip netns exec {node} nft add chain ip filter cali-FORWARD"
    ));
    let felix = taken(&node, 9099);
    let site = Site::new(&bed);
    site.write(&pod.document(&json!({})));
    guard(&site);

    let program = site.start("refused.log", &["gate.wait_ms=200"]);
    site.until("policy is refused", |s| {
        !s.enabled && s.reason.contains("another Calico owns this node")
    })
    .await;
    let refused = site.ready(&pod, "s1").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("another Calico"), "{refused:?}");
    assert!(!has_table(&bed), "something was written");

    // It goes; what it left behind is named, and not in the way.
    drop(felix);
    site.until("policy is in force", |s| s.enabled && s.in_sync)
        .await;
    site.ready(&pod, "s1").await.unwrap();
    assert!(!is_open(&bed, &pod));
    assert_eq!(site.probe("/liveness"), "HTTP/1.1 204 No Content");
    assert!(program.log().contains("cali-FORWARD"), "{}", program.log());
    program.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_of_a_pod_is_one_trace_from_the_gate_to_the_kernels_transaction() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let site = Site::new(&bed);
    site.write(&pod.document(&json!({})));
    guard(&site);
    let spans = site.path("spans");
    let file = format!("service.telemetry.span_file={}", spans.display());
    let program = site.start("agent.log", &[&file]);
    site.until("policy is in force", |s| s.enabled && s.in_sync)
        .await;

    site.ready(&pod, "s1").await.unwrap();

    // All is written when it ends.
    program.terminate().await;
    let text = std::fs::read_to_string(&spans).unwrap();
    let spans: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let ready = spans.iter().find(|s| s["name"] == "policy.ready").unwrap();
    let below = |s: &&serde_json::Value| {
        s["name"] == "policy.commit" && s["parent_span_id"] == ready["span_id"]
    };
    let commit = spans.iter().find(below).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(commit["trace_id"], ready["trace_id"]);
    assert!(
        !spans
            .iter()
            .any(|s| s["name"] == "policy.commit" && s["parent_span_id"] == "")
    );
}

fn phase(phase: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": "terway", "name": "terway-phase"},
        "data": {"phase": phase},
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_of_a_node_that_leaves_guards_its_pods_to_the_last_and_then_takes_its_tables() {
    let sets = ["control.phase=terway/terway-phase"];
    let (bed, pod, site, program) = guarded(&sets).await;
    let holder = site.hold();
    holder.until(true).await;

    site.write(&phase("leave"));
    assert!(has_table(&bed) && !is_open(&bed, &pod));
    site.release("s1").await.unwrap();
    let (status, log) = program.ended().await;
    assert!(status.success(), "{log}");
    assert!(log.contains("the last pod has gone"), "{log}");
    assert!(has_table(&bed));
    let program = site.start("left.log", &sets);
    site.until("the node has left", |s| {
        s.state == "off" && s.reason.contains("uninstalled")
    })
    .await;
    assert!(!has_table(&bed), "{}", bed.listed());
    holder.until(false).await;

    site.write(&phase("serve"));
    let (status, log) = program.ended().await;
    assert!(status.success(), "{log}");
    let program = site.start("again.log", &sets);
    site.until("policy is in force again", |s| s.state == "on" && s.in_sync)
        .await;
    assert!(has_table(&bed));
    program.terminate().await;
}
