//! Notifications.

use std::time::Duration;

use datapath::error::DatapathError;
use datapath::watch::Change;
use futures::FutureExt as _;

use crate::lab::{self, Lab, PATIENCE};

#[tokio::test]
async fn link_plugged_in_later_is_found() {
    let lab = Lab::bare();
    let datapath = lab.datapath.clone();
    let waiter = datapath.wait_link_by_mac(lab::eni_mac(1), PATIENCE);

    let (found, ()) = tokio::join!(waiter, async {
        tokio::task::yield_now().await;
        lab.plug_eni(1);
    });

    assert_eq!(found.unwrap().name, "eni1");
}

#[tokio::test]
async fn link_that_is_there_is_found_at_once() {
    let lab = Lab::with_eni();

    let found = lab
        .datapath
        .wait_link_by_mac(lab::eni_mac(1), PATIENCE)
        .await
        .unwrap();

    assert_eq!(found.name, "eni1");
}

#[tokio::test]
async fn link_that_never_comes_ends_the_wait() {
    let lab = Lab::bare();

    let error = lab
        .datapath
        .wait_link_by_mac(lab::eni_mac(1), Duration::from_millis(50))
        .await
        .unwrap_err();

    assert!(matches!(error, DatapathError::EniMissing { .. }), "{error}");
}

#[tokio::test]
async fn flushed_rules_and_routes_are_told() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);
    lab.datapath.setup_pod(&pod).await.unwrap();
    let mut watch = lab.datapath.watch().await.unwrap();

    lab::ip(&format!(
        "-n {} rule del from 10.9.0.5 prio 2048",
        lab.node()
    ));
    lab::ip(&format!("-n {} route del 10.9.0.5", lab.node()));

    let mut seen = Vec::new();
    while seen.len() < 2 {
        let change = tokio::time::timeout(PATIENCE, watch.next())
            .await
            .unwrap()
            .unwrap();
        if matches!(change, Change::RuleGone { .. } | Change::RouteGone { .. }) {
            seen.push(change);
        }
    }
    assert_eq!(
        seen,
        [
            Change::RuleGone {
                priority: 2048,
                ip: Some("10.9.0.5".parse().unwrap())
            },
            Change::RouteGone {
                dst: "10.9.0.5/32".parse().unwrap(),
                table: 254
            }
        ]
    );
}

#[tokio::test]
async fn wait_that_is_given_up_loses_no_change() {
    let lab = Lab::with_eni();
    let mut watch = lab.datapath.watch().await.unwrap();
    for address in ["10.77.0.1/32", "10.77.0.2/32", "10.77.0.3/32"] {
        lab::ip(&format!("-n {} addr add {address} dev lo", lab.node()));
    }

    let mut seen = Vec::new();
    while seen.len() < 3 {
        let at_once = watch.next().now_or_never();
        let change = match at_once {
            Some(change) => change,
            None => tokio::time::timeout(PATIENCE, watch.next()).await.unwrap(),
        };
        if let Change::Address { net, .. } = change.unwrap() {
            seen.push(net.to_string());
        }
    }

    assert_eq!(seen, ["10.77.0.1/32", "10.77.0.2/32", "10.77.0.3/32"]);
}

#[tokio::test]
async fn flood_beyond_the_buffer_is_told_as_resync() {
    let lab = Lab::with_eni();
    let mut watch = lab.datapath.watch().await.unwrap();
    let commands: Vec<String> = (0..4000)
        .map(|n| format!("addr add 10.{}.{}.1/32 dev lo", 100 + n / 250, n % 250))
        .collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), commands.join("\n")).unwrap();
    lab::ip(&format!(
        "-n {} -batch {}",
        lab.node(),
        file.path().display()
    ));

    let mut resync = false;
    while !resync {
        let change = tokio::time::timeout(PATIENCE, watch.next())
            .await
            .unwrap()
            .unwrap();
        resync = change == Change::Resync;
    }
}
