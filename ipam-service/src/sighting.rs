//! Things that must be seen twice before anything is done about them.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// What was seen once, and when.
#[derive(Debug)]
pub(crate) struct Sightings<K>(BTreeMap<K, Instant>);

impl<K: Ord + Clone + Hash> Sightings<K> {
    /// Nothing was seen yet.
    pub(crate) fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Whether nothing waits for its second look.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those seen now that were first seen at least `age` ago. What is not seen now is forgotten.
    pub(crate) fn again(&mut self, now: Instant, age: Duration, seen: &BTreeSet<K>) -> BTreeSet<K> {
        self.0.retain(|key, _| seen.contains(key));
        let mut due = BTreeSet::new();
        for key in seen {
            match self.0.get(key) {
                Some(first) if now.saturating_duration_since(*first) >= age => {
                    due.insert(key.clone());
                }
                Some(_) => {}
                None => {
                    self.0.insert(key.clone(), now);
                }
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // I7: nothing is freed at its first sighting, nor before its age.
    #[test]
    fn sighting_is_due_at_the_second_look_after_the_age() {
        let mut sightings = Sightings::new();
        let (start, age) = (Instant::now(), Duration::from_secs(10));
        let seen = BTreeSet::from(["a"]);

        assert!(sightings.again(start, age, &seen).is_empty());
        assert!(
            sightings
                .again(start + Duration::from_secs(9), age, &seen)
                .is_empty()
        );
        assert_eq!(sightings.again(start + age, age, &seen), seen);
    }

    #[test]
    fn sighting_that_was_interrupted_starts_again() {
        let mut sightings = Sightings::new();
        let (start, age) = (Instant::now(), Duration::from_secs(10));
        let seen = BTreeSet::from(["a"]);

        sightings.again(start, age, &seen);
        sightings.again(start + Duration::from_secs(5), age, &BTreeSet::new());

        assert!(sightings.again(start + age, age, &seen).is_empty());
    }
}
