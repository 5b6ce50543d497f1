//! Child processes: started in a namespace, watched, ended by their process id alone.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use fabric::namespace::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// Lines of a log that are shown when its process died.
const TAIL_LINES: usize = 25;
/// How long a process may take to end after SIGTERM.
const TERM_LIMIT: Duration = Duration::from_secs(8);
/// Source: Linux's USER_HZ, 100 for programs on all machines that we build for.
const TICK_MS: u64 = 10;
/// How long the kernel may take to end one after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// What to start, and where its output goes.
#[derive(Debug, Clone)]
pub struct Spec {
    /// For messages.
    pub name: String,
    /// Where it runs.
    pub namespace: Namespace,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// What is added to our own environment.
    pub env: Vec<(String, String)>,
    /// Both of its outputs are appended here.
    pub log: PathBuf,
}

/// Something about a child process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It did not start.
    #[error("{name} could not be started ({program}): {source}")]
    Start {
        /// Which.
        name: String,
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended although it should run.
    #[error("{name} ended ({status}); the end of {log}:\n{tail}")]
    Died {
        /// Which.
        name: String,
        /// How.
        status: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// It is still there after SIGKILL.
    #[error("{name} (process {pid}) did not end")]
    Immortal {
        /// Which.
        name: String,
        /// Its process id.
        pid: i32,
    },
}

/// A running, or ended, child. Ended by SIGKILL when dropped.
#[derive(Debug)]
pub struct Process {
    spec: Spec,
    pid: Pid,
    exit: watch::Receiver<Option<ExitStatus>>,
    /// Ends the child with this struct, by `kill_on_drop`.
    _watcher: tokio::task::JoinSet<()>,
}

impl Process {
    /// Starts it. It dies with the thread that called this, should we be killed.
    pub fn start(spec: Spec) -> Result<Self, ProcessError> {
        let fail = |source| ProcessError::Start {
            name: spec.name.clone(),
            program: spec.program.clone(),
            source,
        };
        let log = File::options()
            .create(true)
            .append(true)
            .open(&spec.log)
            .map_err(fail)?;
        let error_log = log.try_clone().map_err(fail)?;
        // Both programs become the next one, so the process id stays the child's.
        let mut line = spec.namespace.entry();
        line.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(str::to_owned));
        let mut words = line.into_iter();
        let child = Command::new(words.next().unwrap_or_default())
            .args(words)
            .arg(&spec.program)
            .args(&spec.args)
            .envs(spec.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(error_log)
            .kill_on_drop(true)
            .spawn()
            .map_err(fail)?;
        Self::of_child(spec, child)
    }

    /// Takes over a child that was started by other means; `spec` says what it is.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn of_child(spec: Spec, child: Child) -> Result<Self, ProcessError> {
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        let pid = pid.ok_or_else(|| ProcessError::Start {
            name: spec.name.clone(),
            program: spec.program.clone(),
            source: io::Error::other("it has no process id"),
        })?;
        let (publish, exit) = watch::channel(None);
        let mut watcher = tokio::task::JoinSet::new();
        watcher.spawn(watch_exit(spec.name.clone(), child, publish));
        tracing::debug!(name = spec.name, pid, "process started");
        Ok(Self {
            spec,
            pid: Pid::from_raw(pid),
            exit,
            _watcher: watcher,
        })
    }

    /// What it was started from.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// How it ended, if it did.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Fails if it has ended, with the end of its log.
    pub fn check(&self) -> Result<(), ProcessError> {
        match self.exit_status() {
            None => Ok(()),
            Some(status) => Err(ProcessError::Died {
                name: self.spec.name.clone(),
                status: status.to_string(),
                log: self.spec.log.clone(),
                tail: tail(&self.spec.log),
            }),
        }
    }

    /// Waits until it ends by itself, for instance at a crash point. `None` if it runs on.
    pub async fn wait_exit(&self, limit: Duration) -> Option<ExitStatus> {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some);
        match tokio::time::timeout(limit, ended).await {
            Ok(Ok(status)) => *status,
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// SIGKILL, and waits for the end. An ended process is fine.
    pub async fn kill(&self) -> Result<(), ProcessError> {
        self.signal(Signal::SIGKILL);
        match self.wait_exit(KILL_LIMIT).await {
            Some(_) => Ok(()),
            None => Err(ProcessError::Immortal {
                name: self.spec.name.clone(),
                pid: self.pid(),
            }),
        }
    }

    /// SIGTERM, then SIGKILL if it takes too long. An ended process is fine.
    pub async fn stop(&self) -> Result<(), ProcessError> {
        self.signal(Signal::SIGTERM);
        if self.wait_exit(TERM_LIMIT).await.is_some() {
            return Ok(());
        }
        tracing::warn!(name = self.spec.name, "did not end on SIGTERM; killing it");
        self.kill().await
    }

    fn signal(&self, signal: Signal) {
        if self.exit_status().is_some() {
            return;
        }
        if let Err(error) = kill(self.pid, signal) {
            tracing::debug!(name = self.spec.name, %signal, %error, "signal not delivered");
        }
    }
}

async fn watch_exit(name: String, mut child: Child, publish: watch::Sender<Option<ExitStatus>>) {
    match child.wait().await {
        Ok(status) => {
            tracing::debug!(name, %status, "process ended");
            publish.send_replace(Some(status));
        }
        Err(error) => tracing::error!(name, %error, "lost sight of a process"),
    }
}

/// CPU time that a process has used so far, for itself and the kernel's work on its behalf; in steps of 10 ms.
///
/// # Errors
/// When there is no such process.
pub fn cpu(pid: i32) -> io::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    ticks(&stat)
        .map(|ticks| Duration::from_millis(ticks.saturating_mul(TICK_MS)))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the process has no times"))
}

/// Ticks in user mode and in the kernel. The program's name may contain anything, so it is looked for from the end.
fn ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    // Source: proc_pid_stat(5): state is field 3, utime 14, stime 15.
    let mut times = after_name.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (times.next()?.parse().ok()?, times.next()?.parse().ok()?);
    user.checked_add(system)
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines.get(from..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_of_a_long_log_is_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("x.log");
        let text: Vec<_> = (0..100).map(|n| n.to_string()).collect();
        std::fs::write(&log, text.join("\n")).unwrap();

        assert!(tail(&log).starts_with("75\n"));
        assert!(tail(&log).ends_with("\n99"));
    }

    #[test]
    fn ticks_are_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 30 12 5 6 20 0 5 0 99";

        assert_eq!(ticks(stat), Some(42));
    }

    #[test]
    fn tail_of_no_log_is_empty() {
        assert_eq!(tail(Path::new("/does/not/exist")), "");
    }
}
