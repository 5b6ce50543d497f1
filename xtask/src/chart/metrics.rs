//! Names of metrics in alert rules and dashboards are names that a service registers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// Where rules and dashboards lie.
const FOLDER: &str = "dashboards";
/// Sources of those who register.
const SOURCES: &[&str] = &[
    "crates/mesh/src",
    "cloud-gateway/src",
    "ipam-service/src",
    "node-agent/src",
    "policy-agent/src",
    "controlplane/src",
];
/// What all names begin with; it is not part of what is registered.
const PREFIX: &str = "terway_";
/// Labels that the chart sets, which begin like metrics.
const LABELS: &[&str] = &["terway_component"];
/// What the encoder puts behind a registered name: of counters, histograms, and units.
const ENDINGS: &[&str] = &["_total", "_bucket", "_count", "_sum", "_seconds"];

/// Gives how many names are used, and those that nobody registers.
pub(crate) fn check(root: &Path) -> Result<(usize, Vec<String>)> {
    let mut registered = BTreeSet::new();
    for folder in SOURCES.iter().map(|folder| root.join(folder)) {
        for file in files(&folder, "rs")? {
            let text =
                std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            registered.extend(literals(&text));
        }
    }
    let (mut used, mut breaches) = (BTreeSet::new(), Vec::new());
    for ending in ["json", "yaml"] {
        for file in files(&root.join(FOLDER), ending)? {
            let text =
                std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            for name in names(&text) {
                if !is_registered(&name, &registered) {
                    breaches.push(format!("{}: nobody exports {name}", file.display()));
                }
                used.insert(name);
            }
        }
    }
    if used.is_empty() {
        bail!("{FOLDER} names no metric");
    }
    Ok((used.len(), breaches))
}

fn is_registered(name: &str, registered: &BTreeSet<String>) -> bool {
    let mut rest = name.strip_prefix(PREFIX).unwrap_or(name);
    // `rpc_server_duration_seconds_bucket` is registered as `rpc_server_duration`, with a unit.
    for _ in 0..3 {
        if registered.contains(rest) {
            return true;
        }
        match ENDINGS.iter().find_map(|ending| rest.strip_suffix(ending)) {
            Some(shorter) => rest = shorter,
            None => return false,
        }
    }
    false
}

/// Texts in a source that could be names.
fn literals(text: &str) -> impl Iterator<Item = String> {
    text.split('"')
        .filter(|part| !part.is_empty() && part.bytes().all(is_name_byte))
        .map(str::to_owned)
}

/// Names of metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !u8::try_from(c).is_ok_and(is_name_byte))
        .filter(|word| word.starts_with(PREFIX) && !LABELS.contains(word))
        .map(str::to_owned)
        .collect()
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'
}

fn files(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let (mut folders, mut found) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        if !folder.exists() {
            continue;
        }
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == ending) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_known_with_the_endings_of_its_kind_only() {
        let registered = literals(r#"register("agent_adds", "ADDs"); "rpc_duration""#).collect();

        assert!(is_registered("terway_agent_adds_total", &registered));
        assert!(is_registered(
            "terway_rpc_duration_seconds_bucket",
            &registered
        ));
        assert!(!is_registered("terway_agent_add_total", &registered));
        assert!(!is_registered("terway_agent_adds_max", &registered));
    }

    #[test]
    fn names_are_found_in_expressions() {
        let text = r#"sum(rate(terway_a_total{x="y"}[5m])) / terway_b + up{terway_component=""}"#;

        assert_eq!(
            names(text).into_iter().collect::<Vec<_>>(),
            ["terway_a_total", "terway_b"]
        );
    }
}
