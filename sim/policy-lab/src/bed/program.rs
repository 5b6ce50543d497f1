//! The binaries under test, and child processes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, bail};
use fabric::namespace::Namespace;

/// Lines of a log that are shown when its process died.
const TAIL_LINES: usize = 25;

/// The binary of this name beside the running program, built first: a test must not run against an old one.
///
/// # Errors
/// It does not build.
pub fn built(name: &'static str) -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    let dir = beside_us()?;
    let program = dir.join(name);
    // A program that was installed somewhere has no workspace to build from.
    if dir.file_name().is_some_and(|d| d == "debug") {
        let outcome = BUILT.get_or_init(|| build(name).map_err(|e| format!("{e:#}")));
        if let Err(error) = outcome {
            bail!("build {name}: {error}");
        }
    }
    if !program.is_file() {
        bail!(
            "{} is missing; build the workspace first",
            program.display()
        );
    }
    Ok(program)
}

fn build(name: &str) -> anyhow::Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--package", name, "--bin", name])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .output()
        .context("start cargo")?;
    if output.status.success() {
        return Ok(());
    }
    bail!("{}", String::from_utf8_lossy(&output.stderr));
}

/// The folder of the running program; test programs lie one below.
fn beside_us() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("find the running program")?;
    let dir = program
        .parent()
        .context("the running program has no folder")?;
    let dir = if dir.ends_with("deps") {
        dir.parent().unwrap_or(dir)
    } else {
        dir
    };
    Ok(dir.to_owned())
}

/// A child process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program in a namespace, with both of its outputs appended to `log`.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(
        name: &str,
        namespace: &Namespace,
        program: &Path,
        args: &[String],
        env: &[(String, String)],
        log: &Path,
    ) -> anyhow::Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let entry = namespace.entry();
        let (first, rest) = entry.split_first().context("a namespace has an entry")?;
        let child = Command::new(first)
            .args(rest)
            .arg(program)
            .args(args)
            .envs(env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Fails, with the end of its log, if it has ended.
    ///
    /// # Errors
    /// It has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}):\n{}", self.name, tail(&self.log)),
        }
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// The system does not say.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// As [`waited`].
    ///
    /// # Errors
    /// The system does not say.
    pub fn waited(&self) -> anyhow::Result<Duration> {
        waited(self.child.id(), "")
    }

    /// Whether the kernel keeps one of its threads waiting for something that others hold: conntrack's netlink and
    /// rtnetlink have one lock each for all namespaces of a machine.
    ///
    /// # Errors
    /// The system does not say.
    pub fn is_blocked(&self) -> anyhow::Result<bool> {
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let stat = std::fs::read_to_string(task?.path().join("stat")).unwrap_or_default();
            if stat.rsplit(')').next().is_some_and(|s| s.starts_with(" D")) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// SIGKILL, and waits for the end.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

/// How long the threads of a process had to wait for a CPU that others had, one after the other; without the threads
/// of that name.
///
/// # Errors
/// The system does not say.
pub fn waited(process: u32, except: &str) -> anyhow::Result<Duration> {
    let mut sum = Duration::ZERO;
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let task = task?.path();
        // A thread may have ended since.
        let read = |file: &str| std::fs::read_to_string(task.join(file)).unwrap_or_default();
        if read("comm").trim_end() == except {
            continue;
        }
        let stat = read("schedstat");
        let waited = stat.split_whitespace().nth(1).and_then(|w| w.parse().ok());
        sum = sum.saturating_add(Duration::from_nanos(waited.unwrap_or(0)));
    }
    Ok(sum)
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::debug!(name = self.name, %error, "process was not killed");
        }
    }
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines.get(from..).unwrap_or_default().join("\n")
}
