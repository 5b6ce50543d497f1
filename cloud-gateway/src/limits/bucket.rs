//! A bucket that never lets more than its quota through in any 60 seconds, and less while the cloud throttles.
//!
//! The hard bound is a governor limiter, whose burst and rate are fixed. How much of it we use is said by the price
//! of a call: a call costs more of the limiter's cells while our share is smaller, so a change of the share never
//! hands out a fresh burst. The time comes from governor's `Clock`.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

/// What a call costs at full share. Fine enough that the share recovers in small steps.
const CELLS_PER_CALL: u32 = 1_000;
const NANOS_PER_MINUTE: u64 = 60_000_000_000;
/// The full share, in thousandths.
const FULL: u32 = 1_000;
/// The lowest share that halving leads to, in thousandths of the full one.
const FLOOR: u32 = FULL / 16;
/// How much of the full share comes back per second, in thousandths: half of it in 50 seconds.
const RECOVERY_PER_SECOND: u32 = 10;
/// Refusals that arrive within this time belong to calls sent before the first of them was known.
const HALVING_GAP: Duration = Duration::from_secs(1);

/// Smallest quota that leaves both a burst and a rate.
pub const MIN_QUOTA: u32 = 2;

/// Time since the clock was made; follows tokio's paused time in tests.
#[derive(Debug, Clone, Copy)]
pub struct Monotonic {
    started: Instant,
}

impl Monotonic {
    /// Begins at zero.
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
        }
    }
}

impl Clock for Monotonic {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Calls per minute of one action, in one account and region.
#[derive(Debug)]
pub struct Bucket<C: Clock<Instant = Duration>> {
    limiter: RateLimiter<NotKeyed, InMemoryState, C, StateInformationMiddleware>,
    /// Cells of the limiter when it is full.
    burst: u32,
    /// Time in which one cell comes back.
    refill: Duration,
    /// Cells that were left after the last call that passed, and when that was.
    left: (u32, Duration),
    share: u32,
    floor: u32,
    halved: Option<Duration>,
    recovered: Duration,
}

impl<C: Clock<Instant = Duration>> Bucket<C> {
    /// A full bucket for `quota` calls per minute (at least [`MIN_QUOTA`]).
    ///
    /// Reason: a burst of a tenth of the quota and a rate of the rest keep `burst + 60 s * rate <= quota`. The time
    /// between cells is rounded up, so that rounding can not break this.
    pub fn new(quota: u32, clock: C) -> Self {
        let quota = quota.max(MIN_QUOTA);
        let calls = (quota / 10).max(1);
        let rate = u64::from(quota.saturating_sub(calls)).saturating_mul(CELLS_PER_CALL.into());
        let refill = Duration::from_nanos(NANOS_PER_MINUTE.div_ceil(rate.max(1)).max(1));
        let burst = calls.saturating_mul(CELLS_PER_CALL);
        let budget = Quota::with_period(refill)
            // Never: `refill` is above zero.
            .unwrap_or(Quota::per_minute(NonZeroU32::MIN))
            .allow_burst(NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN));
        let now = clock.now();
        Self {
            limiter: RateLimiter::direct_with_clock(budget, clock).with_middleware(),
            burst,
            refill,
            left: (burst, now),
            share: FULL,
            // No call may cost more than the limiter ever holds.
            floor: FLOOR.max(FULL.div_ceil(calls)),
            halved: None,
            recovered: now,
        }
    }

    /// Takes one call out, or says how long it takes until there is one.
    pub fn take(&mut self) -> Result<(), Duration> {
        self.recover();
        if self.spend(self.price()) {
            Ok(())
        } else {
            Err(self.wait_for(1))
        }
    }

    /// How long until `calls` more calls have passed, at today's share. Too long by the refill of one cell at most.
    pub fn wait_for(&self, calls: u64) -> Duration {
        let missing = calls
            .saturating_mul(self.price().into())
            .saturating_sub(self.cells().into());
        Duration::from_nanos(nanos(self.refill).saturating_mul(missing))
    }

    /// The cloud refused a call for its rate: halves our share and spends what the bucket holds.
    ///
    /// Somebody else draws on the same quota, or the quota is smaller than we believe.
    pub fn throttled(&mut self) {
        self.recover();
        self.spend(self.cells());
        let now = self.now();
        if self
            .halved
            .is_some_and(|last| now.saturating_sub(last) < HALVING_GAP)
        {
            return;
        }
        self.share = (self.share / 2).max(self.floor);
        self.halved = Some(now);
        self.recovered = now;
    }

    /// Calls that could pass right now: at most one less than there are.
    pub fn available(&mut self) -> u32 {
        self.recover();
        self.cells() / self.price()
    }

    /// The share in use, in thousandths of the full one.
    pub fn share_permille(&self) -> u32 {
        self.share
    }

    /// Cells that a call costs.
    fn price(&self) -> u32 {
        CELLS_PER_CALL.saturating_mul(FULL).div_ceil(self.share)
    }

    fn spend(&mut self, cells: u32) -> bool {
        let Some(wanted) = NonZeroU32::new(cells) else {
            return true;
        };
        // More than the limiter ever holds counts as refused; the floor of the share prevents it.
        let Ok(Ok(after)) = self.limiter.check_n(wanted) else {
            return false;
        };
        self.left = (after.remaining_burst_capacity(), self.now());
        true
    }

    /// Cells that the limiter holds now, from what it said last: governor tells no more. Rounded down.
    fn cells(&self) -> u32 {
        let (left, since) = self.left;
        let gained = nanos(self.now().saturating_sub(since)) / nanos(self.refill).max(1);
        let gained = u32::try_from(gained).unwrap_or(u32::MAX);
        left.saturating_add(gained).min(self.burst)
    }

    fn now(&self) -> Duration {
        self.limiter.clock().now()
    }

    fn recover(&mut self) {
        let whole = self.now().saturating_sub(self.recovered).as_secs();
        if whole == 0 {
            return;
        }
        let seconds = u32::try_from(whole).unwrap_or(u32::MAX);
        let gained = seconds.saturating_mul(RECOVERY_PER_SECOND);
        self.share = self.share.saturating_add(gained).min(FULL);
        self.recovered = self.recovered.saturating_add(Duration::from_secs(whole));
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    /// A clock that stands until it is set.
    #[derive(Debug, Clone, Default)]
    struct Hands(Rc<Cell<Duration>>);

    impl Hands {
        fn set(&self, time: Duration) {
            self.0.set(time);
        }
    }

    impl Clock for Hands {
        type Instant = Duration;

        fn now(&self) -> Duration {
            self.0.get()
        }
    }

    fn bucket(quota: u32) -> (Hands, Bucket<Hands>) {
        let clock = Hands::default();
        (clock.clone(), Bucket::new(quota, clock))
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn drain(bucket: &mut Bucket<Hands>) -> u64 {
        let mut taken = 0;
        while bucket.take().is_ok() {
            taken += 1;
        }
        taken
    }

    /// Takes what there is every tenth of a second.
    fn drain_for(bucket: &mut Bucket<Hands>, clock: &Hands, seconds: u64) -> u64 {
        let begin = clock.now();
        let mut taken = 0;
        for tenth in 0..=seconds * 10 {
            clock.set(begin + Duration::from_millis(tenth * 100));
            taken += drain(bucket);
        }
        taken
    }

    #[test]
    fn bucket_at_start_lets_a_tenth_of_the_quota_through() {
        let (_, mut bucket) = bucket(500);

        assert_eq!(drain(&mut bucket), 50);
    }

    #[test]
    fn bucket_after_a_minute_has_spent_its_quota_and_no_more() {
        for quota in [2, 10, 60, 300, 400, 500, 800] {
            let (clock, mut bucket) = bucket(quota);

            let taken = drain_for(&mut bucket, &clock, 60);

            // The last call may be due a moment after the minute.
            let quota = u64::from(quota);
            assert!((quota - 1..=quota).contains(&taken), "{taken} of {quota}");
        }
    }

    #[test]
    fn empty_bucket_names_the_wait_after_which_a_call_passes() {
        let (clock, mut bucket) = bucket(400);
        drain(&mut bucket);

        let wait = bucket.take().unwrap_err();

        clock.set(wait.saturating_sub(Duration::from_nanos(1)));
        assert!(bucket.take().is_err());
        clock.set(wait);
        assert_eq!(bucket.take(), Ok(()));
    }

    #[test]
    fn throttled_bucket_has_half_its_rate() {
        let (_, mut bucket) = bucket(600);
        let full = bucket.wait_for(1000);

        bucket.throttled();

        assert_eq!(bucket.share_permille(), 500);
        assert!(bucket.wait_for(1000) > full * 2);
        assert!(bucket.take().is_err());
    }

    #[test]
    fn throttled_bucket_hands_out_no_fresh_burst() {
        let (clock, mut bucket) = bucket(600);

        bucket.throttled();
        let taken = drain_for(&mut bucket, &clock, 1);

        // Half of 9 calls a second.
        assert_eq!(taken, 4);
    }

    #[test]
    fn refusals_of_one_moment_halve_the_rate_once() {
        let (_, mut bucket) = bucket(600);

        for _ in 0..10 {
            bucket.throttled();
        }

        assert_eq!(bucket.share_permille(), 500);
    }

    #[test]
    fn throttled_again_and_again_the_rate_stops_at_a_sixteenth() {
        let (clock, mut bucket) = bucket(600);

        for second in 0..20 {
            clock.set(at(second));
            bucket.throttled();
        }

        assert!(bucket.share_permille() >= FLOOR);
        assert!(bucket.share_permille() < 100);
    }

    #[test]
    fn call_of_a_throttled_small_quota_never_costs_more_than_its_burst() {
        for quota in [2, 10, 25, 39, 70, 159] {
            let (clock, mut bucket) = bucket(quota);
            for second in 0..20 {
                clock.set(at(second));
                bucket.throttled();
            }

            clock.set(at(19) + MINUTE);

            assert_eq!(bucket.take(), Ok(()), "quota {quota}");
        }
    }

    #[test]
    fn left_alone_the_rate_comes_back_in_small_steps() {
        let (clock, mut bucket) = bucket(600);
        bucket.throttled();

        clock.set(at(10));
        bucket.available();
        assert_eq!(bucket.share_permille(), 600);
        clock.set(at(60));
        bucket.available();
        assert_eq!(bucket.share_permille(), 1_000);
    }

    #[test]
    fn smallest_quota_still_lets_calls_through() {
        let (clock, mut bucket) = bucket(MIN_QUOTA);

        assert_eq!(drain(&mut bucket), 1);
        clock.set(at(60));
        assert_eq!(drain(&mut bucket), 1);
    }

    #[test]
    fn largest_quota_lets_calls_through() {
        let (_, mut bucket) = bucket(u32::MAX);

        assert_eq!(bucket.take(), Ok(()));
    }

    #[test]
    fn clock_that_steps_back_gives_nothing() {
        let clock = Hands::default();
        clock.set(at(100));
        let mut bucket = Bucket::new(100, clock.clone());
        drain(&mut bucket);

        clock.set(at(50));

        assert!(bucket.take().is_err());
    }

    proptest! {
        // The account's quota: no 60 seconds, wherever they begin, see more calls than it allows.
        #[test]
        fn any_sixty_seconds_stay_within_the_quota(
            quota in 2_u32..900,
            steps in prop::collection::vec((0_u64..4_000, 0_u32..200, prop::bool::weighted(0.05)), 1..150),
        ) {
            let (clock, mut bucket) = bucket(quota);
            let mut now = Duration::ZERO;
            let mut sent: Vec<Duration> = Vec::new();
            for (millis, wanted, refused) in steps {
                now += Duration::from_millis(millis);
                clock.set(now);
                if refused {
                    bucket.throttled();
                }
                for _ in 0..wanted {
                    if bucket.take().is_ok() {
                        sent.push(now);
                    }
                }
            }
            let mut first = 0;
            for (last, time) in sent.iter().enumerate() {
                while time.saturating_sub(sent[first]) > MINUTE {
                    first += 1;
                }
                let within = last - first + 1;
                prop_assert!(u32::try_from(within).unwrap() <= quota, "{within} calls in 60 s, quota {quota}");
            }
        }

        // What the bucket tells is what governor does: calls that are available pass, and a wait is long enough.
        #[test]
        fn estimate_of_the_bucket_is_kept_by_the_limiter(
            quota in 2_u32..900,
            steps in prop::collection::vec((0_u64..4_000_000_000, 0_u32..100, prop::bool::weighted(0.05)), 1..50),
        ) {
            let (clock, mut bucket) = bucket(quota);
            let mut now = Duration::ZERO;
            for (nanos, wanted, refused) in steps {
                now += Duration::from_nanos(nanos);
                clock.set(now);
                if refused {
                    bucket.throttled();
                }
                for _ in 0..bucket.available().min(wanted) {
                    prop_assert_eq!(bucket.take(), Ok(()));
                }
                if let Err(wait) = bucket.take() {
                    now += wait;
                    clock.set(now);
                    prop_assert_eq!(bucket.take(), Ok(()));
                }
            }
        }
    }
}
