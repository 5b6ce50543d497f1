//! Relays as a source, and what is read while none answers.

use std::time::Duration;

use futures::FutureExt as _;
use mesh::backoff::Backoff;
use mesh::causes;
use rand::RngExt as _;
use tracing::{debug, info, warn};

use crate::feed::direct::Direct;
use crate::feed::output::{Closed, Output};
use crate::feed::{Batch, Fallback, Fares, Relays};
use crate::relay::client::{Client, Frames, WatchError};
use crate::relay::wire;

/// Frames that follow each other are put together up to so many changes.
const TOGETHER: usize = 256;

/// Reads one relay at a time.
#[derive(Debug)]
pub(super) struct Upstream {
    dialer: Dialer,
    fallback: Option<Fallback>,
    output: Output,
    fares: Fares,
}

/// Finds a relay that answers.
#[derive(Debug)]
struct Dialer {
    targets: Vec<String>,
    client: Client,
    backoff: Backoff,
    /// The relay to begin with: after a loss another one than before.
    next: usize,
}

impl Upstream {
    pub(super) fn new(relays: Relays, output: Output, fares: Fares) -> Self {
        Self {
            dialer: Dialer {
                targets: relays.targets,
                client: relays.client,
                backoff: Backoff::default(),
                next: 0,
            },
            fallback: relays.fallback,
            output,
            fares,
        }
    }

    /// Tells what relays tell, until nobody reads.
    pub(super) async fn run(mut self) {
        loop {
            let frames = Box::pin(self.frames()).await;
            self.fares.trouble.send_replace(None);
            match self.follow(frames).await {
                Ok(why) => {
                    warn!(why, "stream of the relay ended");
                    let why = format!("stream of the relay ended: {why}");
                    self.fares.trouble.send_replace(Some(why));
                }
                Err(Closed) => return,
            }
            // All agents lose a relay at the same moment, and are not to come back at the same moment.
            tokio::time::sleep(self.dialer.backoff.next_wait()).await;
        }
    }

    /// A stream; until there is one, and patience is over, what we watch ourselves.
    async fn frames(&mut self) -> Frames {
        let Some(fallback) = &self.fallback else {
            return self.dialer.find().await;
        };
        let soon = tokio::time::timeout(patience(fallback.after), self.dialer.find());
        if let Ok(frames) = soon.await {
            return frames;
        }
        let why = "no relay answers; the API server is read instead".to_owned();
        self.fares.trouble.send_replace(Some(why));
        match Direct::open(&fallback.place).await {
            Ok(direct) => {
                warn!(place = ?fallback.place, "no relay answers; watching ourselves");
                tokio::select! {
                    frames = self.dialer.find() => return frames,
                    // Ends only when nobody reads, which the next delivery finds out as well.
                    () = direct.run(&mut self.output, &self.fares) => {}
                }
            }
            Err(error) => warn!(
                error = causes::text(&error),
                "no relay answers, nor can we watch ourselves"
            ),
        }
        self.dialer.find().await
    }

    /// Says why the stream ended.
    async fn follow(&mut self, mut frames: Frames) -> Result<String, Closed> {
        self.output.begin();
        let mut pool = wire::Pool::default();
        loop {
            let frame = match frames.next().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok("it was ended".to_owned()),
                Err(error) => return Ok(causes::text(&error)),
            };
            if frame.synced && self.dialer.backoff.failures() > 0 {
                info!(sequence = frame.sequence, "in sync with the relay");
                self.dialer.backoff.reset();
            }
            let mut batch = read(frame, &mut pool);
            let mut end = None;
            // Frames that are here already are one batch: each by itself would be a transaction of its own.
            while end.is_none() && batch.synced && batch.events.len() < TOGETHER {
                match frames.next().now_or_never() {
                    None => break,
                    Some(Ok(Some(frame))) => batch.join(read(frame, &mut pool)),
                    Some(Ok(None)) => end = Some("it was ended".to_owned()),
                    Some(Err(error)) => end = Some(causes::text(&error)),
                }
            }
            self.output.deliver(batch).await?;
            if let Some(why) = end {
                return Ok(why);
            }
        }
    }
}

/// How long relays are tried: all agents lose a relay at the same moment, and are not to ask the API server for
/// everything at the same moment.
fn patience(after: Duration) -> Duration {
    after + rand::rng().random_range(Duration::ZERO..=after / 2)
}

/// A frame as events.
fn read(frame: wire::Frame, pool: &mut wire::Pool) -> Batch {
    let mut events = Vec::with_capacity(frame.changes.len());
    for change in frame.changes {
        match wire::decode(change, pool) {
            Ok(event) => events.extend(event),
            // The next version of the object may be readable; the others are.
            Err(error) => warn!(%error, "change from the relay passed over"),
        }
    }
    Batch {
        sequence: frame.sequence,
        synced: frame.synced,
        events,
        seen_at_ms: frame.seen_at_ms,
    }
}

impl Dialer {
    /// Tries until a relay answers, for ever.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    async fn find(&mut self) -> Frames {
        loop {
            for _ in 0..self.targets.len().max(1) {
                let Some(target) = self.targets.get(self.next % self.targets.len().max(1)) else {
                    break;
                };
                self.next = self.next.wrapping_add(1);
                match self.client.watch(target).await {
                    Ok(frames) => return frames,
                    Err(error) => complain(target, &error, self.backoff.failures()),
                }
            }
            tokio::time::sleep(self.backoff.next_wait()).await;
        }
    }
}

/// The first failure of an outage is worth a line; the others are the same.
fn complain(relay: &str, error: &WatchError, failures: u32) {
    let error = causes::text(error);
    if failures <= 1 {
        warn!(relay, error, "no stream from the relay");
    } else {
        debug!(relay, error, "no stream from the relay");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_that_lost_a_relay_together_do_not_fall_back_together() {
        let after = Duration::from_secs(30);

        let all: std::collections::BTreeSet<Duration> = (0..100).map(|_| patience(after)).collect();

        assert!(all.iter().all(|p| (after..=after * 3 / 2).contains(p)));
        // Of a hundred draws from fifteen seconds in nanoseconds no two are the same, or chance is broken.
        assert!(all.len() > 90, "{}", all.len());
    }
}
