//! Each planted mistake is noticed by the comparison that finds none in the product.
#![expect(
    clippy::print_stdout,
    reason = "the figures of a run are read from its output"
)]

use policy_lab::model::compare::{self, Tally};
use policy_lab::model::history::{self, Looks};
use policy_lab::mutation::{Mistake, Mutant};
use policy_lab::random::{Flavour, World, events};

use crate::model::first_seed;

/// Worlds and histories tried for one mistake.
const TRIES: u64 = 400;

fn noticed(mistake: Mistake, first: u64) -> Option<(Tally, u64, String)> {
    let mut tally = Tally::default();
    for tried in 0..TRIES {
        let seed = first + tried;
        let world = World::generate(seed, Flavour::ALL);
        let outcome = compare::world(
            &world.documents,
            seed,
            60,
            &mut Mutant::new(mistake),
            &mut tally,
        );
        if let Err(mismatch) = outcome {
            return Some((tally, tried + 1, mismatch.text));
        }
        if !matches!(mistake, Mistake::CountOffByOne | Mistake::OneTransaction) {
            continue;
        }
        let looks = Looks {
            content: false,
            moments: mistake == Mistake::OneTransaction,
            probes: 20,
            round: 1,
        };
        let happenings = events::history(seed, Flavour::ALL, 30);
        let outcome = history::play(
            &happenings,
            seed,
            looks,
            &mut Mutant::new(mistake),
            &mut tally,
        );
        if let Err(mismatch) = outcome {
            return Some((tally, tried + 1, mismatch.text));
        }
    }
    None
}

#[test]
fn mistake_of_any_kind_is_noticed() {
    let first = first_seed();
    let mut missed = Vec::new();
    for mistake in Mistake::ALL {
        match noticed(mistake, first) {
            Some((tally, worlds, text)) => println!(
                "{mistake:?}: noticed in world {worlds} after {} cases, {} flows, {} interleavings: {}",
                tally.cases,
                tally.scenes,
                tally.interleavings,
                text.lines().next().unwrap_or("")
            ),
            None => missed.push(mistake),
        }
    }
    assert!(
        missed.is_empty(),
        "POLICY_SEED={first}: not noticed: {missed:?}"
    );
}
