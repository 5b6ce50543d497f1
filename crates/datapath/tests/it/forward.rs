//! A FORWARD policy of DROP.

use std::io::Write;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::lab::{DOUBT, Lab, OUTSIDE_V4, OUTSIDE_V6, PATIENCE, ip, reaches, within};

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

#[tokio::test]
async fn answer_to_a_connection_to_the_node_leaves_by_the_node_s_own_link() {
    let (mut lab, eni) = Lab::ready().await;
    let pod = lab.pod(5, &eni);
    lab.datapath.setup_pod(&pod).await.unwrap();
    let (node, vpc, inside) = (lab.node(), lab.vpc(), Lab::inside(&pod));
    // The node's own link, with another client behind it, whom only the main table knows.
    for words in [
        format!("-n {vpc} link add own type veth peer name own0 netns {node}"),
        format!("-n {vpc} addr add 10.8.0.1/24 dev own"),
        format!("-n {vpc} link set own up"),
        format!("-n {node} addr add 10.8.0.9/24 dev own0"),
        format!("-n {node} link set own0 up"),
    ] {
        ip(&words);
    }
    let own: IpAddr = "10.8.0.9".parse().unwrap();
    // As the VPC does: an ENI sends with its own addresses alone.
    for words in [
        "add table ip vpc",
        "add chain ip vpc pre { type filter hook prerouting priority 0 ; }",
        "add rule ip vpc pre iifname vpc1 ip saddr 10.8.0.9 drop",
    ] {
        within(&vpc, move || {
            let words = words.split(' ');
            assert!(Command::new("nft").args(words).status().unwrap().success());
        });
    }
    let target = pod.v4.unwrap();
    inside_node(&lab, "nft add table ip svc");
    inside_node(
        &lab,
        "nft add chain ip svc pre { type nat hook prerouting priority -100 ; }",
    );
    inside_node(
        &lab,
        &format!("nft add rule ip svc pre ip daddr {own} tcp dport 7200 dnat to {target}:7300"),
    );
    let mut host = Lab::host();
    host.node_addresses = vec![own];
    let connects = || {
        let listener = within(&inside, move || {
            std::net::TcpListener::bind((target, 7300)).unwrap()
        });
        let client = within(&vpc, move || {
            let to = std::net::SocketAddr::new(own, 7200);
            std::net::TcpStream::connect_timeout(&to, DOUBT)
        });
        drop(listener);
        client.is_ok()
    };

    let without = connects();
    let first = lab.datapath.ensure_host(&host).await.unwrap();
    let with = connects();
    let second = lab.datapath.ensure_host(&host).await.unwrap();
    let left = lab.datapath.leave_host().await.unwrap();

    assert!(!without, "the answer found its way before");
    assert!(with, "{first:?}");
    assert_eq!(second, Vec::<String>::new());
    assert!(
        left.iter().any(|word| word.contains("rule 600")),
        "{left:?}"
    );
    let tables = inside_node(&lab, "nft list tables");
    assert!(!tables.contains("terway_return"), "{tables}");
    assert!(!ip(&format!("-n {node} rule show")).contains("600:"));
}
