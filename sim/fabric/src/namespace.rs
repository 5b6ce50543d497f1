//! Named network namespaces of one run, and work done inside them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::error::FabricError;

/// Where named namespaces are, as iproute2 has them.
const NETNS_DIR: &str = "/run/netns";

/// Every run's prefix starts with this.
const OWNER_MARK: &str = "tw";

/// Runs started by this process, so that two of them do not share names.
static RUNS: AtomicU32 = AtomicU32::new(0);

/// A network namespace with a name. It is not removed on drop; the run that made it removes all of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Refers to a namespace by its name; it need not exist.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Makes the namespace with its loopback up.
    pub fn create(name: impl Into<String>) -> Result<Self, FabricError> {
        let namespace = Self::named(name);
        ip(&["netns", "add", namespace.name()])?;
        ip(&["-n", namespace.name(), "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it; what `CNI_NETNS` holds.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Removes it. Absent is fine, and so is somebody else who removes it meanwhile.
    pub fn delete(&self) -> Result<(), FabricError> {
        if !self.exists() {
            return Ok(());
        }
        match ip(&["netns", "del", self.name()]) {
            Err(error) if self.exists() => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Runs `work` on a thread of its own inside the namespace and waits for it.
    ///
    /// Sockets made there stay in the namespace, wherever they are used afterwards. So do child processes.
    pub fn enter<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, FabricError> {
        let what = format!("enter network namespace {}", self.name);
        let file = File::open(self.path()).map_err(FabricError::io(what.clone()))?;
        let inside = move || -> io::Result<T> {
            setns(&file, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        };
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn(inside)
            .map_err(FabricError::io(what.clone()))?;
        match thread.join() {
            Ok(outcome) => outcome.map_err(FabricError::io(what)),
            Err(payload) => std::panic::resume_unwind(payload),
        }
    }

    /// As [`Self::enter`], for async callers: the runtime's threads stay where they are.
    pub async fn enter_async<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, FabricError> {
        let namespace = self.clone();
        tokio::task::spawn_blocking(move || namespace.enter(work))
            .await
            .map_err(|e| FabricError::Io {
                what: format!("enter network namespace {}", self.name),
                source: io::Error::other(e),
            })?
    }

    /// Writes kernel settings below `/proc/sys/net`, such as `("ipv4/ip_forward", "1")`.
    pub async fn set_sysctls(
        &self,
        settings: Vec<(String, &'static str)>,
    ) -> Result<(), FabricError> {
        let name = self.name.clone();
        self.enter_async(move || {
            for (key, value) in settings {
                fs::write(Path::new("/proc/sys/net").join(&key), value)
                    .map_err(FabricError::io(format!("set {key}={value} in {name}")))?;
            }
            Ok(())
        })
        .await?
    }

    /// The start of a command line that runs a program inside: `nsenter --net=… --`.
    ///
    /// The program replaces `nsenter`, so the child's process id is the program's.
    pub fn entry(&self) -> Vec<String> {
        vec![
            "nsenter".to_owned(),
            format!("--net={}", self.path().display()),
            "--".to_owned(),
        ]
    }
}

/// A prefix for all names of one run: `tw<pid>-<n>-`.
pub fn run_prefix() -> String {
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    format!("{OWNER_MARK}{}-{run}-", std::process::id())
}

/// All namespaces whose name starts with `prefix`.
pub fn with_prefix(prefix: &str) -> Vec<Namespace> {
    names()
        .into_iter()
        .filter(|name| name.starts_with(prefix))
        .map(Namespace::named)
        .collect()
}

/// Removes namespaces of runs whose process is gone. Returns how many.
pub fn remove_orphans() -> Result<usize, FabricError> {
    let orphans: Vec<_> = names()
        .into_iter()
        .filter(|name| owner(name).is_some_and(|pid| !process_exists(pid)))
        .collect();
    for name in &orphans {
        Namespace::named(name.as_str()).delete()?;
    }
    Ok(orphans.len())
}

fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

/// The process that made a namespace, by its name.
fn owner(name: &str) -> Option<u32> {
    let (pid, run) = name.strip_prefix(OWNER_MARK)?.split_once('-')?;
    run.split_once('-')?.0.parse::<u32>().ok()?;
    pid.parse().ok()
}

fn process_exists(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

fn ip(args: &[&str]) -> Result<(), FabricError> {
    let output = Command::new("ip")
        .args(args)
        .output()
        .map_err(|source| FabricError::Missing {
            program: "ip",
            source,
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(FabricError::Refused {
        program: "ip",
        namespace: "the caller's namespace".to_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        script: args.join(" "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_of_a_runs_namespace_is_its_process() {
        assert_eq!(owner("tw123-0-vpc"), Some(123));
        assert_eq!(owner("tw123-0-n-1"), Some(123));
    }

    #[test]
    fn owner_of_a_strangers_namespace_is_nobody() {
        assert_eq!(owner("twist"), None);
        assert_eq!(owner("tw-x"), None);
        assert_eq!(owner("tw12-vpc"), None);
        assert_eq!(owner("cni-1234"), None);
    }

    #[test]
    fn namespace_that_several_remove_at_once_is_gone_for_all_of_them() {
        for _ in 0..5 {
            let namespace = Namespace::create(format!("{}x", run_prefix())).unwrap();

            let outcomes = thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| namespace.delete())).collect();
                threads
                    .into_iter()
                    .map(|t| t.join().unwrap())
                    .collect::<Vec<_>>()
            });

            for outcome in outcomes {
                outcome.unwrap();
            }
            assert!(!namespace.exists());
        }
    }

    #[test]
    fn prefixes_of_two_runs_differ() {
        assert_ne!(run_prefix(), run_prefix());
    }
}
