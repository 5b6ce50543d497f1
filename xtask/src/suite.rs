//! `cargo xtask test`: everything that must hold, ending in one line of counts.

use std::io::{BufRead as _, BufReader};
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::step::{cargo, run as run_step, say};
use crate::{chart, checklist, k8s, layers, machine, up};

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only tests whose name holds this.
    filter: Option<String>,
}

/// Tests counted over all test programs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Formatting, lints, layers, the checklist of policy, then all tests.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let start = Instant::now();
    machine::prepare()?;
    machine::build_tools()?;
    let mut counts = Counts::default();
    let mut checks: Vec<(&str, Check)> = Vec::new();
    if args.filter.is_none() {
        checks.push(("formatting", Box::new(format)));
        checks.push(("lints", Box::new(clippy)));
        checks.push(("layers", Box::new(layers_hold)));
        checks.push(("checklist", Box::new(checklist_holds)));
    }
    for (name, check) in checks {
        say(&format!("{name} ({} s)", start.elapsed().as_secs()));
        match check() {
            Ok(()) => counts.passed += 1,
            Err(error) => {
                counts.failed += 1;
                say(&format!("{name} failed: {error:#}"));
            }
        }
    }
    say(&format!("building ({} s)", start.elapsed().as_secs()));
    up::build(false)?;
    // Tests of other programs need nothing of it.
    if args.filter.is_none() {
        say(&format!(
            "a real Kubernetes ({} s)",
            start.elapsed().as_secs()
        ));
        if k8s::prepare_for_tests()?.is_some() {
            say(&format!("chart ({} s)", start.elapsed().as_secs()));
            match chart_holds() {
                Ok(()) => counts.passed += 1,
                Err(error) => {
                    counts.failed += 1;
                    say(&format!("chart failed: {error:#}"));
                }
            }
        } else {
            say("chart: skipped, for there is no helm and no go to build it with");
            counts.skipped += 1;
        }
    }
    say(&format!("tests ({} s)", start.elapsed().as_secs()));
    counts.add(tests(args)?);
    say(&format!("took {} s", start.elapsed().as_secs()));
    say_last(counts);
    let green = counts.failed == 0 && counts.passed > 0;
    Ok(if green {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

type Check = Box<dyn Fn() -> Result<()>>;

fn format() -> Result<()> {
    run_step(cargo()?.args(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    run_step(cargo()?.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "-q",
        "--",
        "-D",
        "warnings",
    ]))
}

fn layers_hold() -> Result<()> {
    if layers::run()? != ExitCode::SUCCESS {
        bail!("see above");
    }
    Ok(())
}

fn checklist_holds() -> Result<()> {
    if checklist::run()? != ExitCode::SUCCESS {
        bail!("see above");
    }
    Ok(())
}

fn chart_holds() -> Result<()> {
    if chart::run(&chart::Args::default())? != ExitCode::SUCCESS {
        bail!("see above");
    }
    Ok(())
}

/// Runs every test program and adds its closing line up.
fn tests(args: &Args) -> Result<Counts> {
    let mut test = cargo()?;
    test.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    test.args(&args.filter);
    let mut child = test
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {test:?}"))?;
    let out = child.stdout.take().context("no output of cargo test")?;
    let mut counts = Counts::default();
    for line in BufReader::new(out).lines() {
        let line = line.context("read the output of cargo test")?;
        say_plain(&line);
        if let Some(more) = closing_line(&line) {
            counts.add(more);
        }
    }
    let status = child.wait().context("wait for cargo test")?;
    // A test program that was killed or did not build prints no closing line.
    if !status.success() && counts.failed == 0 {
        counts.failed += 1;
    }
    Ok(counts)
}

/// Counts of `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn closing_line(line: &str) -> Option<Counts> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |word: &str| {
        let before = rest.split(word).next()?;
        before.trim().rsplit([' ', ';']).next()?.parse::<u64>().ok()
    };
    Some(Counts {
        passed: number("passed")?,
        failed: number("failed")?,
        skipped: number("ignored")?,
    })
}

impl Counts {
    fn add(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
        self.skipped += more.skipped;
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the output of the tests and their counts are the product"
)]
fn say_plain(line: &str) {
    println!("{line}");
}

fn say_last(counts: Counts) {
    let Counts {
        passed,
        failed,
        skipped,
    } = counts;
    say_plain(&format!(
        "{passed} passed, {failed} failed, {skipped} skipped"
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_line_of_a_test_program_is_counted() {
        let line =
            "test result: FAILED. 31 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out";

        assert_eq!(
            closing_line(line),
            Some(Counts {
                passed: 31,
                failed: 2,
                skipped: 1
            })
        );
    }

    #[test]
    fn other_lines_are_not_counted() {
        assert_eq!(closing_line("test pool::tests::x ... ok"), None);
    }
}
