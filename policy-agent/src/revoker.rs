//! Cuts flows that policy allowed when they began and denies now, and lets those live again that it allows again.
//!
//! A flow is cut by a bit of its conntrack mark, which rules in front of "established" look for. Removing the entry
//! instead would let the flow come back, the other way round, when the server speaks first.
//!
//! After each step that changed what is allowed, conntrack is dumped and each flow in question is judged by the
//! engine: its original source, and its destination and port after translation. Then the bit is set or cleared where
//! it differs. The same is done a second time a little later, since a packet that was judged by the old rules may
//! confirm its flow after the dump; and once over all flows at the start, since an agent that was killed between
//! acknowledgement and mark leaves nothing else to see.
//!
//! A dump costs about a microsecond per entry, so changes are looked at together. Changed rules are looked at after
//! a short pause at most; addresses that merely come and go elsewhere in the cluster so that all looks together cost
//! a few percent of a core, their second look being the next one's first.

mod pass;
pub mod port;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use mesh::tasks::Tasks;
use tokio::runtime::Handle as Runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::pass::Pass;
use self::port::{Flows, FlowsError};
use crate::enforcer::{self, Unready};
use crate::metrics::Metrics;
use crate::scope::{Pending, Scope};

/// Every place of the revoker at which a debug build can be made to die.
pub const CRASH_POINTS: &[&str] = &["policy.revoke.before_mark", "policy.revoke.after_mark"];

/// Most calls that wait for entries to be deleted.
const QUEUE: usize = 256;
/// How long such a call waits.
const ANSWER: Duration = Duration::from_secs(10);
/// Looks at addresses that come and go take this part of the time at most: one in so many.
const SHARE: u32 = 50;
/// Longest pause between two looks.
const LONGEST: Duration = Duration::from_secs(10);
/// How much the enforcer goes before: a dump would take a core from it for milliseconds.
const NICE: i32 = 5;
/// Pause after conntrack could not be read.
const FAILED: Duration = Duration::from_secs(1);

/// Flows were not looked at.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RevokeError {
    /// Conntrack can not be read or changed.
    #[error("conntrack: {0}")]
    Flows(String),
    /// The enforcer did not judge.
    #[error(transparent)]
    Unready(#[from] Unready),
    /// The revoker ends, or has too much to do.
    #[error("the revoker does not answer")]
    Away,
}

impl From<FlowsError> for RevokeError {
    fn from(error: FlowsError) -> Self {
        Self::Flows(mesh::causes::text(&error))
    }
}

/// What is done with flows, and when.
#[derive(Debug, Clone, Copy)]
pub struct Params {
    /// Whether flows are judged at all; entries of released addresses are deleted in any case.
    pub judge: bool,
    /// The bit of the mark.
    pub bit: u32,
    /// Least time between the beginnings of two looks.
    pub pause: Duration,
    /// When the second look is.
    pub again: Duration,
}

/// What has been done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Flows cut since the start.
    pub revoked: u64,
    /// Flows let live again since the start.
    pub restored: u64,
    /// Looks since the start.
    pub passes: u64,
    /// Wall time of the end of the last look, in milliseconds since the epoch; 0: none yet.
    pub at_ms: u64,
}

struct Forget {
    addresses: BTreeSet<IpAddr>,
    answer: oneshot::Sender<Result<(), RevokeError>>,
}

/// Asks the revoker. Clones ask the same one.
#[derive(Debug, Clone)]
pub struct Handle {
    forget: mpsc::Sender<Forget>,
    done: watch::Receiver<Done>,
}

impl Handle {
    /// Deletes all entries with one of these addresses at an end, and returns when that is done.
    ///
    /// # Errors
    /// [`RevokeError`].
    pub async fn forget(&self, addresses: BTreeSet<IpAddr>) -> Result<(), RevokeError> {
        if addresses.is_empty() {
            return Ok(());
        }
        let (answer, told) = oneshot::channel();
        let forget = Forget { addresses, answer };
        self.forget
            .try_send(forget)
            .map_err(|_| RevokeError::Away)?;
        match tokio::time::timeout(ANSWER, told).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(RevokeError::Away),
        }
    }

    /// What has been done up to now.
    pub fn done(&self) -> Done {
        *self.done.borrow()
    }
}

/// A revoker that is not started yet.
pub struct Revoker {
    params: Params,
    flows: Box<dyn Flows + Send>,
    pending: Pending,
    metrics: Metrics,
    forget: mpsc::Receiver<Forget>,
    done: watch::Sender<Done>,
    /// When the last look began, and what it took.
    last: Option<(Instant, Duration)>,
    again: Option<(Instant, Scope)>,
}

impl std::fmt::Debug for Revoker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Revoker")
            .field("params", &self.params)
            .finish_non_exhaustive()
    }
}

/// Makes a revoker and the means to ask it.
pub fn new(
    params: Params,
    flows: Box<dyn Flows + Send>,
    pending: Pending,
    metrics: Metrics,
) -> (Revoker, Handle) {
    let (sender, forget) = mpsc::channel(QUEUE);
    let (done, seen) = watch::channel(Done::default());
    let revoker = Revoker {
        params,
        flows,
        pending,
        metrics,
        forget,
        done,
        last: None,
        again: None,
    };
    let handle = Handle {
        forget: sender,
        done: seen,
    };
    (revoker, handle)
}

/// What the thread woke for.
enum Woken {
    Look,
    Again,
    Forget(Forget),
    Stop,
}

impl Revoker {
    /// Starts its thread, which ends with the drain of `tasks`.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(self, enforcer: enforcer::Handle, tasks: &Tasks) -> std::io::Result<()> {
        let runtime = Runtime::current();
        let stopping = tasks.stopping();
        let (ended, end) = oneshot::channel();
        std::thread::Builder::new()
            .name("revoker".to_owned())
            .spawn(move || {
                // Linux: of this thread alone. Rules of a pod that starts go before flows of one that runs.
                if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                    tracing::debug!(%error, "the revoker has the priority of the others");
                }
                self.run(&runtime, &enforcer, &stopping);
                if ended.send(()).is_err() {
                    tracing::debug!("nobody waits for the revoker's end");
                }
            })?;
        tasks.spawn_fallible("revoker", async move {
            end.await.map_err(|_| "its thread panicked")
        });
        Ok(())
    }

    fn run(mut self, runtime: &Runtime, enforcer: &enforcer::Handle, stopping: &CancellationToken) {
        loop {
            match runtime.block_on(self.wait(stopping)) {
                Woken::Stop => return,
                Woken::Forget(first) => self.forget(first),
                Woken::Again => {
                    if let Some((_, scope)) = self.again.take() {
                        self.pending.add(scope);
                    }
                }
                Woken::Look => {
                    let scope = self.pending.take();
                    if let Err(error) = self.look(&scope, runtime, enforcer) {
                        if matches!(error, RevokeError::Unready(Unready::Ending)) {
                            return;
                        }
                        tracing::warn!(%error, "flows were not looked at; again later");
                        self.later(Instant::now() + FAILED, scope);
                    }
                }
            }
        }
    }

    async fn wait(&mut self, stopping: &CancellationToken) -> Woken {
        loop {
            let again = self.again.as_ref().map(|(at, _)| *at);
            let (last, pending, pause) = (self.last, self.pending.clone(), self.params.pause);
            let due = async move {
                loop {
                    let prompt = pending.filled().await;
                    let Some(at) = due(last, prompt, pause) else {
                        return;
                    };
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep_until(at) => return,
                        // It may be prompt now.
                        () = pending.widened() => {}
                    }
                }
            };
            tokio::select! {
                biased;
                () = stopping.cancelled() => return Woken::Stop,
                forget = self.forget.recv() => match forget {
                    Some(forget) => return Woken::Forget(forget),
                    // Nobody can ask any more; looks go on.
                    None => std::future::pending().await,
                },
                () = due => return Woken::Look,
                () = at(again) => return Woken::Again,
            }
        }
    }

    fn look(
        &mut self,
        scope: &Scope,
        runtime: &Runtime,
        enforcer: &enforcer::Handle,
    ) -> Result<(), RevokeError> {
        let began = Instant::now();
        if !scope.gone.is_empty() {
            pass::delete(&mut *self.flows, &scope.gone)?;
        }
        if self.params.judge && (scope.everything || !scope.addresses.is_empty()) {
            let pass = Pass {
                scope,
                bit: self.params.bit,
                runtime,
                enforcer,
            };
            let (revoked, restored) = pass.run(&mut *self.flows)?;
            self.metrics.revoked.inc_by(revoked);
            self.metrics.restored.inc_by(restored);
            self.done.send_modify(|done| {
                done.revoked = done.revoked.saturating_add(revoked);
                done.restored = done.restored.saturating_add(restored);
                done.passes = done.passes.saturating_add(1);
                done.at_ms = mesh::clock::wall_ms();
            });
            let time = began.elapsed();
            self.metrics.looked(time);
            tracing::debug!(
                revoked,
                restored,
                time_us = time.as_micros(),
                "flows looked at"
            );
            self.last = Some((began, time));
            self.second(began, scope);
        }
        Ok(())
    }

    /// Plans the second look, unless this was one.
    fn second(&mut self, began: Instant, scope: &Scope) {
        if scope.second {
            return;
        }
        let mut again = scope.clone();
        again.gone.clear();
        again.second = true;
        if scope.prompt {
            self.later(began + self.params.again, again);
        } else {
            // What is not urgent is looked at a second time together with what comes next.
            self.pending.add(again);
        }
    }

    fn later(&mut self, at: Instant, scope: Scope) {
        match &mut self.again {
            // The earlier time stays: whoever was first has waited longest. Those who join it are looked at a third
            // time when they are new again.
            Some((_, planned)) => planned.widen(scope),
            None => self.again = Some((at, scope)),
        }
    }

    fn forget(&mut self, first: Forget) {
        let mut all = vec![first];
        while let Ok(more) = self.forget.try_recv() {
            all.push(more);
        }
        let addresses = all
            .iter()
            .flat_map(|f| f.addresses.iter().copied())
            .collect();
        let result = pass::delete(&mut *self.flows, &addresses);
        for forget in all {
            let answer = match &result {
                Ok(_) => Ok(()),
                Err(error) => Err(RevokeError::Flows(mesh::causes::text(error))),
            };
            // Whoever asked may be gone.
            drop(forget.answer.send(answer));
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// When the next look may begin; `None`: now.
fn due(last: Option<(Instant, Duration)>, prompt: bool, pause: Duration) -> Option<Instant> {
    let (began, took) = last?;
    let wait = if prompt {
        pause
    } else {
        took.saturating_mul(SHARE).clamp(pause, LONGEST.max(pause))
    };
    Some(began + wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_rules_wait_for_the_pause_alone() {
        let began = Instant::now();
        let last = Some((began, Duration::from_millis(150)));
        let pause = Duration::from_millis(100);

        assert_eq!(due(None, true, pause), None);
        assert_eq!(due(last, true, pause), Some(began + pause));
    }

    #[test]
    fn addresses_that_come_and_go_cost_a_few_percent_at_most() {
        let began = Instant::now();
        let pause = Duration::from_millis(100);
        let wait = |took_ms| {
            let last = Some((began, Duration::from_millis(took_ms)));
            due(last, false, pause).unwrap() - began
        };

        assert_eq!(wait(0), pause);
        assert_eq!(wait(150), Duration::from_millis(150 * 50));
        assert_eq!(wait(5_000), LONGEST);
    }
}
