//! Child processes with progress.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Tells a person what happens now.
pub(crate) fn say(text: &str) {
    // Progress is for people: where nobody listens, it may be lost.
    drop(writeln!(std::io::stderr(), "==> {text}"));
}

/// The root of the workspace.
pub(crate) fn root() -> Result<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    Ok(here
        .parent()
        .context("the package has no parent folder")?
        .to_owned())
}

/// Variables by which cargo describes the package it runs.
const OURS: &[&str] = &[
    "CARGO_PKG_",
    "CARGO_MANIFEST_",
    "CARGO_BIN_",
    "CARGO_CRATE_",
];

/// A cargo command at the root of the workspace.
pub(crate) fn cargo() -> Result<Command> {
    let cargo = option_env!("CARGO").unwrap_or("cargo");
    let mut command = Command::new(cargo);
    command.current_dir(root()?);
    // What cargo told this program about itself would make build scripts run anew.
    for (name, _) in std::env::vars_os() {
        let ours = name
            .to_str()
            .is_some_and(|n| OURS.iter().any(|prefix| n.starts_with(prefix)));
        if ours {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// Runs it with our own output and fails when it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// Runs it and gives what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start {command:?}"))?;
    if !out.status.success() {
        bail!("{command:?} ended with {}", out.status);
    }
    String::from_utf8(out.stdout).context("output is not UTF-8")
}

/// Whether a program stands in the path.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin", "/usr/lib/cni"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(sbin)
        .any(|dir| dir.join(program).is_file())
}
