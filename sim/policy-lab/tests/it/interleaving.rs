//! Packets at every moment of every change.
#![expect(
    clippy::print_stdout,
    reason = "the figures of a run are read from its output"
)]

use policy_lab::model::compare::Tally;
use policy_lab::model::history::{self, Looks};
use policy_lab::model::tamper::{Honest, Tamper};
use policy_lab::mutation::{Mistake, Mutant};
use policy_lab::random::{Flavour, events};

use crate::model::{first_seed, told};

/// Histories that one run plays, unless `POLICY_HISTORIES` says how many.
const HISTORIES: u64 = 40;

const LOOKS: Looks = Looks {
    content: false,
    moments: true,
    probes: 30,
    round: 1,
};

fn flavour() -> Flavour {
    Flavour {
        malformed: false,
        ..Flavour::ALL
    }
}

fn leaks(seed: u64, tamper: &mut dyn Tamper, tally: &mut Tally) -> Option<String> {
    let happenings = events::history(seed, flavour(), 30);
    history::play(&happenings, seed, LOOKS, tamper, tally)
        .err()
        .map(|mismatch| mismatch.text)
}

#[test]
fn packet_denied_before_and_after_passes_at_no_moment_of_a_change() {
    let first = first_seed();
    let mut tally = Tally::default();
    for seed in first..first + told("POLICY_HISTORIES").unwrap_or(HISTORIES) {
        if let Some(text) = leaks(seed, &mut Honest, &mut tally) {
            let happenings = events::history(seed, flavour(), 30);
            let (small, why) = history::smallest(&happenings, 300, &mut |now| {
                history::play(now, seed, LOOKS, &mut Honest, &mut Tally::default())
                    .err()
                    .map(|mismatch| mismatch.text)
            });
            panic!("POLICY_SEED={seed}: {text}\nsmallest: {why}\n{small:#?}");
        }
    }
    println!(
        "interleaving: first seed {first}, {} packets at every moment",
        tally.interleavings
    );
}

#[test]
fn packet_meets_a_leak_when_chains_are_made_and_led_to_in_one_transaction() {
    let first = first_seed();
    let mut tally = Tally::default();
    let found = (first..first + HISTORIES)
        .find_map(|seed| leaks(seed, &mut Mutant::new(Mistake::OneTransaction), &mut tally));
    let text = found.expect("the variant leaks");
    assert!(text.contains("while it changed"), "{text}");
    println!(
        "one transaction: leak noticed after {} packets",
        tally.interleavings
    );
}
