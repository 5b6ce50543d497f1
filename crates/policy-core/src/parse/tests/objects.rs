//! Pods, namespaces, nodes, service accounts, and what is none of them.

use std::net::IpAddr;
use std::sync::Arc;

use rstest::rstest;
use serde_json::{Value, json};

use super::super::{Parsed, document, documents};
use crate::flow::Protocol;
use crate::object::{NamedPort, Object, Pod};

fn pod(value: &Value) -> Pod {
    let parsed = document(value);
    let Parsed::Object(Object::Pod(pod)) = parsed else {
        panic!("{parsed:?}");
    };
    pod
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

// B5
#[test]
fn pod_addresses_come_from_status_and_annotation() {
    let early = pod(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "annotations": {"k8s.aliyun.com/pod-ips": "10.0.0.3, fd00::3"}},
    }));
    assert_eq!(early.ips, ips(&["10.0.0.3", "fd00::3"]));
    let whole = pod(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "annotations": {"k8s.aliyun.com/pod-ips": "10.0.0.3,nonsense"}},
        "status": {"podIP": "10.0.0.3", "podIPs": [{"ip": "10.0.0.3"}, {"ip": "fd00::3"}, {}]},
    }));
    assert_eq!(whole.ips, ips(&["10.0.0.3", "fd00::3"]));
    assert_eq!(whole.key.namespace, "default");
    assert_eq!(&*whole.service_account, "default");
}

// D6
#[test]
fn pod_ports_are_those_of_containers_that_run_beside_each_other() {
    let pod = pod(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "namespace": "shop", "uid": "u1"},
        "spec": {
            "nodeName": "n1",
            "serviceAccountName": "robot",
            "containers": [
                {"ports": [{"name": "web", "containerPort": 80}, {"containerPort": 81}]},
                {"ports": [{"name": "web", "containerPort": 8080, "protocol": "UDP"}, {"name": "bad", "containerPort": 0}]},
            ],
            "initContainers": [
                {"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 9, "protocol": "SCTP"}]},
                {"ports": [{"name": "once", "containerPort": 7}]},
            ],
        },
    }));
    let port = |name: &str, protocol, number| NamedPort {
        name: Arc::from(name),
        protocol,
        number,
    };
    assert_eq!(
        pod.ports,
        [
            port("side", Protocol::SCTP, 9),
            port("web", Protocol::TCP, 80),
            port("web", Protocol::UDP, 8080),
        ]
    );
    assert_eq!((&*pod.uid, &*pod.node), ("u1", "n1"));
    assert_eq!(&*pod.service_account, "robot");
}

// B6
#[rstest]
#[case("Succeeded", true)]
#[case("Failed", true)]
#[case("Running", false)]
#[case("Pending", false)]
#[case("Unknown", false)]
fn pod_phase_says_whether_it_is_finished(#[case] phase: &str, #[case] finished: bool) {
    let pod = pod(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "status": {"phase": phase},
    }));
    assert_eq!(pod.finished, finished);
}

// B7
#[test]
fn pod_that_terminates_is_not_finished() {
    let pod = pod(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"},
        "status": {"phase": "Running"},
    }));
    assert!(!pod.finished);
}

// E8
#[rstest]
#[case(json!("off"), true)]
#[case(json!("OFF"), true)]
#[case(json!("false"), true)]
#[case(json!(false), true)]
#[case(json!("on"), false)]
#[case(json!("true"), false)]
#[case(json!(""), false)]
#[case(json!(null), false)]
#[case(json!({}), false)]
fn pod_annotation_turns_the_source_filter_off(#[case] text: Value, #[case] spoofs: bool) {
    let pod = pod(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "annotations": {"k8s.aliyun.com/spoof-check": text}},
    }));
    assert_eq!(pod.spoofs, spoofs);
}

// B4
#[test]
fn namespace_has_the_labels_of_its_object_alone() {
    let parsed = document(&json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"a": "b", "c": 1}},
    }));
    let Parsed::Object(Object::Namespace(namespace)) = parsed else {
        panic!("{parsed:?}");
    };
    assert_eq!(namespace.labels.len(), 1);
    assert_eq!(namespace.labels.get("a").map(AsRef::as_ref), Some("b"));
}

// F4
#[test]
fn node_has_every_address_of_its_status() {
    let parsed = document(&json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"zone": "a"}},
        "status": {"addresses": [
            {"type": "InternalIP", "address": "10.0.0.9"}, {"type": "ExternalIP", "address": "47.0.0.1"},
            {"type": "InternalIP", "address": "fd00::9"}, {"type": "Hostname", "address": "n1"},
        ]},
    }));
    let Parsed::Object(Object::Node(node)) = parsed else {
        panic!("{parsed:?}");
    };
    assert_eq!(node.ips, ips(&["10.0.0.9", "47.0.0.1", "fd00::9"]));
}

#[test]
fn document_without_identity_is_unreadable_and_names_the_field() {
    let field = |value: &Value| {
        let parsed = document(value);
        let Parsed::Unreadable { field, .. } = parsed else {
            panic!("{parsed:?}");
        };
        field
    };
    assert_eq!(field(&json!([])), "");
    assert_eq!(field(&json!({"kind": "Pod"})), "apiVersion");
    assert_eq!(field(&json!({"apiVersion": "v1"})), "kind");
    assert_eq!(
        field(&json!({"apiVersion": "v1", "kind": "Pod"})),
        "metadata"
    );
    let nameless = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": 3}});
    assert_eq!(field(&nameless), "metadata.name");
    let homeless =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": []}});
    assert_eq!(field(&homeless), "metadata.namespace");
}

#[test]
fn document_of_another_kind_is_ignored() {
    let other = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {}});
    assert_eq!(
        document(&other),
        Parsed::Ignored("apps/v1/Deployment".to_owned())
    );
}

#[test]
fn list_is_read_item_by_item_with_its_kind() {
    let typed = json!({"apiVersion": "v1", "kind": "PodList", "items": [
        {"metadata": {"name": "a"}}, {"metadata": {}},
    ]});
    let parsed = documents(&typed);
    assert!(matches!(
        parsed.as_slice(),
        [Parsed::Object(Object::Pod(_)), Parsed::Unreadable { .. }]
    ));
    let mixed = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}, 7,
    ]});
    let parsed = documents(&mixed);
    assert!(matches!(
        parsed.as_slice(),
        [
            Parsed::Object(Object::Namespace(_)),
            Parsed::Unreadable { .. }
        ]
    ));
}
