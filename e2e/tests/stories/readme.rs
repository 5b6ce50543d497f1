//! The README's commands, as they stand there.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn root() -> Result<PathBuf> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("no workspace")?
        .to_owned())
}

/// Every line of every `sh` block.
fn commands(readme: &str) -> Vec<String> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in readme.lines() {
        match line.trim() {
            "```sh" => inside = true,
            "```" => inside = false,
            command if inside && !command.is_empty() => found.push(command.to_owned()),
            _ => {}
        }
    }
    found
}

fn words(command: &str) -> Result<Command> {
    let mut words = command.split_whitespace();
    let mut built = Command::new(words.next().context("an empty command")?);
    built.args(words).current_dir(root()?).stdin(Stdio::null());
    Ok(built)
}

/// Runs to the end; must succeed.
fn finishes(command: &str) -> Result<()> {
    let output = words(command)?.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let tail: Vec<&str> = said.lines().rev().take(40).collect();
    ensure!(
        output.status.success(),
        "{command} ended with {}: {tail:?}",
        output.status
    );
    Ok(())
}

/// Runs until it says that it waits for Ctrl-C, then gets it; must succeed.
fn waits_for_interrupt(command: &str) -> Result<()> {
    let mut child = words(command)?.stdout(Stdio::piped()).spawn()?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let out = child.stdout.take().context("no output")?;
    let mut waits = false;
    let mut said = Vec::new();
    for line in BufReader::new(out).lines() {
        let line = line?;
        said.push(line.clone());
        if line.contains("Ctrl-C") && !waits {
            waits = true;
            // The front door hands the signal on as a terminal would: to the whole group.
            interrupt_tree(pid)?;
        }
    }
    let status = child.wait()?;
    ensure!(waits, "{command} never said that it waits");
    ensure!(
        status.success(),
        "{command} ended with {status}: {}",
        said.join("\n")
    );
    Ok(())
}

/// Sends SIGINT to the process and everything below it, youngest last, as a terminal does.
fn interrupt_tree(pid: Pid) -> Result<()> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    for child in children.split_whitespace() {
        let program = std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
        match program.trim() {
            "sandbox" => kill(Pid::from_raw(child.parse()?), Signal::SIGINT)?,
            _ => interrupt_tree(Pid::from_raw(child.parse()?))?,
        }
    }
    Ok(())
}

#[test]
fn readme_commands_work_as_they_stand_there() {
    let _alone = e2e::story::alone();
    let readme = std::fs::read_to_string(root().unwrap().join("README.md")).unwrap();
    let found = commands(&readme);
    assert!(found.len() >= 3, "{found:?}");
    let mut errors = Vec::new();
    for command in &found {
        let outcome = match command.as_str() {
            "cargo xtask up" => waits_for_interrupt(command),
            // It is what runs this test; CI runs it by the same words.
            "cargo xtask test" => is_what_ci_runs(),
            _ => finishes(command),
        };
        if let Err(error) = outcome {
            errors.push(format!("{command}: {error:#}"));
        }
    }
    assert_eq!(errors, Vec::<String>::new());
}

fn is_what_ci_runs() -> Result<()> {
    let script = std::fs::read_to_string(root()?.join(".ci").join("run"))?;
    if !script.contains("cargo run -q -p xtask -- test") {
        bail!(".ci/run does not run the same");
    }
    let alias = std::fs::read_to_string(root()?.join(".cargo").join("config.toml"))?;
    ensure!(
        alias.contains(r#"xtask = "run -q -p xtask --""#),
        "the alias is another one"
    );
    Ok(())
}
