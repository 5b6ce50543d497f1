//! Percentiles of a set of durations.

use std::time::Duration;

/// Durations, ready to be asked.
#[derive(Debug, Clone, Default)]
pub struct Durations {
    sorted: Vec<Duration>,
}

impl Durations {
    /// Takes them in any order.
    pub fn new(mut durations: Vec<Duration>) -> Self {
        durations.sort_unstable();
        Self { sorted: durations }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The smallest value that at least `percent` of all do not exceed; zero if there are none.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.sorted.len() * percent).div_ceil(100);
        self.sorted
            .get(rank.saturating_sub(1))
            .copied()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_one_to_hundred_are_themselves() {
        let durations = Durations::new((1..=100).rev().map(Duration::from_millis).collect());

        assert_eq!(durations.percentile(50), Duration::from_millis(50));
        assert_eq!(durations.percentile(99), Duration::from_millis(99));
        assert_eq!(durations.percentile(100), Duration::from_millis(100));
    }

    #[test]
    fn percentile_of_nothing_is_zero() {
        assert_eq!(Durations::default().percentile(99), Duration::ZERO);
    }
}
