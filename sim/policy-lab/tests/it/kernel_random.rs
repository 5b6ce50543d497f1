//! Random worlds in a real kernel with real agents, against the oracle.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use fabric::namespace::Namespace;
use policy_lab::bed::agents::Agents;
use policy_lab::bed::enforcer::{Enforcer, Kind};
use policy_lab::bed::topology::NodeSpec;
use policy_lab::bed::{Attempt, Bed, Plan};
use policy_lab::model::compare::question;
use policy_lab::probe::{self, Verdict};
use policy_lab::random::dice::Dice;
use policy_lab::random::probes::{Payload, Place, Probe, places, some};
use policy_lab::random::{Flavour, World, probes};
use serde_json::{Value, json};

/// Worlds of a CI run, all beds together; more with `TERWAY_KERNEL_WORLDS`.
const WORLDS: u64 = 500;
/// Probes of a world.
const PROBES: usize = 300;
/// Beds at a time: while one waits for the kernel to remove links, another probes.
const BEDS: usize = 3;
/// Of so many worlds of a bed one is looked at with `nft` too.
const CROSS_READ: u64 = 25;

fn plan() -> Plan {
    let node = |n: u8| NodeSpec {
        name: format!("n{n}"),
        v4: Ipv4Addr::new(192, 168, 0, 10 + n),
        v6: Ipv6Addr::new(0xfd00, 0x192, 0, 0, 0, 0, 0, 0x0a + u16::from(n)),
    };
    let outside = places(&[]);
    Plan {
        nodes: vec![node(1), node(2)],
        outside: outside.iter().map(Place::address).collect(),
        ports: probes::PORTS.to_vec(),
        enforcer: Kind::Agents(json!({})),
    }
}

fn kind(payload: Payload) -> probe::Kind {
    match payload {
        Payload::Tcp(port) => probe::Kind::Tcp(port),
        Payload::Udp(port) => probe::Kind::Udp(port),
        Payload::Sctp(port) => probe::Kind::Sctp(port),
        Payload::Echo => probe::Kind::Echo,
        // The others are those of this link, which nobody sends on: left out by `chosen`.
        Payload::Neighbour(_) => probe::Kind::Solicitation,
        Payload::Other(_) => probe::Kind::Portless,
    }
}

/// Probes of a world, without those that would be the answer to another.
fn chosen(world: &World) -> Vec<Probe> {
    let mut dice = Dice::new(world.seed ^ 0x5eed);
    let mut portless: HashSet<(IpAddr, IpAddr)> = HashSet::new();
    let mut known: HashSet<Probe> = HashSet::new();
    let mut chosen = some(&mut dice, &places(&world.documents), PROBES);
    chosen.retain(|p| {
        let (a, b) = (p.source.address(), p.destination.address());
        let sent_on = p.payload != Payload::Neighbour(255);
        let is_portless = matches!(p.payload, Payload::Other(_));
        let goes = !is_portless || !portless.contains(&(b, a)) && portless.insert((a, b));
        // A world of few pods asks the same twice; the second would be a packet of the first's flow.
        sent_on && goes && known.insert(p.clone())
    });
    chosen
}

/// What was asked, and how it went.
#[derive(Debug, Default)]
struct Tally {
    worlds: u64,
    wrong: Vec<String>,
    /// Allowed and denied, by address family, protocol and distance.
    kinds: BTreeMap<(bool, &'static str, bool), (u64, u64)>,
}

impl Tally {
    fn note(&mut self, probe: &Probe, allowed: bool) {
        let word = match probe.payload {
            Payload::Tcp(_) => "TCP",
            Payload::Udp(_) => "UDP",
            Payload::Sctp(_) => "SCTP",
            Payload::Echo | Payload::Neighbour(_) => "ICMP",
            Payload::Other(_) => "other",
        };
        let near = probe.source.node() == probe.destination.node();
        let key = (probe.source.address().is_ipv6(), word, near);
        let count = self.kinds.entry(key).or_default();
        if allowed {
            count.0 += 1;
        } else {
            count.1 += 1;
        }
    }

    fn add(&mut self, more: Self) {
        self.worlds += more.worlds;
        self.wrong.extend(more.wrong);
        for (key, (allowed, denied)) in more.kinds {
            let count = self.kinds.entry(key).or_default();
            count.0 += allowed;
            count.1 += denied;
        }
    }
}

/// A bed, and how many chains and sets stand on each node before there is a policy.
struct Lane {
    bed: Bed,
    frames: Vec<(u32, u32)>,
    tally: Tally,
}

impl Lane {
    async fn create() -> Self {
        let mut bed = Bed::create(plan()).await.unwrap();
        bed.show(&[]).await.unwrap();
        let mut frames = Vec::new();
        for node in 0..bed.topology.nodes.len() {
            let namespace = bed.topology.nodes[node].namespace.clone();
            frames.push(count_with_nft(&namespace).await);
        }
        Self {
            bed,
            frames,
            tally: Tally::default(),
        }
    }

    async fn judge(&mut self, seed: u64) {
        let world = World::generate(seed, Flavour::ALL);
        self.bed
            .show(&world.documents)
            .await
            .unwrap_or_else(|e| panic!("world {seed}: {e:#}"));
        let probes = chosen(&world);
        let attempts: Vec<_> = probes
            .iter()
            .map(|p| Attempt {
                source: p.source.address(),
                destination: p.destination.address(),
                kind: kind(p.payload),
            })
            .collect();
        let verdicts = self
            .bed
            .probe(&attempts)
            .await
            .unwrap_or_else(|e| panic!("world {seed}: {e:#}"));
        let oracle = policy_oracle::world::World::from_documents(world.documents.clone());
        for (probe, verdict) in probes.iter().zip(verdicts) {
            let decision = oracle.decide(&question(probe));
            let expected = if decision.allowed {
                Verdict::Allowed
            } else {
                Verdict::Denied
            };
            self.tally.note(probe, decision.allowed);
            if verdict != expected {
                self.tally.wrong.push(format!(
                    "seed {seed}: {probe}: kernel {verdict:?}, oracle {expected:?}: egress {:?}; ingress {:?}",
                    decision.egress.reasons, decision.ingress.reasons
                ));
            }
        }
        let cross_read = self.tally.worlds.is_multiple_of(CROSS_READ);
        self.tally.worlds += 1;
        for node in 0..self.frames.len() {
            let agents = agents(&mut self.bed);
            let differences = agents.diff(node).await.unwrap();
            let lines = differences
                .iter()
                .map(|line| format!("seed {seed}: node {node} differs: {line}"));
            self.tally.wrong.extend(lines);
            if cross_read {
                self.cross_read(seed, node).await;
            }
        }
    }

    /// Whether somebody else sees as many chains and sets in the kernel as the agent says there are.
    async fn cross_read(&mut self, seed: u64, node: usize) {
        let status = agents(&mut self.bed).status(node).await.unwrap();
        let namespace = self.bed.topology.nodes[node].namespace.clone();
        let counted = count_with_nft(&namespace).await;
        let frame = self.frames[node];
        let said = (frame.0 + status.chains, frame.1 + status.sets);
        if counted != said {
            self.tally.wrong.push(format!(
                "seed {seed}: node {node}: nft sees {counted:?} chains and sets, the agent says {said:?}"
            ));
        }
    }
}

fn agents(bed: &mut Bed) -> &mut Agents {
    match bed.enforcer() {
        Enforcer::Agents(agents) => agents,
        Enforcer::Nobody | Enforcer::Hands(_) => panic!("agents enforce here"),
    }
}

/// Chains, and sets and maps, as `nft` sees them.
async fn count_with_nft(namespace: &Namespace) -> (u32, u32) {
    let args = ["list", "table", "inet", "terway_policy"];
    let text = fabric::shell::nft_json(namespace, &args).await.unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let all = json["nftables"].as_array().unwrap();
    let count = |wanted: &[&str]| {
        let found = all
            .iter()
            .filter(|o| wanted.iter().any(|w| o.get(w).is_some()));
        u32::try_from(found.count()).unwrap()
    };
    (count(&["chain"]), count(&["set", "map"]))
}

/// A number from the environment.
fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|e| panic!("{name}={text}: {e}")),
    )
}

// A1, A3, B6, D7, D8, E1, E2, E9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_worlds_in_the_kernel_are_judged_as_the_oracle_judges() {
    let started = Instant::now();
    let worlds = variable("TERWAY_KERNEL_WORLDS").unwrap_or(WORLDS);
    let first = variable("TERWAY_KERNEL_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let again = format!("repeat with TERWAY_KERNEL_SEED={first} TERWAY_KERNEL_WORLDS={worlds}");
    eprintln!("{worlds} random worlds; {again}");
    let mut runs = tokio::task::JoinSet::new();
    for number in 0..BEDS {
        runs.spawn(async move {
            let mut lane = Lane::create().await;
            for seed in (first..first + worlds).skip(number).step_by(BEDS) {
                lane.judge(seed).await;
            }
            lane.tally
        });
    }
    let mut sum = Tally::default();
    while let Some(tally) = runs.join_next().await {
        sum.add(tally.unwrap_or_else(|e| panic!("{e}; {again}")));
    }

    let (allowed, denied) = sum
        .kinds
        .values()
        .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    eprintln!(
        "{} worlds, {allowed} probes allowed and {denied} denied, {} mismatches, {:?}",
        sum.worlds,
        sum.wrong.len(),
        started.elapsed()
    );
    assert_eq!(sum.worlds, worlds);
    assert!(
        sum.wrong.is_empty(),
        "{} mismatches; {again}:\n{}",
        sum.wrong.len(),
        sum.wrong
            .iter()
            .take(20)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    );
    if worlds >= WORLDS {
        for v6 in [false, true] {
            for protocol in ["TCP", "UDP", "SCTP", "ICMP", "other"] {
                for near in [false, true] {
                    let key = (v6, protocol, near);
                    let (allowed, denied) = sum.kinds.get(&key).copied().unwrap_or_default();
                    assert!(allowed > 0 && denied > 0, "{key:?}: {allowed} {denied}");
                }
            }
        }
    }
}
