//! Stories of a real Kubernetes: one cluster for all of them, told in order, each with a result of its own.
//!
//! The programs and images come from `cargo xtask k8s prepare`, which `cargo xtask test` does first. A story builds on
//! the ones before it; when one fails the others are told all the same.

mod cluster;
mod failures;
mod goldens;
mod library;
mod nodes;
mod upgrade;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use futures::future::LocalBoxFuture;
use sandbox::k8s::audit::BedTraces;
use sandbox::k8s::bed::{Bed, BedOptions};
use sandbox::report::Report;

/// A story: its name, and how it is told.
pub(crate) type Story = (
    &'static str,
    for<'a> fn(&'a mut Bed) -> LocalBoxFuture<'a, Result<()>>,
);

/// All of them, in order.
fn stories() -> Vec<Story> {
    let mut all = goldens::stories();
    all.extend(cluster::first());
    all.extend(failures::stories());
    all.extend(upgrade::stories());
    all.extend(nodes::stories());
    all.extend(cluster::last());
    all
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let filter: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let stories = stories();
    if words.iter().any(|word| word == "--list") {
        for (name, _) in &stories {
            say(&format!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    // One cluster costs a minute: a filter for another program's tests does not start it.
    let wanted = filter.is_empty()
        || filter
            .iter()
            .any(|word| stories.iter().any(|(name, _)| name.contains(word)));
    if !wanted {
        say("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; filtered out");
        return ExitCode::SUCCESS;
    }
    let told = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(tell(&stories)));
    match told {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("{error:#}"));
            say("test result: FAILED. 0 passed; 1 failed; 0 ignored");
            ExitCode::FAILURE
        }
    }
}

/// Tells all; gives how many failed.
async fn tell(stories: &[Story]) -> Result<usize> {
    say(&format!(
        "\nrunning {} stories of a real Kubernetes",
        stories.len()
    ));
    let Some(options) = options()? else {
        for (name, _) in stories {
            say(&format!(
                "test {name} ... ignored, programs or images of Kubernetes are missing"
            ));
        }
        let ignored = stories.len();
        say(&format!(
            "\ntest result: ok. 0 passed; 0 failed; {ignored} ignored"
        ));
        return Ok(0);
    };
    let dir = options.dir.clone();
    let mut bed = Bed::start(options, &mut Report::new(std::io::stdout())).await?;
    let traces = BedTraces::of(&bed)?;
    let (mut passed, mut failed) = (0, 0);
    for (name, story) in stories {
        let start = Instant::now();
        let told = story(&mut bed).await.and_then(|()| bed.check());
        let took = start.elapsed().as_secs_f32();
        match told {
            Ok(()) => {
                passed += 1;
                say(&format!("test {name} ... ok ({took:.1} s)"));
            }
            Err(error) => {
                failed += 1;
                say(&format!(
                    "test {name} ... FAILED ({took:.1} s)\n    {error:#}"
                ));
                library::explain(&bed).await;
            }
        }
    }
    if failed > 0 {
        keep_logs(&dir);
    }
    let stopped = bed.stop().await;
    let left = traces.left(stopped.is_err())?;
    for what in &left {
        say(&format!("    left: {what}"));
    }
    let name = "bed_that_is_stopped_leaves_nothing_on_the_machine";
    match stopped {
        Ok(()) if left.is_empty() => {
            passed += 1;
            say(&format!("test {name} ... ok"));
        }
        stopped => {
            failed += 1;
            say(&format!("test {name} ... FAILED\n    {stopped:?}"));
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    say(&format!(
        "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored"
    ));
    Ok(failed)
}

/// What to start; `None` where programs are missing, which is said, and is an error on CI's machine.
fn options() -> Result<Option<BedOptions>> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = root.parent().context("the package has no parent folder")?;
    let prepared = root.join("target/k8s");
    let (programs, images) = (prepared.join("programs"), prepared.join("images"));
    if !programs.is_dir() || !images.is_dir() {
        let why = "target/k8s has no programs and images: `cargo xtask k8s prepare` makes them";
        ensure!(std::env::var_os("CI").is_none(), "{why}");
        say(&format!("SKIPPED, and nothing is proved by this: {why}"));
        return Ok(None);
    }
    let us = std::env::current_exe()?;
    let bin = us.parent().and_then(|deps| deps.parent());
    Ok(Some(BedOptions {
        nodes: 3,
        dir: std::env::temp_dir().join(format!("terway-k8s-{}", std::process::id())),
        kubernetes: programs,
        images,
        sandbox: bin.context("this program has no folder")?.join("sandbox"),
        port: 0,
        chart: root.join("helm/terway"),
        keep: false,
    }))
}

/// What a failure leaves for people to read; the rest is large.
fn keep_logs(dir: &std::path::Path) {
    let kept = dir.with_extension("logs");
    match std::fs::rename(dir.join("logs"), &kept) {
        Ok(()) => say(&format!("    logs are in {}", kept.display())),
        Err(error) => say(&format!("    logs are lost: {error}")),
    }
}

pub(crate) fn say(text: &str) {
    // Whoever started us may not listen.
    drop(writeln!(std::io::stdout(), "{text}"));
}
