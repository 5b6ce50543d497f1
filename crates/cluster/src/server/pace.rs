//! How quickly an API server is asked again.

use std::time::Duration;

use mesh::backoff::{Backoff, Params};
use rand::RngExt as _;

/// How quickly an API server is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Pauses after failures: from the first to the longest, doubling, drawn from their upper half.
    pub retry: Params,
    /// After the place in the history was lost, the whole is read again within this time, at a moment drawn by
    /// chance: everybody's place is lost at once.
    pub spread: Duration,
    /// A resource that the cluster does not have is looked for at a moment between this and twice this.
    pub absent: Duration,
    /// An open watch on which nothing came for so long is dead: bookmarks come every minute.
    pub silence: Duration,
    /// A watch is opened for a time between this and twice this.
    pub watch: Duration,
    /// Objects in one page of a list.
    pub page: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            retry: Params {
                first_ms: 500,
                max_ms: 30_000,
            },
            spread: Duration::from_secs(5),
            absent: Duration::from_mins(1),
            silence: Duration::from_secs(100),
            watch: Duration::from_mins(5),
            page: 500,
        }
    }
}

impl Pace {
    pub(super) fn backoff(&self) -> Backoff {
        // Bounds that make no sense are replaced by the usual ones.
        Backoff::try_new(self.retry).unwrap_or_default()
    }

    /// A moment within `spread`.
    pub(super) fn spread(&self) -> Duration {
        within(Duration::ZERO, self.spread)
    }

    pub(super) fn absent(&self) -> Duration {
        within(self.absent, self.absent.saturating_mul(2))
    }

    pub(super) fn watch(&self) -> Duration {
        within(self.watch, self.watch.saturating_mul(2))
    }
}

fn within(least: Duration, most: Duration) -> Duration {
    if least >= most {
        return least;
    }
    rand::rng().random_range(least..=most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_drawn_within_their_bounds() {
        let pace = Pace::default();

        for _ in 0..100 {
            assert!(pace.spread() <= pace.spread);
            assert!((pace.absent..=pace.absent * 2).contains(&pace.absent()));
            assert!((pace.watch..=pace.watch * 2).contains(&pace.watch()));
        }
        assert_eq!(within(Duration::ZERO, Duration::ZERO), Duration::ZERO);
    }
}
