//! How long to wait before the next try: exponential, bounded, jittered.

use std::time::Duration;

use rand::RngExt;
use serde::{Deserialize, Serialize};

/// Bounds of a backoff, as a configuration holds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Wait after the first failure, in milliseconds; 1 or more.
    pub first_ms: u64,
    /// Longest wait, in milliseconds; at least `first_ms`, at most an hour.
    pub max_ms: u64,
}

impl Default for Params {
    /// 100 ms to 10 s: quick enough for a restart of the peer, slow enough for an outage.
    fn default() -> Self {
        Self {
            first_ms: 100,
            max_ms: 10_000,
        }
    }
}

/// Why bounds make no backoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("backoff needs 1 <= first_ms ({first_ms}) <= max_ms ({max_ms}) <= 3600000")]
pub struct BadBounds {
    /// As given.
    pub first_ms: u64,
    /// As given.
    pub max_ms: u64,
}

/// A row of waits. Each is drawn from the upper half of `first * 2^n`, capped at `max`, so that
/// many callers that failed together do not come back together.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    params: Params,
    failures: u32,
}

impl Backoff {
    /// Starts a row.
    ///
    /// # Errors
    /// [`BadBounds`] when the bounds are zero, reversed, or longer than an hour.
    pub const fn try_new(params: Params) -> Result<Self, BadBounds> {
        if params.first_ms == 0 || params.max_ms < params.first_ms || params.max_ms > 3_600_000 {
            return Err(BadBounds {
                first_ms: params.first_ms,
                max_ms: params.max_ms,
            });
        }
        Ok(Self {
            params,
            failures: 0,
        })
    }

    /// Counts a failure and says how long to wait.
    pub fn next_wait(&mut self) -> Duration {
        let factor = 1_u64.checked_shl(self.failures.min(62)).unwrap_or(u64::MAX);
        self.failures = self.failures.saturating_add(1);
        let ceiling = self
            .params
            .first_ms
            .saturating_mul(factor)
            .min(self.params.max_ms);
        let floor = ceiling / 2;
        Duration::from_millis(rand::rng().random_range(floor..=ceiling))
    }

    /// Failures since the start or the last success.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Notes a success: the next wait is a first one.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Backoff, Params};

    #[test]
    fn waits_double_and_stay_below_the_maximum() {
        let mut backoff = Backoff::try_new(Params {
            first_ms: 100,
            max_ms: 1000,
        })
        .unwrap();

        for ceiling_ms in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.next_wait();

            assert!(
                wait <= Duration::from_millis(ceiling_ms),
                "{wait:?} > {ceiling_ms} ms"
            );
            assert!(
                wait >= Duration::from_millis(ceiling_ms / 2),
                "{wait:?} of {ceiling_ms} ms"
            );
        }
    }

    #[test]
    fn reset_starts_the_row_again() {
        let mut backoff = Backoff::try_new(Params {
            first_ms: 10,
            max_ms: 100_000,
        })
        .unwrap();
        for _ in 0..80 {
            backoff.next_wait();
        }

        backoff.reset();

        assert!(backoff.next_wait() <= Duration::from_millis(10));
    }

    #[test]
    fn bounds_that_make_no_sense_are_refused() {
        for (first_ms, max_ms) in [(0, 10), (10, 9), (1, 3_600_001)] {
            assert!(Backoff::try_new(Params { first_ms, max_ms }).is_err());
        }
    }
}
