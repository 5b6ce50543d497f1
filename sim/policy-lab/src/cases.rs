//! Conformance cases: clusters, changes to them, and which connections must open after each.
//!
//! The families and their counts are written down in `cases/manifest.txt`:
//!
//! - `targets` … `upstream-e2e`: the shapes of cases that the cyclonus tool made known, 230 of them;
//! - `netpol-e2e`: the truth tables of the Kubernetes end-to-end suite;
//! - `cluster-tiers`: what the conformance suite of ClusterNetworkPolicy asks;
//! - `hand`: tables for the letters of the checklist that the others leave out.
//!
//! Everybody applies the same documents: the oracle, the evaluator of rules, and agents in real
//! namespaces. Pods serve ports 80 and 81 of TCP, UDP and SCTP on IPv4 and IPv6.

pub mod case;
mod e2e;
mod hand;
mod hand_tiers;
pub mod manifest;
mod shaped;
mod shaped_steps;
pub mod table;
mod tiers;
mod upstream;
mod world;

use self::case::Case;

/// All cases, in the order of the manifest. Names are unique.
pub fn all() -> Vec<Case> {
    [
        shaped::cases(),
        shaped_steps::cases(),
        upstream::cases(),
        e2e::cases(),
        tiers::cases(),
        hand::cases(),
        hand_tiers::cases(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use policy_oracle::world::World;

    use super::case::{Case, Expected};
    use super::manifest;

    /// Families and the number of their cases.
    const COUNTS: [(&str, usize); 12] = [
        ("targets", 6),
        ("rules", 4),
        ("peers", 112),
        ("ports", 70),
        ("examples", 1),
        ("actions", 6),
        ("conflicts", 16),
        ("namespace", 2),
        ("upstream-e2e", 13),
        ("netpol-e2e", 50),
        ("cluster-tiers", 92),
        ("hand", 74),
    ];

    #[test]
    fn manifest_in_the_tree_lists_the_cases_that_are_made() {
        let made = manifest::list(&super::all());
        if std::env::var_os("WRITE_MANIFEST").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/cases/manifest.txt");
            std::fs::write(path, &made).unwrap();
            return;
        }
        assert_eq!(
            manifest::WRITTEN,
            made,
            "run with WRITE_MANIFEST=1 and look at the difference"
        );
    }

    #[test]
    fn families_have_their_counts() {
        let cases = super::all();
        for (family, count) in COUNTS {
            let found = cases.iter().filter(|case| case.family == family).count();
            assert_eq!(found, count, "{family}");
        }
        let sum: usize = COUNTS.iter().map(|(_, count)| count).sum();
        assert_eq!(cases.len(), sum);
    }

    #[test]
    fn names_are_unique() {
        let cases = super::all();
        let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), cases.len());
    }

    /// Where the oracle and what was typed differ.
    fn misreadings(case: &Case) -> Vec<String> {
        let mut wrong = Vec::new();
        for (number, (step, state)) in case.steps.iter().zip(case.states()).enumerate() {
            let world = World::from_documents(state);
            // A table that leaves something out is an error here.
            step.probes(&world).unwrap();
            for (probe, open) in step.typed(&world).unwrap() {
                let decision = world.decide(&probe);
                if decision.allowed != open {
                    let (egress, ingress) = (decision.egress.reasons, decision.ingress.reasons);
                    wrong.push(format!(
                        "{} step {number}: {probe}: typed {open}, {egress:?} {ingress:?}",
                        case.name
                    ));
                }
            }
        }
        wrong
    }

    // No letters here: this proves the cases and the oracle, not the product.
    #[test]
    fn oracle_says_what_was_typed_by_hand() {
        let wrong: Vec<String> = super::all().iter().flat_map(misreadings).collect();
        assert_eq!(
            wrong.len(),
            0,
            "{} differ, first {:#?}",
            wrong.len(),
            &wrong[..wrong.len().min(20)]
        );
    }

    #[test]
    fn every_step_asks_and_most_cases_deny_something() {
        let mut asked = 0;
        let mut without_denial = Vec::new();
        for case in super::all() {
            let mut denied = 0;
            for (step, state) in case.steps.iter().zip(case.states()) {
                let probes = step.probes(&World::from_documents(state)).unwrap();
                assert!(!probes.is_empty(), "{}", case.name);
                asked += probes.len();
                denied += probes.iter().filter(|(_, open)| !open).count();
            }
            if denied == 0 {
                without_denial.push(case.name);
            }
        }
        assert!(asked > 400_000, "{asked}");
        assert!(without_denial.len() < 15, "{without_denial:?}");
    }

    #[test]
    fn malformed_documents_are_named_and_no_other_is() {
        for case in super::all() {
            let meant = case.name.contains("unreadable")
                || case.name.contains("unknown")
                || case.name.contains("no-sense")
                || case.name.contains("for-hosts");
            for state in case.states() {
                let world = World::from_documents(state);
                assert_eq!(
                    !world.problems().is_empty(),
                    meant,
                    "{}: {:?}",
                    case.name,
                    world.problems()
                );
            }
        }
    }

    #[test]
    fn hand_tables_are_many() {
        let typed = |case: &&Case| {
            let whole = |expected: &Expected| matches!(expected, Expected::Table(_));
            case.steps.iter().all(|step| whole(&step.expected))
        };
        assert!(super::all().iter().filter(typed).count() >= 40 + 50 + 92);
    }
}
