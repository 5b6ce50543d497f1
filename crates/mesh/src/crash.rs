//! Crash points: named places where a debug build can be made to die as by `kill -9`.
//!
//! `TERWAY_CRASH_AT=name` kills the process when it first gets there, `name:3` at the third time.
//! Release builds contain nothing of it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The variable that arms a point.
pub const VARIABLE: &str = "TERWAY_CRASH_AT";

/// Marks a place between two effects. See the module [`crash`](crate::crash).
#[macro_export]
macro_rules! crash_point {
    ($name:expr) => {
        if cfg!(debug_assertions) {
            $crate::crash::reached($name);
        }
    };
}

struct Armed {
    name: Box<str>,
    left: AtomicU32,
}

/// Dies here when the point is armed. Called by [`crash_point!`](crate::crash_point).
pub fn reached(name: &str) {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| std::env::var(VARIABLE).ok().and_then(|text| parse(&text)));
    if let Some(armed) = armed
        && is_due(armed, name)
    {
        die();
    }
}

fn parse(text: &str) -> Option<Armed> {
    let (name, hits) = match text.rsplit_once(':') {
        Some((name, count)) => (name, count.parse().ok()?),
        None => (text, 1),
    };
    (!name.is_empty() && hits > 0).then(|| Armed {
        name: name.into(),
        left: AtomicU32::new(hits),
    })
}

fn is_due(armed: &Armed, name: &str) -> bool {
    *armed.name == *name && armed.left.fetch_sub(1, Ordering::Relaxed) == 1
}

fn die() {
    // SIGKILL to oneself does not fail; were it to, going on would spoil the test less than a
    // panic that unwinds and cleans up.
    if kill(Pid::this(), Signal::SIGKILL).is_err() {
        std::process::abort();
    }
    // The signal is delivered before the call returns to user space; never come back.
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::{is_due, parse};

    #[test]
    fn point_is_due_at_the_hit_that_was_asked_for() {
        let armed = parse("agent.add.after_persist:2").unwrap();

        assert!(!is_due(&armed, "agent.add.after_persist"));
        assert!(!is_due(&armed, "agent.add.before_reply"));
        assert!(is_due(&armed, "agent.add.after_persist"));
        assert!(!is_due(&armed, "agent.add.after_persist"));
    }

    #[test]
    fn malformed_arming_arms_nothing() {
        for text in ["", ":1", "a:0", "a:x", "a:-1"] {
            assert!(parse(text).is_none(), "{text}");
        }
    }
}
