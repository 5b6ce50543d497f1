//! What the machine must have, and installing it.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::step::{has, root, run, say};

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
    ("make", "make"),
];

/// What nodes of a real Kubernetes need besides.
const NEEDED_BY_NODES: &[(&str, &str)] = &[("containerd", "containerd"), ("runc", "runc")];

/// Installs what is missing.
///
/// # Errors
/// When not root, or when the package manager fails.
pub(crate) fn prepare() -> Result<()> {
    install(NEEDED)
}

/// Installs what nodes of a real Kubernetes need besides.
///
/// # Errors
/// As for [`prepare`].
pub(crate) fn prepare_kubernetes() -> Result<()> {
    install(NEEDED_BY_NODES)
}

fn install(needed: &[(&str, &str)]) -> Result<()> {
    require_root()?;
    let mut packages: Vec<&str> = needed
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
    for (program, package) in needed {
        if !has(program) {
            bail!("{package} was installed and {program} is still missing");
        }
    }
    Ok(())
}

/// The CNI library's own command line, by which the stories call us as runtimes do.
const CNITOOL: &str = "github.com/containernetworking/cni/cnitool@v1.3.0";

/// Builds the tools that the stories need and Debian does not have, where `go` exists.
///
/// # Errors
/// When `go` exists and does not build them.
pub(crate) fn build_tools() -> Result<()> {
    let tools = root()?.join("target").join("tools");
    if tools.join("cnitool").is_file() || has("cnitool") {
        return Ok(());
    }
    if !has("go") {
        say("there is no go to build cnitool with: the stories that need it will fail");
        return Ok(());
    }
    say("building cnitool");
    std::fs::create_dir_all(&tools).with_context(|| tools.display().to_string())?;
    run(Command::new("go")
        .env("GOBIN", &tools)
        .env("CGO_ENABLED", "0")
        .args(["install", CNITOOL]))
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
