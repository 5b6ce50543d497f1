//! Going away in order: no new work, finish what runs, then stop.
//!
//! Two levels. *Draining*: servers accept nothing more and long-lived streams say goodbye, while
//! background tasks go on, since the calls in flight need them. *Stopping*: everybody ends. The
//! second level comes once every [`Blocker`] is dropped or the grace period is over.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long going away may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// For calls in flight, in milliseconds.
    pub grace_ms: u64,
    /// For the app's hand-over and the end of its tasks, in milliseconds, each.
    pub stop_ms: u64,
}

impl Default for Params {
    /// 10 s and 5 s: together below the 30 s that Kubernetes gives a pod by default.
    fn default() -> Self {
        Self {
            grace_ms: 10_000,
            stop_ms: 5_000,
        }
    }
}

/// The handle everybody holds a clone of.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    draining: CancellationToken,
    stopping: CancellationToken,
    why: OnceLock<Box<str>>,
    blockers: watch::Sender<BTreeMap<&'static str, usize>>,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            draining: CancellationToken::new(),
            stopping: CancellationToken::new(),
            why: OnceLock::new(),
            blockers: watch::Sender::new(BTreeMap::new()),
        }
    }
}

impl Drain {
    /// A fresh one: nothing drains.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts draining. The first reason stays.
    pub fn start(&self, why: impl Into<Box<str>>) {
        if self.inner.why.set(why.into()).is_ok() {
            self.inner.draining.cancel();
        }
    }

    /// Ends everybody, whether drained or not.
    pub fn stop(&self) {
        self.start("stop");
        self.inner.stopping.cancel();
    }

    /// Cancelled when draining starts. For servers and long-lived streams.
    pub fn draining(&self) -> &CancellationToken {
        &self.inner.draining
    }

    /// Cancelled when all must end. For background tasks.
    pub fn stopping(&self) -> &CancellationToken {
        &self.inner.stopping
    }

    /// Why draining started, if it did.
    pub fn why(&self) -> Option<&str> {
        self.inner.why.get().map(AsRef::as_ref)
    }

    /// Holds the second level back for as long as the blocker lives.
    pub fn block(&self, name: &'static str) -> Blocker {
        self.inner
            .blockers
            .send_modify(|all| *all.entry(name).or_default() += 1);
        Blocker {
            name,
            drain: self.clone(),
        }
    }

    /// Waits until no blocker is left, at most for `grace`.
    ///
    /// # Errors
    /// [`Late`] with the blockers that were still there.
    pub async fn wait_unblocked(&self, grace: Duration) -> Result<(), Late> {
        let mut blockers = self.inner.blockers.subscribe();
        match tokio::time::timeout(grace, blockers.wait_for(BTreeMap::is_empty)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Late {
                blockers: self.inner.blockers.borrow().clone(),
            }),
        }
    }
}

/// Work that the drain waits for. Dropping it lets the drain go on.
#[derive(Debug)]
#[must_use = "a blocker that is dropped at once holds nothing back"]
pub struct Blocker {
    name: &'static str,
    drain: Drain,
}

impl Drop for Blocker {
    fn drop(&mut self) {
        self.drain.inner.blockers.send_modify(|all| {
            if let Some(count) = all.get_mut(self.name) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    all.remove(self.name);
                }
            }
        });
    }
}

/// The grace period ended before the work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("work was still running after the grace period: {blockers:?}")]
pub struct Late {
    /// Blockers by name, with their number.
    pub blockers: BTreeMap<&'static str, usize>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Drain;

    #[tokio::test(start_paused = true)]
    async fn drain_waits_for_its_blockers() {
        let drain = Drain::new();
        let first = drain.block("call");
        let second = drain.block("call");
        drain.start("test");

        drop(first);
        let late = drain
            .wait_unblocked(Duration::from_secs(1))
            .await
            .unwrap_err();
        drop(second);

        assert_eq!(late.blockers.get("call"), Some(&1));
        assert_eq!(drain.wait_unblocked(Duration::from_secs(1)).await, Ok(()));
    }

    #[test]
    fn first_reason_stays() {
        let drain = Drain::new();

        drain.start("SIGTERM");
        drain.stop();

        assert_eq!(drain.why(), Some("SIGTERM"));
        assert!(drain.draining().is_cancelled() && drain.stopping().is_cancelled());
    }
}
