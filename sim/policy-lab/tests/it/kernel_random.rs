//! Random worlds in a real kernel with real agents, against the oracle.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
const BEDS: u64 = 3;
/// Of so many worlds one is looked at with `nft` too.
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

async fn judge(bed: &mut Bed, seed: u64) -> Vec<String> {
    let world = World::generate(seed, Flavour::ALL);
    bed.show(&world.documents)
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
    let verdicts = bed
        .probe(&attempts)
        .await
        .unwrap_or_else(|e| panic!("world {seed}: {e:#}"));
    let oracle = policy_oracle::world::World::from_documents(world.documents.clone());
    let mut wrong = Vec::new();
    for (probe, verdict) in probes.iter().zip(verdicts) {
        let decision = oracle.decide(&question(probe));
        let expected = if decision.allowed {
            Verdict::Allowed
        } else {
            Verdict::Denied
        };
        if verdict != expected {
            wrong.push(format!(
                "seed {seed}: {probe}: kernel {verdict:?}, oracle {expected:?}: egress {:?}; ingress {:?}",
                decision.egress.reasons, decision.ingress.reasons
            ));
        }
    }
    for node in 0..2 {
        let agents = agents(bed);
        let differences = agents.diff(node).await.unwrap();
        let status = agents.status(node).await.unwrap();
        wrong.extend(
            differences
                .iter()
                .map(|line| format!("seed {seed}: node {node} differs: {line}")),
        );
        if seed.is_multiple_of(CROSS_READ) {
            let namespace = bed.topology.nodes[node].namespace.clone();
            let counted = count_with_nft(&namespace).await;
            let said = (status.chains, status.sets);
            if counted != said {
                wrong.push(format!(
                    "seed {seed}: node {node}: nft sees {counted:?}, the agent says {said:?}"
                ));
            }
        }
    }
    wrong
}

fn agents(bed: &mut Bed) -> &mut Agents {
    match bed.enforcer() {
        Enforcer::Agents(agents) => agents,
        Enforcer::Nobody | Enforcer::Hands(_) => panic!("agents enforce here"),
    }
}

/// Chains that are no base chains, and sets and maps, as `nft` sees them.
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

// D7, D8, E9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_worlds_in_the_kernel_are_judged_as_the_oracle_judges() {
    let worlds = std::env::var("TERWAY_KERNEL_WORLDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(WORLDS);
    let first = std::env::var("TERWAY_KERNEL_SEED")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    let mut runs = tokio::task::JoinSet::new();
    for lane in 0..BEDS {
        runs.spawn(async move {
            let mut bed = Bed::create(plan()).await.unwrap();
            let mut wrong = Vec::new();
            let mut done = 0_u64;
            for seed in (first..first + worlds).filter(|seed| seed % BEDS == lane) {
                wrong.extend(judge(&mut bed, seed).await);
                done += 1;
            }
            (done, wrong)
        });
    }
    let mut done = 0;
    let mut wrong = Vec::new();
    while let Some(lane) = runs.join_next().await {
        let (worlds, lines) = lane.unwrap();
        done += worlds;
        wrong.extend(lines);
    }

    assert_eq!(done, worlds);
    assert!(
        wrong.is_empty(),
        "{} mismatches:\n{}",
        wrong.len(),
        wrong
            .iter()
            .take(20)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    );
}
