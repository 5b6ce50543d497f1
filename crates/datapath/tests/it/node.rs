//! Settings of the node, and ENIs.

use serde_json::json as j;

use crate::lab::{self, Lab, json, picture};

fn setting(namespace: &str, key: &'static str) -> String {
    lab::within(namespace, move || {
        std::fs::read_to_string(format!("/proc/sys/net/{key}"))
            .unwrap()
            .trim()
            .to_owned()
    })
}

#[tokio::test]
async fn host_settings_are_written_once() {
    let lab = Lab::with_eni();
    lab::within(&lab.node(), || {
        std::fs::write("/proc/sys/net/ipv4/conf/eni1/rp_filter", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    });

    let first = lab.datapath.ensure_host(&Lab::host()).await.unwrap();
    let second = lab.datapath.ensure_host(&Lab::host()).await.unwrap();

    assert!(
        first.iter().any(|l| l.contains("eni1/rp_filter")),
        "{first:?}"
    );
    assert_eq!(second, Vec::<String>::new());
    for key in [
        "ipv4/ip_forward",
        "ipv6/conf/all/forwarding",
        "ipv4/conf/default/forwarding",
    ] {
        assert_eq!(setting(&lab.node(), key), "1", "{key}");
    }
    for key in [
        "ipv4/conf/all/rp_filter",
        "ipv4/conf/default/rp_filter",
        "ipv4/conf/eni1/rp_filter",
        "ipv6/conf/all/disable_ipv6",
        "ipv6/conf/default/accept_ra",
    ] {
        assert_eq!(setting(&lab.node(), key), "0", "{key}");
    }
}

#[tokio::test]
async fn eni_gets_its_address_and_table() {
    let lab = Lab::with_eni();

    let state = lab.datapath.ensure_eni(&Lab::eni(1)).await.unwrap();

    let node = lab.node();
    let link = &json(&node, "link show dev eni1")[0];
    assert_eq!(state.ifname, "eni1");
    assert_eq!(link["ifindex"], j!(state.ifindex));
    assert_eq!(state.table, 1000 + state.ifindex);
    assert!(lab::is_up(link));
    let address = &json(&node, "-4 addr show dev eni1")[0]["addr_info"][0];
    assert_eq!(
        (&address["local"], &address["prefixlen"]),
        (&j!("10.8.0.4"), &j!(32))
    );
    let table = state.table;
    let v4 = json(&node, &format!("-4 route show table {table}"));
    assert_eq!(v4.len(), 1);
    assert_eq!(
        (
            &v4[0]["dst"],
            &v4[0]["gateway"],
            &v4[0]["dev"],
            &v4[0]["flags"]
        ),
        (
            &j!("default"),
            &j!("10.9.0.253"),
            &j!("eni1"),
            &j!(["onlink"])
        )
    );
    let v6 = json(&node, &format!("-6 route show table {table}"));
    let found: Vec<_> = v6.iter().map(|r| (&r["dst"], &r["gateway"])).collect();
    assert_eq!(
        found,
        [
            (&j!("fd09::fff7"), &j!(null)),
            (&j!("default"), &j!("fd09::fff7"))
        ]
    );
    assert_eq!(setting(&node, "ipv6/conf/eni1/accept_ra"), "0");
}

#[tokio::test]
async fn eni_twice_changes_nothing_and_removal_leaves_nothing() {
    let lab = Lab::with_eni();
    let state = lab.datapath.ensure_eni(&Lab::eni(1)).await.unwrap();
    let before = picture(&lab.node());

    lab.datapath.ensure_eni(&Lab::eni(1)).await.unwrap();

    assert_eq!(picture(&lab.node()), before);
    for _ in 0..2 {
        lab.datapath
            .remove_eni(lab::eni_mac(1), state.table)
            .await
            .unwrap();
    }
    let node = lab.node();
    assert!(
        json(&node, "-4 addr show dev eni1")
            .iter()
            .all(|l| l["addr_info"].as_array().is_none_or(Vec::is_empty))
    );
    assert!(!ip_routes(&node).contains(&format!("table {}", state.table)));
}

fn ip_routes(node: &str) -> String {
    lab::ip(&format!("-n {node} -4 route show table all"))
        + &lab::ip(&format!("-n {node} -6 route show table all"))
}

#[tokio::test]
async fn eni_removed_after_its_link_went_takes_its_rules_along() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);
    lab.datapath.setup_pod(&pod).await.unwrap();
    lab::ip(&format!("-n {} link del eni1", lab.node()));

    lab.datapath
        .remove_eni(lab::eni_mac(1), eni.table)
        .await
        .unwrap();

    let left = lab::rules(&lab.node());
    assert!(left.iter().all(|r| r.starts_with("512 ")), "{left:?}");
}

#[tokio::test]
async fn eni_that_is_not_there_is_named() {
    let lab = Lab::bare();

    let error = lab.datapath.ensure_eni(&Lab::eni(1)).await.unwrap_err();

    assert_eq!(
        error.to_string(),
        "no link has the hardware address 02:16:3e:00:00:01"
    );
}
