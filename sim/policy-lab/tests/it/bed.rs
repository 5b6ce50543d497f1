//! The bed itself, with nobody who enforces anything: what the other tests stand on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use policy_lab::bed::enforcer::Kind;
use policy_lab::bed::topology::NodeSpec;
use policy_lab::bed::{Attempt, Bed, Plan};
use policy_lab::probe::{self, Verdict};
use serde_json::{Value, json};

fn plan() -> Plan {
    let node = |n: u8| NodeSpec {
        name: format!("n{n}"),
        v4: Ipv4Addr::new(192, 168, 0, 10 + n),
        v6: Ipv6Addr::new(0xfd00, 0x192, 0, 0, 0, 0, 0, 0x0a + u16::from(n)),
    };
    Plan {
        nodes: vec![node(1), node(2)],
        outside: vec![
            "203.0.113.7".parse().unwrap(),
            "2001:db8::7".parse().unwrap(),
        ],
        ports: vec![80, 81],
        enforcer: Kind::Nobody,
    }
}

fn pod(name: &str, node: &str, v4: &str, v6: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "x", "name": name, "uid": name},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "podIPs": [{"ip": v4}, {"ip": v6}]},
    })
}

fn every_way(bed: &Bed) -> Vec<Attempt> {
    let stations = bed.stations();
    let mut attempts = Vec::new();
    for sender in &stations {
        for receiver in stations.iter().filter(|r| *r != sender) {
            for source in &sender.addresses {
                let same = |a: &&IpAddr| a.is_ipv4() == source.is_ipv4();
                let destinations = receiver.addresses.iter().filter(same);
                attempts.extend(destinations.flat_map(|to| all_kinds(*source, *to)));
            }
        }
    }
    attempts
}

fn all_kinds(source: IpAddr, destination: IpAddr) -> Vec<Attempt> {
    let ports = [80, 81].into_iter().flat_map(|port| {
        [
            probe::Kind::Tcp(port),
            probe::Kind::Udp(port),
            probe::Kind::Large(port),
            probe::Kind::Sctp(port),
        ]
    });
    let solicitation = source.is_ipv6().then_some(probe::Kind::Solicitation);
    ports
        .chain([probe::Kind::Echo, probe::Kind::Portless])
        .chain(solicitation)
        .map(|kind| Attempt {
            source,
            destination,
            kind,
        })
        .collect()
}

#[tokio::test]
async fn bed_without_policy_passes_everything_and_sees_what_a_rule_drops() {
    let mut bed = Bed::create(plan()).await.unwrap();
    let documents = [
        pod("a", "n1", "10.0.1.10", "fd00:10:1::10"),
        pod("b", "n1", "10.0.1.11", "fd00:10:1::11"),
        pod("c", "n2", "10.0.2.10", "fd00:10:2::10"),
    ];
    bed.show(&documents).await.unwrap();
    let attempts = every_way(&bed);

    let verdicts = bed.probe(&attempts).await.unwrap();

    for (attempt, verdict) in attempts.iter().zip(&verdicts) {
        assert_eq!(*verdict, Verdict::Allowed, "{attempt:?}");
    }
    let node = bed.topology.nodes[1].namespace.clone();
    let rules = "table inet t { chain c { type filter hook postrouting priority 90; \
                 ip daddr 10.0.2.10 udp dport 80 drop; ip6 daddr fd00:10:2::10 icmpv6 type echo-request drop; \
                 ip saddr 10.0.2.10 tcp dport 81 drop; ip daddr 10.0.2.10 sctp dport 81 drop; }\n}\n";
    fabric::shell::nft(&node, rules).await.unwrap();
    let started = std::time::Instant::now();
    let verdicts = bed.probe(&attempts).await.unwrap();
    let took = started.elapsed();
    let c4: IpAddr = "10.0.2.10".parse().unwrap();
    let own = IpAddr::V4(plan().nodes[1].v4);
    let c6: IpAddr = "fd00:10:2::10".parse().unwrap();
    for (attempt, verdict) in attempts.iter().zip(&verdicts) {
        let denied = match attempt.kind {
            probe::Kind::Udp(80) | probe::Kind::Large(80) | probe::Kind::Sctp(81) => {
                attempt.destination == c4
            }
            probe::Kind::Echo => attempt.destination == c6,
            // What is for the node itself is not sent on.
            probe::Kind::Tcp(81) => attempt.source == c4 && attempt.destination != own,
            probe::Kind::Tcp(_)
            | probe::Kind::Udp(_)
            | probe::Kind::Sctp(_)
            | probe::Kind::Large(_)
            | probe::Kind::OneWay(_)
            | probe::Kind::Portless
            | probe::Kind::Solicitation => false,
        };
        let expected = if denied {
            Verdict::Denied
        } else {
            Verdict::Allowed
        };
        assert_eq!(*verdict, expected, "{attempt:?}");
    }
    assert!(
        took.as_secs() < 5,
        "{} probes took {took:?}",
        attempts.len()
    );
}

#[tokio::test]
async fn probe_that_no_node_kept_is_no_denial() {
    let mut bed = Bed::create(plan()).await.unwrap();
    let documents = [
        pod("a", "n1", "10.0.1.10", "fd00:10:1::10"),
        pod("c", "n2", "10.0.2.10", "fd00:10:2::10"),
    ];
    bed.show(&documents).await.unwrap();
    let to = |kind| Attempt {
        source: "10.0.1.10".parse().unwrap(),
        destination: "10.0.2.10".parse().unwrap(),
        kind,
    };
    let attempts = [
        to(probe::Kind::Tcp(80)),
        to(probe::Kind::Udp(80)),
        to(probe::Kind::Udp(81)),
    ];
    // One is kept by the node; the other is lost behind it, or before it.
    let node = bed.topology.nodes[1].namespace.clone();
    let kept =
        "table inet t { chain c { type filter hook forward priority 0; udp dport 80 drop; }\n}\n";
    fabric::shell::nft(&node, kept).await.unwrap();
    for (key, hook) in [("c", "input"), ("a", "output")] {
        let key = bed.pods().keys().find(|k| k.name == key).unwrap();
        let pod = bed.pods()[key].namespace.clone();
        let lost = format!(
            "table inet t {{ chain c {{ type filter hook {hook} priority 0; udp dport 81 drop; }}\n}}\n"
        );
        fabric::shell::nft(&pod, &lost).await.unwrap();

        let outcome = bed.probe(&attempts).await;

        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("did not settle"), "{hook}: {error}");
        fabric::shell::nft(&pod, "delete table inet t\n")
            .await
            .unwrap();
    }
    let verdicts = bed.probe(&attempts).await.unwrap();
    assert_eq!(
        verdicts,
        [Verdict::Allowed, Verdict::Denied, Verdict::Allowed]
    );
}
