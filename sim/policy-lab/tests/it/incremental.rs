//! Random histories: the state after any events is that of a world made anew.
#![expect(
    clippy::print_stdout,
    reason = "the figures of a run are read from its output"
)]

use std::collections::BTreeMap;

use policy_lab::machine::Machine;
use policy_lab::model::cluster::Cluster;
use policy_lab::model::compare::Tally;
use policy_lab::model::history::{self, Looks};
use policy_lab::model::tamper::Honest;
use policy_lab::random::{Flavour, World, events};

use crate::model::{first_seed, told};

/// Histories that one run plays, unless `POLICY_HISTORIES` says how many.
const HISTORIES: u64 = 60;
const LENGTH: usize = 40;

fn fail(seed: u64, looks: Looks, text: &str) -> ! {
    let happenings = events::history(seed, Flavour::ALL, LENGTH);
    let (small, why) = history::smallest(&happenings, 400, &mut |now| {
        history::play(now, seed, looks, &mut Honest, &mut Tally::default())
            .err()
            .map(|mismatch| mismatch.text)
    });
    let lines: Vec<String> = small
        .iter()
        .map(|happening| format!("{happening:?}"))
        .collect();
    panic!(
        "POLICY_SEED={seed}: {text}\nsmallest: {why}\n{}",
        lines.join("\n")
    );
}

// A2, B4, B8, B10, E10
#[test]
fn histories_in_any_order_end_as_if_made_from_scratch_and_leave_nothing() {
    let first = first_seed();
    let histories = told("POLICY_HISTORIES").unwrap_or(HISTORIES);
    let mut tally = Tally::default();
    for seed in first..first + histories {
        let looks = Looks {
            content: true,
            moments: false,
            probes: 6,
            round: if seed % 2 == 0 { 1 } else { 4 },
        };
        let happenings = events::history(seed, Flavour::ALL, LENGTH);
        if let Err(mismatch) = history::play(&happenings, seed, looks, &mut Honest, &mut tally) {
            fail(seed, looks, &mismatch.text);
        }
    }
    println!(
        "incremental: first seed {first}, {histories} histories, {} states equal to one from scratch, {} cases",
        tally.states, tally.cases
    );
}

#[test]
fn engine_that_adopts_what_it_finds_writes_nothing() {
    let first = first_seed();
    for seed in first..first + told("POLICY_HISTORIES").unwrap_or(HISTORIES) {
        let world = World::generate(seed, Flavour::ALL);
        let cluster = Cluster::of(&world.documents, &mut Honest)
            .unwrap_or_else(|trouble| panic!("POLICY_SEED={seed}: {trouble}"));
        let machines: BTreeMap<String, Machine> = cluster
            .nodes
            .iter()
            .map(|node| (node.name.clone(), node.machine.clone()))
            .collect();
        let mut successor = Cluster::adopting(&machines);
        successor.list(&world.documents, &mut Honest);
        let mut written = Vec::new();
        successor
            .settle_seen(&mut Honest, &mut |node, changes| {
                written.extend(
                    changes
                        .iter()
                        .map(|change| format!("{}: {}", node.name, change.label())),
                );
            })
            .unwrap_or_else(|trouble| panic!("POLICY_SEED={seed}: {trouble}"));
        assert!(written.is_empty(), "POLICY_SEED={seed}: {written:#?}");
    }
}
