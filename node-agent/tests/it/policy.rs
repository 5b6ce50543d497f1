//! ADD waits for policy, DEL tells it, and everything is told again to one that was started anew.

use node_agent::gate::{Gate, GateError};
use node_agent::pods::PodError;
use tokio::time::Instant;
use types::pod::PodKey;

use crate::door::{Asked, Door, Mood};
use crate::lab::{Lab, PATIENCE, WAIT, attachment, until};

fn ready(lab: &Lab, sandbox: &str) -> Asked {
    let view = lab.ledger.view();
    let binding = &view.bindings[&attachment(sandbox)];
    let ips = binding.addresses().map(|ip| ip.to_string()).collect();
    Asked::Ready(sandbox.to_owned(), binding.host_link.clone(), ips)
}

#[tokio::test]
async fn add_is_answered_after_the_gate_was_asked_for_link_and_addresses() {
    let lab = Lab::new().await;
    let door = Door::new(&lab.ledger);
    let _serving = door.serve(&lab.socket());
    let pods = lab.pods(&lab.gate());

    pods.add(lab.add("s1")).await.unwrap();

    assert_eq!(door.asked(), [ready(&lab, "s1")]);
    assert_eq!(lab.pod_links(), 1);
}

#[tokio::test]
async fn add_with_policy_off_asks_nobody() {
    let lab = Lab::new().await;
    let door = Door::new(&lab.ledger);
    let _serving = door.serve(&lab.socket());
    let pods = lab.pods(&Gate::off());

    pods.add(lab.add("s1")).await.unwrap();
    pods.del(&attachment("s1"), None).await.unwrap();

    assert_eq!(door.asked(), []);
}

#[tokio::test]
async fn add_without_a_gate_fails_as_policy_and_is_undone() {
    let lab = Lab::new().await;
    let pods = lab.pods(&lab.gate());

    let error = pods.add(lab.add("s1")).await.unwrap_err();

    let away = matches!(
        &error,
        PodError::Policy {
            source: GateError::Away(_),
            ..
        }
    );
    assert!(away, "{error:?}");
    assert!(error.to_string().contains("policy"), "{error}");
    assert!(lab.ledger.view().bindings.is_empty());
    assert_eq!(lab.pod_links(), 0);
}

#[tokio::test]
async fn add_at_a_gate_that_does_not_answer_fails_after_its_wait_and_is_undone() {
    let lab = Lab::new().await;
    let door = Door::new(&lab.ledger);
    door.be(Mood::Mute);
    let _serving = door.serve(&lab.socket());
    let pods = lab.pods(&lab.gate());
    let start = Instant::now();

    let error = pods.add(lab.add("s1")).await.unwrap_err();

    let silent = matches!(
        &error,
        PodError::Policy {
            source: GateError::Silent(_),
            ..
        }
    );
    assert!(silent, "{error:?}");
    assert!(start.elapsed() >= WAIT);
    assert!(lab.ledger.view().bindings.is_empty());
    assert_eq!(lab.pod_links(), 0);
}

#[tokio::test]
async fn add_at_a_gate_that_says_no_fails_with_its_words() {
    let lab = Lab::new().await;
    let door = Door::new(&lab.ledger);
    door.be(Mood::Unwilling);
    let _serving = door.serve(&lab.socket());
    let pods = lab.pods(&lab.gate());

    let error = pods.add(lab.add("s1")).await.unwrap_err();

    let text = mesh::causes::text(&error);
    assert!(
        text.contains("policy") && text.contains("the kernel says no"),
        "{text}"
    );
    assert!(lab.ledger.view().bindings.is_empty());
}

#[tokio::test]
async fn add_waits_for_a_gate_that_is_being_replaced() {
    let lab = Lab::new().await;
    let door = Door::new(&lab.ledger);
    let first = door.serve(&lab.socket());
    let gate = Gate::new(&lab.socket(), PATIENCE);
    let pods = lab.pods(&gate);
    pods.add(lab.add("s1")).await.unwrap();
    pods.del(&attachment("s1"), None).await.unwrap();
    first.end().await;

    let add = pods.add(lab.add("s2"));
    let replace = async {
        until("the second sandbox is bound", || {
            lab.ledger.view().bindings.len() == 1
        })
        .await;
        door.serve(&lab.socket())
    };
    let (added, _second) = tokio::join!(add, replace);

    added.unwrap();
}

#[tokio::test]
async fn del_releases_before_the_addresses_are_free() {
    let lab = Lab::new().await;
    let door = Door::new(&lab.ledger);
    let _serving = door.serve(&lab.socket());
    let pods = lab.pods(&lab.gate());
    pods.add(lab.add("s1")).await.unwrap();

    pods.del(&attachment("s1"), None).await.unwrap();

    let asked = door.asked();
    assert_eq!(asked.last(), Some(&Asked::Release("s1".to_owned(), true)));
    assert!(lab.ledger.view().bindings.is_empty());
}

// B10
#[tokio::test]
async fn add_of_a_new_sandbox_ends_the_old_one_and_its_late_del_does_nothing() {
    let lab = Lab::new().await;
    let door = Door::new(&lab.ledger);
    let _serving = door.serve(&lab.socket());
    let pods = lab.pods(&lab.gate());
    pods.add(lab.add("s1")).await.unwrap();
    let first = ready(&lab, "s1");

    pods.add(lab.add("s2")).await.unwrap();

    // The old one has let go of the link before the new one's policy is asked for.
    let released = Asked::Release("s1".to_owned(), true);
    assert_eq!(door.asked(), [first, released, ready(&lab, "s2")]);
    let bound: Vec<_> = lab.ledger.view().bindings.keys().cloned().collect();
    assert_eq!(bound, [attachment("s2")]);
    let pod = PodKey::new("default", "a");
    pods.del(&attachment("s1"), Some(&pod)).await.unwrap();
    assert_eq!(lab.pod_links(), 1);
    assert_eq!(lab.ledger.view().bindings.len(), 1);
}

#[tokio::test]
async fn del_succeeds_while_the_gate_is_away_or_mute() {
    let lab = Lab::new().await;
    let door = Door::new(&lab.ledger);
    let serving = door.serve(&lab.socket());
    let pods = lab.pods(&lab.gate());
    pods.add(lab.add("s1")).await.unwrap();
    door.be(Mood::Mute);

    pods.del(&attachment("s1"), None).await.unwrap();
    assert!(lab.ledger.view().bindings.is_empty());

    door.be(Mood::Willing);
    pods.add(lab.add("s2")).await.unwrap();
    serving.end().await;
    pods.del(&attachment("s2"), None).await.unwrap();

    assert!(lab.ledger.view().bindings.is_empty());
}

#[tokio::test]
async fn gate_that_was_started_anew_is_told_of_every_pod() {
    let lab = Lab::new().await;
    let door = Door::new(&lab.ledger);
    let first = door.serve(&lab.socket());
    let gate = lab.gate();
    let pods = lab.pods(&gate);
    pods.add(lab.add("s1")).await.unwrap();
    let follow = gate.follow(lab.ledger.clone(), lab.tasks.stopping());
    lab.tasks.spawn("policy", follow);
    let told = |times| {
        let restored = Asked::Restore(vec!["s1".to_owned()]);
        door.asked().iter().filter(|a| **a == restored).count() == times
    };
    until("told at the start", || told(1)).await;
    first.end().await;

    let _second = door.serve(&lab.socket());

    until("told again", || told(2)).await;
    lab.tasks.drain().stop();
}

#[tokio::test]
async fn release_that_was_not_heard_is_told_again_to_the_same_process() {
    let lab = Lab::new().await;
    let door = Door::new(&lab.ledger);
    let _serving = door.serve(&lab.socket());
    let gate = lab.gate();
    let pods = lab.pods(&gate);
    pods.add(lab.add("s1")).await.unwrap();
    let follow = gate.follow(lab.ledger.clone(), lab.tasks.stopping());
    lab.tasks.spawn("policy", follow);
    until("told at the start", || {
        door.asked()
            .contains(&Asked::Restore(vec!["s1".to_owned()]))
    })
    .await;
    door.be(Mood::Unwilling);

    pods.del(&attachment("s1"), None).await.unwrap();

    until("told that there is nobody", || {
        door.asked().last() == Some(&Asked::Restore(Vec::new()))
    })
    .await;
    lab.tasks.drain().stop();
}

#[tokio::test]
async fn check_says_that_policy_is_not_in_force() {
    let lab = Lab::new().await;
    let door = Door::new(&lab.ledger);
    let _serving = door.serve(&lab.socket());
    let pods = lab.pods(&lab.gate());
    pods.add(lab.add("s1")).await.unwrap();
    // This node's settings are those of the machine the test runs on, and may differ from what they should be.
    let said = |checked: Result<(), PodError>| {
        let error = checked.err();
        error.map(|e| mesh::causes::text(&e)).unwrap_or_default()
    };

    let willing = said(pods.check(&attachment("s1"), &[]).await);
    door.be(Mood::Unwilling);
    let unwilling = said(pods.check(&attachment("s1"), &[]).await);

    let asked = ready(&lab, "s1");
    assert_eq!(door.asked(), [asked.clone(), asked.clone(), asked]);
    assert!(!willing.contains("policy"), "{willing}");
    assert!(
        unwilling.contains("policy") && unwilling.contains("the kernel says no"),
        "{unwilling}"
    );
}
