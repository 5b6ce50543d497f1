//! Two replicas: one authority, one lead.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use mesh::status;
use tokio::net::TcpListener;
use tonic::Code;

use crate::bed::{Bed, NAMESPACE, Replica, until};
use crate::reports::{Speakers, report};

async fn authority(bed: &Bed) -> BTreeMap<String, ByteString> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/secrets/terway-ca");
    let secret = bed.get(&path).await;
    serde_json::from_value(secret["data"].clone()).unwrap_or_default()
}

pub(crate) async fn that_begin_at_once_make_one_authority_and_one_leads(
    bed: &Bed,
    ipam: &TcpListener,
) -> (Replica, Replica) {
    assert!(
        authority(bed).await.is_empty(),
        "the chart makes an empty Secret"
    );
    let ipam = format!("ipam.replicas=[\"{}\"]", ipam.local_addr().unwrap());
    let sets = ["nodes.gone_after_ms=300", &ipam];
    let (mut a, mut b) = tokio::join!(bed.replica("a", &sets), bed.replica("b", &sets));

    tokio::join!(a.ready(), b.ready());

    let kept = authority(bed).await;
    let certificate = String::from_utf8(kept["tls.crt"].0.clone()).unwrap();
    assert_eq!(certificate.matches("BEGIN CERTIFICATE").count(), 1);
    let trusts = async |replica: &Replica| {
        let trusted = std::fs::read_to_string(&replica.tls.ca).unwrap();
        assert_eq!(trusted.trim(), certificate.trim());
    };
    trusts(&a).await;
    trusts(&b).await;
    bed.config_map_until("terway-trust", "the bundle", |map| {
        let data = map.data.as_ref().and_then(|data| data.get("ca.crt"));
        data.is_some_and(|bundle| bundle.trim() == certificate.trim())
    })
    .await;
    until("one leads", async || {
        (a.leads().await || b.leads().await).then_some(())
    })
    .await;
    assert!(!(a.leads().await && b.leads().await), "two lead");
    let key = String::from_utf8(kept["tls.key"].0.clone()).unwrap();
    let secret = key.lines().nth(1).unwrap();
    for replica in [&a, &b] {
        let log = replica.log();
        assert!(
            !log.contains(secret) && !log.contains("PRIVATE KEY"),
            "{log}"
        );
    }
    (a, b)
}

pub(crate) async fn report_is_put_off_while_the_api_server_is_away(
    bed: &mut Bed,
    speakers: &Speakers,
) {
    let mut n1 = speakers.n1.clone();
    let mut said = report("n1", "i-1");
    said.pod_capacity = 46;
    bed.bare.stop().await;

    let put_off = n1.report_node(said.clone()).await.unwrap_err();

    assert_eq!(put_off.code(), Code::Unavailable, "{put_off}");
    let reason = status::reason(&put_off);
    assert_eq!(reason.as_deref(), Some(status::NOT_READY));
    // The next one is not even sent.
    let held = n1.report_node(said.clone()).await.unwrap_err();
    assert!(status::retry_after(&held).is_some(), "{held}");
    bed.bare.go_on().await;
    until("it is written", async || {
        n1.report_node(said.clone()).await.ok()
    })
    .await;
    let node = bed.get("/api/v1/nodes/n1").await;
    let annotations = &node["metadata"]["annotations"];
    assert_eq!(annotations["k8s.aliyun.com/max-available-ip"], "46");
}

pub(crate) async fn lead_goes_over_when_its_holder_ends(bed: &Bed, a: Replica, b: Replica) {
    let (leader, other) = if a.leads().await { (a, b) } else { (b, a) };
    assert!(!other.leads().await, "two lead");
    let before = authority(bed).await;

    leader.end().await;

    until("the other one leads", async || {
        other.leads().await.then_some(())
    })
    .await;
    // One that is killed gives nothing up: its lease ends by itself.
    let mut third = bed.replica("c", &[]).await;
    third.ready().await;
    assert!(!third.leads().await, "two lead");
    other.kill().await;
    until("the third one leads", async || {
        third.leads().await.then_some(())
    })
    .await;
    assert_eq!(authority(bed).await, before);
    third.end().await;
}
