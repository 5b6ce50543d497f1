//! Packets find their way.

use std::net::IpAddr;

use datapath::desired::PodDesired;

use crate::lab::{self, DOUBT, Lab, OUTSIDE_V4, OUTSIDE_V6, PATIENCE, reaches};

#[tokio::test]
async fn pod_and_vpc_reach_each_other_in_both_families() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);
    lab.datapath.setup_pod(&pod).await.unwrap();
    let (inside, vpc) = (Lab::inside(&pod), lab.vpc());

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
}

// Without a permanent neighbour on the node the first IPv6 packet to a new pod waits for duplicate
// address detection of the node's end, a second and more.
#[tokio::test]
async fn new_pod_is_reached_over_v6_without_delay() {
    let (mut lab, eni) = Lab::ready().await;
    let (first, second) = (lab.pod(5, &eni), lab.pod(6, &eni));
    lab.datapath.setup_pod(&first).await.unwrap();
    let reached = |lab: &Lab, pod: &PodDesired, patience| {
        let address = IpAddr::V6(pod.v6.unwrap());
        reaches(&lab.vpc(), &Lab::inside(pod), address, patience)
    };
    // The ENI itself has just come up and takes a moment of its own.
    assert!(reached(&lab, &first, PATIENCE));

    lab.datapath.setup_pod(&second).await.unwrap();

    assert!(reached(&lab, &second, DOUBT));
}

#[tokio::test]
async fn pods_of_one_node_reach_each_other_without_the_eni() {
    let (mut lab, eni) = Lab::ready().await;
    let (a, b) = (lab.pod(5, &eni), lab.pod(6, &eni));
    for pod in [&a, &b] {
        lab.datapath.setup_pod(pod).await.unwrap();
    }
    lab::ip(&format!("-n {} link set eni1 down", lab.node()));

    for address in b.addresses() {
        assert!(reaches(
            &Lab::inside(&a),
            &Lab::inside(&b),
            address,
            PATIENCE
        ));
    }
    for address in a.addresses() {
        assert!(reaches(
            &Lab::inside(&b),
            &Lab::inside(&a),
            address,
            PATIENCE
        ));
    }
}

#[tokio::test]
async fn pod_without_its_rule_does_not_reach_the_vpc() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);
    lab.datapath.setup_pod(&pod).await.unwrap();
    lab::ip(&format!(
        "-n {} rule del from 10.9.0.5 prio 2048",
        lab.node()
    ));

    let outside = IpAddr::V4(OUTSIDE_V4);

    assert!(!reaches(&Lab::inside(&pod), &lab.vpc(), outside, DOUBT));
    lab.datapath
        .repair(std::slice::from_ref(&pod), &[], &[])
        .await
        .unwrap();
    assert!(reaches(&Lab::inside(&pod), &lab.vpc(), outside, PATIENCE));
}
