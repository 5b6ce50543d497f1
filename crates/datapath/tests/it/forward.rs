//! A FORWARD policy of DROP.

use std::io::Write;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

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

/// Comments of the rules of all tables, as `nft` reads them.
fn comments(lab: &Lab) -> Vec<String> {
    let listed: Value = serde_json::from_str(&inside_node(lab, "nft -j list ruleset")).unwrap();
    let rules = listed["nftables"].as_array().unwrap().iter();
    rules
        .filter_map(|entry| entry["rule"]["comment"].as_str())
        .map(str::to_owned)
        .collect()
}

/// As `nft` reads the one rule with that comment: what is compared, and what becomes of the packet.
fn read_by_nft(lab: &Lab, comment: &str) -> Vec<Value> {
    let listed: Value = serde_json::from_str(&inside_node(lab, "nft -j list ruleset")).unwrap();
    let rules = listed["nftables"].as_array().unwrap().iter();
    let rule = rules.map(|entry| &entry["rule"]);
    let mut ours = rule.filter(|rule| rule["comment"] == comment);
    ours.next().unwrap()["expr"].as_array().unwrap().clone()
}

#[tokio::test]
async fn chain_of_another_firewall_that_drops_lets_pods_through_and_is_given_back_as_it_was() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);
    lab.datapath.setup_pod(&pod).await.unwrap();
    let (inside, vpc) = (Lab::inside(&pod), lab.vpc());
    inside_node(&lab, "nft add table inet firewall");
    inside_node(
        &lab,
        "nft add chain inet firewall transit { type filter hook forward priority 10 ; policy drop ; }",
    );
    inside_node(&lab, "nft add rule inet firewall transit tcp dport 1 drop");
    let before = inside_node(&lab, "nft list ruleset");
    assert!(!reaches(&inside, &vpc, IpAddr::V4(OUTSIDE_V4), DOUBT));

    let first = lab.datapath.ensure_host(&Lab::host()).await.unwrap();
    let second = lab.datapath.ensure_host(&Lab::host()).await.unwrap();

    assert_eq!((first.len(), second.len()), (2, 0), "{first:?} {second:?}");
    assert_eq!(
        comments(&lab),
        ["terway-pods iifname cali", "terway-pods oifname cali"]
    );
    let read = read_by_nft(&lab, "terway-pods iifname cali");
    assert_eq!(read[0]["match"]["right"], "cali*", "{read:?}");
    assert_eq!(read[0]["match"]["left"]["meta"]["key"], "iifname");
    assert!(read[2].get("accept").is_some(), "{read:?}");
    for outside in [IpAddr::V4(OUTSIDE_V4), IpAddr::V6(OUTSIDE_V6)] {
        assert!(
            reaches(&inside, &vpc, outside, PATIENCE),
            "pod to {outside}"
        );
    }
    let gone = lab.datapath.leave_host().await.unwrap();
    assert_eq!(gone.len(), 2, "{gone:?}");
    assert_eq!(inside_node(&lab, "nft list ruleset"), before);
}

#[tokio::test]
async fn policy_that_accepts_again_and_prefixes_that_change_take_old_rules_with_them() {
    let (lab, _) = Lab::ready().await;
    inside_node(&lab, "iptables-nft -P FORWARD DROP");
    lab.datapath.ensure_host(&Lab::host()).await.unwrap();
    let mut other = Lab::host();
    other.veth_prefixes = vec!["pod".to_owned()];

    lab.datapath.ensure_host(&other).await.unwrap();
    let renamed = comments(&lab);
    inside_node(&lab, "iptables-nft -P FORWARD ACCEPT");
    lab.datapath.ensure_host(&other).await.unwrap();

    assert_eq!(
        renamed,
        ["terway-pods iifname pod", "terway-pods oifname pod"]
    );
    assert_eq!(comments(&lab), Vec::<String>::new());
    assert_eq!(
        inside_node(&lab, "iptables-nft -S FORWARD").trim(),
        "-P FORWARD ACCEPT"
    );
}

/// A process that keeps a table to itself for as long as it lives, as firewalld can.
struct Keeper(Child);

impl Keeper {
    fn of(lab: &Lab) -> Self {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &lab.node(), "nft", "-i"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let typed = "add table inet kept { flags owner; }\n\
            add chain inet kept transit { type filter hook forward priority 0; policy drop; }\n";
        let stdin = child.stdin.as_mut().unwrap();
        stdin.write_all(typed.as_bytes()).unwrap();
        stdin.flush().unwrap();
        Self(child)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn chain_that_its_owner_keeps_to_itself_is_a_complaint_and_no_failure() {
    let (lab, _) = Lab::ready().await;
    let keeper = Keeper::of(&lab);
    let there = async {
        let mut every = tokio::time::interval(Duration::from_millis(10));
        while !inside_node(&lab, "nft list ruleset").contains("chain transit") {
            every.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, there).await.unwrap();

    let done = lab.datapath.ensure_host(&Lab::host()).await.unwrap();

    let complaints = lab.datapath.forward_complaints();
    assert_eq!(done, Vec::<String>::new());
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    for word in ["chain transit of table inet kept", "EPERM"] {
        assert!(complaints[0].contains(word), "{complaints:?}");
    }
    drop(keeper);
    let freed = async {
        while !lab.datapath.forward_complaints().is_empty() {
            lab.datapath.ensure_host(&Lab::host()).await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.unwrap();
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
