//! On, off, removed, and refused.

use policy_agent::rules;
use policy_agent::switches::{Calico, ForeignChain};
use serde_json::json;

use crate::bed::{Agent, Bed, Wants, deny_ingress, namespace, run, settings};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removal_takes_our_tables_and_nothing_else() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let node = bed.node();
    run(&format!("ip netns exec {node} nft add table inet somebody"));
    let mut wants = Wants::default();
    wants.settings.owner = true;
    wants.settings.persist = true;
    let mut agent = Agent::start_with(&bed, wants).await;
    agent
        .enforce(vec![namespace("x"), pod.object(&json!({})), deny_ingress()])
        .await;
    agent.gate.ready(pod.attached("s1"), None).await.unwrap();
    agent.end().await;
    assert!(bed.listed().contains("terway_policy"));

    rules::remove(&bed.place(), &settings(), &[], None).unwrap();
    // Once more is fine.
    rules::remove(&bed.place(), &settings(), &[], None).unwrap();

    let listed = bed.listed();
    assert!(!listed.contains("terway"), "{listed}");
    assert!(listed.contains("somebody"), "{listed}");
}

#[test]
fn chains_of_another_calico_are_seen_in_the_kernel() {
    let bed = Bed::new();
    let node = bed.node();
    run(&format!("ip netns exec {node} nft add table ip filter"));
    run(&format!(
        "ip netns exec {node} nft add chain ip filter cali-FORWARD"
    ));

    let chains = rules::foreign_chains(&bed.place(), &settings()).unwrap();

    let expected = ForeignChain {
        table: "ip filter".to_owned(),
        chain: "cali-FORWARD".to_owned(),
    };
    assert_eq!(chains, [expected]);
    let nowhere = std::path::Path::new("/nowhere");
    let found = Calico::look(&chains, nowhere, Some("somebody serves 9099".to_owned()));
    assert!(found.refusal().unwrap().contains("somebody serves 9099"));
}
