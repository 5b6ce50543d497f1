//! What every source of objects promises its readers.

use cluster::documents::{BATCH_MAX, Change, DocumentKey, Documents, Wanted};
use cluster::pods::{PodSet, Pods};
use serde_json::{Value, json};
use types::pod::PodKey;

use crate::reader::{Reader, Run, picture, while_running};

/// A cluster whose objects can be changed, and the source that is held to the contract.
pub(crate) trait World {
    /// Creates or replaces an object.
    async fn put(&mut self, object: Value);
    /// Deletes an object.
    async fn delete(&mut self, object: &Value);
    /// A source of documents.
    async fn documents(&self, wanted: Wanted) -> (Run, Documents);
    /// A source of the pods of a node.
    async fn pods(&self, node: &str) -> (Run, Pods);
}

/// Calls a macro with the names of all cases.
macro_rules! for_each_case {
    ($each:ident) => {
        $each! {
            cluster_without_objects_is_synced_by_an_empty_batch
            all_that_is_there_is_told_before_synced
            change_and_deletion_are_told_in_order
            object_that_is_put_again_unchanged_is_no_news
            object_that_comes_back_is_told_again
            kinds_nobody_asked_for_are_left_out
            large_cluster_is_synced_with_its_last_batch
            reader_that_waits_long_loses_nothing
            policies_of_other_groups_keep_their_names_apart
            picture_has_the_pods_of_its_node_alone
            picture_follows_labels_phase_and_deletion
        }
    };
}
pub(crate) use for_each_case;

pub(crate) fn pod(name: &str, node: &str, label: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "contract", "labels": {"l": label}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i",
            "ports": [{"name": "web", "containerPort": 80}]}]},
    })
}

pub(crate) fn policy(name: &str, label: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "contract", "labels": {"l": label}},
        "spec": {"podSelector": {"matchLabels": {"l": label}}, "policyTypes": ["Ingress"]},
    })
}

pub(crate) fn global(name: &str, label: &str) -> Value {
    json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkPolicy",
        "metadata": {"name": name, "labels": {"l": label}},
        "spec": {"selector": format!("l == '{label}'"), "types": ["Ingress"]},
    })
}

fn policies(_: &str, kind: &str) -> bool {
    kind == "NetworkPolicy"
}

fn policies_and_pods(_: &str, kind: &str) -> bool {
    kind == "NetworkPolicy" || kind == "Pod"
}

fn all_policies(_: &str, kind: &str) -> bool {
    kind.ends_with("NetworkPolicy")
}

pub(crate) async fn cluster_without_objects_is_synced_by_an_empty_batch(world: &mut impl World) {
    let (run, documents) = world.documents(policies).await;
    let mut reader = Reader::new(documents);

    let batch = while_running(run, reader.next()).await;

    assert!(batch.synced && batch.changes.is_empty(), "{batch:?}");
}

pub(crate) async fn all_that_is_there_is_told_before_synced(world: &mut impl World) {
    world.put(policy("a", "x")).await;
    world.put(pod("b", "n1", "y")).await;
    let (run, documents) = world.documents(policies_and_pods).await;
    let mut reader = Reader::new(documents);

    while_running(run, reader.synced()).await;

    assert_eq!(
        (reader.label("a"), reader.label("b")),
        (Some("x"), Some("y"))
    );
    assert_eq!(reader.state.len(), 2);
    let kinds: Vec<_> = reader
        .state
        .keys()
        .map(|k| (&*k.api_version, &*k.kind))
        .collect();
    assert_eq!(
        kinds,
        [("networking.k8s.io/v1", "NetworkPolicy"), ("v1", "Pod")]
            .into_iter()
            .collect::<Vec<_>>()
    );
}

pub(crate) async fn change_and_deletion_are_told_in_order(world: &mut impl World) {
    world.put(policy("a", "x")).await;
    let (run, documents) = world.documents(policies).await;
    let mut reader = Reader::new(documents);

    while_running(run, async {
        reader.synced().await;
        world.put(policy("a", "y")).await;
        world.put(policy("b", "z")).await;
        reader
            .until(|r| r.label("a") == Some("y") && r.label("b") == Some("z"))
            .await;
        world.delete(&policy("a", "y")).await;
        let last = reader.next().await;
        assert_eq!(
            last.changes,
            [Change::Delete(DocumentKey::of(&policy("a", "y")))]
        );
    })
    .await;

    assert_eq!(reader.names(), ["b"]);
}

pub(crate) async fn object_that_is_put_again_unchanged_is_no_news(world: &mut impl World) {
    world.put(policy("a", "x")).await;
    let (run, documents) = world.documents(policies).await;
    let mut reader = Reader::new(documents);

    while_running(run, async {
        reader.synced().await;
        world.put(policy("a", "x")).await;
        world.put(policy("b", "z")).await;
        let next = reader.next().await;
        assert_eq!(next.changes.len(), 1, "{next:?}");
    })
    .await;

    assert_eq!(reader.names(), ["a", "b"]);
}

pub(crate) async fn object_that_comes_back_is_told_again(world: &mut impl World) {
    world.put(pod("a", "n1", "x")).await;
    let (run, documents) = world.documents(policies_and_pods).await;
    let mut reader = Reader::new(documents);

    while_running(run, async {
        reader.synced().await;
        world.delete(&pod("a", "n1", "x")).await;
        reader.until(|r| r.state.is_empty()).await;
        world.put(pod("a", "n2", "x")).await;
        reader.until(|r| r.label("a") == Some("x")).await;
    })
    .await;

    let told = reader.state.values().next().unwrap();
    assert_eq!(told["spec"]["nodeName"], "n2");
    assert_eq!(
        told["spec"]["containers"][0]["ports"][0]["containerPort"],
        80
    );
}

pub(crate) async fn kinds_nobody_asked_for_are_left_out(world: &mut impl World) {
    world.put(pod("b", "n1", "y")).await;
    world.put(policy("a", "x")).await;
    let (run, documents) = world.documents(policies).await;
    let mut reader = Reader::new(documents);

    while_running(run, reader.synced()).await;

    assert_eq!(reader.names(), ["a"]);
}

pub(crate) async fn large_cluster_is_synced_with_its_last_batch(world: &mut impl World) {
    let all = BATCH_MAX + 10;
    for n in 0..all {
        world.put(policy(&format!("p{n}"), "x")).await;
    }
    let (run, documents) = world.documents(policies).await;
    let mut reader = Reader::new(documents);

    while_running(run, async {
        while !reader.synced {
            let batch = reader.next().await;
            assert!(batch.changes.len() <= BATCH_MAX);
            assert!(!batch.synced || reader.state.len() == all);
        }
    })
    .await;

    assert!(reader.number > 1);
}

pub(crate) async fn reader_that_waits_long_loses_nothing(world: &mut impl World) {
    let (run, documents) = world.documents(policies).await;
    let mut reader = Reader::new(documents);

    while_running(run, async {
        reader.synced().await;
        for round in 0..20 {
            for n in 0..20 {
                world
                    .put(policy(&format!("p{n}"), &format!("r{round}")))
                    .await;
            }
            if round == 10 {
                world.delete(&policy("p19", "r10")).await;
            }
        }
        world.delete(&policy("p0", "r19")).await;
        let is_last = |r: &Reader| {
            let last = |n: &usize| r.label(&format!("p{n}")) == Some("r19");
            r.label("p0").is_none() && (1..20).filter(last).count() == 19
        };
        reader.until(is_last).await;
    })
    .await;
}

pub(crate) async fn policies_of_other_groups_keep_their_names_apart(world: &mut impl World) {
    world.put(policy("same", "x")).await;
    world.put(global("same", "y")).await;
    let (run, documents) = world.documents(all_policies).await;
    let mut reader = Reader::new(documents);

    while_running(run, async {
        reader.synced().await;
        assert_eq!(reader.state.len(), 2);
        let told = &reader.state[&DocumentKey::of(&global("same", "y"))];
        assert_eq!(told["spec"], global("same", "y")["spec"]);
        world.delete(&global("same", "y")).await;
        reader.until(|r| r.state.len() == 1).await;
    })
    .await;

    assert_eq!(reader.label("same"), Some("x"));
}

pub(crate) async fn picture_has_the_pods_of_its_node_alone(world: &mut impl World) {
    world.put(pod("a", "n1", "x")).await;
    world.put(pod("b", "n2", "x")).await;
    let (run, mut pods) = world.pods("n1").await;

    while_running(run, async {
        picture(&mut pods, |set| !set.is_empty()).await;
        world.put(pod("c", "n2", "x")).await;
        world.put(pod("d", "n1", "x")).await;
        picture(&mut pods, |set| set.len() == 2).await;
    })
    .await;

    let keys: Vec<_> = pods.snapshot().keys().cloned().collect();
    assert_eq!(
        keys,
        [PodKey::new("contract", "a"), PodKey::new("contract", "d")]
    );
}

pub(crate) async fn picture_follows_labels_phase_and_deletion(world: &mut impl World) {
    world.put(pod("a", "n1", "x")).await;
    let (run, mut pods) = world.pods("n1").await;
    let key = PodKey::new("contract", "a");

    while_running(run, async {
        picture(&mut pods, |set| set.contains_key(&key)).await;
        assert!(pods.snapshot()[&key].needs_address());
        let mut changed = pod("a", "n1", "y");
        changed["status"] = json!({"phase": "Succeeded"});
        world.put(changed.clone()).await;
        picture(&mut pods, |set| {
            set[&key].finished && set[&key].labels["l"] == "y"
        })
        .await;
        world.delete(&changed).await;
        picture(&mut pods, PodSet::is_empty).await;
    })
    .await;
}
