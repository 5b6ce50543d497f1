//! A FORWARD policy of DROP.

use std::net::IpAddr;
use std::process::Command;

use crate::lab::{DOUBT, Lab, OUTSIDE_V4, OUTSIDE_V6, PATIENCE, reaches};

fn inside_node(lab: &Lab, command: &str) -> String {
    let output = Command::new("ip")
        .args(["netns", "exec", &lab.node()])
        .args(command.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn drop_policy_of_docker_does_not_stop_pods() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);
    lab.datapath.setup_pod(&pod).await.unwrap();
    let (inside, vpc) = (Lab::inside(&pod), lab.vpc());
    for tool in ["iptables-nft", "ip6tables-nft"] {
        inside_node(&lab, &format!("{tool} -P FORWARD DROP"));
    }
    assert!(!reaches(&inside, &vpc, IpAddr::V4(OUTSIDE_V4), DOUBT));

    let first = lab.datapath.ensure_host(&Lab::host()).await.unwrap();
    let second = lab.datapath.ensure_host(&Lab::host()).await.unwrap();

    assert_eq!((first.len(), second.len()), (4, 0), "{first:?} {second:?}");
    for outside in [IpAddr::V4(OUTSIDE_V4), IpAddr::V6(OUTSIDE_V6)] {
        assert!(
            reaches(&inside, &vpc, outside, PATIENCE),
            "pod to {outside}"
        );
    }
    for address in pod.addresses() {
        assert!(
            reaches(&vpc, &inside, address, PATIENCE),
            "VPC to {address}"
        );
    }
    let listed = inside_node(&lab, "iptables-nft -S FORWARD");
    assert!(listed.contains("-i cali+"), "{listed}");
}

#[tokio::test]
async fn rules_that_somebody_flushed_are_added_again() {
    let (lab, _) = Lab::ready().await;
    inside_node(&lab, "iptables-nft -P FORWARD DROP");
    lab.datapath.ensure_host(&Lab::host()).await.unwrap();
    inside_node(&lab, "iptables-nft -F FORWARD");

    let again = lab.datapath.ensure_host(&Lab::host()).await.unwrap();

    assert_eq!(again.len(), 2, "{again:?}");
}

#[tokio::test]
async fn refusal_by_a_rule_stays_in_force() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);
    lab.datapath.setup_pod(&pod).await.unwrap();
    inside_node(&lab, "iptables-nft -P FORWARD DROP");
    inside_node(&lab, "iptables-nft -A FORWARD -s 10.9.0.5 -j DROP");

    lab.datapath.ensure_host(&Lab::host()).await.unwrap();

    let outside = IpAddr::V4(OUTSIDE_V4);
    assert!(!reaches(&Lab::inside(&pod), &lab.vpc(), outside, DOUBT));
}

#[tokio::test]
async fn accept_policy_is_left_alone() {
    let (lab, _) = Lab::ready().await;
    inside_node(&lab, "iptables-nft -P FORWARD ACCEPT");

    let done = lab.datapath.ensure_host(&Lab::host()).await.unwrap();

    assert_eq!(done, Vec::<String>::new());
}

#[tokio::test]
async fn drop_policy_of_the_older_iptables_does_not_stop_pods() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);
    lab.datapath.setup_pod(&pod).await.unwrap();
    let (inside, vpc) = (Lab::inside(&pod), lab.vpc());
    for tool in ["iptables-legacy", "ip6tables-legacy"] {
        inside_node(&lab, &format!("{tool} -P FORWARD DROP"));
    }
    assert!(!reaches(&inside, &vpc, IpAddr::V4(OUTSIDE_V4), DOUBT));

    let first = lab.datapath.ensure_host(&Lab::host()).await.unwrap();
    let second = lab.datapath.ensure_host(&Lab::host()).await.unwrap();

    assert_eq!((first.len(), second.len()), (4, 0), "{first:?} {second:?}");
    for outside in [IpAddr::V4(OUTSIDE_V4), IpAddr::V6(OUTSIDE_V6)] {
        assert!(
            reaches(&inside, &vpc, outside, PATIENCE),
            "pod to {outside}"
        );
    }
}
