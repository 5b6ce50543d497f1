//! The time that a shard's owner writes down.
//!
//! A new owner does not know how wrong its wall clock is, and a clock that jumps ahead must not end a
//! cooldown. So while a deadline is pending, time starts at the last committed tick and goes on with the
//! owner's own monotonic clock: a change of owner, an outage or any jump can only make a cooldown longer.
//! While nothing is pending, time is set to the wall clock, so that figures stay readable.

use std::time::Duration;

use types::time::Tick;

/// Difference between wall clock and committed time from which a person should be told.
///
/// Reason: clocks kept by NTP differ by milliseconds; five seconds is a fault or the mark of an outage.
pub const SKEW_ALERT: Duration = Duration::from_secs(5);

/// Hybrid clock of one ownership of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerClock {
    base: Tick,
    origin: Duration,
}

impl OwnerClock {
    /// Starts when the shard is claimed and loaded: `committed` is [`crate::shard::Shard::tick`],
    /// `monotonic` the owner's monotonic clock since any fixed point.
    pub fn at_claim(committed: Tick, monotonic: Duration) -> Self {
        Self {
            base: committed,
            origin: monotonic,
        }
    }

    /// The time to write into records now; never before one it gave earlier.
    ///
    /// `deadlines_pending` is [`crate::shard::Shard::next_deadline`] being some. `wall` is ignored then.
    pub fn read(&mut self, wall: Tick, monotonic: Duration, deadlines_pending: bool) -> Tick {
        let progressed = self.base.after(monotonic.saturating_sub(self.origin));
        self.base = if deadlines_pending {
            progressed
        } else {
            progressed.max(wall)
        };
        self.origin = self.origin.max(monotonic);
        self.base
    }

    /// How far `wall` is from the time read last, if that is more than [`SKEW_ALERT`].
    pub fn skew(&self, wall: Tick) -> Option<Duration> {
        let skew = wall.since(self.base).max(self.base.since(wall));
        (skew > SKEW_ALERT).then_some(skew)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn clock_of_a_new_shard_is_set_to_the_wall() {
        let mut clock = OwnerClock::at_claim(Tick(0), ms(7));

        assert_eq!(clock.read(Tick(1_000_000), ms(8), false), Tick(1_000_000));
    }

    // I6: the wall clock of a new owner is an hour ahead; nothing cools faster for it.
    #[test]
    fn wall_that_jumps_ahead_moves_no_pending_deadline() {
        let mut clock = OwnerClock::at_claim(Tick(1_000), ms(0));

        assert_eq!(clock.read(Tick(3_601_000), ms(30), true), Tick(1_030));
        assert_eq!(clock.skew(Tick(3_601_000)), Some(ms(3_599_970)));
    }

    // I6.
    #[test]
    fn wall_that_jumps_back_does_not_turn_time_back() {
        let mut clock = OwnerClock::at_claim(Tick(5_000), ms(0));

        assert_eq!(clock.read(Tick(10), ms(20), false), Tick(5_020));
        assert_eq!(clock.read(Tick(10), ms(25), true), Tick(5_025));
    }

    proptest! {
        // I6: between two reads with a deadline pending, time moves no faster than the monotonic clock.
        #[test]
        fn time_with_a_deadline_pending_keeps_to_the_monotonic_clock(
            reads in prop::collection::vec((any::<u32>(), 0_u64..10_000, any::<bool>()), 1..50),
        ) {
            let mut clock = OwnerClock::at_claim(Tick(1_000), ms(0));
            let (mut last, mut monotonic) = (Tick(1_000), 0);

            for (wall, passed, pending) in reads {
                monotonic += passed;
                let now = clock.read(Tick(u64::from(wall)), ms(monotonic), pending);
                prop_assert!(now >= last);
                if pending {
                    prop_assert_eq!(now.since(last), ms(passed));
                }
                last = now;
            }
        }
    }
}
