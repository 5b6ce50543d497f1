//! A pod with an ENI of its own, in a real kernel.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use datapath::desired::{TornDown, WholeDesired, WholeTeardown};
use datapath::error::DatapathError;
use datapath::names;
use datapath::whole::CRASH_POINTS;

use crate::lab::{
    DOUBT, Lab, NODE_V4, OUTSIDE_V4, OUTSIDE_V6, PATIENCE, eni_mac, ip, json, picture, reaches,
    within,
};

fn inside(pod: &WholeDesired) -> String {
    pod.netns.file_name().unwrap().to_str().unwrap().to_owned()
}

fn end_of(pod: &WholeDesired) -> WholeTeardown {
    WholeTeardown {
        attachment: pod.attachment.clone(),
        host_link: pod.host_link.clone(),
        netns: pod.netns.clone(),
        mac: pod.mac,
        addresses: pod.addresses().collect(),
    }
}

fn links(namespace: &str) -> Vec<String> {
    let mut names: Vec<String> = json(namespace, "link show")
        .iter()
        .map(|link| link["ifname"].as_str().unwrap().to_owned())
        .filter(|name| name != "lo")
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn eni_becomes_the_pods_interface_and_carries_its_traffic() {
    let (mut lab, eni) = Lab::ready().await;
    let shared = lab.pod(4, &eni);
    lab.datapath.setup_pod(&shared).await.unwrap();
    let pod = lab.whole(5, 2);

    let state = lab.datapath.setup_whole(&pod).await.unwrap();

    assert_eq!(state.pod_mac, eni_mac(2));
    let namespace = inside(&pod);
    assert_eq!(links(&namespace), ["eth0", "veth1"]);
    let eth0 = &json(&namespace, "link show dev eth0")[0];
    assert_eq!(eth0["address"].as_str().unwrap(), eni_mac(2).to_string());
    assert!(!links(&lab.node()).contains(&"eni2".to_owned()));
    let (node, vpc) = (lab.node(), lab.vpc());
    for (own, outside) in [
        (IpAddr::from(pod.v4.0), IpAddr::from(OUTSIDE_V4)),
        (pod.v6.unwrap().0.into(), OUTSIDE_V6.into()),
    ] {
        assert!(reaches(&namespace, &vpc, outside, PATIENCE), "to {outside}");
        assert!(reaches(&vpc, &namespace, own, PATIENCE), "to {own}");
        // A pod that shares an ENI, on the same node: by way of the VPC, there and back.
        assert!(reaches(&Lab::inside(&shared), &namespace, own, PATIENCE));
    }
    for address in shared.addresses() {
        let there = Lab::inside(&shared);
        assert!(reaches(&namespace, &there, address, PATIENCE), "{address}");
    }
    // The node by its own address, both ways, by the second link.
    assert!(reaches(&node, &namespace, pod.v4.0.into(), PATIENCE));
    assert!(reaches(&namespace, &node, NODE_V4.into(), PATIENCE));
    let service = ip(&format!("-n {namespace} route get 10.96.0.1"));
    assert!(service.contains("via 169.254.1.1 dev veth1"), "{service}");
    assert!(service.contains(&format!("src {}", pod.v4.0)), "{service}");
}

// A Service is translated on the node; the answer must come back by it.
#[tokio::test]
async fn pod_reaches_a_service_by_way_of_the_node() {
    let (mut lab, eni) = Lab::ready().await;
    let backend = lab.pod(4, &eni);
    lab.datapath.setup_pod(&backend).await.unwrap();
    let pod = lab.whole(5, 2);
    lab.datapath.setup_whole(&pod).await.unwrap();
    let node = lab.node();
    let listener = within(&Lab::inside(&backend), || {
        std::net::TcpListener::bind("10.9.0.4:0").unwrap()
    });
    let port = listener.local_addr().unwrap().port();
    for words in [
        "add table ip services".to_owned(),
        "add chain ip services pre { type nat hook prerouting priority -100; }".to_owned(),
        format!("add rule ip services pre ip daddr 10.96.0.1 tcp dport 80 dnat to 10.9.0.4:{port}"),
    ] {
        nft(&node, &words);
    }

    let target = "10.96.0.1:80".parse().unwrap();
    let client = within(&inside(&pod), move || {
        std::net::TcpStream::connect_timeout(&target, PATIENCE)
    });

    client.unwrap();
    let (_, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip(), IpAddr::from(NODE_V4));
    // What it sends by its own ENI is not touched, though it comes through the node's forwarding too.
    let direct = std::net::SocketAddr::new("10.9.0.4".parse().unwrap(), port);
    let client = within(&inside(&pod), move || {
        std::net::TcpStream::connect_timeout(&direct, PATIENCE)
    });
    client.unwrap();
    let (_, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip(), IpAddr::from(pod.v4.0));
    lab.datapath.teardown_whole(&end_of(&pod)).await.unwrap();
    assert!(!nft(&node, "list ruleset").contains("terway_whole"));
}

fn nft(namespace: &str, words: &str) -> String {
    let output = std::process::Command::new("ip")
        .args(["netns", "exec", namespace, "nft", words])
        .output()
        .unwrap();
    assert!(output.status.success(), "{words}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn eni_comes_back_without_a_trace_of_the_pod() {
    let (mut lab, _) = Lab::ready().await;
    let before = picture(&lab.node());
    let pod = lab.whole(5, 2);
    lab.datapath.setup_whole(&pod).await.unwrap();

    let outcome = lab.datapath.teardown_whole(&end_of(&pod)).await.unwrap();

    assert_eq!(outcome, TornDown::Removed);
    assert_eq!(links(&inside(&pod)), Vec::<String>::new());
    let name = names::returned_link(eni_mac(2));
    let back = &json(&lab.node(), &format!("link show dev {name}"))[0];
    assert_eq!(back["address"].as_str().unwrap(), eni_mac(2).to_string());
    assert!(!crate::lab::is_up(back), "{back}");
    let addresses = json(&lab.node(), &format!("addr show dev {name}"));
    assert_eq!(addresses[0]["addr_info"].as_array().unwrap().len(), 0);
    // Twice does no harm, and the next pod can have it.
    let twice = lab.datapath.teardown_whole(&end_of(&pod)).await.unwrap();
    assert_eq!(twice, TornDown::Absent);
    lab.datapath.setup_whole(&pod).await.unwrap();
    lab.datapath.teardown_whole(&end_of(&pod)).await.unwrap();
    ip(&format!("-n {} link del {name}", lab.node()));
    assert_eq!(picture(&lab.node()), before);
}

#[tokio::test]
async fn namespace_that_is_gone_is_no_hindrance() {
    let (mut lab, _) = Lab::ready().await;
    let before = picture(&lab.node());
    let pod = lab.whole(5, 2);
    lab.datapath.setup_whole(&pod).await.unwrap();
    ip(&format!("netns del {}", inside(&pod)));

    lab.datapath.teardown_whole(&end_of(&pod)).await.unwrap();

    assert_eq!(picture(&lab.node()), before);
    let error = lab.datapath.setup_whole(&pod).await.unwrap_err();
    assert!(matches!(error, DatapathError::NetnsGone { .. }), "{error}");
}

#[tokio::test]
async fn what_was_lost_is_named_and_put_back() {
    let (mut lab, _) = Lab::ready().await;
    let pod = lab.whole(5, 2);
    lab.datapath.setup_whole(&pod).await.unwrap();
    assert_eq!(lab.datapath.check_whole(&pod).await.unwrap(), []);
    let (node, namespace) = (lab.node(), inside(&pod));
    for (place, words) in [
        (&namespace, "route del default".to_owned()),
        (&namespace, format!("addr del {}/32 dev eth0", pod.v4.0)),
        (&namespace, "route del 10.96.0.0/16".to_owned()),
        (&namespace, "link set eth0 down".to_owned()),
        (&node, format!("route del {}/32", pod.v4.0)),
        (&node, format!("link del {}", pod.host_link)),
    ] {
        ip(&format!("-n {place} {words}"));
        let drift = lab.datapath.check_whole(&pod).await.unwrap();
        assert!(!drift.is_empty(), "nothing is missed after {words}");

        let wholes = std::slice::from_ref(&pod);
        let report = lab.datapath.repair(&[], wholes, &[]).await.unwrap();

        assert_eq!(report.failed, Vec::<String>::new(), "{words}");
        assert!(!report.done.is_empty(), "{words}");
        assert_eq!(report.orphans, datapath::plan::Orphans::default());
        assert_eq!(lab.datapath.check_whole(&pod).await.unwrap(), [], "{words}");
    }
    assert!(reaches(&namespace, &lab.vpc(), OUTSIDE_V4.into(), PATIENCE));
}

#[tokio::test]
async fn eni_that_has_not_come_is_named() {
    let (mut lab, _) = Lab::ready().await;
    let mut pod = lab.whole(5, 2);
    pod.mac = eni_mac(9);

    let error = lab.datapath.setup_whole(&pod).await.unwrap_err();

    assert!(matches!(error, DatapathError::EniMissing { .. }), "{error}");
    assert_eq!(lab.datapath.find_link(eni_mac(9)).await.unwrap(), None);
    let there = lab.datapath.find_link(eni_mac(2)).await.unwrap();
    assert_eq!(there.unwrap().name, "eni2");
    assert!(!reaches(
        &inside(&pod),
        &lab.vpc(),
        OUTSIDE_V4.into(),
        DOUBT
    ));
}

static DIES_AT: AtomicUsize = AtomicUsize::new(usize::MAX);

fn die(step: &'static str) {
    let at = CRASH_POINTS.get(DIES_AT.load(Ordering::SeqCst));
    assert!(at != Some(&step), "dies here, as the test wants");
}

// I8: the agent dies between any two steps; what it left is completed, and comes back.
#[tokio::test]
async fn move_cut_short_at_any_step_is_completed_by_the_next() {
    let (mut lab, _) = Lab::ready().await;
    let before = picture(&lab.node());
    let fragile = lab.datapath.clone().with_steps(die);
    for (at, step) in CRASH_POINTS.iter().enumerate() {
        let number = u8::try_from(at).unwrap() + 10;
        let pod = lab.whole(number, number);
        DIES_AT.store(at, Ordering::SeqCst);
        let died = fragile.setup_whole(&pod).await;
        DIES_AT.store(usize::MAX, Ordering::SeqCst);
        assert!(died.is_err(), "{step} was not reached");

        lab.datapath.setup_whole(&pod).await.unwrap();

        assert_eq!(lab.datapath.check_whole(&pod).await.unwrap(), [], "{step}");
        lab.datapath.teardown_whole(&end_of(&pod)).await.unwrap();
        let name = names::returned_link(pod.mac);
        ip(&format!("-n {} link del {name}", lab.node()));
        assert_eq!(picture(&lab.node()), before, "{step}");
    }
}
