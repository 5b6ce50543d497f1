//! Which instances had a Node object, and which of them have none any more. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesh::backoff::{Backoff, Params};
use tokio::time::Instant;

/// Pauses between two declarations of one instance: it is asked again until ipam holds nothing of it, which takes as
/// long as the cloud takes to end the instance.
const PAUSES: Params = Params {
    first_ms: 2_000,
    max_ms: 300_000,
};

/// One instance.
#[derive(Debug)]
struct Entry {
    /// Since when it has no Node object.
    missing: Option<Instant>,
    /// When it is declared next.
    due: Instant,
    backoff: Backoff,
    waits_for: String,
    /// All replicas said once that they hold nothing of it.
    confirmed: bool,
}

impl Entry {
    fn new(now: Instant) -> Self {
        Self {
            missing: None,
            due: now,
            backoff: Backoff::try_new(PAUSES).unwrap_or_default(),
            waits_for: String::new(),
            confirmed: false,
        }
    }
}

/// All instances that had a Node object.
#[derive(Debug)]
pub struct Register {
    after: Duration,
    known: BTreeMap<String, Entry>,
    changed: bool,
}

impl Register {
    /// With what was remembered. An instance is due when it was without a Node object for `after`.
    pub fn new(
        after: Duration,
        remembered: impl IntoIterator<Item = String>,
        now: Instant,
    ) -> Self {
        let known = remembered.into_iter().map(|id| (id, Entry::new(now)));
        Self {
            after,
            known: known.collect(),
            changed: false,
        }
    }

    /// Compares with the instances that have a Node object now.
    pub fn look<'a>(&mut self, there: impl Iterator<Item = &'a str>, now: Instant) {
        let there: BTreeSet<&str> = there.collect();
        for id in &there {
            if !self.known.contains_key(*id) {
                self.known.insert((*id).to_owned(), Entry::new(now));
                self.changed = true;
            }
        }
        for (id, entry) in &mut self.known {
            match (there.contains(id.as_str()), entry.missing) {
                (true, Some(_)) => *entry = Entry::new(now),
                (false, None) => {
                    entry.missing = Some(now);
                    entry.due = now + self.after;
                }
                (true, None) | (false, Some(_)) => {}
            }
        }
    }

    /// Instances to declare now.
    pub fn due(&self, now: Instant) -> Vec<String> {
        let due = |entry: &Entry| entry.missing.is_some() && entry.due <= now;
        let due = self.known.iter().filter(|(_, entry)| due(entry));
        due.map(|(id, _)| id.clone()).collect()
    }

    /// All replicas of ipam say that they hold nothing of it. A shard that just then had no owner was nobody's, so they
    /// are asked once more; true when that was the second time, and the instance is forgotten.
    pub fn done(&mut self, id: &str, now: Instant) -> bool {
        // One that came back meanwhile stays.
        let entry = self.known.get_mut(id);
        let Some(entry) = entry.filter(|entry| entry.missing.is_some()) else {
            return false;
        };
        if !entry.confirmed {
            entry.confirmed = true;
            entry.due = now + self.after;
            "asked once more".clone_into(&mut entry.waits_for);
            return false;
        }
        self.known.remove(id);
        self.changed = true;
        true
    }

    /// It is to be declared again.
    pub fn not_yet(&mut self, id: &str, waits_for: String, now: Instant) {
        if let Some(entry) = self.known.get_mut(id) {
            entry.due = now + entry.backoff.next_wait();
            entry.confirmed = false;
            entry.waits_for = waits_for;
        }
    }

    /// Instances without a Node object, and what they wait for.
    pub fn gone(&self) -> impl Iterator<Item = (&str, &str)> {
        let gone = self
            .known
            .iter()
            .filter(|(_, entry)| entry.missing.is_some());
        gone.map(|(id, entry)| (id.as_str(), entry.waits_for.as_str()))
    }

    /// What is to be remembered, if that has changed.
    pub fn to_remember(&self) -> Option<String> {
        self.changed.then(|| {
            let ids = self.known.keys().map(|id| format!("{id}\n"));
            ids.collect()
        })
    }

    /// It is remembered.
    pub const fn remembered(&mut self) {
        self.changed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_mins(1);

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn instance_is_due_when_its_node_was_gone_for_long_enough() {
        let start = Instant::now();
        let mut register = Register::new(AFTER, [], start);
        register.look(["i-1", "i-2"].into_iter(), start);

        register.look(["i-1"].into_iter(), at(start, 10));

        assert!(register.due(at(start, 69)).is_empty());
        assert_eq!(register.due(at(start, 70)), ["i-2"]);
    }

    #[test]
    fn node_that_comes_back_in_time_is_not_gone() {
        let start = Instant::now();
        let mut register = Register::new(AFTER, [], start);
        register.look(["i-1"].into_iter(), start);
        register.look([].into_iter(), at(start, 10));

        register.look(["i-1"].into_iter(), at(start, 60));

        assert!(register.due(at(start, 1_000)).is_empty());
        assert!(!register.done("i-1", at(start, 1_000)));
        // It was declared while it came back.
        register.look([].into_iter(), at(start, 1_000));
        assert_eq!(register.due(at(start, 1_060)), ["i-1"]);
    }

    #[test]
    fn instance_that_vanished_while_nobody_looked_is_due() {
        let start = Instant::now();
        let mut register = Register::new(AFTER, ["i-9".to_owned()], start);

        register.look(["i-1"].into_iter(), start);

        assert_eq!(register.due(at(start, 60)), ["i-9"]);
        assert_eq!(register.to_remember().as_deref(), Some("i-1\ni-9\n"));
    }

    #[test]
    fn declared_instance_is_declared_again_until_it_is_done() {
        let start = Instant::now();
        let mut register = Register::new(Duration::ZERO, ["i-1".to_owned()], start);
        register.look([].into_iter(), start);
        assert_eq!(register.due(start), ["i-1"]);

        register.not_yet("i-1", "the instance still exists".to_owned(), start);

        assert!(register.due(start).is_empty());
        assert_eq!(register.due(at(start, 2)), ["i-1"]);
        assert_eq!(
            register.gone().next(),
            Some(("i-1", "the instance still exists"))
        );
        // A shard may have had no owner when they were asked.
        assert!(!register.done("i-1", start));
        assert_eq!(register.due(start), ["i-1"]);
        assert!(register.done("i-1", start));
        assert_eq!(register.gone().next(), None);
        assert_eq!(register.to_remember().as_deref(), Some(""));
        register.remembered();
        assert_eq!(register.to_remember(), None);
    }
}
