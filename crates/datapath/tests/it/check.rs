//! Drift: each lost object is found by name and put back.

use datapath::desired::PodDesired;

use crate::lab::{self, Lab, picture};

/// Breaks one thing, and says how our check must call it.
struct Loss {
    inside: bool,
    command: &'static str,
    named: &'static str,
}

fn losses() -> Vec<Loss> {
    let loss = |inside, command, named| Loss {
        inside,
        command,
        named,
    };
    vec![
        loss(
            false,
            "rule del to 10.9.0.5 prio 512",
            "rule 512: to 10.9.0.5",
        ),
        loss(
            false,
            "rule del from 10.9.0.5 prio 2048",
            "rule 2048: from 10.9.0.5",
        ),
        loss(
            false,
            "-6 rule del to fd09::5 prio 512",
            "rule 512: to fd09::5",
        ),
        loss(
            false,
            "-6 rule del from fd09::5 prio 2048",
            "rule 2048: from fd09::5",
        ),
        loss(false, "route del 10.9.0.5", "route 10.9.0.5/32 dev cali"),
        loss(false, "-6 route del fd09::5", "route fd09::5/128 dev cali"),
        loss(false, "neigh del fd09::5 dev HOST", "neighbour fd09::5"),
        loss(false, "link set HOST down", "link cali"),
        loss(false, "link set HOST mtu 1300", "mtu 1500"),
        loss(false, "link set HOST alias stranger", "alias of cali"),
        loss(true, "route del default", "route 0.0.0.0/0 via 169.254.1.1"),
        loss(true, "-6 route del default", "route ::/0 via fe80::1"),
        loss(
            true,
            "neigh del 169.254.1.1 dev eth0",
            "neighbour 169.254.1.1",
        ),
        loss(true, "neigh del fe80::1 dev eth0", "neighbour fe80::1"),
        loss(true, "addr del 10.9.0.5/32 dev eth0", "address 10.9.0.5/32"),
        loss(true, "addr del fd09::5/128 dev eth0", "address fd09::5/128"),
        loss(
            true,
            "addr add 10.1.1.1/24 dev eth0",
            "remove address 10.1.1.1/24",
        ),
        loss(true, "link set eth0 down", "link eth0 up"),
    ]
}

fn run(lab: &Lab, pod: &PodDesired, loss: &Loss) {
    let namespace = if loss.inside {
        Lab::inside(pod)
    } else {
        lab.node()
    };
    let command = loss.command.replace("HOST", &pod.host_link);
    lab::ip(&format!("-n {namespace} {command}"));
}

#[tokio::test]
async fn each_lost_object_is_named_by_check_and_repaired() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);
    lab.datapath.setup_pod(&pod).await.unwrap();
    // A foreign alias is a foreign link to us; that case has its own test.
    for loss in losses().iter().filter(|l| !l.command.contains("alias")) {
        run(&lab, &pod, loss);

        let drift = lab.datapath.check_pod(&pod).await.unwrap();
        let report = lab
            .datapath
            .repair(std::slice::from_ref(&pod), &[], &[Lab::eni(1)])
            .await
            .unwrap();

        assert!(
            drift.iter().any(|d| d.what.contains(loss.named)),
            "after {:?}: {drift:?}",
            loss.command
        );
        assert!(
            !report.done.is_empty() && report.failed.is_empty(),
            "{report:?}"
        );
        let left = lab.datapath.check_pod(&pod).await.unwrap();
        assert_eq!(left, [], "after {:?}", loss.command);
    }
}

#[tokio::test]
async fn lost_settings_are_named_and_repaired() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);
    lab.datapath.setup_pod(&pod).await.unwrap();
    let key = format!("/proc/sys/net/ipv4/conf/{}/rp_filter", pod.host_link);
    lab::within(&lab.node(), move || std::fs::write(key, "1").unwrap());

    let drift = lab.datapath.check_pod(&pod).await.unwrap();
    lab.datapath
        .repair(std::slice::from_ref(&pod), &[], &[])
        .await
        .unwrap();

    assert!(drift[0].what.ends_with("rp_filter = 0"), "{drift:?}");
    assert_eq!(lab.datapath.check_pod(&pod).await.unwrap(), []);
}

#[tokio::test]
async fn lost_link_is_made_again() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);
    lab.datapath.setup_pod(&pod).await.unwrap();
    let before = lab::rules(&lab.node());
    lab::ip(&format!("-n {} link del {}", lab.node(), pod.host_link));

    let drift = lab.datapath.check_pod(&pod).await.unwrap();
    lab.datapath
        .repair(std::slice::from_ref(&pod), &[], &[Lab::eni(1)])
        .await
        .unwrap();

    assert!(drift[0].what.starts_with("link cali"), "{drift:?}");
    assert_eq!(lab.datapath.check_pod(&pod).await.unwrap(), []);
    assert_eq!(lab::rules(&lab.node()), before);
}

#[tokio::test]
async fn pod_moved_to_another_table_has_its_rules_moved() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);
    lab.datapath.setup_pod(&pod).await.unwrap();
    let moved = PodDesired {
        table: pod.table + 1,
        ..pod
    };

    lab.datapath
        .repair(std::slice::from_ref(&moved), &[], &[])
        .await
        .unwrap();

    let rules = lab::rules(&lab.node());
    assert_eq!(rules.len(), 4, "{rules:?}");
    assert!(
        rules[0].ends_with(&format!("lookup {}", moved.table)),
        "{rules:?}"
    );
}

#[tokio::test]
async fn check_changes_nothing() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);
    lab.datapath.setup_pod(&pod).await.unwrap();
    lab::ip(&format!("-n {} route del 10.9.0.5", lab.node()));
    let before = picture(&lab.node());

    lab.datapath.check_pod(&pod).await.unwrap();

    assert_eq!(picture(&lab.node()), before);
}

#[tokio::test]
async fn eni_that_lost_its_table_is_repaired() {
    let (lab, eni) = Lab::ready().await;
    let before = picture(&lab.node());
    lab::ip(&format!(
        "-n {} route flush table {}",
        lab.node(),
        eni.table
    ));
    lab::ip(&format!(
        "-n {} -6 route flush table {}",
        lab.node(),
        eni.table
    ));
    lab::ip(&format!("-n {} addr add 10.9.0.77/24 dev eni1", lab.node()));

    let report = lab.datapath.repair(&[], &[], &[Lab::eni(1)]).await.unwrap();

    assert_eq!(report.done.len(), 4, "{report:?}");
    assert_eq!(picture(&lab.node()), before);
}

// R22, R28: what a dead sandbox left is seen, and removed once it was seen twice.
#[tokio::test]
async fn orphans_seen_twice_are_removed() {
    let (mut lab, eni) = Lab::ready().await;
    let (kept, lost) = (lab.pod(5, &eni), lab.pod(6, &eni));
    for pod in [&kept, &lost] {
        lab.datapath.setup_pod(pod).await.unwrap();
    }
    let kept = [kept];

    let first = lab.datapath.repair(&kept, &[], &[]).await.unwrap().orphans;
    let second = lab.datapath.repair(&kept, &[], &[]).await.unwrap().orphans;
    lab.datapath
        .remove_orphans(&first.still(&second))
        .await
        .unwrap();

    assert_eq!((first.links.len(), first.rules.len()), (1, 4));
    let after = lab.datapath.repair(&kept, &[], &[]).await.unwrap();
    assert_eq!(after, datapath::kernel::RepairReport::default());
}

#[tokio::test]
async fn pod_without_namespace_is_reported_and_the_rest_repaired() {
    let (mut lab, eni) = Lab::ready().await;
    let (gone, other) = (lab.pod(5, &eni), lab.pod(6, &eni));
    lab.datapath.setup_pod(&other).await.unwrap();
    lab::ip(&format!("netns del {}", Lab::inside(&gone)));
    lab::ip(&format!("-n {} route del 10.9.0.6", lab.node()));

    let report = lab
        .datapath
        .repair(
            &[gone.clone(), other.clone()],
            &[],
            &[Lab::eni(1), Lab::eni(9)],
        )
        .await
        .unwrap();

    assert_eq!(report.gone, [gone.attachment]);
    assert_eq!(report.missing_enis, [lab::eni_mac(9)]);
    assert_eq!(lab.datapath.check_pod(&other).await.unwrap(), []);
}
