//! Tasks with names, on a tracker that drain can wait for.
//!
//! A service task lives until drain; one that ends earlier, or any task that panics, ends the
//! process with a reason: a service is never left half alive.

use std::any::Any;
use std::fmt::Display;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::drain::Drain;

/// Spawns, and knows when all have ended.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    drain: Drain,
    death: Arc<watch::Sender<Option<Death>>>,
}

/// A task ended that must not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("task {task:?} ended: {reason}")]
pub struct Death {
    /// The task's name.
    pub task: &'static str,
    /// What it said or how it panicked.
    pub reason: String,
}

impl Tasks {
    /// Tasks that follow `drain`.
    pub fn new(drain: Drain) -> Self {
        Self {
            tracker: TaskTracker::new(),
            drain,
            death: Arc::default(),
        }
    }

    /// The drain that the tasks follow.
    pub const fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Cancelled when background tasks must end: the token a task's loop selects on.
    pub fn stopping(&self) -> CancellationToken {
        self.drain.stopping().clone()
    }

    /// Spawns a task that lives until drain. If it ends earlier the process ends.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn_fallible(name, task.map(Ok::<(), std::convert::Infallible>));
    }

    /// Like [`Tasks::spawn`], for a task that can say why it gave up. An error ends the process
    /// even while draining is under way.
    pub fn spawn_fallible<F, E>(&self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let this = self.clone();
        self.tracker.spawn(async move {
            let reason = match AssertUnwindSafe(task).catch_unwind().await {
                Ok(Ok(())) if this.drain.draining().is_cancelled() => return,
                Ok(Ok(())) => "it returned before drain".to_owned(),
                // The alternate form prints the chain of causes of an anyhow error.
                Ok(Err(error)) => format!("{error:#}"),
                Err(panic) => format!("it panicked: {}", panic_text(&*panic)),
            };
            this.report(name, reason);
        });
    }

    /// Spawns finite work, in the caller's span. Returning is fine; a panic ends the process.
    pub fn spawn_once<F>(&self, name: &'static str, work: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let this = self.clone();
        let work = async move {
            match AssertUnwindSafe(work).catch_unwind().await {
                Ok(output) => output,
                Err(panic) => {
                    this.report(name, format!("it panicked: {}", panic_text(&*panic)));
                    std::panic::resume_unwind(panic)
                }
            }
        };
        self.tracker.spawn(work.in_current_span())
    }

    /// Runs work that blocks (files, a local store) on a thread of its own.
    pub fn spawn_blocking<F, T>(&self, work: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.tracker.spawn_blocking(work)
    }

    /// Finite work of one sort, at most `max` at a time.
    pub fn pool(&self, name: &'static str, max: usize) -> Pool {
        Pool {
            name,
            room: Arc::new(Semaphore::new(max)),
            tasks: self.clone(),
        }
    }

    /// Waits until a task died that must not. Pending for ever if none does.
    ///
    /// # Cancel safety
    /// Safe: the death stays noted.
    pub async fn died(&self) -> Death {
        let mut deaths = self.death.subscribe();
        loop {
            if let Some(death) = deaths.borrow_and_update().clone() {
                return death;
            }
            // The sender lives in `self`, so the wait cannot fail.
            if deaths.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until every task has ended, at most for `limit`. Says whether they did.
    pub async fn wait(&self, limit: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait())
            .await
            .is_ok()
    }

    /// Tasks that run now.
    pub fn running(&self) -> usize {
        self.tracker.len()
    }

    fn report(&self, task: &'static str, reason: String) {
        self.death.send_if_modified(|death| {
            let first = death.is_none();
            if first {
                *death = Some(Death { task, reason });
            }
            first
        });
    }
}

/// Finite work of one sort with a bound on how much runs at once.
#[derive(Debug, Clone)]
pub struct Pool {
    name: &'static str,
    room: Arc<Semaphore>,
    tasks: Tasks,
}

/// No room: as much runs as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("pool {name:?} is full")]
pub struct Full {
    /// The pool's name.
    pub name: &'static str,
}

impl Pool {
    /// Spawns once there is room.
    ///
    /// # Cancel safety
    /// Safe: nothing runs before the wait is over.
    pub async fn spawn<F>(&self, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // The semaphore is never closed; were it, running unbounded beats losing the work.
        let permit = Arc::clone(&self.room).acquire_owned().await.ok();
        self.tasks.spawn_once(self.name, async move {
            work.await;
            drop(permit);
        });
    }

    /// Spawns if there is room.
    ///
    /// # Errors
    /// [`Full`] if not; the work was not started.
    pub fn try_spawn<F>(&self, work: F) -> Result<(), Full>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let permit = Arc::clone(&self.room)
            .try_acquire_owned()
            .map_err(|_| Full { name: self.name })?;
        self.tasks.spawn_once(self.name, async move {
            work.await;
            drop(permit);
        });
        Ok(())
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;

    use super::{Full, Tasks};
    use crate::drain::Drain;

    #[tokio::test]
    async fn task_that_returns_before_drain_is_a_death() {
        let tasks = Tasks::new(Drain::new());

        tasks.spawn("watcher", async {});

        assert_eq!(tasks.died().await.task, "watcher");
    }

    #[tokio::test]
    async fn task_that_panics_is_a_death_with_its_text() {
        let tasks = Tasks::new(Drain::new());

        let handle = tasks.spawn_once("job", async { panic!("out of luck") });

        assert_eq!(tasks.died().await.reason, "it panicked: out of luck");
        assert!(handle.await.is_err());
    }

    #[tokio::test]
    async fn task_that_ends_with_drain_is_no_death() {
        let tasks = Tasks::new(Drain::new());
        tasks.spawn("loop", tasks.stopping().cancelled_owned());

        tasks.drain().stop();

        assert!(tasks.wait(Duration::from_secs(5)).await);
        assert!(tasks.died().now_or_never().is_none());
    }

    #[tokio::test]
    async fn pool_refuses_work_beyond_its_bound() {
        let tasks = Tasks::new(Drain::new());
        let pool = tasks.pool("calls", 1);
        let (release, held) = tokio::sync::oneshot::channel::<()>();

        pool.try_spawn(async move { drop(held.await) }).unwrap();
        let refused = pool.try_spawn(async {});
        drop(release);
        tokio::time::timeout(Duration::from_secs(5), pool.spawn(async {}))
            .await
            .unwrap();

        assert_eq!(refused, Err(Full { name: "calls" }));
    }
}
