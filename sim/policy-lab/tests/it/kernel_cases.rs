//! All conformance cases, all steps, in real namespaces with real agents.

use std::time::Instant;

use policy_lab::bed::enforcer::Kind;
use policy_lab::bed::{Attempt, Bed, Plan};
use policy_lab::cases;
use policy_lab::cases::case::{Case, PORTS};
use policy_lab::never_open::scene::nodes;
use policy_lab::probe::{self, Verdict};
use policy_oracle::probe::{Probe, Protocol};
use policy_oracle::world::World;
use serde_json::json;

/// Beds at a time.
const BEDS: usize = 3;

fn plan() -> Plan {
    Plan {
        nodes: nodes(),
        outside: vec![
            "203.0.113.7".parse().unwrap(),
            "2001:db8::7".parse().unwrap(),
        ],
        ports: PORTS.to_vec(),
        enforcer: Kind::Agents(json!({})),
    }
}

fn attempt(probe: &Probe) -> Attempt {
    let kind = match probe.protocol {
        Protocol::Tcp => probe::Kind::Tcp(probe.port),
        Protocol::Udp => probe::Kind::Udp(probe.port),
        Protocol::Sctp => probe::Kind::Sctp(probe.port),
        Protocol::Icmp => probe::Kind::Echo,
        Protocol::Other(47) => probe::Kind::Portless,
        Protocol::NeighbourDiscovery | Protocol::Other(_) => panic!("no case probes {probe}"),
    };
    Attempt {
        source: probe.source.address(),
        destination: probe.destination.address(),
        kind,
    }
}

/// What was done, and which probes were judged wrongly.
#[derive(Debug, Default)]
struct Tally {
    cases: usize,
    steps: usize,
    probes: usize,
    denied: usize,
    wrong: Vec<String>,
}

async fn run(bed: &mut Bed, case: &Case, tally: &mut Tally) {
    tally.cases += 1;
    for (number, (step, state)) in case.steps.iter().zip(case.states()).enumerate() {
        let place = format!("{} step {number}", case.name);
        bed.show(&state)
            .await
            .unwrap_or_else(|e| panic!("{place}: {e:#}"));
        let world = World::from_documents(state);
        let expected = step
            .probes(&world)
            .unwrap_or_else(|e| panic!("{place}: {e}"));
        let attempts: Vec<_> = expected.iter().map(|(probe, _)| attempt(probe)).collect();
        let verdicts = bed
            .probe(&attempts)
            .await
            .unwrap_or_else(|e| panic!("{place}: {e:#}"));
        tally.steps += 1;
        tally.probes += verdicts.len();
        for ((probe, open), verdict) in expected.iter().zip(verdicts) {
            let should = if *open {
                Verdict::Allowed
            } else {
                Verdict::Denied
            };
            tally.denied += usize::from(!open);
            if verdict != should {
                tally.wrong.push(format!(
                    "{place}: {probe}: kernel {verdict:?}, expected {should:?}"
                ));
            }
        }
    }
}

// A1, A2, A3, A4, A5, A6, A7, B1, B2, C1, C2, C3, D1, D2, D3, D4, D7, E9, F1, F2, F3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_of_every_case_in_the_kernel_is_as_expected() {
    let started = Instant::now();
    let total = cases::all();
    let steps: usize = total.iter().map(|case| case.steps.len()).sum();
    let mut runs = tokio::task::JoinSet::new();
    for lane in 0..BEDS {
        runs.spawn(async move {
            let mut bed = Bed::create(plan()).await.unwrap();
            let mut tally = Tally::default();
            for case in cases::all().iter().skip(lane).step_by(BEDS) {
                run(&mut bed, case, &mut tally).await;
            }
            tally
        });
    }
    let mut sum = Tally::default();
    while let Some(tally) = runs.join_next().await {
        let tally = tally.unwrap();
        sum.cases += tally.cases;
        sum.steps += tally.steps;
        sum.probes += tally.probes;
        sum.denied += tally.denied;
        sum.wrong.extend(tally.wrong);
    }

    eprintln!(
        "{} cases, {} steps, {} probes of which {} are denied, {} wrong, {:?}",
        sum.cases,
        sum.steps,
        sum.probes,
        sum.denied,
        sum.wrong.len(),
        started.elapsed()
    );
    assert_eq!(sum.cases, total.len());
    assert_eq!(sum.steps, steps);
    let shown: Vec<_> = sum.wrong.iter().take(30).cloned().collect();
    assert!(
        sum.wrong.is_empty(),
        "{} of {} probes are wrong:\n{}",
        sum.wrong.len(),
        sum.probes,
        shown.join("\n")
    );
}
