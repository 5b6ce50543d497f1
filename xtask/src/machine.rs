//! What the machine must have, and installing it.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::step::{has, run, say};

/// A program, and the Debian package that brings it.
const NEEDED: &[(&str, &str)] = &[
    ("protoc", "protobuf-compiler"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("etcd", "etcd-server"),
    ("ptp", "containernetworking-plugins"),
    ("portmap", "containernetworking-plugins"),
    ("iptables", "iptables"),
];

/// Installs what is missing.
///
/// # Errors
/// When not root, or when the package manager fails.
pub(crate) fn prepare() -> Result<()> {
    require_root()?;
    let mut packages: Vec<&str> = NEEDED
        .iter()
        .filter(|(program, _)| !has(program))
        .map(|(_, package)| *package)
        .collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    if !has("apt-get") {
        bail!(
            "these Debian packages are missing and there is no apt-get: {}",
            packages.join(" ")
        );
    }
    say(&format!("installing {}", packages.join(" ")));
    run(Command::new("apt-get").args(["update", "-qq"]))?;
    run(Command::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(&packages))?;
    for (program, package) in NEEDED {
        if !has(program) {
            bail!("{package} was installed and {program} is still missing");
        }
    }
    Ok(())
}

fn require_root() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|rest| rest.split_whitespace().nth(1))
        .context("no Uid in /proc/self/status")?;
    if uid != "0" {
        bail!("network namespaces need root; run this as root");
    }
    Ok(())
}
