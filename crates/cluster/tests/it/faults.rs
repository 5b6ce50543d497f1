//! What an API server can do wrong, and what becomes of it.

use std::time::Duration;

use cluster::documents::{Change, DocumentKey};
use cluster::health::{Health, Phase, Reason};
use cluster::server::pace::Pace;
use cluster::server::{Server, ServerDocuments};
use serde_json::json;
use tokio::time::Instant;

use crate::contract::{global, pod, policy};
use crate::fake::Fake;
use crate::reader::{Reader, Run, picture, while_running};
use crate::server::{connect, quick};

const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";
const POLICY: &str = "networkpolicies.networking.k8s.io";
const GLOBAL: &str = "/apis/crd.projectcalico.org/v1/globalnetworkpolicies";
const GLOBAL_3: &str = "/apis/projectcalico.org/v3/globalnetworkpolicies";

fn policies(version: &str, _: &str) -> bool {
    version == "networking.k8s.io/v1"
}

fn policies_and_pods(version: &str, kind: &str) -> bool {
    policies(version, kind) || kind == "Pod"
}

fn calico(version: &str, kind: &str) -> bool {
    version == "crd.projectcalico.org/v1" && kind == "GlobalNetworkPolicy"
}

fn namespaces(_: &str, kind: &str) -> bool {
    kind == "Namespace"
}

fn running(source: ServerDocuments) -> Run {
    Box::new(|drain| Box::pin(source.run(drain)))
}

fn failures(health: &Health) -> u64 {
    health
        .resources
        .values()
        .map(|r| r.failures)
        .min()
        .unwrap_or_default()
}

fn trouble(health: &Health, reason: Reason) -> bool {
    health
        .troubles()
        .any(|(_, trouble)| trouble.reason == reason)
}

async fn open(
    fake: &Fake,
    pace: Pace,
    wanted: cluster::documents::Wanted,
) -> (ServerDocuments, Reader) {
    let (source, documents) = connect(fake).await.at(pace).documents(wanted);
    (source, Reader::new(documents))
}

#[tokio::test]
async fn server_that_goes_away_and_comes_back_disturbs_nothing() {
    let fake = Fake::start().await;
    fake.put(policy("a", "x"));
    let (source, mut reader) = open(&fake, quick(), policies).await;
    let mut health = source.health();

    while_running(running(source), async {
        reader.synced().await;
        fake.stop();
        // As many tries as an hour has at the usual pace.
        let away = health
            .wait_for(|health| failures(health) > 120)
            .await
            .unwrap()
            .clone();
        assert!(trouble(&away, Reason::Unreachable) && away.synced());
        assert!(away.contact_age().unwrap() > Duration::ZERO);
        assert!(reader.is_silent());
        fake.forget();
        fake.go_on().await;
        fake.put(policy("b", "y"));
        let next = reader.next().await;
        assert_eq!(next.changes.len(), 1, "{next:?}");
        let back = health.wait_for(|health| health.complaint().is_none());
        drop(back.await.unwrap());
    })
    .await;

    assert_eq!(reader.names(), ["a", "b"]);
    assert!(
        fake.asked()
            .iter()
            .all(|asked| asked.query.contains("resourceVersion="))
    );
}

#[tokio::test]
async fn what_happened_while_history_was_lost_is_told_and_nothing_else() {
    let fake = Fake::start().await;
    for name in ["changes", "goes", "stays"] {
        fake.put(policy(name, "x"));
    }
    let (source, mut reader) = open(&fake, quick(), policies).await;
    let mut health = source.health();

    while_running(running(source), async {
        reader.synced().await;
        fake.stop();
        drop(
            health
                .wait_for(|health| failures(health) > 0)
                .await
                .unwrap(),
        );
        fake.put(policy("changes", "y"));
        fake.delete(&policy("goes", "x"));
        fake.put(policy("comes", "z"));
        fake.compact();
        fake.go_on().await;
        reader
            .until(|r| r.label("comes").is_some() && r.label("goes").is_none())
            .await;
        assert_eq!(reader.label("changes"), Some("y"));
        assert_eq!(health.borrow().resources[POLICY].listed, 2);
    })
    .await;

    assert_eq!(reader.names(), ["changes", "comes", "stays"]);
}

#[tokio::test]
async fn watch_that_is_told_that_its_place_is_gone_reads_the_whole_again() {
    let fake = Fake::start().await;
    fake.put(policy("a", "x"));
    let (source, mut reader) = open(&fake, quick(), policies).await;
    let mut health = source.health();

    while_running(running(source), async {
        reader.synced().await;
        fake.compact();
        let again = |health: &Health| health.resources[POLICY].listed == 2;
        drop(health.wait_for(again).await.unwrap());
        assert!(reader.is_silent(), "nothing has changed");
        fake.put(policy("b", "x"));
        reader.next().await;
    })
    .await;

    assert_eq!(reader.names(), ["a", "b"]);
}

#[tokio::test]
async fn list_that_breaks_in_the_middle_takes_nothing_back() {
    let fake = Fake::start().await;
    fake.set_release(26, None);
    for n in 0..10 {
        fake.put(policy(&format!("p{n}"), "x"));
    }
    let pace = Pace { page: 3, ..quick() };
    let (source, mut reader) = open(&fake, pace, policies).await;
    let mut health = source.health();

    while_running(running(source), async {
        reader.synced().await;
        fake.delete(&policy("p5", "x"));
        reader.next().await;
        fake.stop();
        fake.compact();
        fake.cut(4);
        fake.go_on().await;
        let again = |health: &Health| health.resources[POLICY].listed == 2;
        let failed = health.wait_for(again).await.unwrap().resources[POLICY].failures;
        assert!(failed >= 4, "{failed}");
        assert!(reader.is_silent());
    })
    .await;

    assert_eq!(reader.state.len(), 9);
}

#[tokio::test]
async fn list_whose_continuation_expired_begins_anew() {
    let fake = Fake::start().await;
    fake.set_release(26, None);
    for n in 0..10 {
        fake.put(policy(&format!("p{n}"), "x"));
    }
    // The release, two pages, and then it is too late.
    fake.trouble(&[(0, None), (0, None), (0, None), (410, None)]);
    let pace = Pace { page: 3, ..quick() };
    let (source, mut reader) = open(&fake, pace, policies).await;

    while_running(running(source), reader.synced()).await;

    assert_eq!(reader.state.len(), 10);
    let firsts = fake
        .asked()
        .into_iter()
        .filter(|asked| asked.query == "limit=3");
    assert_eq!(firsts.count(), 2);
}

#[tokio::test]
async fn server_that_asks_for_patience_gets_it() {
    let fake = Fake::start().await;
    fake.trouble(&[(429, Some(1)), (503, None), (500, None)]);
    let (source, mut reader) = open(&fake, quick(), policies).await;
    let begun = Instant::now();

    while_running(running(source), reader.synced()).await;

    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(fake.asked().len(), 5, "{:?}", fake.asked());
}

#[tokio::test]
async fn verb_that_is_forbidden_is_named_and_tried_ever_more_slowly() {
    for (verb, streams) in [("watch", true), ("watch", false), ("list", false)] {
        for (code, reason) in [(403, Reason::Forbidden), (401, Reason::Unauthenticated)] {
            let fake = Fake::start().await;
            fake.set_release(if streams { 34 } else { 26 }, None);
            fake.put(policy("a", "x"));
            fake.put(pod("b", "n1", "x"));
            fake.refuse(verb, POLICIES, Some(code));
            let (source, mut reader) = open(&fake, quick(), policies_and_pods).await;
            let mut health = source.health();

            while_running(running(source), async {
                let often = |health: &Health| health.resources[POLICY].failures >= 8;
                let seen = health.wait_for(often).await.unwrap().clone();
                let trouble = seen.resources[POLICY].trouble.clone().unwrap();
                assert_eq!((trouble.reason, trouble.verb), (reason, verb));
                let complaint = seen.complaint().unwrap();
                assert!(
                    complaint.starts_with(&format!("{verb} {POLICY}: {code}")),
                    "{complaint}"
                );
                let asked = fake
                    .asked()
                    .into_iter()
                    .filter(|asked| asked.path == POLICIES);
                assert!(
                    asked.count() <= 11,
                    "no more requests than failures and lists"
                );
                reader.until(|r| r.label("b").is_some()).await;
                if verb == "watch" && !streams {
                    // A list that may be read counts.
                    reader.synced().await;
                }
                assert_eq!(reader.synced, verb == "watch" && !streams);
                fake.refuse(verb, POLICIES, None);
                reader.until(|r| r.synced && r.state.len() == 2).await;
                drop(health.wait_for(|h| h.complaint().is_none()).await.unwrap());
            })
            .await;
        }
    }
}

#[tokio::test]
async fn kind_that_is_defined_later_is_found_and_lost_again() {
    let fake = Fake::start().await;
    fake.set_served(GLOBAL, false);
    let (source, mut reader) = open(&fake, quick(), calico).await;
    let mut health = source.health();

    while_running(running(source), async {
        let first = reader.next().await;
        assert!(first.synced && first.changes.is_empty());
        let absent = |health: &Health| health.resources.values().all(|r| r.phase == Phase::Absent);
        drop(health.wait_for(absent).await.unwrap());
        assert_eq!(health.borrow().complaint(), None);
        fake.set_served(GLOBAL, true);
        fake.put(global("a", "x"));
        reader.until(|r| r.label("a").is_some()).await;
        fake.stop();
        fake.set_served(GLOBAL, false);
        fake.forget();
        fake.go_on().await;
        let last = reader.next().await;
        assert_eq!(
            last.changes,
            [Change::Delete(DocumentKey::of(&global("a", "x")))]
        );
        // It is not believed at once: a server that starts does not know all of its kinds.
        let looks = fake
            .asked()
            .into_iter()
            .filter(|asked| asked.path == GLOBAL);
        assert!(looks.count() >= 3);
    })
    .await;
}

#[tokio::test]
async fn policies_of_calico_are_found_behind_its_own_server() {
    let fake = Fake::start().await;
    fake.set_served(GLOBAL, false);
    fake.set_served(GLOBAL_3, true);
    let mut policy = global("a", "x");
    policy["apiVersion"] = json!("projectcalico.org/v3");
    fake.put(policy.clone());
    let (source, mut reader) = open(&fake, quick(), calico).await;

    while_running(running(source), reader.synced()).await;

    let keys: Vec<_> = reader.state.keys().cloned().collect();
    assert_eq!(keys, [DocumentKey::of(&policy)]);
}

#[tokio::test]
async fn connection_that_dies_without_a_word_is_replaced() {
    let fake = Fake::start().await;
    let pace = Pace {
        silence: Duration::from_millis(500),
        ..quick()
    };
    let (source, mut reader) = open(&fake, pace, policies).await;

    while_running(running(source), async {
        reader.synced().await;
        fake.set_mute(true);
        fake.put(policy("a", "x"));
        fake.set_mute(false);
        reader.until(|r| r.label("a").is_some()).await;
    })
    .await;
}

#[tokio::test]
async fn place_on_which_nothing_ever_comes_is_doubted() {
    let fake = Fake::start().await;
    fake.set_bookmarks(false);
    let pace = Pace {
        silence: Duration::from_millis(50),
        ..quick()
    };
    let (source, mut reader) = open(&fake, pace, policies).await;
    let mut health = source.health();

    while_running(running(source), async {
        reader.synced().await;
        let again = |health: &Health| health.resources[POLICY].listed >= 3;
        drop(health.wait_for(again).await.unwrap());
        assert!(reader.is_silent());
    })
    .await;
}

#[tokio::test]
async fn heartbeats_are_no_news() {
    let fake = Fake::start().await;
    fake.put(pod("a", "n1", "x"));
    let (source, mut reader) = open(&fake, quick(), policies_and_pods).await;

    while_running(running(source), async {
        reader.synced().await;
        let mut beat = pod("a", "n1", "x");
        for n in 0..10 {
            beat["status"] = json!({"conditions": [{"type": "Ready", "lastHeartbeatTime": n}]});
            beat["metadata"]["annotations"] = json!({"example.com/seen": n.to_string()});
            fake.put(beat.clone());
        }
        fake.put(pod("b", "n1", "x"));
        reader.until(|r| r.label("b").is_some()).await;
    })
    .await;

    // Both pods, and once that there is a status, though nothing in it is looked at.
    assert_eq!(reader.changes, 3);
}

#[tokio::test]
async fn kinds_of_which_metadata_is_enough_are_asked_for_that_alone() {
    for streams in [true, false] {
        let fake = Fake::start().await;
        fake.set_release(34, (!streams).then_some(422));
        fake.put(json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "a", "labels": {"l": "x"}}, "spec": {"finalizers": ["kubernetes"]}}));
        let (source, mut reader) = open(&fake, quick(), namespaces).await;

        while_running(running(source), reader.synced()).await;

        let told = reader.state.values().next().unwrap();
        let expected = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "a", "labels": {"l": "x"}}});
        assert_eq!(told, &expected);
        let asked = fake
            .asked()
            .into_iter()
            .filter(|asked| asked.path == "/api/v1/namespaces");
        assert!(
            asked
                .into_iter()
                .all(|asked| asked.accept.contains("as=PartialObjectMetadata"))
        );
    }
}

#[tokio::test]
async fn node_asks_for_its_own_pods_alone() {
    for streams in [true, false] {
        let fake = Fake::start().await;
        fake.set_release(34, (!streams).then_some(422));
        fake.put(pod("a", "n1", "x"));
        fake.put(pod("b", "n2", "x"));
        let (source, mut pods) = connect(&fake).await.pods("n1");
        let mut health = source.health();

        while_running(Box::new(|drain| Box::pin(source.run(drain))), async {
            picture(&mut pods, |set| set.len() == 1).await;
            let watches = |health: &Health| health.resources["pods"].phase == Phase::Watching;
            drop(health.wait_for(watches).await.unwrap());
        })
        .await;

        let asked = fake.asked();
        let mut of_pods = asked.iter().filter(|asked| asked.path != "/version");
        assert!(of_pods.all(|asked| asked.path == "/api/v1/pods"
            && asked.query.contains("fieldSelector=spec.nodeName=n1")));
    }
}

#[tokio::test]
async fn picture_stays_while_the_server_is_away() {
    let fake = Fake::start().await;
    fake.put(pod("a", "n1", "x"));
    fake.put(pod("b", "n1", "x"));
    let (source, mut pods) = connect(&fake).await.pods("n1");
    let mut health = source.health();

    while_running(Box::new(|drain| Box::pin(source.run(drain))), async {
        picture(&mut pods, |set| set.len() == 2).await;
        fake.stop();
        drop(
            health
                .wait_for(|health| failures(health) > 20)
                .await
                .unwrap(),
        );
        assert_eq!(pods.snapshot().len(), 2);
        fake.delete(&pod("a", "n1", "x"));
        fake.compact();
        fake.go_on().await;
        picture(&mut pods, |set| set.len() == 1).await;
    })
    .await;
}

#[tokio::test]
async fn kubeconfig_that_can_not_be_used_is_named() {
    let error = Server::connect(Some("/does/not/exist".as_ref()))
        .await
        .unwrap_err();

    assert_eq!(error.to_string(), "kubeconfig /does/not/exist");
}
