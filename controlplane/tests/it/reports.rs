//! What nodes may have written, and what not.

use http::Request;
use mesh::client::Channel;
use mesh::status;
use mesh::tls::TlsMaterial;
use proto::control::v1::node_reports_client::NodeReportsClient;
use proto::control::v1::post_event_request::About;
use proto::control::v1::{
    AnnotatePodRequest, NodeCondition, NodeObject, PodObject, PostEventRequest, ReportNodeRequest,
};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::bed::{Bed, NAMESPACE, Replica, until};

const TAINT: &str = "node.terway.local/not-ready";

/// Nodes that speak: the first one to both replicas.
pub(crate) struct Speakers {
    pub(crate) n1: NodeReportsClient<Channel>,
    pub(crate) n1_to_b: NodeReportsClient<Channel>,
    pub(crate) n2: NodeReportsClient<Channel>,
}

impl Speakers {
    pub(crate) async fn new(bed: &Bed, a: &Replica, b: &Replica) -> Self {
        let node = async |name: &str| -> TlsMaterial {
            let pod = format!("agents-{name}");
            let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}");
            let uid = bed.get(&path).await["metadata"]["uid"].clone();
            let bound = Some((pod.as_str(), uid.as_str().unwrap()));
            let token = bed.token("terway-node", bed.audience(), bound).await;
            a.certificate(bed, token, name).await
        };
        let (n1, n2) = (node("n1").await, node("n2").await);
        Self {
            n1: NodeReportsClient::new(a.with(&n1)),
            n1_to_b: NodeReportsClient::new(b.with(&n1)),
            n2: NodeReportsClient::new(a.with(&n2)),
        }
    }
}

pub(crate) fn report(node: &str, instance: &str) -> ReportNodeRequest {
    ReportNodeRequest {
        node_name: node.to_owned(),
        instance_id: instance.to_owned(),
        component: "node-agent".to_owned(),
        ..ReportNodeRequest::default()
    }
}

#[track_caller]
fn is_mismatch<T: std::fmt::Debug>(answer: Result<T, Status>) {
    let refused = answer.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let reason = status::reason(&refused);
    assert_eq!(reason.as_deref(), Some(status::IDENTITY_MISMATCH));
}

async fn node(bed: &Bed, name: &str) -> Value {
    bed.get(&format!("/api/v1/nodes/{name}")).await
}

async fn pod(bed: &Bed, name: &str) -> Value {
    bed.get(&format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}"))
        .await
}

/// Taints but those that the API server sets by itself on a node without a kubelet.
fn taints(node: &Value) -> Vec<&str> {
    let taints = node["spec"]["taints"].as_array().unwrap().iter();
    let keys = taints.map(|taint| taint["key"].as_str().unwrap());
    keys.filter(|key| !key.starts_with("node.kubernetes.io/"))
        .collect()
}

pub(crate) async fn node_speaks_of_itself_alone(bed: &Bed, speakers: &Speakers) {
    let mut n1 = speakers.n1.clone();
    let before = node(bed, "n2").await;
    let mut of_another = report("n2", "i-1");
    of_another.serving = true;

    is_mismatch(n1.report_node(of_another).await);
    is_mismatch(n1.report_node(report("n2", "i-2")).await);
    is_mismatch(n1.report_node(report("n1", "i-2")).await);

    let unknown = n1.report_node(report("n7", "i-1")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unavailable, "{unknown}");
    let mut other_speaker = report("n1", "i-1");
    other_speaker.component = "kubelet".to_owned();
    let refused = n1.report_node(other_speaker).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert_eq!(node(bed, "n2").await, before);
}

pub(crate) async fn conditions_are_written_and_the_taint_goes_with_the_first_serving(
    bed: &Bed,
    speakers: &Speakers,
) {
    let mut n1 = speakers.n1.clone();
    let condition = |status: bool| NodeCondition {
        r#type: "SufficientIP".to_owned(),
        status,
        reason: if status {
            "SufficientIP"
        } else {
            "InsufficientIP"
        }
        .to_owned(),
        message: "as seen".to_owned(),
    };
    let written = |node: &Value| -> (String, String) {
        let all = node["status"]["conditions"].as_array().unwrap();
        let one = all.iter().find(|c| c["type"] == "SufficientIP").unwrap();
        let word = |key: &str| one[key].as_str().unwrap().to_owned();
        (word("status"), word("reason"))
    };
    let mut said = report("n1", "i-1");
    said.conditions = vec![condition(false)];
    said.pod_capacity = 45;

    n1.report_node(said.clone()).await.unwrap();

    let now = node(bed, "n1").await;
    assert_eq!(
        written(&now),
        ("False".to_owned(), "InsufficientIP".to_owned())
    );
    assert_eq!(taints(&now), [TAINT, "somebody.else"]);
    let annotations = &now["metadata"]["annotations"];
    assert_eq!(annotations["k8s.aliyun.com/max-available-ip"], "45");

    said.conditions = vec![condition(true)];
    said.serving = true;
    n1.report_node(said.clone()).await.unwrap();

    let now = node(bed, "n1").await;
    assert_eq!(
        written(&now),
        ("True".to_owned(), "SufficientIP".to_owned())
    );
    assert_eq!(taints(&now), ["somebody.else"]);
    // The same once more changes nothing.
    n1.report_node(said).await.unwrap();
    assert_eq!(node(bed, "n1").await, now);
    let mut of_policy = report("n2", "i-2");
    of_policy.component = "policy-agent".to_owned();
    of_policy.serving = true;
    speakers.n2.clone().report_node(of_policy).await.unwrap();
    assert_eq!(taints(&node(bed, "n2").await), [TAINT, "somebody.else"]);
}

pub(crate) async fn annotations_reach_the_pod_and_not_its_successor(
    bed: &Bed,
    speakers: &Speakers,
) {
    let (mut n1, mut n2) = (speakers.n1.clone(), speakers.n2.clone());
    let uid = bed.pod("web-0", "n1", "default").await;
    let request = |uid: &str, key: &str, value: &str| AnnotatePodRequest {
        namespace: NAMESPACE.to_owned(),
        name: "web-0".to_owned(),
        uid: uid.to_owned(),
        annotations: [(key.to_owned(), value.to_owned())].into(),
    };
    let ips = "k8s.aliyun.com/pod-ips";

    n1.annotate_pod(request(&uid, ips, "10.0.0.1"))
        .await
        .unwrap();

    assert_eq!(
        pod(bed, "web-0").await["metadata"]["annotations"][ips],
        "10.0.0.1"
    );
    is_mismatch(n2.annotate_pod(request(&uid, ips, "10.0.0.2")).await);
    let foreign = request(&uid, "kubernetes.io/x", "y");
    let refused = n1.annotate_pod(foreign).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    n1.annotate_pod(request(&uid, "k8s.aliyun.com/other", "x"))
        .await
        .unwrap();
    n1.annotate_pod(request(&uid, ips, "")).await.unwrap();
    let there = pod(bed, "web-0").await["metadata"]["annotations"].clone();
    assert_eq!(there, json!({"k8s.aliyun.com/other": "x"}));

    bed.delete_pod("web-0").await;
    let gone = n1
        .annotate_pod(request(&uid, ips, "10.0.0.1"))
        .await
        .unwrap_err();
    assert_eq!(gone.code(), Code::NotFound, "{gone}");
    let successor = bed.pod("web-0", "n1", "default").await;
    assert_ne!(successor, uid);
    let gone = n1
        .annotate_pod(request(&uid, ips, "10.0.0.1"))
        .await
        .unwrap_err();
    assert_eq!(gone.code(), Code::NotFound, "{gone}");
    assert_eq!(
        pod(bed, "web-0").await["metadata"]["annotations"],
        Value::Null
    );
    bed.delete_pod("web-0").await;
}

pub(crate) async fn event_is_counted_up_by_both_replicas(bed: &Bed, speakers: &Speakers) {
    let uid = bed.pod("web-1", "n1", "default").await;
    let about = |name: &str| {
        About::Pod(PodObject {
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            uid: uid.clone(),
        })
    };
    let event = |about: About, message: &str| PostEventRequest {
        about: Some(about),
        r#type: "Warning".to_owned(),
        reason: "AllocIPFailed".to_owned(),
        message: message.to_owned(),
        key: "a".to_owned(),
        component: "node-agent".to_owned(),
    };
    let events = async |of: &str| -> Vec<Value> {
        let path = format!("/api/v1/events?fieldSelector=involvedObject.name%3D{of}");
        let list = bed.get(&path).await;
        list["items"].as_array().unwrap().clone()
    };
    let (mut to_a, mut to_b) = (speakers.n1.clone(), speakers.n1_to_b.clone());

    to_a.post_event(event(about("web-1"), "first"))
        .await
        .unwrap();
    to_a.post_event(event(about("web-1"), "second"))
        .await
        .unwrap();
    to_b.post_event(event(about("web-1"), "third"))
        .await
        .unwrap();

    let all = events("web-1").await;
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0]["count"], 3);
    assert_eq!(all[0]["message"], "third");
    assert_eq!(all[0]["involvedObject"]["uid"], uid.as_str());
    assert_eq!(all[0]["source"]["host"], "n1");
    is_mismatch(
        speakers
            .n2
            .clone()
            .post_event(event(about("web-1"), "x"))
            .await,
    );
    bed.delete_pod("web-1").await;

    let of_node = event(About::Node(NodeObject {}), "of the node");
    to_a.post_event(of_node).await.unwrap();
    let all = events("n1").await;
    assert_eq!(all[0]["metadata"]["namespace"], "default");
    assert_eq!(all[0]["involvedObject"]["kind"], "Node");
}

/// The second line: what the API server itself refuses, whatever we ask.
pub(crate) async fn rights_of_the_control_plane_end_at_what_it_needs(bed: &Bed) {
    bed.pod("web-2", "n1", "default").await;
    let client = bed.client_of("terway-controlplane").await;
    let patch = async |path: &str, patch: &Value| {
        let request = Request::patch(path)
            .header("content-type", "application/merge-patch+json")
            .body(patch.to_string().into_bytes())
            .unwrap();
        client.request::<Value>(request).await
    };
    let pod = format!("/api/v1/namespaces/{NAMESPACE}/pods/web-2");
    let of_pod = |metadata: Value| json!({"metadata": metadata});
    let ours = of_pod(json!({"annotations": {"k8s.aliyun.com/a": "b"}}));
    // The API server takes a moment until its admission policies are in force.
    until("admission policies are in force", async || {
        let theirs = of_pod(json!({"annotations": {"x": "y"}}));
        patch(&pod, &theirs).await.is_err().then_some(())
    })
    .await;
    let node = "/api/v1/nodes/n2";
    let refused = [
        (pod.as_str(), of_pod(json!({"labels": {"a": "b"}}))),
        (pod.as_str(), json!({"spec": {"activeDeadlineSeconds": 1}})),
        (node, of_pod(json!({"labels": {"a": "b"}}))),
        (node, json!({"spec": {"unschedulable": true}})),
        (
            node,
            json!({"spec": {"taints": [{"key": TAINT, "effect": "NoSchedule"}]}}),
        ),
        (
            "/api/v1/namespaces/kube-system/secrets/terway-ca",
            json!({"data": {}}),
        ),
        (
            "/api/v1/namespaces/kube-system/configmaps/kube-root-ca.crt",
            json!({"data": {}}),
        ),
    ];
    for (path, change) in refused {
        assert!(patch(path, &change).await.is_err(), "{path}: {change}");
    }
    patch(&pod, &ours).await.unwrap();
    bed.delete_pod("web-2").await;
}
