//! Where the simulator gets its time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use types::time::Tick;

/// Wall time, or time that a test moves.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The machine's.
    #[default]
    Wall,
    /// Milliseconds since 1970, moved by hand.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// A clock that stands still at `at` until it is moved.
    pub fn manual(at: Tick) -> Self {
        Self::Manual(Arc::new(AtomicU64::new(at.0)))
    }

    /// The time.
    pub fn now(&self) -> Tick {
        match self {
            Self::Wall => Tick(u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)),
            Self::Manual(millis) => Tick(millis.load(Ordering::SeqCst)),
        }
    }

    /// Moves a manual clock on; the wall's clock does not care.
    pub fn advance(&self, by: Duration) {
        match self {
            Self::Wall => {}
            Self::Manual(millis) => {
                let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
                millis.fetch_add(by, Ordering::SeqCst);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_clock_moves_only_by_hand() {
        let clock = Clock::manual(Tick(5));

        assert_eq!(clock.now(), Tick(5));
        clock.advance(Duration::from_millis(3));
        assert_eq!(clock.now(), Tick(8));
    }
}
