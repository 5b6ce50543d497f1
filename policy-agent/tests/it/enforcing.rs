//! Policies are in the kernel, whatever is wrong with some of them.

use serde_json::json;

use crate::bed::{Agent, Bed, FAR_V4, FAR_V6, gone, namespace, policy};
use crate::traffic::{passes, udp};

/// Everybody may send to port 81 of the pods of `x`, and nobody elsewhere.
fn marker_only(name: &str) -> policy_core::object::Event {
    policy(
        name,
        &json!({
            "podSelector": {},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"protocol": "UDP", "port": 81}]}],
        }),
    )
}

// E9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_is_in_force_for_both_families_and_goes_with_its_object() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let mut agent = Agent::start(&bed).await;
    agent
        .enforce(vec![
            namespace("x"),
            pod.object(&json!({})),
            marker_only("p"),
        ])
        .await;
    agent.gate.ready(pod.attached("s1"), None).await.unwrap();
    for (far, near) in [(FAR_V4, pod.v4), (FAR_V6, pod.v6)] {
        let from = udp(&bed.far(), far, 0);
        let denied = udp(&pod.namespace, near, 80);
        let marker = udp(&pod.namespace, near, 81);

        assert!(!passes(&from, &denied, &marker), "{near}");
    }

    agent.enforce(vec![gone(&marker_only("p"))]).await;

    let from = udp(&bed.far(), FAR_V4, 0);
    let denied = udp(&pod.namespace, pod.v4, 80);
    let marker = udp(&pod.namespace, pod.v4, 81);
    assert!(passes(&from, &denied, &marker));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_set_of_denied_flows_denies_all_the_same() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let mut wants = crate::bed::Wants::default();
    wants.settings.denied_size = 8;
    let mut agent = Agent::start_with(&bed, wants).await;
    agent
        .enforce(vec![
            namespace("x"),
            pod.object(&json!({})),
            marker_only("p"),
        ])
        .await;
    agent.gate.ready(pod.attached("s1"), None).await.unwrap();
    let from = udp(&bed.far(), FAR_V4, 0);
    let marker = udp(&pod.namespace, pod.v4, 81);

    for port in 1000..1040 {
        let denied = udp(&pod.namespace, pod.v4, port);
        assert!(!passes(&from, &denied, &marker), "port {port}");
    }
    agent.end().await;
}

// B3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_policy_denies_its_subjects_leaves_others_alone_and_is_named_once() {
    let mut bed = Bed::new();
    let (closed, open) = (bed.pod("closed"), bed.pod("open"));
    let mut agent = Agent::start(&bed).await;
    let broken = policy(
        "broken",
        &json!({
            "podSelector": {"matchLabels": {"app": "closed"}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"ports": [{"protocol": "UDP", "port": 81}]},
                {"from": [{"ipBlock": {"cidr": "nonsense"}}]},
            ],
        }),
    );
    agent
        .enforce(vec![
            namespace("x"),
            closed.object(&json!({"app": "closed"})),
            open.object(&json!({"app": "open"})),
            broken.clone(),
        ])
        .await;
    agent.gate.ready(closed.attached("s1"), None).await.unwrap();
    agent.gate.ready(open.attached("s2"), None).await.unwrap();
    agent.enforce(vec![broken]).await;

    let from = udp(&bed.far(), FAR_V4, 0);
    let of_open = udp(&open.namespace, open.v4, 80);
    let marker = udp(&open.namespace, open.v4, 81);
    assert!(passes(&from, &of_open, &marker));
    let of_closed = udp(&closed.namespace, closed.v4, 80);
    assert!(!passes(&from, &of_closed, &marker));
    let said = std::fs::read_to_string(&agent.events_file).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("spec.ingress[1].from[0].ipBlock.cidr"),
        "{said}"
    );
    assert!(agent.metric("terway_policy_malformed") > 0.5);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_sends_with_its_own_addresses_only() {
    let mut bed = Bed::new();
    let (liar, target) = (bed.pod("liar"), bed.pod("target"));
    let mut agent = Agent::start(&bed).await;
    agent
        .enforce(vec![
            namespace("x"),
            liar.object(&json!({})),
            target.object(&json!({})),
        ])
        .await;
    agent.gate.ready(liar.attached("s1"), None).await.unwrap();
    agent.gate.ready(target.attached("s2"), None).await.unwrap();
    crate::bed::run(&format!(
        "ip -n {} addr add 10.44.0.200/32 dev lo",
        liar.namespace
    ));
    let asked = udp(&target.namespace, target.v4, 80);
    let honest = udp(&liar.namespace, liar.v4, 0);
    let false_one = udp(&liar.namespace, "10.44.0.200".parse().unwrap(), 0);

    false_one
        .send_to(b"false", asked.local_addr().unwrap())
        .unwrap();

    honest
        .send_to(b"honest", asked.local_addr().unwrap())
        .unwrap();
    // Had the first one passed, it would be the first to come.
    assert_eq!(crate::traffic::received(&asked).0, b"honest");
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_that_opts_out_sends_with_any_address_until_it_opts_in_again() {
    let mut bed = Bed::new();
    let (gateway, target) = (bed.pod("gateway"), bed.pod("target"));
    let mut agent = Agent::start(&bed).await;
    let mut opted_out = gateway.document(&json!({}));
    opted_out["metadata"]["annotations"] = json!({"k8s.aliyun.com/spoof-check": "off"});
    agent
        .enforce(vec![
            namespace("x"),
            crate::bed::upsert(&opted_out),
            target.object(&json!({})),
        ])
        .await;
    for (pod, sandbox) in [(&gateway, "s1"), (&target, "s2")] {
        agent.gate.ready(pod.attached(sandbox), None).await.unwrap();
    }
    crate::bed::run(&format!(
        "ip -n {} addr add 10.44.0.200/32 dev lo",
        gateway.namespace
    ));
    let asked = udp(&target.namespace, target.v4, 80);
    let own = udp(&gateway.namespace, gateway.v4, 0);
    let other = udp(&gateway.namespace, "10.44.0.200".parse().unwrap(), 0);
    let speak = || {
        other
            .send_to(b"other", asked.local_addr().unwrap())
            .unwrap();
        own.send_to(b"own", asked.local_addr().unwrap()).unwrap();
        crate::traffic::received(&asked).0
    };

    assert_eq!(speak(), b"other");
    assert_eq!(crate::traffic::received(&asked).0, b"own");

    agent.enforce(vec![gateway.object(&json!({}))]).await;
    assert_eq!(speak(), b"own");
    agent.end().await;
}

// E10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_change_is_put_right() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let mut wants = crate::bed::Wants::default();
    // With an owner the kernel refuses the foreign change itself.
    wants.settings.owner = false;
    wants.settings.persist = false;
    let mut agent = Agent::start_with(&bed, wants).await;
    agent
        .enforce(vec![
            namespace("x"),
            pod.object(&json!({})),
            marker_only("p"),
        ])
        .await;
    agent.gate.ready(pod.attached("s1"), None).await.unwrap();
    let node = bed.node();
    let before = agent.transactions().await;

    crate::bed::run(&format!("ip netns exec {node} nft flush ruleset"));

    crate::bed::until("the tables are written again", async || {
        agent.transactions().await > before && bed.listed().contains("terway_policy")
    })
    .await;
    agent.enforce(Vec::new()).await;
    let from = udp(&bed.far(), FAR_V4, 0);
    let denied = udp(&pod.namespace, pod.v4, 80);
    let marker = udp(&pod.namespace, pod.v4, 81);
    assert!(!passes(&from, &denied, &marker));
    assert!(agent.metric("terway_policy_foreign_changes_total") > 0.5);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owned_table_is_not_flushed_by_others() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let mut wants = crate::bed::Wants::default();
    wants.settings.owner = true;
    wants.settings.persist = true;
    let mut agent = Agent::start_with(&bed, wants).await;
    agent
        .enforce(vec![
            namespace("x"),
            pod.object(&json!({})),
            marker_only("p"),
        ])
        .await;
    let node = bed.node();

    crate::bed::run(&format!("ip netns exec {node} nft flush ruleset"));

    assert!(bed.listed().contains("terway_policy"));
    agent.end().await;
}
