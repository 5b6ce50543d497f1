//! The list of all cases, as it stands in the tree.

use std::collections::BTreeMap;

use crate::cases::case::Case;

/// The list in the tree: counts for each family, then every name.
pub const WRITTEN: &str = include_str!("../../cases/manifest.txt");

/// The list of these cases in the form of [`WRITTEN`].
pub fn list(cases: &[Case]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut order = Vec::new();
    for case in cases {
        let count = counts.entry(case.family).or_default();
        if *count == 0 {
            order.push(case.family);
        }
        *count = count.saturating_add(1);
    }
    let mut text = String::from(
        "# Conformance cases: counts, then names. A test holds this list against the cases.\n",
    );
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    line(format!("all {}", cases.len()));
    for family in order {
        line(format!(
            "{family} {}",
            counts.get(family).copied().unwrap_or_default()
        ));
    }
    line(String::new());
    for case in cases {
        line(case.name.clone());
    }
    text
}
