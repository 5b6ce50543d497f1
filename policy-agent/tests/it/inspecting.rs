//! The doors for people.

use std::sync::Arc;

use policy_agent::denied::Denied;
use policy_agent::doors::PoliciesDoor;
use policy_agent::rules;
use policy_agent::trace::Tracer;
use proto::policy::v1::policies_server::Policies as _;
use proto::policy::v1::{
    DeniedRequest, DiffRequest, ExplainRequest, ShowPodRequest, StatusRequest, TraceRequest,
};
use serde_json::json;
use tokio_stream::StreamExt as _;
use tonic::Request;

use crate::bed::{Agent, Bed, FAR_V4, PATIENCE, namespace, policy, settings};
use crate::traffic::{passes, udp};

fn door(bed: &Bed, agent: &Agent) -> PoliciesDoor {
    let (reading, tracing) = (bed.place(), bed.place());
    let open: policy_agent::enforcer::port::OpenRules =
        Arc::new(move || rules::reader(&reading, &settings()));
    let tables = vec!["terway_policy".to_owned(), "terway_spoof".to_owned()];
    PoliciesDoor {
        gate: agent.gate.clone(),
        revoker: agent.revoker.clone(),
        denied: Denied::new(Arc::clone(&open), agent.gate.clone(), agent.tasks()),
        rules: open,
        tracer: Tracer::new(Arc::new(move || rules::packets(&tracing)), tables),
        tasks: agent.tasks(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_see_why_a_flow_is_denied_and_what_the_kernel_has() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let mut agent = Agent::start(&bed).await;
    let only_81 = policy(
        "only-81",
        &json!({
            "podSelector": {},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"protocol": "UDP", "port": 81}]}],
        }),
    );
    agent
        .enforce(vec![namespace("x"), pod.object(&json!({})), only_81])
        .await;
    agent.gate.ready(pod.attached("s1"), None).await.unwrap();
    let from = udp(&bed.far(), FAR_V4, 0);
    let asked = udp(&pod.namespace, pod.v4, 80);
    let marker = udp(&pod.namespace, pod.v4, 81);
    assert!(!passes(&from, &asked, &marker));
    let door = door(&bed, &agent);

    let explain = |port: &str| ExplainRequest {
        source: FAR_V4.to_string(),
        destination: "x/a".to_owned(),
        protocol: "udp".to_owned(),
        port: port.to_owned(),
        family: 0,
    };
    let denied = door
        .explain(Request::new(explain("80")))
        .await
        .unwrap()
        .into_inner();
    let allowed = door
        .explain(Request::new(explain("81")))
        .await
        .unwrap()
        .into_inner();
    assert!(!denied.allowed && allowed.allowed);
    assert!(
        denied.reasons.iter().any(|r| r.contains("only-81")),
        "{denied:?}"
    );
    assert!(
        denied.kernel.iter().any(|f| f.what.contains(&pod.link)),
        "{denied:?}"
    );
    assert_eq!(denied.differences, Vec::<String>::new());

    let shown = ShowPodRequest {
        namespace: "x".to_owned(),
        name: "a".to_owned(),
    };
    let shown = door
        .show_pod(Request::new(shown))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(shown.host_link, pod.link);
    assert!(
        shown.ingress.iter().any(|l| l.contains("only-81")),
        "{shown:?}"
    );

    let flows = door
        .denied(Request::new(DeniedRequest { limit: 0 }))
        .await
        .unwrap()
        .into_inner()
        .flows;
    assert_eq!(flows.len(), 1, "{flows:?}");
    assert_eq!((flows[0].port, flows[0].pod.as_str()), (80, "x/a"));
    assert_eq!(flows[0].direction, "ingress");
    assert!(flows[0].packets >= 1);

    let status = door
        .status(Request::new(StatusRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert!(status.enabled && status.in_sync, "{status:?}");
    assert_eq!((status.local_pods, status.policies), (1, 1));
    let diff = door
        .diff(Request::new(DiffRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(diff.lines, Vec::<String>::new());
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trace_tells_the_rules_a_packet_meets_and_leaves_nothing_behind() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let mut agent = Agent::start(&bed).await;
    agent
        .enforce(vec![
            namespace("x"),
            pod.object(&json!({})),
            crate::bed::deny_ingress(),
        ])
        .await;
    agent.gate.ready(pod.attached("s1"), None).await.unwrap();
    let door = door(&bed, &agent);
    let from = udp(&bed.far(), FAR_V4, 0);
    let request = TraceRequest {
        source: FAR_V4.to_string(),
        destination: "x/a".to_owned(),
        protocol: "udp".to_owned(),
        port: "80".to_owned(),
        seconds: 10,
    };

    let mut lines = door
        .trace(Request::new(request))
        .await
        .unwrap()
        .into_inner();
    let speak = async {
        let mut every = tokio::time::interval(std::time::Duration::from_millis(20));
        loop {
            every.tick().await;
            from.send_to(b"x", (pod.v4, 80)).unwrap();
        }
    };
    let told = async {
        loop {
            let line = lines.next().await.unwrap().unwrap().line;
            if line.contains("deny_in") {
                return line;
            }
        }
    };
    let line = tokio::select! {
        () = speak => unreachable!(),
        line = tokio::time::timeout(PATIENCE, told) => line.unwrap(),
    };

    assert!(line.contains("terway_policy"), "{line}");
    drop(lines);
    crate::bed::until("the trace's table is gone", async || {
        !bed.listed().contains("terway_trace")
    })
    .await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_in_its_own_namespace_is_explained_by_what_stands_there() {
    let mut bed = Bed::new();
    let pod = bed.exclusive_pod("whole");
    let mut agent = Agent::start(&bed).await;
    let only_81 = policy(
        "only-81",
        &json!({
            "podSelector": {},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"protocol": "UDP", "port": 81}]}],
        }),
    );
    agent
        .enforce(vec![namespace("x"), pod.object(&json!({})), only_81])
        .await;
    let mut attached = pod.attached("s1");
    attached.host_link = String::new();
    let netns = attached.netns.clone();
    agent.gate.ready(attached, None).await.unwrap();
    let from = udp(&bed.far(), FAR_V4, 0);
    let asked = udp(&pod.namespace, pod.v4, 80);
    let marker = udp(&pod.namespace, pod.v4, 81);
    assert!(!passes(&from, &asked, &marker));
    let door = door(&bed, &agent);

    let request = ExplainRequest {
        source: FAR_V4.to_string(),
        destination: "x/whole".to_owned(),
        protocol: "udp".to_owned(),
        port: "81".to_owned(),
        family: 0,
    };
    let explained = door
        .explain(Request::new(request))
        .await
        .unwrap()
        .into_inner();
    assert!(explained.allowed);
    assert_eq!(explained.differences, Vec::<String>::new());
    let counted = explained.kernel.iter().filter(|f| f.what.contains(&netns));
    assert!(
        counted.map(|f| f.packets).sum::<u64>() >= 1,
        "{explained:?}"
    );

    let shown = ShowPodRequest {
        namespace: "x".to_owned(),
        name: "whole".to_owned(),
    };
    let shown = door
        .show_pod(Request::new(shown))
        .await
        .unwrap()
        .into_inner();
    assert!(
        shown
            .ingress
            .contains(&"denied lately: 1 packets of 1 flows".to_owned()),
        "{shown:?}"
    );
    let denied = door.denied(Request::new(DeniedRequest { limit: 0 })).await;
    let flows = denied.unwrap().into_inner().flows;
    assert_eq!(flows.len(), 1, "{flows:?}");
    assert_eq!((flows[0].pod.as_str(), flows[0].port), ("x/whole", 80));
    assert_eq!(flows[0].direction, "ingress");
    let diff = door.diff(Request::new(DiffRequest {})).await.unwrap();
    assert_eq!(diff.into_inner().lines, Vec::<String>::new());

    crate::bed::run(&format!(
        "ip netns exec {} nft flush ruleset",
        pod.namespace
    ));
    let diff = door.diff(Request::new(DiffRequest {})).await.unwrap();
    assert!(
        !diff.into_inner().lines.is_empty(),
        "a flush is no difference"
    );
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explanation_names_the_malformed_policy_and_says_where_a_far_pod_is_judged() {
    let mut bed = Bed::new();
    let pod = bed.pod("a");
    let mut agent = Agent::start(&bed).await;
    // The subject can not be read: every pod of the namespace is one.
    let crooked = policy("crooked", &json!({"podSelector": "everything"}));
    let elsewhere = crate::bed::upsert(&json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "x", "name": "b"},
        "spec": {"nodeName": "n2"},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.44.9.9"}]},
    }));
    agent
        .enforce(vec![
            namespace("x"),
            pod.object(&json!({})),
            elsewhere,
            crooked,
        ])
        .await;
    agent.gate.ready(pod.attached("s1"), None).await.unwrap();
    let door = door(&bed, &agent);
    let explain = async |source: &str, destination: &str| {
        let request = ExplainRequest {
            source: source.to_owned(),
            destination: destination.to_owned(),
            protocol: "udp".to_owned(),
            port: "80".to_owned(),
            family: 4,
        };
        door.explain(Request::new(request))
            .await
            .unwrap()
            .into_inner()
    };

    let denied = explain("x/b", "x/a").await;
    assert!(!denied.allowed);
    let reasons = denied.reasons.join("\n");
    assert!(
        reasons.contains("crooked is malformed") && reasons.contains("spec.podSelector"),
        "{reasons}"
    );
    assert!(
        reasons.contains("egress of x/b is judged on its node \"n2\""),
        "{reasons}"
    );
    let node = explain("node", "x/a").await;
    assert!(node.allowed, "{node:?}");
    agent.end().await;
}
