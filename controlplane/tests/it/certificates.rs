//! Who gets a certificate, and who does not.

use mesh::ca::Request;
use mesh::identity::Identity;
use mesh::status;
use proto::control::v1::node_reports_client::NodeReportsClient;
use proto::control::v1::{IssueRequest, ReportNodeRequest};
use proto::ipam::v1::NodeGoneRequest;
use proto::ipam::v1::nodes_client::NodesClient;
use tonic::Code;

use crate::bed::{Bed, Replica};

pub(crate) async fn node_and_services_get_their_names(bed: &Bed, replica: &Replica) {
    let cases = [
        ("terway-node", "agent-1", Identity::node("c1a2b3", "i-1")),
        (
            "terway-gateway",
            "terway-gateway-x",
            Identity::gateway("terway-gateway-x"),
        ),
        (
            "terway-ipam",
            "terway-ipam-0",
            Identity::ipam("terway-ipam-0"),
        ),
    ];
    assert_eq!(bed.cluster, "c1a2b3");
    for (account, pod, identity) in cases {
        let uid = bed.pod(pod, "n1", account).await;
        let token = bed.token(account, bed.audience(), Some((pod, &uid))).await;

        let material = replica.certificate(bed, token, pod).await;

        assert_eq!(material.identity(), identity);
        bed.delete_pod(pod).await;
    }
}

pub(crate) async fn bad_proofs_get_nothing(bed: &Bed, replica: &Replica) {
    let ours = bed.audience();
    let uid = bed.pod("agent-1", "n1", "terway-node").await;
    let good = bed
        .token("terway-node", ours, Some(("agent-1", &uid)))
        .await;
    let other = bed.pod("somebody", "n1", "terway-controlplane").await;
    let dead = bed.pod("dead", "n1", "terway-node").await;
    let of_dead = bed.token("terway-node", ours, Some(("dead", &dead))).await;
    bed.delete_pod("dead").await;
    let of_reborn = of_dead.clone();
    let nowhere = bed.pod("nowhere", "n9", "terway-node").await;
    let theirs = "https://kubernetes.default.svc";
    let document = |instance: &str| format!("{{\"instance-id\": \"{instance}\"}}");
    let cases = [
        (
            "of another audience",
            bed.token("terway-node", theirs, Some(("agent-1", &uid)))
                .await,
            "",
        ),
        ("of no pod", bed.token("terway-node", ours, None).await, ""),
        ("of a deleted pod", of_dead, ""),
        (
            "of an account without a name",
            bed.token("terway-controlplane", ours, Some(("somebody", &other)))
                .await,
            "",
        ),
        (
            "of a node that is not there",
            bed.token("terway-node", ours, Some(("nowhere", &nowhere)))
                .await,
            "",
        ),
        ("of another instance", good.clone(), "i-2"),
        ("that is none", "x".to_owned(), ""),
        (
            "that is another's",
            bed.token("terway-node", ours, Some(("agent-1", &uid)))
                .await
                + "x",
            "",
        ),
    ];
    let ask = async |token: &str, instance: &str, csr: Vec<u8>| {
        let instance_document = if instance.is_empty() {
            String::new()
        } else {
            document(instance)
        };
        let request = IssueRequest {
            csr,
            token: token.to_owned(),
            instance_document,
            instance_signature: String::new(),
        };
        replica.issue(request).await
    };
    let csr = Request::new().unwrap().der;
    for (what, token, instance) in cases {
        let refused = ask(&token, instance, csr.clone()).await.expect_err(what);

        assert_eq!(refused.code(), Code::PermissionDenied, "{what}: {refused}");
        let reason = status::reason(&refused);
        assert_eq!(reason.as_deref(), Some(status::IDENTITY_MISMATCH), "{what}");
    }
    // A pod of the same name is another pod.
    bed.pod("dead", "n1", "terway-node").await;
    let refused = ask(&of_reborn, "", csr.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");

    let mut forged = csr.clone();
    // A byte of the signature.
    *forged.last_mut().unwrap() ^= 1;
    let refused = ask(&good, "", forged).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(ask(&good, "i-1", csr).await.is_ok(), "the good one");
    for pod in ["agent-1", "somebody", "dead", "nowhere"] {
        bed.delete_pod(pod).await;
    }
}

pub(crate) async fn caller_without_one_reaches_nothing_else(replica: &Replica) {
    let channel = replica.anonymous();
    let report = ReportNodeRequest {
        node_name: "n1".to_owned(),
        instance_id: "i-1".to_owned(),
        component: "node-agent".to_owned(),
        ..ReportNodeRequest::default()
    };

    let reported = NodeReportsClient::new(channel.clone())
        .report_node(report)
        .await;
    let gone = NodesClient::new(channel)
        .node_gone(NodeGoneRequest::default())
        .await;

    assert_eq!(reported.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(gone.unwrap_err().code(), Code::PermissionDenied);
}
