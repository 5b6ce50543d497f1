//! Points in time that are written down.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970 of the hybrid clock: never before one that was committed earlier.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct Tick(pub u64);

impl Tick {
    /// The point `by` later.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// How long from `earlier` until this point; zero if it is not later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}
