//! Uninstallation: who is waited for, and when it is over.

use std::time::Duration;

use serde_json::json;

use crate::bed::{Bed, NAMESPACE};
use crate::reports::{Speakers, report};

pub(crate) async fn deadline_names_who_is_waited_for(bed: &Bed) {
    let ended = bed.uninstall(Duration::from_secs(10)).await;

    let log = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{log}");
    for line in [
        "n1 node-agent: no answer",
        "n1 policy-agent: no answer",
        "n2 node-agent: no answer",
        "n2 policy-agent: no answer",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
    // The chart says so at each upgrade.
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "terway-phase", "namespace": NAMESPACE},
        "data": {"phase": "serve"},
    });
    bed.admin.put(&map).await;
    bed.config_map_until("terway-phase", "nodes serve again", |map| {
        let data = map.data.clone().unwrap_or_default();
        data.len() == 1 && data["phase"] == "serve"
    })
    .await;
}

pub(crate) async fn uninstallation_ends_when_all_have_left(bed: &Bed, speakers: &Speakers) {
    let leaving = async {
        let says = |phase: &'static str| {
            move |map: &k8s_openapi::api::core::v1::ConfigMap| {
                let data = map.data.clone().unwrap_or_default();
                data.get("phase").is_some_and(|now| now == phase)
            }
        };
        bed.config_map_until("terway-phase", "leave", says("leave"))
            .await;
        let mut waits = report("n1", "i-1");
        waits.waits_for = vec!["pod default/web".to_owned()];
        // Nodes say it again and again.
        bed.config_map_until_saying(
            "terway-phase",
            async || drop(speakers.n1.clone().report_node(waits.clone()).await),
            |data| {
                data.get("waits-for")
                    .is_some_and(|w| w.contains("n1 node-agent: pod default/web"))
            },
        )
        .await;
        let say = async || {
            for component in ["node-agent", "policy-agent"] {
                let gone = |node: &str, instance: &str| {
                    let mut gone = report(node, instance);
                    gone.left = true;
                    gone.component = component.to_owned();
                    gone
                };
                // To another replica than before: they tell one another.
                let mut n1 = speakers.n1_to_b.clone();
                n1.report_node(gone("n1", "i-1")).await.unwrap();
                let mut n1 = speakers.n1.clone();
                n1.report_node(gone("n1", "i-1")).await.unwrap();
                let mut n2 = speakers.n2.clone();
                n2.report_node(gone("n2", "i-2")).await.unwrap();
            }
        };
        bed.config_map_until_saying("terway-phase", say, |data| {
            data.get("state").is_some_and(|state| state == "left")
        })
        .await;
    };

    let (ended, ()) = tokio::join!(bed.uninstall(Duration::from_secs(100)), leaving);

    let log = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success(), "{log}");
    assert!(log.contains("all nodes have left"), "{log}");
}
