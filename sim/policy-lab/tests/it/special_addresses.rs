//! Addresses that are more than a pod's: Services, masqueraded clients, the DNS cache of a node, the metadata service,
//! and a pod's address in the hands of its node. And datagrams in fragments, of which only the first has ports.

use std::fmt::Write as _;
use std::net::IpAddr;

use fabric::namespace::Namespace;
use policy_lab::bed::enforcer::Kind as Enforcer;
use policy_lab::bed::{Bed, Plan};
use policy_lab::never_open::scene::nodes;
use policy_lab::probe::{Kind, Probe, Prober, Verdict};
use serde_json::{Value, json};

/// The DNS cache of every node.
const DNS: &str = "169.254.20.10";
/// The metadata service of the cloud.
const METADATA: &str = "100.100.100.200";
/// A host that is not of the cluster.
const OUTSIDE: [&str; 2] = ["203.0.113.7", "2001:db8::7"];
/// Pods a and b on n1, c on n2.
const A: [&str; 2] = ["10.0.1.10", "fd00:10:1::10"];
const B: [&str; 2] = ["10.0.1.11", "fd00:10:1::11"];
const C: [&str; 2] = ["10.0.2.10", "fd00:10:2::10"];
/// A Service in front of each.
const SERVICES: [([&str; 2], [&str; 2]); 3] = [
    (["172.21.0.10", "fd00:172::10"], A),
    (["172.21.0.11", "fd00:172::11"], B),
    (["172.21.0.12", "fd00:172::12"], C),
];
/// Numbers of the nodes' stations, which come behind those of the pods.
const PODS: usize = 3;

struct Lab {
    bed: Bed,
    prober: Prober,
}

/// What is sent, by whom, where to.
struct Ask {
    from: &'static str,
    source: &'static str,
    to: &'static str,
    kind: Kind,
}

impl Lab {
    /// Pods, and the DNS cache on each node.
    async fn create(overrides: Value) -> Self {
        let outside = OUTSIDE.into_iter().chain([METADATA]);
        let mut bed = Bed::create(Plan {
            nodes: nodes(),
            outside: outside.map(address).collect(),
            ports: vec![53, 80, 8080, 30080],
            enforcer: Enforcer::Agents(overrides),
        })
        .await
        .unwrap();
        bed.show(&cluster(&[])).await.unwrap();
        let mut stations = bed.stations();
        for (number, node) in bed.topology.nodes.iter().enumerate() {
            let line = format!("addr add {DNS}/32 dev lo\n");
            fabric::shell::ip_batch(&node.namespace, &line)
                .await
                .unwrap();
            stations[PODS + number].addresses.push(address(DNS));
        }
        let prober = bed.prober(stations).await.unwrap();
        Self { bed, prober }
    }

    fn node(&self, number: usize) -> &Namespace {
        &self.bed.topology.nodes[number].namespace
    }

    async fn nft(&self, node: usize, script: &str) {
        fabric::shell::nft(self.node(node), script).await.unwrap();
    }

    async fn policies(&mut self, policies: &[Value]) {
        self.bed.show(&cluster(policies)).await.unwrap();
    }

    /// Holds what becomes of the attempts against what should.
    fn hold(&mut self, why: &str, expected: &[(Ask, Verdict)]) {
        let stations = self.prober.stations();
        let probes: Vec<_> = expected
            .iter()
            .map(|(ask, _)| Probe {
                from: stations.iter().position(|s| s.name == ask.from).unwrap(),
                source: address(ask.source),
                destination: address(ask.to),
                kind: ask.kind,
            })
            .collect();
        let verdicts = self.prober.run(&probes).unwrap();
        for ((probe, (_, should)), verdict) in probes.iter().zip(expected).zip(verdicts) {
            assert_eq!(verdict, *should, "{why}: {probe:?}");
        }
    }

    /// Packets that a rule of a test's own has counted.
    async fn counted(&self, node: usize, counter: &str) -> u64 {
        let args = ["list", "counter", "inet", "test", counter];
        let text = fabric::shell::nft_json(self.node(node), &args)
            .await
            .unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        let found = json["nftables"].as_array().unwrap().iter();
        let mut packets = found.filter_map(|o| o.pointer("/counter/packets")?.as_u64());
        packets.next().unwrap()
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ask(from: &'static str, source: &'static str, to: &'static str, kind: Kind) -> Ask {
    Ask {
        from,
        source,
        to,
        kind,
    }
}

/// The same attempt of both families.
fn both(
    from: &'static str,
    source: [&'static str; 2],
    to: [&'static str; 2],
    kind: Kind,
    should: Verdict,
) -> [(Ask, Verdict); 2] {
    [0, 1].map(|f| (ask(from, source[f], to[f], kind), should))
}

fn cluster(policies: &[Value]) -> Vec<Value> {
    let mut documents = vec![json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "x", "labels": {"kubernetes.io/metadata.name": "x"}},
    })];
    for node in nodes() {
        documents.push(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name},
            "status": {"addresses": [
                {"type": "InternalIP", "address": node.v4.to_string()},
                {"type": "InternalIP", "address": node.v6.to_string()},
            ]},
        }));
    }
    for (name, node, [four, six]) in [("a", "n1", A), ("b", "n1", B), ("c", "n2", C)] {
        documents.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "x", "name": name, "uid": name, "labels": {"pod": name}},
            "spec": {"nodeName": node},
            "status": {"phase": "Running", "podIPs": [{"ip": four}, {"ip": six}]},
        }));
    }
    documents.extend(policies.iter().cloned());
    documents
}

/// A policy of one direction for pod `pod`.
#[expect(clippy::needless_pass_by_value, reason = "rules are written in place")]
fn policy(pod: &str, direction: &str, rules: Value) -> Value {
    let key = direction.to_lowercase();
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": format!("{pod}-{key}")},
        "spec": {
            "podSelector": {"matchLabels": {"pod": pod}},
            "policyTypes": [direction],
            key: rules,
        },
    })
}

fn blocks(nets: &[&str]) -> Value {
    let peer = |net: &&str| json!({"ipBlock": {"cidr": net}});
    nets.iter().map(peer).collect()
}

fn ports(numbers: &[u16]) -> Value {
    let all = numbers.iter().flat_map(|port| {
        ["TCP", "UDP"].map(|protocol| json!({"protocol": protocol, "port": port}))
    });
    all.collect()
}

/// Services as kube-proxy makes them: port 80 of their address is port 8080 of a pod, and a pod that reaches itself is
/// masqueraded.
fn services() -> String {
    let mut rules = String::new();
    let mut loops = String::new();
    for (service, pod) in SERVICES {
        for (word, from, to, open, close) in [
            ("ip", service[0], pod[0], "", ""),
            ("ip6", service[1], pod[1], "[", "]"),
        ] {
            for protocol in ["tcp", "udp"] {
                writeln!(
                    rules,
                    "{word} daddr {from} {protocol} dport 80 dnat {word} to {open}{to}{close}:8080"
                )
                .unwrap();
            }
            writeln!(
                loops,
                "{word} saddr {to} {word} daddr {to} counter name looped masquerade"
            )
            .unwrap();
        }
    }
    format!(
        "table inet test {{ counter looped {{ }}\n\
         chain pre {{ type nat hook prerouting priority -100; {rules} }}\n\
         chain post {{ type nat hook postrouting priority 100; {loops} }}\n}}\n"
    )
}

// C4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_is_judged_by_the_pod_and_the_port_behind_it() {
    let mut lab = Lab::create(json!({})).await;
    lab.nft(0, &services()).await;
    let mut tell = async |why, policies: &[Value], should| {
        lab.policies(policies).await;
        let mut expected = Vec::new();
        for (service, _) in &SERVICES[1..] {
            for kind in [Kind::Tcp(80), Kind::Udp(80)] {
                expected.extend(both("x/a", A, *service, kind, should));
            }
        }
        lab.hold(why, &expected);
    };
    let pods = json!([{"podSelector": {}}]);
    let services = ["172.21.0.0/24", "fd00:172::/64"];

    tell("no policy", &[], Verdict::Allowed).await;
    tell(
        "pods and their port",
        &[policy(
            "a",
            "Egress",
            json!([{"to": pods, "ports": ports(&[8080])}]),
        )],
        Verdict::Allowed,
    )
    .await;
    tell(
        "pods and the port of the service",
        &[policy(
            "a",
            "Egress",
            json!([{"to": pods, "ports": ports(&[80])}]),
        )],
        Verdict::Denied,
    )
    .await;
    tell(
        "addresses of services",
        &[policy("a", "Egress", json!([{"to": blocks(&services)}]))],
        Verdict::Denied,
    )
    .await;
    tell(
        "nothing",
        &[policy("a", "Egress", json!([]))],
        Verdict::Denied,
    )
    .await;
    tell(
        "ingress of the pods behind",
        &[
            policy("b", "Ingress", json!([{"ports": ports(&[80])}])),
            policy("c", "Ingress", json!([{"ports": ports(&[80])}])),
        ],
        Verdict::Denied,
    )
    .await;
}

// C4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_is_judged_by_its_own_address_where_it_is_masqueraded_and_by_the_nodes_elsewhere() {
    let mut lab = Lab::create(json!({})).await;
    let entry: [[String; 2]; 2] = [0, 1].map(|n| {
        let spec = &lab.bed.topology.nodes[n].spec;
        [spec.v4.to_string(), spec.v6.to_string()]
    });
    // A port of every node that leads to b, which is on n1; the client's address is replaced by the node's.
    for (number, [four, six]) in entry.iter().enumerate() {
        let script = format!(
            "table inet test {{ counter masked {{ }}\n\
             chain pre {{ type nat hook prerouting priority -100;\n\
             ip daddr {four} tcp dport 30080 dnat ip to {}:8080\n\
             ip6 daddr {six} tcp dport 30080 dnat ip6 to [{}]:8080\n }}\n\
             chain post {{ type nat hook postrouting priority 100;\n\
             tcp dport 8080 ct status dnat counter name masked masquerade\n }}\n}}\n",
            B[0], B[1]
        );
        lab.nft(number, &script).await;
    }
    let client = ["203.0.113.7/32", "2001:db8::7/128"];
    let other_node = ["192.168.0.12/32", "fd00:192::c/128"];
    let here = ["192.168.0.11", "fd00:192::b"];
    let there = ["192.168.0.12", "fd00:192::c"];
    for (why, nets, through_own, through_other) in [
        ("the client", client, Verdict::Allowed, Verdict::Denied),
        (
            "the other node",
            other_node,
            Verdict::Denied,
            Verdict::Allowed,
        ),
    ] {
        lab.policies(&[policy("b", "Ingress", json!([{"from": blocks(&nets)}]))])
            .await;
        let port = Kind::Tcp(30080);
        let mut expected = Vec::new();
        expected.extend(both("outside", OUTSIDE, here, port, through_own));
        expected.extend(both("outside", OUTSIDE, there, port, through_other));
        lab.hold(why, &expected);
    }
    for node in 0..2 {
        assert!(lab.counted(node, "masked").await > 0, "node {node}");
    }
}

// E3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_reaches_itself_through_a_service_unless_an_administrator_forbids_it() {
    let mut lab = Lab::create(json!({})).await;
    lab.nft(0, &services()).await;
    let closed = [
        policy("a", "Ingress", json!([])),
        policy("a", "Egress", json!([])),
    ];
    let (itself, other) = (SERVICES[0].0, SERVICES[1].0);
    let attempts = |through_itself, through_other| {
        let mut expected = Vec::new();
        for kind in [Kind::Tcp(80), Kind::Udp(80)] {
            expected.extend(both("x/a", A, itself, kind, through_itself));
            expected.extend(both("x/a", A, other, kind, through_other));
        }
        expected
    };

    lab.policies(&closed).await;
    lab.hold("isolated", &attempts(Verdict::Allowed, Verdict::Denied));
    assert!(lab.counted(0, "looped").await > 0);

    let deny = json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "nobody"},
        "spec": {
            "tier": "Admin", "priority": 1,
            "subject": {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "a"}}}},
            "ingress": [{"name": "none", "action": "Deny", "from": [{"namespaces": {}}]}],
        },
    });
    lab.policies(&[deny]).await;
    lab.hold("forbidden", &attempts(Verdict::Denied, Verdict::Allowed));
}

/// What opens of the DNS cache on port 53, the DNS cache on another port, the metadata service.
fn special(dns: Verdict, beside: Verdict, metadata: Verdict) -> Vec<(Ask, Verdict)> {
    let mut expected = Vec::new();
    // Each pod has the cache of its own node.
    for (from, source) in [("x/a", A[0]), ("x/c", C[0])] {
        for (to, kind, should) in [
            (DNS, Kind::Udp(53), dns),
            (DNS, Kind::Tcp(53), dns),
            (DNS, Kind::Tcp(80), beside),
            (METADATA, Kind::Tcp(80), metadata),
        ] {
            expected.push((ask(from, source, to, kind), should));
        }
    }
    expected
}

fn of_both(rules: &Value) -> [Value; 2] {
    ["a", "c"].map(|pod| policy(pod, "Egress", rules.clone()))
}

// C1, E2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dns_cache_of_the_node_and_metadata_service_are_reached_when_a_policy_says_so() {
    use Verdict::{Allowed, Denied};
    let mut lab = Lab::create(json!({})).await;
    let dns = format!("{DNS}/32");
    let metadata = format!("{METADATA}/32");
    let but_metadata =
        json!([{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": [metadata.clone()]}}]}]);

    lab.hold("no policy", &special(Allowed, Allowed, Allowed));
    lab.policies(&of_both(&json!([]))).await;
    lab.hold("deny all", &special(Denied, Denied, Denied));
    // The cache is no pod: a rule for the pods of the cluster's DNS does not open it.
    lab.policies(&of_both(
        &json!([{"to": [{"namespaceSelector": {}}], "ports": ports(&[53])}]),
    ))
    .await;
    lab.hold("all pods", &special(Denied, Denied, Denied));
    lab.policies(&of_both(
        &json!([{"to": blocks(&[&dns]), "ports": ports(&[53])}]),
    ))
    .await;
    lab.hold("the cache", &special(Allowed, Denied, Denied));
    lab.policies(&of_both(&json!([{"to": blocks(&[&metadata])}])))
        .await;
    lab.hold("the metadata service", &special(Denied, Denied, Allowed));
    lab.policies(&of_both(&json!([{"ports": ports(&[53])}])))
        .await;
    lab.hold("a port of anybody", &special(Allowed, Denied, Denied));
    lab.policies(&of_both(&but_metadata)).await;
    lab.hold("all but metadata", &special(Allowed, Allowed, Denied));
}

// E2, F1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_of_the_hosts_stack_are_reached_whatever_policies_say() {
    use Verdict::{Allowed, Denied};
    let net = format!("{DNS}/32");
    let mut lab = Lab::create(json!({"policy": {"host_stack_cidrs": [net]}})).await;
    let deny = json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "nowhere"},
        "spec": {
            "tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
            "egress": [{"name": "none", "action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]}],
        },
    });

    lab.policies(&of_both(&json!([]))).await;
    lab.hold("deny all", &special(Allowed, Allowed, Denied));
    lab.policies(&[deny]).await;
    lab.hold("an administrator's", &special(Allowed, Allowed, Denied));
}

// D9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagram_in_fragments_is_judged_by_its_port() {
    let mut lab = Lab::create(json!({})).await;
    // In front of what puts datagrams together.
    let counters = "table inet test { counter four { }\n counter six { }\n\
        chain pre { type filter hook prerouting priority -450;\n\
        ip frag-off & 0x3fff != 0 counter name four\n\
        exthdr frag exists counter name six\n }\n}\n";
    for node in 0..2 {
        lab.nft(node, counters).await;
    }
    let rule = json!([{"ports": [{"protocol": "UDP", "port": 53}]}]);
    let open = Verdict::Allowed;
    for (why, policies, closed) in [
        ("no policy", vec![], open),
        (
            "egress",
            vec![policy("a", "Egress", rule.clone())],
            Verdict::Denied,
        ),
        (
            "ingress",
            ["b", "c"]
                .map(|p| policy(p, "Ingress", rule.clone()))
                .to_vec(),
            Verdict::Denied,
        ),
    ] {
        lab.policies(&policies).await;
        let mut expected = Vec::new();
        for to in [B, C] {
            expected.extend(both("x/a", A, to, Kind::Large(53), open));
            expected.extend(both("x/a", A, to, Kind::Large(80), closed));
        }
        lab.hold(why, &expected);
    }
    for node in 0..2 {
        for family in ["four", "six"] {
            assert!(lab.counted(node, family).await > 0, "{family} on {node}");
        }
    }
}

// E7, E1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packet_that_the_node_sends_with_a_pods_address_is_judged_by_that_address() {
    let mut lab = Lab::create(json!({})).await;
    // As IPVS would send a pod's packet on: from the node's own stack, without the pod's link.
    let port = Kind::OneWay(80);
    let own = ["192.168.0.11", "fd00:192::b"];
    let allowed = Verdict::Allowed;
    let to_b = json!([{"to": [{"podSelector": {"matchLabels": {"pod": "b"}}}]}]);
    let from_c = json!([{"from": [{"podSelector": {"matchLabels": {"pod": "c"}}}]}]);
    for (why, policies, to_near, to_far) in [
        ("no policy", vec![], allowed, allowed),
        (
            "egress",
            vec![policy("a", "Egress", to_b)],
            allowed,
            Verdict::Denied,
        ),
        (
            "ingress",
            ["b", "c"]
                .map(|p| policy(p, "Ingress", from_c.clone()))
                .to_vec(),
            Verdict::Denied,
            Verdict::Denied,
        ),
    ] {
        lab.policies(&policies).await;
        let mut expected = Vec::new();
        expected.extend(both("node n1", A, B, port, to_near));
        expected.extend(both("node n1", A, C, port, to_far));
        // What the node sends of its own reaches its pods.
        expected.extend(both("node n1", own, B, port, allowed));
        lab.hold(why, &expected);
    }
}
