//! Set-up and teardown of pods.

use std::sync::atomic::{AtomicUsize, Ordering};

use datapath::desired::{PodDesired, TornDown};
use datapath::kernel::CRASH_POINTS;
use serde_json::json as j;

use crate::lab::{self, Lab, json, picture, rules, teardown_of};

fn expected_rules(pod: &PodDesired) -> Vec<String> {
    let mut rules: Vec<String> = pod
        .addresses()
        .flat_map(|ip| {
            [
                format!("512 from all to {ip} lookup main"),
                format!("2048 from {ip} to all lookup {}", pod.table),
            ]
        })
        .collect();
    rules.sort();
    rules
}

#[tokio::test]
async fn pod_setup_leaves_the_exact_state() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);

    let state = lab.datapath.setup_pod(&pod).await.unwrap();

    let inside = Lab::inside(&pod);
    let link = &json(&inside, "link show dev eth0")[0];
    assert_eq!(link["address"], j!(state.pod_mac.to_string()));
    assert!(lab::is_up(link));
    assert_eq!(link["mtu"], j!(1500));
    let addresses = json(&inside, "addr show dev eth0 scope global");
    let found: Vec<_> = addresses[0]["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|a| !a["local"].is_null())
        .map(|a| {
            (
                a["local"].clone(),
                a["prefixlen"].clone(),
                a["tentative"].clone(),
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            (j!("10.9.0.5"), j!(32), j!(null)),
            (j!("fd09::5"), j!(128), j!(null))
        ]
    );
    for (family, gateway) in [("-4", "169.254.1.1"), ("-6", "fe80::1")] {
        let route = &json(&inside, &format!("{family} route show default"))[0];
        assert_eq!(
            (&route["gateway"], &route["dev"]),
            (&j!(gateway), &j!("eth0"))
        );
        assert_eq!(route["flags"], j!(["onlink"]));
        let neighbour = &json(&inside, &format!("{family} neigh show {gateway} dev eth0"))[0];
        assert_eq!(neighbour["lladdr"], j!(state.host_mac.to_string()));
        assert_eq!(neighbour["state"], j!(["PERMANENT"]));
    }

    let node = lab.node();
    let host = &json(&node, &format!("link show dev {}", pod.host_link))[0];
    assert_eq!(host["address"], j!(state.host_mac.to_string()));
    assert_eq!(
        host["ifalias"],
        j!(format!("terway:{}/eth0", pod.attachment.sandbox))
    );
    let route = &json(&node, "-4 route show 10.9.0.5")[0];
    assert_eq!(
        (&route["dev"], &route["scope"]),
        (&j!(pod.host_link), &j!("link"))
    );
    assert_eq!(
        json(&node, "-6 route show fd09::5")[0]["dev"],
        j!(pod.host_link)
    );
    assert_eq!(rules(&node), expected_rules(&pod));
    let accept_ra = lab::within(&inside, || {
        std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/accept_ra").unwrap()
    });
    assert_eq!(accept_ra.trim(), "0");
}

#[tokio::test]
async fn pod_setup_twice_changes_nothing() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);
    let first = lab.datapath.setup_pod(&pod).await.unwrap();
    let before = (picture(&lab.node()), picture(&Lab::inside(&pod)));

    let second = lab.datapath.setup_pod(&pod).await.unwrap();

    assert_eq!(first, second);
    assert_eq!(before, (picture(&lab.node()), picture(&Lab::inside(&pod))));
    assert_eq!(lab.datapath.check_pod(&pod).await.unwrap(), []);
    let report = lab
        .datapath
        .repair(&[pod], &[], &[Lab::eni(1)])
        .await
        .unwrap();
    assert_eq!(report, datapath::kernel::RepairReport::default());
}

#[tokio::test]
async fn pod_with_one_family_gets_nothing_of_the_other() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = PodDesired {
        v6: None,
        mtu: 1400,
        ..lab.pod(5, &eni)
    };

    lab.datapath.setup_pod(&pod).await.unwrap();

    assert_eq!(rules(&lab.node()), expected_rules(&pod));
    assert!(json(&Lab::inside(&pod), "-6 route show default").is_empty());
    assert_eq!(
        json(&Lab::inside(&pod), "link show dev eth0")[0]["mtu"],
        j!(1400)
    );
    assert_eq!(lab.datapath.check_pod(&pod).await.unwrap(), []);
}

// R27: DEL is repeated, comes without a namespace, and for what never was.
#[tokio::test]
async fn teardown_leaves_nothing_and_may_be_repeated() {
    let (mut lab, eni) = Lab::ready().await;
    let before = picture(&lab.node());
    let pod = lab.pod(5, &eni);
    lab.datapath.setup_pod(&pod).await.unwrap();

    let first = lab.datapath.teardown_pod(&teardown_of(&pod)).await.unwrap();
    let second = lab.datapath.teardown_pod(&teardown_of(&pod)).await.unwrap();

    assert_eq!((first, second), (TornDown::Removed, TornDown::Absent));
    assert_eq!(picture(&lab.node()), before);
    assert!(json(&Lab::inside(&pod), "link show type veth").is_empty());
}

#[tokio::test]
async fn teardown_after_the_namespace_went_removes_the_rules() {
    let (mut lab, eni) = Lab::ready().await;
    let before = picture(&lab.node());
    let pod = lab.pod(5, &eni);
    lab.datapath.setup_pod(&pod).await.unwrap();
    lab::ip(&format!("netns del {}", Lab::inside(&pod)));

    lab.datapath.teardown_pod(&teardown_of(&pod)).await.unwrap();

    assert_eq!(rules(&lab.node()), Vec::<String>::new());
    assert_eq!(picture(&lab.node()), before);
}

// R17, R06: the late DEL of an earlier sandbox meets the link and the address of its successor.
#[tokio::test]
async fn teardown_of_an_earlier_sandbox_spares_the_successor() {
    let (mut lab, eni) = Lab::ready().await;
    let old = lab.sandbox_of("web-0", 5, &eni);
    lab.datapath.setup_pod(&old).await.unwrap();
    let new = lab.sandbox_of("web-0", 6, &eni);
    let new = PodDesired {
        v4: old.v4,
        v6: old.v6,
        ..new
    };
    lab.datapath.setup_pod(&new).await.unwrap();

    let outcome = lab.datapath.teardown_pod(&teardown_of(&old)).await.unwrap();

    assert_eq!(outcome, TornDown::Spared);
    assert_eq!(lab.datapath.check_pod(&new).await.unwrap(), []);
    assert_eq!(rules(&lab.node()), expected_rules(&new));
}

// R06: the address of a deleted pod serves another pod, under another link name.
#[tokio::test]
async fn teardown_repeated_after_reuse_of_the_address_spares_the_new_rules() {
    let (mut lab, eni) = Lab::ready().await;
    let old = lab.pod(5, &eni);
    lab.datapath.setup_pod(&old).await.unwrap();
    lab.datapath.teardown_pod(&teardown_of(&old)).await.unwrap();
    let new = PodDesired {
        v4: old.v4,
        v6: old.v6,
        ..lab.pod(6, &eni)
    };
    lab.datapath.setup_pod(&new).await.unwrap();

    lab.datapath.teardown_pod(&teardown_of(&old)).await.unwrap();

    assert_eq!(lab.datapath.check_pod(&new).await.unwrap(), []);
}

#[tokio::test]
async fn setup_removes_rules_that_an_earlier_user_left() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);
    lab::ip(&format!(
        "-n {} rule add from 10.9.0.5 lookup 4711 prio 2048",
        lab.node()
    ));

    lab.datapath.setup_pod(&pod).await.unwrap();

    assert_eq!(rules(&lab.node()), expected_rules(&pod));
}

#[tokio::test]
async fn setup_in_a_namespace_with_a_foreign_interface_is_refused_by_name() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);
    lab::ip(&format!(
        "-n {} link add eth0 type veth peer name other",
        Lab::inside(&pod)
    ));

    let error = lab.datapath.setup_pod(&pod).await.unwrap_err();

    assert!(error.to_string().contains("interface eth0"), "{error}");
    assert_eq!(rules(&lab.node()), Vec::<String>::new());
}

#[tokio::test]
async fn setup_without_a_namespace_says_so() {
    let (mut lab, eni) = Lab::ready().await;
    let mut pod = lab.pod(5, &eni);
    pod.netns = "/var/run/netns/there-is-none".into();

    let error = lab.datapath.setup_pod(&pod).await.unwrap_err();

    assert_eq!(
        error.to_string(),
        "network namespace /var/run/netns/there-is-none does not exist"
    );
    pod.netns = "/proc/version".into();
    let error = lab.datapath.setup_pod(&pod).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "/proc/version is not a network namespace"
    );
}

/// The step at which [`die`] ends its thread: an index into the crash points, or none.
static DIES_AT: AtomicUsize = AtomicUsize::new(usize::MAX);

fn die(step: &'static str) {
    let at = CRASH_POINTS.get(DIES_AT.load(Ordering::SeqCst));
    assert!(at != Some(&step), "dies here, as the test wants");
}

// I1, R28: the agent dies between any two steps; what it left is completed, and goes without a trace.
#[tokio::test]
async fn work_cut_short_at_any_step_is_completed_by_the_next() {
    let (mut lab, eni) = Lab::ready().await;
    let before = picture(&lab.node());
    let fragile = lab.datapath.clone().with_steps(die);
    for (at, step) in CRASH_POINTS.iter().enumerate() {
        let pod = lab.pod(u8::try_from(at).unwrap() + 10, &eni);
        if !step.starts_with("datapath.setup") {
            lab.datapath.setup_pod(&pod).await.unwrap();
        }
        DIES_AT.store(at, Ordering::SeqCst);
        let died = if step.starts_with("datapath.setup") {
            fragile.setup_pod(&pod).await.map(drop)
        } else {
            fragile.teardown_pod(&teardown_of(&pod)).await.map(drop)
        };
        DIES_AT.store(usize::MAX, Ordering::SeqCst);
        assert!(died.is_err(), "{step} was not reached");

        if step.starts_with("datapath.setup") {
            lab.datapath.setup_pod(&pod).await.unwrap();
            assert_eq!(lab.datapath.check_pod(&pod).await.unwrap(), [], "{step}");
        }
        lab.datapath.teardown_pod(&teardown_of(&pod)).await.unwrap();
        assert_eq!(picture(&lab.node()), before, "{step}");
    }
}

#[tokio::test]
async fn teardown_of_a_half_made_pod_leaves_nothing() {
    let (mut lab, eni) = Lab::ready().await;
    let before = picture(&lab.node());
    let pod = lab.pod(5, &eni);
    lab::ip(&format!(
        "-n {} link add {} type veth peer name eth0 netns {}",
        lab.node(),
        pod.host_link,
        Lab::inside(&pod)
    ));

    let outcome = lab.datapath.teardown_pod(&teardown_of(&pod)).await.unwrap();

    assert_eq!(outcome, TornDown::Removed);
    assert_eq!(picture(&lab.node()), before);
}

// A node that moves over from Terway: its pods keep their links, with what little we add.
#[tokio::test]
async fn pod_that_terway_set_up_is_adopted_without_a_new_link() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);
    let (node, inside, host) = (lab.node(), Lab::inside(&pod), &pod.host_link);
    let link = format!("link add {host} type veth peer name eth0 netns {inside}");
    lab::ip(&format!("-n {node} {link}"));
    lab::ip(&format!("-n {node} link set {host} up"));
    lab::ip(&format!("-n {inside} link set eth0 up"));
    let mac = json(&node, &format!("link show dev {host}"))[0]["address"].clone();
    for command in [
        "addr add 10.9.0.5/32 dev eth0",
        "addr add fd09::5/128 dev eth0 nodad",
        "route add 169.254.1.1 dev eth0 scope link",
        "route add default via 169.254.1.1 dev eth0 onlink",
    ] {
        lab::ip(&format!("-n {inside} {command}"));
    }
    let mac = mac.as_str().unwrap();
    lab::ip(&format!(
        "-n {inside} neigh add 169.254.1.1 lladdr {mac} dev eth0 nud permanent"
    ));
    lab::ip(&format!(
        "-n {node} rule add to 10.9.0.5 lookup main prio 512"
    ));
    let before = json(&inside, "link show dev eth0");

    let report = lab
        .datapath
        .repair(std::slice::from_ref(&pod), &[], &[Lab::eni(1)])
        .await
        .unwrap();

    assert!(report.failed.is_empty(), "{report:?}");
    assert_eq!(lab.datapath.check_pod(&pod).await.unwrap(), []);
    assert_eq!(rules(&node), expected_rules(&pod));
    let after = json(&inside, "link show dev eth0");
    assert_eq!(after[0]["address"], before[0]["address"]);
    assert_eq!(after[0]["ifindex"], before[0]["ifindex"]);
    assert!(
        !report.done.iter().any(|d| d.contains("169.254.1.1")),
        "{report:?}"
    );
}
