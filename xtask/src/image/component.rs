//! What there are images of.

use std::path::Path;

use anyhow::{Result, bail};

/// A component of the product with an image of its own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Component {
    /// Last part of the image's name, as the chart has it.
    pub(crate) name: &'static str,
    /// Package that makes the binary; its folder in the workspace has the same name.
    pub(crate) package: &'static str,
    /// The binary; it stands at the root of the image and is its entry point.
    pub(crate) binary: &'static str,
    /// Profile of the static binary.
    pub(crate) profile: &'static str,
    /// Whether it speaks to others, over TLS and by names.
    pub(crate) has_mesh: bool,
}

const fn service(name: &'static str) -> Component {
    Component {
        name,
        package: name,
        binary: name,
        profile: "release",
        has_mesh: true,
    }
}

/// All of them.
///
/// Source: docs/install.md, "Commands and images".
pub(crate) const COMPONENTS: &[Component] = &[
    service("cloud-gateway"),
    service("ipam-service"),
    service("node-agent"),
    service("policy-agent"),
    service("controlplane"),
    service("terwayctl"),
    Component {
        name: "cni",
        package: "cni",
        binary: "terway",
        profile: "cni",
        has_mesh: false,
    },
];

/// Those that the workspace at `root` has, or those of the names in `only`.
///
/// # Errors
/// When a name is unknown, or its package is not there.
pub(crate) fn choose(root: &Path, only: &[String]) -> Result<Vec<&'static Component>> {
    let is_there =
        |component: &Component| root.join(component.package).join("Cargo.toml").is_file();
    if only.is_empty() {
        return Ok(COMPONENTS.iter().filter(|one| is_there(one)).collect());
    }
    let mut chosen = Vec::new();
    for name in only {
        let Some(component) = COMPONENTS.iter().find(|one| one.name == name) else {
            let names: Vec<&str> = COMPONENTS.iter().map(|one| one.name).collect();
            bail!("there is no component {name:?}, only {}", names.join(", "));
        };
        if !is_there(component) {
            bail!("the workspace has no package {}", component.package);
        }
        if !chosen.contains(&component) {
            chosen.push(component);
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(chosen: &[&Component]) -> Vec<&'static str> {
        chosen.iter().map(|one| one.name).collect()
    }

    #[test]
    fn components_without_a_package_are_left_out_until_they_have_one() {
        let root = tempfile::tempdir().unwrap();
        let package = |name: &str| {
            std::fs::create_dir(root.path().join(name)).unwrap();
            std::fs::write(root.path().join(name).join("Cargo.toml"), "").unwrap();
        };
        package("node-agent");

        assert_eq!(names(&choose(root.path(), &[]).unwrap()), ["node-agent"]);
        package("controlplane");
        assert_eq!(
            names(&choose(root.path(), &[]).unwrap()),
            ["node-agent", "controlplane"]
        );
    }

    #[test]
    fn unknown_component_is_refused_with_those_that_there_are() {
        let root = crate::step::root().unwrap();

        let error = choose(&root, &["node".to_owned()]).unwrap_err().to_string();

        assert!(
            error.contains("\"node\"") && error.contains("node-agent"),
            "{error}"
        );
    }

    #[test]
    fn component_that_is_named_twice_is_made_once() {
        let root = crate::step::root().unwrap();
        let only = ["cni", "terwayctl", "cni"].map(str::to_owned);

        assert_eq!(names(&choose(&root, &only).unwrap()), ["cni", "terwayctl"]);
    }
}
