//! Times as the wire has them.

use std::time::Duration;

/// Whole milliseconds; what does not fit is the longest time.
pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
