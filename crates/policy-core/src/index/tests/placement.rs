//! Local pods: objects, attachments, policies.

use std::sync::Arc;

use serde_json::json;

use super::super::Index;
use super::*;
use crate::parse::{Parsed, document};
use crate::policy::Policy;

fn policy(name: &str, spec: &serde_json::Value) -> Policy {
    let parsed = document(&json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "a"}, "spec": spec,
    }));
    let Parsed::Object(Object::Policy(policy)) = parsed else {
        panic!("{parsed:?}");
    };
    policy
}

fn put(index: &mut Index, policy: &Policy) {
    index.apply(Event::Upsert(Object::Policy(policy.clone())));
}

fn names(index: &Index, pod: &Pod) -> Vec<String> {
    let subject = index.subject(&pod.key).unwrap();
    subject
        .policies
        .iter()
        .map(|p| p.id.name.to_string())
        .collect()
}

// A1
#[test]
fn subject_has_the_policies_of_its_namespace_that_select_it() {
    let mut index = Index::new(HERE);
    let web = local("a", "web", "web", &["10.0.0.1"]);
    upsert(&mut index, &web);
    put(&mut index, &policy("all", &json!({})));
    put(
        &mut index,
        &policy(
            "web",
            &json!({"podSelector": {"matchLabels": {"app": "web"}}}),
        ),
    );
    put(
        &mut index,
        &policy(
            "db",
            &json!({"podSelector": {"matchLabels": {"app": "db"}}}),
        ),
    );
    let mut elsewhere = policy("all", &json!({}));
    elsewhere.id.namespace = Arc::from("b");
    elsewhere.subject.namespaces = own("b");
    put(&mut index, &elsewhere);
    assert_eq!(names(&index, &web), ["all", "web"]);
    let changes = index.take_changes();
    assert_eq!(changes.subjects, std::slice::from_ref(&web.key));
    assert_eq!(changes.policies.len(), 4);
    assert_eq!(changes.problems, []);
    put(
        &mut index,
        &policy(
            "db",
            &json!({"podSelector": {"matchLabels": {"app": "dbs"}}}),
        ),
    );
    assert_eq!(index.take_changes().subjects, []);
}

// A2
#[test]
fn subject_has_the_same_policies_whatever_the_order_of_creation() {
    let policies = ["c", "a", "b"].map(|name| policy(name, &json!({})));
    let web = local("a", "web", "web", &["10.0.0.1"]);
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
        let mut index = Index::new(HERE);
        put(&mut index, &policies[order[0]]);
        upsert(&mut index, &web);
        put(&mut index, &policies[order[1]]);
        put(&mut index, &policies[order[2]]);
        assert_eq!(names(&index, &web), ["a", "b", "c"]);
        index.apply(Event::Delete(ObjectKey::Policy(policies[2].id.clone())));
        assert_eq!(names(&index, &web), ["a", "c"]);
    }
}

// B3
#[test]
fn policy_with_a_broken_subject_selects_the_namespace_and_is_named_once() {
    let mut index = Index::new(HERE);
    let web = local("a", "web", "web", &["10.0.0.1"]);
    upsert(&mut index, &web);
    let broken = policy("broken", &json!({"podSelector": 3}));
    put(&mut index, &broken);
    assert_eq!(names(&index, &web), ["broken"]);
    let problems = index.take_changes().problems;
    assert_eq!(problems, std::slice::from_ref(&broken.id));
    assert_eq!(index.problems().get(&broken.id), Some(&broken.problems));
    put(&mut index, &broken);
    assert!(index.take_changes().is_empty());
    put(&mut index, &policy("broken", &json!({})));
    assert_eq!(index.take_changes().problems, [broken.id]);
}

// B10
#[test]
fn subject_that_changes_labels_changes_policies() {
    let mut index = Index::new(HERE);
    put(
        &mut index,
        &policy(
            "web",
            &json!({"podSelector": {"matchLabels": {"app": "web"}}}),
        ),
    );
    let web = local("a", "p", "web", &["10.0.0.1"]);
    upsert(&mut index, &web);
    assert_eq!(names(&index, &web), ["web"]);
    drop(index.take_changes());
    upsert(&mut index, &local("a", "p", "db", &["10.0.0.1"]));
    assert!(names(&index, &web).is_empty());
    assert_eq!(index.take_changes().subjects, [web.key]);
}

// F1, F2
#[test]
fn policies_of_cluster_kinds_stand_around_those_of_the_namespace() {
    let cluster = |name: &str, tier: &str, priority: u32| {
        let parsed = document(&json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": name},
            "spec": {"tier": tier, "priority": priority, "subject": {"namespaces": {}}},
        }));
        let Parsed::Object(Object::Policy(policy)) = parsed else {
            panic!("{parsed:?}");
        };
        policy
    };
    let mut index = Index::new(HERE);
    let web = local("a", "web", "web", &["10.0.0.1"]);
    upsert(&mut index, &web);
    put(&mut index, &cluster("base", "Baseline", 0));
    put(&mut index, &cluster("late", "Admin", 9));
    put(&mut index, &policy("np", &json!({})));
    put(&mut index, &cluster("first", "Admin", 1));
    // B4: the labels of the namespace are not known yet.
    assert_eq!(names(&index, &web), ["np"]);
    assert!(!index.subject(&web.key).unwrap().namespace_known);
    namespace(&mut index, "a", &[]);
    assert_eq!(names(&index, &web), ["first", "late", "np", "base"]);
    let judged = index.policies_of(&web);
    assert_eq!(judged, index.subject(&web.key).unwrap().policies);
}

// B5
#[test]
fn attachment_carries_its_addresses_before_the_object_has_them() {
    let mut index = Index::new(HERE);
    let set = index.acquire(&pods(own("a"), is("app", "web")));
    let web = local("a", "web", "web", &[]);
    index.place(placement(&web, "s1", &["10.0.0.1"]));
    let unknown = index.subject(&web.key).unwrap();
    assert_eq!((unknown.pod, unknown.ips), (None, vec![ip("10.0.0.1")]));
    assert_eq!(addresses(&index, set), NONE);
    upsert(&mut index, &web);
    assert_eq!(addresses(&index, set), [ip("10.0.0.1")]);
    let known = index.subject(&web.key).unwrap();
    assert_eq!(known.pod.as_deref(), Some(&web));
    assert_eq!(known.placements.len(), 1);
    upsert(&mut index, &local("a", "web", "web", &["10.0.0.1"]));
    index.unplace(&attachment("s1"));
    assert_eq!(addresses(&index, set), [ip("10.0.0.1")]);
}

// A8, B7
#[test]
fn deleted_pod_counts_until_its_attachment_is_gone() {
    let mut index = Index::new(HERE);
    let set = index.acquire(&pods(own("a"), all()));
    put(&mut index, &policy("all", &json!({})));
    let web = local("a", "web", "web", &["10.0.0.1"]);
    upsert(&mut index, &web);
    index.place(placement(&web, "s1", &["10.0.0.1"]));
    delete(&mut index, &web);
    assert_eq!(addresses(&index, set), [ip("10.0.0.1")]);
    assert_eq!(names(&index, &web), ["all"]);
    index.unplace(&attachment("s1"));
    assert_eq!(addresses(&index, set), NONE);
    assert_eq!(index.subject(&web.key), None);
    assert_eq!(index.counts().pods, 0);
}

// B6
#[test]
fn finished_pod_with_an_attachment_is_a_subject_of_nothing() {
    let mut index = Index::new(HERE);
    let set = index.acquire(&pods(own("a"), all()));
    put(&mut index, &policy("all", &json!({})));
    let mut web = local("a", "web", "web", &["10.0.0.1"]);
    upsert(&mut index, &web);
    index.place(placement(&web, "s1", &["10.0.0.1"]));
    web.finished = true;
    upsert(&mut index, &web);
    assert_eq!(addresses(&index, set), NONE);
    let subject = index.subject(&web.key).unwrap();
    assert_eq!((subject.pod, subject.policies), (None, vec![]));
}

// B10
#[test]
fn late_removal_of_an_old_sandbox_leaves_its_successor_alone() {
    let mut index = Index::new(HERE);
    let set = index.acquire(&pods(own("a"), all()));
    let old = local("a", "web-0", "web", &["10.0.0.1"]);
    upsert(&mut index, &old);
    index.place(placement(&old, "s1", &["10.0.0.1"]));
    let mut new = local("a", "web-0", "web", &[]);
    new.uid = Arc::from("second");
    // The new object is seen first: the old attachment counts for nobody.
    upsert(&mut index, &new);
    assert_eq!(addresses(&index, set), NONE);
    assert_eq!(index.subject(&new.key).unwrap().placements, []);
    index.place(placement(&new, "s2", &["10.0.0.2"]));
    assert_eq!(addresses(&index, set), [ip("10.0.0.2")]);
    index.unplace(&attachment("s1"));
    index.unplace(&attachment("s1"));
    let subject = index.subject(&new.key).unwrap();
    assert_eq!(subject.ips, [ip("10.0.0.2")]);
    assert_eq!(subject.placements.len(), 1);
    assert_eq!(addresses(&index, set), [ip("10.0.0.2")]);
}

#[test]
fn sandbox_made_again_for_the_same_pod_keeps_the_new_one() {
    let mut index = Index::new(HERE);
    let web = local("a", "web", "web", &[]);
    upsert(&mut index, &web);
    index.place(placement(&web, "s1", &["10.0.0.1"]));
    index.place(placement(&web, "s2", &["10.0.0.2"]));
    assert_eq!(index.subject(&web.key).unwrap().ips.len(), 2);
    index.unplace(&attachment("s1"));
    assert_eq!(index.subject(&web.key).unwrap().ips, [ip("10.0.0.2")]);
    index.place(placement(&web, "s2", &["10.0.0.3"]));
    assert_eq!(index.subject(&web.key).unwrap().ips, [ip("10.0.0.3")]);
    drop(index.take_changes());
    index.place(placement(&web, "s2", &["10.0.0.3"]));
    assert!(index.take_changes().is_empty());
}

#[test]
fn attachment_of_a_uid_not_seen_yet_has_no_policies_of_the_old_object() {
    let mut index = Index::new(HERE);
    let old = local("a", "web-0", "web", &["10.0.0.1"]);
    upsert(&mut index, &old);
    let mut new = old.clone();
    new.uid = Arc::from("second");
    index.place(placement(&new, "s2", &["10.0.0.2"]));
    let subject = index.subject(&old.key).unwrap();
    assert_eq!(
        (subject.placements, subject.ips),
        (vec![], vec![ip("10.0.0.1")])
    );
    upsert(&mut index, &new);
    assert_eq!(index.subject(&new.key).unwrap().placements.len(), 1);
}

#[test]
fn policy_without_local_pods_is_kept_as_it_was() {
    let mut index = Index::new(HERE);
    let spec = json!({
        "podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["db"]}]},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"ipBlock": {"cidr": "fd00::/8", "except": ["fd01::/16"]}}, {}],
            "ports": [{"port": 80, "endPort": 90}, {"port": "web", "protocol": "SCTP"}]}],
        "egress": [{"to": [{"podSelector": {}, "namespaceSelector": {"matchLabels": {"a": "b"}}}]}],
    });
    let policy = policy("np", &spec);
    put(&mut index, &policy);
    assert_eq!(index.policy(&policy.id).as_deref(), Some(&policy));
    assert_eq!(index.policies().len(), 1);
    let (one, two) = (
        local("a", "one", "web", &["10.0.0.1"]),
        local("a", "two", "web", &["10.0.0.2"]),
    );
    upsert(&mut index, &one);
    upsert(&mut index, &two);
    let held = |pod: &Pod| index.subject(&pod.key).unwrap().policies.remove(0);
    assert_eq!(*held(&one), policy);
    assert!(Arc::ptr_eq(&held(&one), &held(&two)));
}
