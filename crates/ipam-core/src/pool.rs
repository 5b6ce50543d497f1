//! How many addresses a node shall have for the pods it runs.

/// Share of a batch that shall be free beside what is in use, in percent (`mf` of the formula).
pub const FREE_SHARE_PERCENT: u64 = 50;

/// Pods that a node which uses `used` addresses wants to be able to serve at once:
/// `batch * ceil(0.5 + used / batch)`, held between `used + min_idle` and `used + max_idle`.
///
/// The result is a total, never a delta, so repeating it is harmless. It moves in steps of `batch`:
/// a few pods more or less change nothing. `batch` 0 is taken as 1. Where `max_idle` lies below
/// `min_idle`, `min_idle` wins.
///
/// Source: the one-shot target of Azure CNS (`ipammath`).
pub fn target(used: u32, batch: u32, min_idle: u32, max_idle: u32) -> u32 {
    let batch = u64::from(batch.max(1));
    let hundredths = u64::from(used)
        .saturating_mul(100)
        .saturating_add(batch.saturating_mul(FREE_SHARE_PERCENT));
    let batches = hundredths.div_ceil(batch.saturating_mul(100));
    let formula = u32::try_from(batches.saturating_mul(batch)).unwrap_or(u32::MAX);
    let low = used.saturating_add(min_idle);
    let high = used.saturating_add(max_idle).max(low);
    formula.clamp(low, high)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn target_of_an_idle_node_is_one_batch() {
        assert_eq!(target(0, 16, 0, 100), 16);
    }

    #[test]
    fn target_steps_up_when_half_a_batch_is_left() {
        assert_eq!(target(8, 16, 0, 100), 16);
        assert_eq!(target(9, 16, 0, 100), 32);
    }

    #[test]
    fn target_keeps_min_and_max_idle() {
        assert_eq!(target(0, 16, 20, 100), 20);
        assert_eq!(target(0, 16, 0, 5), 5);
        assert_eq!(target(7, 16, 3, 2), 10);
    }

    proptest! {
        #[test]
        fn target_covers_what_is_used_and_grows_with_it(
            used in 0_u32..100_000, batch in 0_u32..300, min in 0_u32..300, max in 0_u32..300,
        ) {
            let now = target(used, batch, min, max);

            prop_assert!(now >= used + min);
            prop_assert!(now <= used + max.max(min));
            prop_assert!(target(used + 1, batch, min, max) >= now);
        }
    }
}
