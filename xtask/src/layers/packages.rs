//! Arrows between packages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::step::{cargo, output};

/// Every package of the workspace and its floor. A package may depend on lower floors, and on its own floor where
/// [`SAME_FLOOR`] says so; services meet in `proto`.
const FLOORS: &[(&str, u32)] = &[
    ("types", 1),
    ("mesh", 1),
    ("proto", 2),
    ("ipam-core", 2),
    ("datapath", 2),
    ("ecs-api", 2),
    ("k8s-api", 2),
    ("nft-wire", 2),
    ("policy-oracle", 2),
    ("policy-core", 3),
    ("cluster", 3),
    ("ipam-service", 4),
    ("cloud-gateway", 4),
    ("node-agent", 4),
    ("policy-agent", 4),
    ("controlplane", 4),
    ("cni", 4),
    ("terwayctl", 4),
    ("ecs-sim", 5),
    ("terway-probe", 5),
    ("fabric", 6),
    ("policy-lab", 7),
    ("sandbox", 7),
    ("loadtests", 8),
    ("e2e", 8),
    ("xtask", 9),
];

/// Arrows within one floor: who programs the kernel writes messages of nf_tables.
const SAME_FLOOR: &[(&str, &str)] = &[("datapath", "nft-wire")];

/// Foreign packages that only these may depend on directly.
const ONLY: &[(&str, &[&str])] = &[
    ("etcd-client", &["ipam-service"]),
    ("redb", &["ipam-service", "node-agent"]),
    ("rtnetlink", &["datapath"]),
    ("governor", &["cloud-gateway"]),
    (
        "reqwest",
        &[
            "cloud-gateway",
            "node-agent",
            "terwayctl",
            "sandbox",
            "ecs-sim",
        ],
    ),
    ("rcgen", &["mesh", "sandbox"]),
    ("tokio", NOT_PURE),
    ("tonic", NOT_PURE),
];

/// Packages that may have a runtime. The others are pure.
const NOT_PURE: &[&str] = &[
    "proto",
    "mesh",
    "datapath",
    "cluster",
    "ipam-service",
    "cloud-gateway",
    "node-agent",
    "policy-agent",
    "controlplane",
    "policy-lab",
    "cni",
    "terwayctl",
    "ecs-sim",
    "fabric",
    "sandbox",
    "loadtests",
    "e2e",
];

/// Packages that may not be anywhere in the tree, and why.
const BANNED: &[(&str, &str)] = &[
    ("aws-lc-rs", "one TLS provider: ring"),
    ("aws-lc-sys", "one TLS provider: ring"),
    ("openssl-sys", "one TLS provider: ring"),
    ("native-tls", "one TLS provider: ring"),
];

/// Packages that no member may depend on itself, and why.
const AVOIDED: &[(&str, &str)] = &[
    ("chrono", "jiff is the calendar"),
    ("serde_yaml", "unmaintained"),
    ("lazy_static", "the standard library has it"),
    ("once_cell", "the standard library has it"),
    ("dashmap", "iteration order and guards across await"),
];

/// Licences that may be combined with ours.
const LICENCES: &[&str] = &[
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Unicode-3.0",
    "Zlib",
    "0BSD",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "Unlicense",
];

/// What `cargo metadata` says, as far as it matters here.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Package {
    id: String,
    name: String,
    license: Option<String>,
    source: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Clone, Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

/// Asks cargo.
pub(crate) fn read(root: &Path) -> Result<Metadata> {
    let mut metadata = cargo()?;
    metadata
        .current_dir(root)
        .args(["metadata", "--format-version", "1", "--locked"]);
    serde_json::from_str(&output(&mut metadata)?).context("read cargo metadata")
}

/// All breaches, each a sentence.
pub(crate) fn check(metadata: &Metadata) -> Vec<String> {
    let floors: BTreeMap<&str, u32> = FLOORS.iter().copied().collect();
    let members: BTreeSet<&str> = metadata
        .workspace_members
        .iter()
        .map(String::as_str)
        .collect();
    let mut breaches = Vec::new();
    for package in &metadata.packages {
        if let Some((_, why)) = BANNED.iter().find(|(name, _)| *name == package.name) {
            breaches.push(format!("{} is in the tree: {why}", package.name));
        }
        if members.contains(package.id.as_str()) {
            check_member(package, &floors, &mut breaches);
        } else {
            check_foreign(package, &mut breaches);
        }
    }
    breaches
}

fn check_member(package: &Package, floors: &BTreeMap<&str, u32>, breaches: &mut Vec<String>) {
    let from = package.name.as_str();
    let Some(floor) = floors.get(from) else {
        breaches.push(format!(
            "{from} has no floor in the table of xtask/src/layers/packages.rs"
        ));
        return;
    };
    for dependency in &package.dependencies {
        // Tests stand on the roof: what they use is no arrow of the house.
        if dependency.kind.as_deref() == Some("dev") {
            continue;
        }
        let to = dependency.name.as_str();
        if let Some((_, why)) = AVOIDED.iter().find(|(name, _)| *name == to) {
            breaches.push(format!("{from} depends on {to}: {why}"));
        }
        if let Some(below) = floors.get(to) {
            let same = SAME_FLOOR.contains(&(from, to));
            if below > floor || (below == floor && !same) {
                breaches.push(format!(
                    "{from} (floor {floor}) depends on {to} (floor {below})"
                ));
            }
        }
        if let Some((_, allowed)) = ONLY.iter().find(|(name, _)| *name == to)
            && !allowed.contains(&from)
        {
            breaches.push(format!(
                "{from} depends on {to}; only {} may",
                allowed.join(", ")
            ));
        }
    }
}

fn check_foreign(package: &Package, breaches: &mut Vec<String>) {
    let name = &package.name;
    if !package
        .source
        .as_deref()
        .is_some_and(|s| s.starts_with("registry+"))
    {
        breaches.push(format!("{name} does not come from the package registry"));
    }
    let allowed = package.license.as_deref().is_some_and(licence_allowed);
    if !allowed {
        let licence = package.license.as_deref().unwrap_or("none");
        breaches.push(format!(
            "{name} has the licence {licence:?}, which is not in the list"
        ));
    }
}

/// Whether one alternative of each part of the expression is in the list.
fn licence_allowed(expression: &str) -> bool {
    let plain = expression.replace('/', " OR ").replace(['(', ')'], " ");
    plain.split(" AND ").all(|part| {
        part.split(" OR ")
            .any(|licence| LICENCES.contains(&licence.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A dependency's name and kind.
    type Arrow = (&'static str, Option<&'static str>);

    fn metadata(packages: &[(&str, &[Arrow])]) -> Metadata {
        let packages: Vec<Package> = packages
            .iter()
            .map(|(name, dependencies)| Package {
                id: (*name).to_owned(),
                name: (*name).to_owned(),
                license: None,
                source: None,
                dependencies: dependencies
                    .iter()
                    .map(|(name, kind)| Dependency {
                        name: (*name).to_owned(),
                        kind: kind.map(str::to_owned),
                    })
                    .collect(),
            })
            .collect();
        let workspace_members = packages.iter().map(|p| p.id.clone()).collect();
        Metadata {
            packages,
            workspace_members,
        }
    }

    #[test]
    fn arrow_down_is_no_breach() {
        assert_eq!(
            check(&metadata(&[("node-agent", &[("datapath", None)])])),
            [""; 0]
        );
    }

    #[test]
    fn planted_backward_arrow_is_found() {
        let found = check(&metadata(&[("types", &[("ipam-core", None)])]));

        assert_eq!(found, ["types (floor 1) depends on ipam-core (floor 2)"]);
    }

    #[test]
    fn service_that_depends_on_a_service_is_found() {
        assert_eq!(
            check(&metadata(&[("node-agent", &[("ipam-service", None)])])).len(),
            1
        );
    }

    #[test]
    fn dev_dependency_is_no_arrow() {
        assert_eq!(
            check(&metadata(&[("types", &[("sandbox", Some("dev"))])])),
            [""; 0]
        );
    }

    #[test]
    fn runtime_in_a_pure_core_is_found() {
        let found = check(&metadata(&[("ipam-core", &[("tokio", None)])]));

        assert!(
            found[0].starts_with("ipam-core depends on tokio; only"),
            "{found:?}"
        );
    }

    #[test]
    fn package_without_a_floor_is_found() {
        assert_eq!(check(&metadata(&[("newcomer", &[])])).len(), 1);
    }

    #[test]
    fn licence_needs_every_part_of_an_and() {
        assert!(licence_allowed("MIT OR GPL-3.0"));
        assert!(licence_allowed("Apache-2.0/MIT"));
        assert!(licence_allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(!licence_allowed("MIT AND GPL-3.0"));
    }
}
