//! Tells an operation that its owner has lost the shard.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

/// Whether the owner that an operation works for may still send.
///
/// Reads go on after a fence: what is on the wire should still be seen to its end.
#[derive(Debug)]
pub struct Fence {
    shard: String,
    epoch: AtomicU64,
    seen: AtomicU64,
    raised: CancellationToken,
    sent: AtomicBool,
}

impl Fence {
    /// Not raised; nothing was sent.
    pub fn new(shard: &str, epoch: u64) -> Arc<Self> {
        Arc::new(Self {
            shard: shard.to_owned(),
            epoch: AtomicU64::new(epoch),
            seen: AtomicU64::new(epoch),
            raised: CancellationToken::new(),
            sent: AtomicBool::new(false),
        })
    }

    /// Resolves when a newer owner was seen.
    pub async fn raised(&self) {
        self.raised.cancelled().await;
    }

    /// Whether a newer owner was seen.
    pub fn is_raised(&self) -> bool {
        self.raised.is_cancelled()
    }

    /// Notes that a write left this process: from now on the operation counts as on the wire.
    pub fn note_sent(&self) {
        self.sent.store(true, Ordering::Relaxed);
    }

    /// Whether a write left this process.
    pub fn was_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }

    /// Shard, epoch of the operation, highest epoch seen.
    pub fn facts(&self) -> (String, u64, u64) {
        (
            self.shard.clone(),
            self.epoch.load(Ordering::Relaxed),
            self.seen.load(Ordering::Relaxed),
        )
    }

    /// The epoch in whose name the operation runs.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// A newer owner asks for the same operation: it goes on in the newer owner's name.
    pub fn adopt(&self, epoch: u64) {
        self.epoch.fetch_max(epoch, Ordering::Relaxed);
        self.seen.fetch_max(epoch, Ordering::Relaxed);
    }

    /// A newer owner was seen, in this epoch.
    pub fn raise(&self, seen: u64) {
        self.seen.fetch_max(seen, Ordering::Relaxed);
        self.raised.cancel();
    }
}
