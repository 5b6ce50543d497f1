//! Time and CPU of one call.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// What a call cost.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    /// From start to end of the process.
    pub(crate) time: Duration,
    /// CPU of the process, and of what it started and waited for.
    pub(crate) cpu: Duration,
}

/// Runs the command with `stdin` and waits.
///
/// Children of this process must not end meanwhile: their CPU would be counted too.
pub(crate) fn measure(command: &mut Command, stdin: &[u8]) -> Result<Cost> {
    let before = children_cpu()?;
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    child
        .stdin
        .take()
        .context("no standard input")?
        .write_all(stdin)?;
    let output = child.wait_with_output()?;
    let time = start.elapsed();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        bail!("{command:?} ended with {}: {said}", output.status);
    }
    Ok(Cost {
        time,
        cpu: children_cpu()?.saturating_sub(before),
    })
}

fn children_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

/// CPU that a running process has used.
pub(crate) fn process_cpu(pid: i32) -> Result<Duration> {
    let clock: ClockId = nix::time::clock_getcpuclockid(Pid::from_raw(pid))?;
    Ok(Duration::from(clock_gettime(clock)?))
}

/// Middle and 99th percentile.
pub(crate) fn percentiles(all: &mut [Duration]) -> (Duration, Duration) {
    all.sort_unstable();
    let at = |percent: usize| {
        let index = (all.len() * percent / 100).min(all.len().saturating_sub(1));
        all.get(index).copied().unwrap_or_default()
    };
    (at(50), at(99))
}
