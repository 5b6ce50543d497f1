//! A policy that shrinks cuts the flows that it denies now, and no others.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use fabric::shell;
use policy_lab::bed::agents::Agents;
use policy_lab::bed::enforcer::{Enforcer, Kind};
use policy_lab::bed::program::waited;
use policy_lab::bed::{Bed, Plan};
use policy_lab::never_open::scene::{addresses, nodes, pod};
use policy_lab::talk::{Over, Speaker, THREAD, Talks, Topic};
use rstest::rstest;
use serde_json::{Value, json};
use types::pod::PodKey;

/// The time within which flows are cut, and come back.
const GOAL: Duration = Duration::from_secs(1);
/// How long a wait may take before it fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// Entries of connection tracking that are in the way.
const ENTRIES: usize = 100_000;
/// Addresses of the Service before the server.
const SERVICE: [&str; 2] = ["10.96.0.1", "fd00:96::1"];

struct Stage {
    bed: Bed,
    talks: Talks,
    next_port: u16,
    /// How long an agent was seen to wait for locks that all namespaces of the machine share.
    blocked: Duration,
}

fn labelled(mut pod: Value, role: &str) -> Value {
    pod["metadata"]["labels"]["role"] = json!(role);
    pod
}

/// What keeps guests from speaking to the server; friends always do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closed {
    Nothing,
    /// The server's ingress.
    Server,
    /// The guests' egress.
    Guests,
}

fn documents(closed: Closed) -> Vec<Value> {
    let roles = if closed == Closed::Server {
        json!(["friend"])
    } else {
        json!(["friend", "guest"])
    };
    let ways_out = if closed == Closed::Guests {
        json!([])
    } else {
        json!([{"to": [{"podSelector": {"matchLabels": {"pod": "server"}}}]}])
    };
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}),
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "guard"},
            "spec": {
                "podSelector": {"matchLabels": {"pod": "server"}}, "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": {"matchExpressions": [
                    {"key": "role", "operator": "In", "values": roles},
                ]}}]}],
            },
        }),
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "leash"},
            "spec": {
                "podSelector": {"matchLabels": {"role": "guest"}}, "policyTypes": ["Egress"],
                "egress": ways_out,
            },
        }),
        pod("server", 0, 10),
        labelled(pod("near", 0, 11), "guest"),
        labelled(pod("far", 1, 12), "guest"),
        labelled(pod("nearfriend", 0, 13), "friend"),
        labelled(pod("farfriend", 1, 14), "friend"),
        pod("sink", 1, 15),
    ]
}

impl Stage {
    async fn set() -> Self {
        let plan = Plan {
            nodes: nodes(),
            outside: Vec::new(),
            ports: vec![80],
            enforcer: Kind::Agents(json!({})),
        };
        let mut bed = Bed::create(plan).await.unwrap();
        bed.show(&documents(Closed::Nothing)).await.unwrap();
        let [v4, v6] = addresses(0, 10);
        let [s4, s6] = SERVICE;
        for node in &bed.topology.nodes {
            let script = format!(
                "table ip nat {{\n chain pre {{ type nat hook prerouting priority -100; ip daddr {s4} dnat to {v4}; }}\n}}\n\
                 table ip6 nat {{\n chain pre {{ type nat hook prerouting priority -100; ip6 daddr {s6} dnat to {v6}; }}\n}}\n"
            );
            shell::nft(&node.namespace, &script).await.unwrap();
        }
        Self {
            bed,
            talks: Talks::start().unwrap(),
            next_port: 10_000,
            blocked: Duration::ZERO,
        }
    }

    fn agents(&mut self) -> &mut Agents {
        match self.bed.enforcer() {
            Enforcer::Agents(agents) => agents,
            Enforcer::Nobody | Enforcer::Hands(_) => panic!("agents enforce here"),
        }
    }

    fn topic(
        &mut self,
        from: &str,
        v6: bool,
        service: bool,
        over: Over,
        speaker: Speaker,
    ) -> Topic {
        self.next_port += 1;
        let family = usize::from(v6);
        let server = self.bed.pods()[&PodKey::new("x", "server")].clone();
        let at = SocketAddr::new(addresses(0, 10)[family], self.next_port);
        let call: IpAddr = SERVICE[family].parse().unwrap();
        let (client, client_address) = if from == "node" {
            let node = &self.bed.topology.nodes[0];
            let address: IpAddr = if v6 {
                node.spec.v6.into()
            } else {
                node.spec.v4.into()
            };
            (node.namespace.clone(), address)
        } else {
            let pod = &self.bed.pods()[&PodKey::new("x", from)];
            let address = pod.spec.addresses().find(|a| a.is_ipv6() == v6).unwrap();
            (pod.namespace.clone(), address)
        };
        Topic {
            name: format!("{from} {over:?} v6={v6} service={service} {speaker:?} speaks"),
            client,
            client_address,
            call: if service {
                SocketAddr::new(call, at.port())
            } else {
                at
            },
            server: server.namespace,
            listen: at,
            over,
            speaker,
        }
    }

    /// Every way of speaking to the server from these pods, by number of the conversation.
    fn begin_all(&mut self, from: &[&str], service: &[bool]) -> Vec<usize> {
        const WAYS: [(Over, Speaker); 4] = [
            (Over::Tcp, Speaker::Client),
            (Over::Tcp, Speaker::Server),
            (Over::Udp, Speaker::Client),
            (Over::Udp, Speaker::Server),
        ];
        let mut numbers = Vec::new();
        for from in from {
            for (v6, service) in service.iter().flat_map(|s| [(false, *s), (true, *s)]) {
                for (over, speaker) in WAYS {
                    let topic = self.topic(from, v6, service, over, speaker);
                    numbers.push(self.talks.begin(&topic).unwrap());
                }
            }
        }
        numbers
    }

    /// How long those who bring a policy into force had to wait for others so far: for a CPU the relay, which is in
    /// this process, and the agent that waited most; and for the kernel's locks an agent.
    fn waited(&mut self) -> Duration {
        let agents = [0, 1].map(|node| self.agents().waited(node).unwrap());
        let relay = waited(std::process::id(), THREAD).unwrap();
        agents.into_iter().max().unwrap() + relay + self.blocked
    }

    /// A moment between two looks at the conversations.
    async fn rest(&mut self) {
        let since = Instant::now();
        let blocked = [0, 1].map(|node| self.agents().is_blocked(node).unwrap());
        tokio::time::sleep(Duration::from_millis(2)).await;
        if blocked.contains(&true) {
            self.blocked += since.elapsed();
        }
    }

    /// Waits until these are cut: silent, and a connection told so. Says when the last word that was heard was said.
    async fn wait_cut(&mut self, doomed: &[usize]) -> Instant {
        let begun = Instant::now();
        loop {
            let heard = self.talks.heard();
            let alive: Vec<_> = doomed
                .iter()
                .map(|n| &heard[*n])
                .filter(|h| !h.is_cut() || (h.over == Over::Tcp && h.reset.is_none()))
                .collect();
            if alive.is_empty() {
                return doomed.iter().map(|n| heard[*n].last).max().unwrap();
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{} of {} go on: {:?}\n{}",
                alive.len(),
                doomed.len(),
                alive.iter().take(5).collect::<Vec<_>>(),
                self.agents().log(0)
            );
            self.rest().await;
        }
    }

    /// These go on, were never silent, and nobody told them anything.
    async fn assert_unhurt(&mut self, numbers: &[usize]) {
        self.wait_heard_since(numbers, Instant::now()).await;
        let heard = self.talks.heard();
        for number in numbers {
            let heard = &heard[*number];
            assert!(
                heard.resumed.is_none() && heard.reset.is_none(),
                "{heard:?}"
            );
        }
    }

    /// Waits until a word was heard on each that was said after `since`. Says when the last of their first was said.
    async fn wait_heard_since(&mut self, numbers: &[usize], since: Instant) -> Instant {
        let begun = Instant::now();
        loop {
            let heard = self.talks.heard();
            let silent = numbers.iter().find(|n| heard[**n].last <= since);
            let Some(silent) = silent else {
                let first = |n: &usize| heard[*n].resumed.filter(|at| *at > since);
                return numbers.iter().filter_map(first).max().unwrap_or(since);
            };
            assert!(begun.elapsed() < PATIENCE, "{:?}", heard[*silent]);
            self.rest().await;
        }
    }

    /// Fills connection tracking of the first node with flows of a pod that is not concerned.
    async fn fill(&self) -> usize {
        let node = self.bed.topology.nodes[0].namespace.clone();
        let settings = [("netfilter/nf_conntrack_udp_timeout".to_owned(), "600")];
        node.set_sysctls(settings.to_vec()).await.unwrap();
        let sink = addresses(1, 15)[0];
        let source = addresses(0, 13)[0];
        let friend = self.bed.pods()[&PodKey::new("x", "nearfriend")]
            .namespace
            .clone();
        friend
            .enter_async(move || {
                for chunk in 0..ENTRIES / 50_000 {
                    let socket = UdpSocket::bind((source, 0)).unwrap();
                    for port in 0..50_000 {
                        // An ICMP error of an earlier one may be reported here.
                        drop(socket.send_to(b"x", (sink, 1_024 + port)));
                    }
                    assert!(chunk < 10);
                }
            })
            .await
            .unwrap();
        let count = node
            .enter_async(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count"))
            .await
            .unwrap();
        count.unwrap().trim().parse().unwrap()
    }
}

/// Within the time that is promised, not counting how long others had the CPUs and the locks that were waited for.
fn assert_prompt(what: &str, took: Duration, waited: Duration) {
    println!("{what} after {took:?}, {waited:?} of it waiting for others");
    assert!(
        took.saturating_sub(waited) <= GOAL,
        "{what} after {took:?}, {waited:?} of it waiting for others"
    );
}

// E4, E5
#[rstest]
#[case::ingress(Closed::Server)]
#[case::egress(Closed::Guests)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_that_policy_denies_now_are_cut_within_a_second_and_others_are_not(
    #[case] closed: Closed,
) {
    let _turn = crate::turn().await;
    let mut stage = Stage::set().await;
    let entries = stage.fill().await;
    assert!(entries >= ENTRIES * 9 / 10, "only {entries} entries");
    let doomed = stage.begin_all(&["near", "far"], &[false, true]);
    let unhurt = stage.begin_all(&["nearfriend", "farfriend"], &[false, true]);
    let of_node = stage.begin_all(&["node"], &[false]);

    let (published, waited) = (Instant::now(), stage.waited());
    stage.bed.show(&documents(closed)).await.unwrap();
    let last = stage.wait_cut(&doomed).await;
    let cut = last.saturating_duration_since(published);
    assert_prompt("cut", cut, stage.waited().saturating_sub(waited));
    stage.assert_unhurt(&unhurt).await;
    stage.assert_unhurt(&of_node).await;

    let (published, waited) = (Instant::now(), stage.waited());
    stage.bed.show(&documents(Closed::Nothing)).await.unwrap();
    // A connection that was reset is over: it is begun anew.
    let again = stage.begin_all(&["near"], &[false]);
    let begun = published.elapsed();
    let heard = stage.talks.heard();
    let datagrams: Vec<_> = doomed
        .iter()
        .copied()
        .filter(|n| heard[*n].over == Over::Udp)
        .collect();
    let back = stage.wait_heard_since(&datagrams, published).await;
    let waited = stage.waited().saturating_sub(waited);
    assert!(back > published, "datagrams were never cut");
    assert_prompt("datagrams back", back - published, waited);
    assert_prompt("connections begun", begun, waited);
    stage.wait_heard_since(&again, published).await;
    stage.assert_unhurt(&unhurt).await;
    stage.assert_unhurt(&of_node).await;
}

// E5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_denied_while_the_agent_was_dead_are_cut_after_its_restart() {
    let _turn = crate::turn().await;
    let mut stage = Stage::set().await;
    let entries = stage.fill().await;
    assert!(entries >= ENTRIES * 9 / 10, "only {entries} entries");
    let doomed = stage.begin_all(&["near", "far"], &[false, true]);
    let unhurt = stage.begin_all(&["nearfriend", "farfriend", "node"], &[false]);
    stage.agents().kill(0).unwrap();
    stage.agents().publish(&documents(Closed::Server));
    stage.agents().run(0, &[]).unwrap();

    stage.agents().settle().await.unwrap();
    let (settled, waited) = (Instant::now(), stage.waited());

    let last = stage.wait_cut(&doomed).await;
    let cut = last.saturating_duration_since(settled);
    let waited = stage.waited().saturating_sub(waited);
    assert_prompt("cut after the restart", cut, waited);
    stage.assert_unhurt(&unhurt).await;
}

// E5
#[rstest]
#[case("policy.commit.after")]
#[case("policy.revoke.before_mark")]
#[case("policy.revoke.after_mark")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_are_cut_after_an_agent_died_between_the_kernels_answer_and_the_mark(
    #[case] point: &str,
) {
    let _turn = crate::turn().await;
    let mut stage = Stage::set().await;
    stage.agents().kill(0).unwrap();
    let armed = [(mesh::crash::VARIABLE.to_owned(), point.to_owned())];
    stage.agents().run(0, &armed).unwrap();
    let doomed = stage.begin_all(&["near", "far"], &[false]);
    let unhurt = stage.begin_all(&["nearfriend", "farfriend", "node"], &[false]);
    stage.agents().publish(&documents(Closed::Server));
    let begun = Instant::now();
    while !stage.agents().has_ended(0).unwrap() {
        assert!(
            begun.elapsed() < PATIENCE,
            "the agent did not get to {point}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }

    stage.agents().run(0, &[]).unwrap();
    stage.agents().settle().await.unwrap();
    let (settled, waited) = (Instant::now(), stage.waited());

    let last = stage.wait_cut(&doomed).await;
    let cut = last.saturating_duration_since(settled);
    let waited = stage.waited().saturating_sub(waited);
    assert_prompt(point, cut, waited);
    stage.assert_unhurt(&unhurt).await;
}
