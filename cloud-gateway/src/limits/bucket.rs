//! A token bucket that never lets more than its quota through in any 60 seconds, whatever its rate does meanwhile.
//!
//! Pure: the time is an argument. Integer arithmetic, so that the bound is exact. The rate can be halved and
//! recovers in small steps; the bucket keeps its level over these changes, so a change never hands out a fresh
//! burst.

use std::time::Duration;

/// Level and refill are counted in this many units per call: nanoseconds of a minute times thousandths of rate.
const UNITS_PER_CALL: u64 = 60_000_000_000 * 1_000;
/// The full rate, in thousandths.
const FULL: u64 = 1_000;
/// The lowest rate that halving leads to, in thousandths of the full one.
const FLOOR: u64 = 1_000 / 16;
/// How much of the full rate comes back per second, in thousandths: half of it in 50 seconds.
const RECOVERY_PER_SECOND: u64 = 10;
/// Refusals that arrive within this time belong to calls sent before the first of them was known.
const HALVING_GAP: Duration = Duration::from_secs(1);

/// Smallest quota that leaves both a burst and a rate.
pub const MIN_QUOTA: u32 = 2;

/// Calls per minute of one action, in one account and region.
#[derive(Debug, Clone)]
pub struct Bucket {
    burst: u64,
    rate_per_minute: u64,
    level: u64,
    share: u64,
    refilled: Duration,
    halved: Option<Duration>,
    recovered: Duration,
}

impl Bucket {
    /// A full bucket for `quota` calls per minute (at least [`MIN_QUOTA`]) at the time `now`.
    ///
    /// Reason: a burst of a tenth of the quota and a rate of the rest keep `burst + 60 s * rate <= quota`.
    pub fn new(quota: u32, now: Duration) -> Self {
        let quota = u64::from(quota.max(MIN_QUOTA));
        let burst = (quota / 10).max(1);
        Self {
            burst,
            rate_per_minute: quota.saturating_sub(burst),
            level: burst.saturating_mul(UNITS_PER_CALL),
            share: FULL,
            refilled: now,
            halved: None,
            recovered: now,
        }
    }

    /// Takes one call out, or says how long it takes until there is one.
    pub fn take(&mut self, now: Duration) -> Result<(), Duration> {
        self.refill(now);
        match self.level.checked_sub(UNITS_PER_CALL) {
            Some(rest) => {
                self.level = rest;
                Ok(())
            }
            None => Err(self.wait_for(1)),
        }
    }

    /// How long until `calls` more calls have passed, at today's rate.
    pub fn wait_for(&self, calls: u64) -> Duration {
        let missing = calls
            .saturating_mul(UNITS_PER_CALL)
            .saturating_sub(self.level);
        let per_nano = self.rate_per_minute.saturating_mul(self.share).max(1);
        Duration::from_nanos(missing.div_ceil(per_nano))
    }

    /// The cloud refused a call for its rate: halves ours and empties the bucket.
    ///
    /// Somebody else draws on the same quota, or the quota is smaller than we believe.
    pub fn throttled(&mut self, now: Duration) {
        self.refill(now);
        self.level = 0;
        if self
            .halved
            .is_some_and(|last| now.saturating_sub(last) < HALVING_GAP)
        {
            return;
        }
        self.share = (self.share / 2).max(FLOOR);
        self.halved = Some(now);
        self.recovered = now;
    }

    /// Calls that could pass right now.
    pub fn available(&mut self, now: Duration) -> u64 {
        self.refill(now);
        self.level / UNITS_PER_CALL
    }

    /// The rate in use, in thousandths of the full one.
    pub fn share_permille(&self) -> u64 {
        self.share
    }

    fn refill(&mut self, now: Duration) {
        let Some(passed) = now.checked_sub(self.refilled) else {
            return;
        };
        let nanos = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
        let gained = nanos
            .saturating_mul(self.rate_per_minute)
            .saturating_mul(self.share);
        let full = self.burst.saturating_mul(UNITS_PER_CALL);
        self.level = self.level.saturating_add(gained).min(full);
        self.refilled = now;
        self.recover(now);
    }

    fn recover(&mut self, now: Duration) {
        let whole = now.saturating_sub(self.recovered).as_secs();
        if whole == 0 {
            return;
        }
        let gained = whole.saturating_mul(RECOVERY_PER_SECOND);
        self.share = self.share.saturating_add(gained).min(FULL);
        self.recovered = self.recovered.saturating_add(Duration::from_secs(whole));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn drain(bucket: &mut Bucket, now: Duration) -> u64 {
        let mut taken = 0;
        while bucket.take(now).is_ok() {
            taken += 1;
        }
        taken
    }

    #[test]
    fn bucket_at_start_lets_a_tenth_of_the_quota_through() {
        let mut bucket = Bucket::new(500, at(0));

        assert_eq!(drain(&mut bucket, at(0)), 50);
    }

    #[test]
    fn bucket_after_a_minute_has_spent_its_quota_and_no_more() {
        let mut bucket = Bucket::new(400, at(0));
        let mut taken = 0;

        for tenth in 0..=600 {
            taken += drain(&mut bucket, Duration::from_millis(tenth * 100));
        }

        assert_eq!(taken, 400);
    }

    #[test]
    fn empty_bucket_names_the_wait_after_which_a_call_passes() {
        let mut bucket = Bucket::new(400, at(0));
        drain(&mut bucket, at(0));

        let wait = bucket.take(at(0)).unwrap_err();

        assert!(
            bucket
                .take(wait.saturating_sub(Duration::from_nanos(1)))
                .is_err()
        );
        assert_eq!(bucket.take(wait), Ok(()));
    }

    #[test]
    fn throttled_bucket_has_half_its_rate() {
        let mut bucket = Bucket::new(600, at(0));
        let full = bucket.wait_for(1000);

        bucket.throttled(at(0));

        assert_eq!(bucket.share_permille(), 500);
        assert!(bucket.wait_for(1000) > full * 2);
        assert!(bucket.take(at(0)).is_err());
    }

    #[test]
    fn refusals_of_one_moment_halve_the_rate_once() {
        let mut bucket = Bucket::new(600, at(0));

        for _ in 0..10 {
            bucket.throttled(Duration::from_millis(300));
        }

        assert_eq!(bucket.share_permille(), 500);
    }

    #[test]
    fn throttled_again_and_again_the_rate_stops_at_a_sixteenth() {
        let mut bucket = Bucket::new(600, at(0));

        for second in 0..20 {
            bucket.throttled(Duration::from_millis(second * 1_000));
        }

        assert!(bucket.share_permille() >= FLOOR);
        assert!(bucket.share_permille() < 100);
    }

    #[test]
    fn left_alone_the_rate_comes_back_in_small_steps() {
        let mut bucket = Bucket::new(600, at(0));
        bucket.throttled(at(0));

        bucket.available(at(10));
        assert_eq!(bucket.share_permille(), 600);
        bucket.available(at(60));
        assert_eq!(bucket.share_permille(), 1_000);
    }

    #[test]
    fn smallest_quota_still_lets_calls_through() {
        let mut bucket = Bucket::new(MIN_QUOTA, at(0));

        assert_eq!(drain(&mut bucket, at(0)), 1);
        assert_eq!(drain(&mut bucket, at(60)), 1);
    }

    #[test]
    fn clock_that_steps_back_gives_nothing() {
        let mut bucket = Bucket::new(100, at(100));
        drain(&mut bucket, at(100));

        assert!(bucket.take(at(50)).is_err());
    }

    proptest! {
        // The account's quota: no 60 seconds, wherever they begin, see more calls than it allows.
        #[test]
        fn any_sixty_seconds_stay_within_the_quota(
            quota in 2_u32..900,
            steps in prop::collection::vec((0_u64..4_000, 0_u32..200, prop::bool::weighted(0.05)), 1..150),
        ) {
            let mut now = Duration::ZERO;
            let mut bucket = Bucket::new(quota, now);
            let mut sent: Vec<Duration> = Vec::new();
            for (millis, wanted, refused) in steps {
                now += Duration::from_millis(millis);
                if refused {
                    bucket.throttled(now);
                }
                for _ in 0..wanted {
                    if bucket.take(now).is_ok() {
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
    }
}
