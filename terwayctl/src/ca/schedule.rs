//! When to ask for the next certificate.

use std::time::{Duration, SystemTime};

use mesh::backoff;
use mesh::tls::lifetime::Lifetime;

/// The latest moment, as a share of the life: a third is left for failures.
const LATEST: f64 = 2.0 / 3.0;
/// The earliest moment: certificates that were issued together are not renewed together.
const EARLIEST: f64 = 0.6;

/// Waits after failures while there is no valid certificate: services wait for it.
pub const URGENT: backoff::Params = backoff::Params {
    first_ms: 500,
    max_ms: 15_000,
};

/// Waits after failures while there is a valid certificate: a third of its life is left.
pub const CALM: backoff::Params = backoff::Params {
    first_ms: 5_000,
    max_ms: 300_000,
};

/// When a certificate is to be renewed. `share`, from 0 to 1, is drawn anew for each one.
pub fn due(life: &Lifetime, share: f64) -> SystemTime {
    let part = EARLIEST + (LATEST - EARLIEST) * share.clamp(0.0, 1.0);
    let after = life.span().mul_f64(part);
    life.not_before.checked_add(after).unwrap_or(life.not_after)
}

/// How long until `when`; zero when it has passed.
pub fn until(when: SystemTime, now: SystemTime) -> Duration {
    when.duration_since(now).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn life() -> Lifetime {
        Lifetime {
            not_before: UNIX_EPOCH + Duration::from_hours(1),
            not_after: UNIX_EPOCH + Duration::from_hours(31),
        }
    }

    #[test]
    fn certificate_is_due_between_three_fifths_and_two_thirds_of_its_life() {
        let hours = |share| {
            let due = due(&life(), share);
            due.duration_since(life().not_before).unwrap().as_secs() / 36
        };

        assert_eq!(hours(0.0), 1800);
        assert_eq!(hours(1.0), 2000);
        assert!((1800..=2000).contains(&hours(0.5)));
    }

    #[test]
    fn share_outside_its_range_changes_nothing() {
        assert_eq!(due(&life(), 7.0), due(&life(), 1.0));
        assert_eq!(due(&life(), -1.0), due(&life(), 0.0));
    }

    #[test]
    fn time_that_has_passed_is_no_wait() {
        assert_eq!(
            until(UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(1)),
            Duration::ZERO
        );
    }
}
