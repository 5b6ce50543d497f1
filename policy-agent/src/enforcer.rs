//! The one thread that owns the engine and the kernel's rules.
//!
//! It takes batches of the feed and commands, everything that queued meanwhile at once, and then writes to the kernel
//! until nothing is left to write. There is no timer for batching: while a transaction is under way others queue, and
//! they are one change afterwards. A refused change is set aside by the engine and the rest goes on; a refusal that
//! names nothing is tried again with growing pauses. Base chains are never removed for it.

mod command;
pub mod core;
pub mod port;
mod waiter;

use mesh::backoff::{self, Backoff};
use mesh::tasks::Tasks;
use policy_core::engine::Engine;
use tokio::runtime::Handle as Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::command::Command;
use self::core::{Core, Parts};
use self::port::Rules;
use crate::attachments::Attached;
use crate::feed::{Batch, Feed};
use crate::metrics::Metrics;
use crate::notices::Notices;
use crate::scope::Pending;

pub use self::command::{Asked, Handle};
pub use self::waiter::Unready;

/// Most commands and batches that are taken before the kernel is brought up to date.
const AT_ONCE: usize = 256;

/// Every place of the enforcer at which a debug build can be made to die.
pub const CRASH_POINTS: &[&str] = &["policy.commit.before", "policy.commit.after"];

/// What an enforcer is made of.
pub struct Params {
    /// Knows nothing yet.
    pub engine: Engine,
    /// Speaks to the kernel.
    pub rules: Box<dyn Rules + Send>,
    /// Says that policies are malformed.
    pub notices: Notices,
    /// Counts.
    pub metrics: Metrics,
    /// Gets what established flows have to be looked at.
    pub pending: Pending,
    /// Pauses after refusals.
    pub retry: backoff::Params,
    /// Attachments that were known before.
    pub known: Vec<Attached>,
}

impl std::fmt::Debug for Params {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Params").finish_non_exhaustive()
    }
}

/// Why there is no enforcer.
#[derive(Debug, thiserror::Error)]
pub enum EnforcerError {
    /// There is no thread to be had.
    #[error("start the enforcer's thread")]
    Thread(#[source] std::io::Error),
    /// The pauses make no sense.
    #[error(transparent)]
    Bounds(#[from] backoff::BadBounds),
}

/// Starts the thread. It ends with the drain of `tasks`; should it end before, the process does.
///
/// # Errors
/// [`EnforcerError`].
pub fn start(params: Params, feed: Feed, tasks: &Tasks) -> Result<Handle, EnforcerError> {
    let backoff = Backoff::try_new(params.retry)?;
    let (handle, commands) = command::channel();
    let mut core = Core::new(Parts {
        engine: params.engine,
        rules: params.rules,
        notices: params.notices,
        metrics: params.metrics,
        pending: params.pending,
        backoff,
    });
    let runtime = Runtime::current();
    let stopping = tasks.stopping();
    let (ended, end) = oneshot::channel();
    std::thread::Builder::new()
        .name("enforcer".to_owned())
        .spawn(move || {
            core.place_all(params.known);
            let result = runtime.block_on(run(core, feed, commands, stopping));
            if ended.send(result).is_err() {
                tracing::debug!("nobody waits for the enforcer's end");
            }
        })
        .map_err(EnforcerError::Thread)?;
    tasks.spawn_fallible("enforcer", async move {
        match end.await {
            Ok(result) => result,
            Err(_) => Err("its thread panicked"),
        }
    });
    Ok(handle)
}

/// What the thread woke for.
enum Woken {
    Batch(Batch),
    Command(Box<Command>),
    Time,
    /// Nobody tells anything any more.
    FeedEnded,
    Stop,
}

async fn run(
    mut core: Core,
    mut feed: Feed,
    mut commands: mpsc::Receiver<Command>,
    stopping: CancellationToken,
) -> Result<(), &'static str> {
    loop {
        let now = match wait(&core, &mut feed, &mut commands, &stopping).await {
            Woken::Stop => return Ok(()),
            Woken::FeedEnded if stopping.is_cancelled() => return Ok(()),
            Woken::FeedEnded => return Err("the feed ended"),
            Woken::Time => Instant::now(),
            Woken::Batch(batch) => {
                let now = Instant::now();
                core.take_batch(batch, now);
                now
            }
            Woken::Command(command) => {
                let now = Instant::now();
                core.take_command(*command, now);
                now
            }
        };
        for _ in 0..AT_ONCE {
            let batch = feed.try_next();
            let command = commands.try_recv().ok();
            if batch.is_none() && command.is_none() {
                break;
            }
            if let Some(batch) = batch {
                core.take_batch(batch, now);
            }
            if let Some(command) = command {
                core.take_command(command, now);
            }
        }
        core.pump(now);
    }
}

async fn wait(
    core: &Core,
    feed: &mut Feed,
    commands: &mut mpsc::Receiver<Command>,
    stopping: &CancellationToken,
) -> Woken {
    let wake = core.next_wake();
    let time = async move {
        match wake {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = stopping.cancelled() => Woken::Stop,
        command = commands.recv() => command.map_or(Woken::Stop, |c| Woken::Command(Box::new(c))),
        batch = feed.next() => batch.map_or(Woken::FeedEnded, Woken::Batch),
        () = time => Woken::Time,
    }
}
