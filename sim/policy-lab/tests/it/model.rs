//! Random worlds: what the machines do with a packet is what the oracle says.
#![expect(
    clippy::print_stdout,
    reason = "the figures of a run are read from its output"
)]

use std::hash::{BuildHasher, Hasher, RandomState};
use std::str::FromStr;

use policy_lab::model::compare::{self, Tally};
use policy_lab::model::tamper::Honest;
use policy_lab::random::{Flavour, World};

/// Probe decisions that one run compares at least.
const CASES: usize = 100_000;
/// Probes of one world.
const PROBES: usize = 120;

/// The first seed: `POLICY_SEED`, or one of chance.
pub(crate) fn first_seed() -> u64 {
    told("POLICY_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish() >> 16)
}

/// A number from the environment.
pub(crate) fn told<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    let Ok(number) = text.parse() else {
        panic!("{name}={text} is not a number");
    };
    Some(number)
}

// A1, A2, A3, A4, A5, A6, A7, B1, B2, B3, B5, B6, B7, B9, C1, C2, C3, D1, D2, D3, D4, D5, D6, D7, D8, E1, E2, E4, E9, F1, F2, F3, F4, F5, F6, F7
#[test]
fn random_worlds_are_judged_by_the_machine_as_by_the_oracle() {
    let first = first_seed();
    let mut tally = Tally::default();
    let mut worlds = 0;
    let cases = told("POLICY_CASES").unwrap_or(CASES);
    while tally.cases < cases {
        let seed = first.wrapping_add(worlds);
        worlds += 1;
        let world = World::generate(seed, Flavour::ALL);
        let outcome = compare::world(&world.documents, seed, PROBES, &mut Honest, &mut tally);
        if let Err(mismatch) = outcome {
            let small = compare::smallest(&world.documents, &mismatch, &mut Honest);
            panic!("POLICY_SEED={seed}: {}\nsmallest:\n{small}", mismatch.text);
        }
    }
    println!(
        "model: first seed {first}, {worlds} worlds, {} cases of which {} denied, {} flows followed",
        tally.cases, tally.denied, tally.scenes
    );
    assert!(tally.cases >= cases);
}
