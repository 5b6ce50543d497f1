//! What is in the cluster, as events in batches: from a folder, an API server, or a relay.
//!
//! No history is assumed on either side. When a source is lost and found again, or another one takes over, all of
//! its objects come again, and what is no longer among them comes as deletions: the feed remembers keys, and nothing
//! else of what it told.

mod direct;
mod keys;
mod output;
mod upstream;

use std::time::Duration;

use cluster::health::Health;
use cluster::metrics::Metrics;
use cluster::source::{OpenError, Place};
use mesh::metrics::Registry;
use mesh::tasks::Tasks;
use policy_core::object::Event;
use tokio::sync::{mpsc, watch};

use crate::relay::client::Client;

/// Batches that wait for the reader, at most.
const DEPTH: usize = 4;

/// Events that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Place in the feed: with a relay its sequence, without one the number of the batch. What is older than this
    /// has been told. It stands still while a state is told in several batches.
    pub sequence: u64,
    /// With this batch the reader has the whole state. False while a state is being told, also when that happens
    /// again after a source was lost: what the reader has stays good meanwhile.
    pub synced: bool,
    /// Events; may be empty.
    pub events: Vec<Event>,
    /// When the newest change in here was seen by who watches, in milliseconds since the epoch; 0: unknown.
    pub seen_at_ms: u64,
}

impl Batch {
    /// Takes in the batch that follows.
    fn join(&mut self, next: Self) {
        self.sequence = next.sequence;
        self.synced = next.synced;
        self.events.extend(next.events);
        self.seen_at_ms = self.seen_at_ms.max(next.seen_at_ms);
    }
}

/// The reader's end.
#[derive(Debug)]
pub struct Feed {
    batches: mpsc::Receiver<Batch>,
    trouble: watch::Receiver<Option<String>>,
}

impl Feed {
    /// The next batch; nothing when the feed has ended.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Batch> {
        self.batches.recv().await
    }

    /// What is wrong with the source now, in words.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.clone()
    }

    /// The next batch if one is there already: for readers that take several at once.
    pub fn try_next(&mut self) -> Option<Batch> {
        self.batches.try_recv().ok()
    }
}

/// A feed that somebody else fills: for tests, and for worlds made up on the spot.
pub fn channel() -> (mpsc::Sender<Batch>, Feed) {
    let (sender, feed, _) = ends();
    (sender, feed)
}

fn ends() -> (mpsc::Sender<Batch>, Feed, watch::Sender<Option<String>>) {
    let (sender, batches) = mpsc::channel(DEPTH);
    let (tell, trouble) = watch::channel(None);
    (sender, Feed { batches, trouble }, tell)
}

/// Where sources say how they fare.
#[derive(Debug)]
struct Fares {
    trouble: watch::Sender<Option<String>>,
    /// Of the API server, while that is what is read.
    health: watch::Sender<Health>,
}

impl Fares {
    /// Shows how an API server fares, for ever.
    async fn follow(&self, mut health: watch::Receiver<Health>) {
        loop {
            let now = health.borrow_and_update().clone();
            self.trouble.send_replace(now.complaint());
            self.health.send_replace(now);
            if health.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Where a feed comes from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// We watch ourselves.
    Direct(Place),
    /// Relays.
    Relays(Relays),
}

/// Relays of the cluster.
#[derive(Debug, Clone)]
pub struct Relays {
    /// `host:port` of each; one is read at a time.
    pub targets: Vec<String>,
    /// Makes streams.
    pub client: Client,
    /// Read when no relay has answered for a while.
    pub fallback: Option<Fallback>,
}

/// What is read while no relay answers.
#[derive(Debug, Clone)]
pub struct Fallback {
    /// What we watch then ourselves.
    pub place: Place,
    /// How long relays are tried before.
    pub after: Duration,
}

/// Starts a feed on `tasks`; it ends with their drain.
///
/// # Errors
/// [`OpenError`] when a place is named that can not be watched.
pub async fn open(origin: Origin, tasks: &Tasks, registry: &Registry) -> Result<Feed, OpenError> {
    let (sender, feed, trouble) = ends();
    let output = output::Output::new(sender);
    let stopping = tasks.stopping();
    let (health, shown) = watch::channel(Health::default());
    let fares = Fares { trouble, health };
    let show = || {
        let metrics = Metrics::register(registry);
        tasks.spawn("source metrics", metrics.follow(shown, tasks.stopping()));
    };
    match origin {
        Origin::Direct(place) => {
            let direct = direct::Direct::open(&place).await?;
            if direct.health().is_some() {
                show();
            }
            tasks.spawn("feed", async move {
                let mut output = output;
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => {}
                    () = direct.run(&mut output, &fares) => {}
                }
                stopping.cancelled().await;
            });
        }
        Origin::Relays(relays) => {
            if let Some(fallback) = &relays.fallback {
                // What can not be watched is said now, and not when it is needed.
                let direct = direct::Direct::open(&fallback.place).await?;
                if direct.health().is_some() {
                    show();
                }
            }
            let upstream = upstream::Upstream::new(relays, output, fares);
            tasks.spawn("feed", async move {
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => {}
                    () = upstream.run() => {}
                }
                stopping.cancelled().await;
            });
        }
    }
    Ok(feed)
}

#[cfg(test)]
mod tests;
