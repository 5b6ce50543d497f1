//! Turns by key: at most so many at a time per ENI or per instance.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Keys are forgotten once nobody holds or awaits a turn; swept when this many are known.
const SWEEP_AT: usize = 1_024;

/// Turns by key.
#[derive(Debug)]
pub struct Turns<K> {
    at_a_time: usize,
    known: Mutex<HashMap<K, Weak<Semaphore>>>,
}

/// A turn, given back when dropped.
#[derive(Debug)]
pub struct Turn {
    _permit: OwnedSemaphorePermit,
    _semaphore: Arc<Semaphore>,
}

impl<K: Eq + Hash + Clone> Turns<K> {
    /// At most `at_a_time` turns per key.
    pub fn new(at_a_time: usize) -> Self {
        Self {
            at_a_time,
            known: Mutex::new(HashMap::new()),
        }
    }

    /// Waits for a turn; `None` if none comes before the deadline.
    pub async fn take(&self, key: &K, deadline: Instant) -> Option<Turn> {
        let semaphore = self.semaphore(key);
        let permit =
            tokio::time::timeout_at(deadline, Arc::clone(&semaphore).acquire_owned()).await;
        Some(Turn {
            _permit: permit.ok()?.ok()?,
            _semaphore: semaphore,
        })
    }

    fn semaphore(&self, key: &K) -> Arc<Semaphore> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(semaphore) = known.get(key).and_then(Weak::upgrade) {
            return semaphore;
        }
        if known.len() >= SWEEP_AT {
            known.retain(|_, semaphore| semaphore.strong_count() > 0);
        }
        let semaphore = Arc::new(Semaphore::new(self.at_a_time));
        known.insert(key.clone(), Arc::downgrade(&semaphore));
        semaphore
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(10)
    }

    #[tokio::test(start_paused = true)]
    async fn second_turn_of_a_key_waits_for_the_first() {
        let turns = Turns::new(1);
        let first = turns.take(&"a", soon()).await;

        assert!(turns.take(&"a", soon()).await.is_none());
        drop(first);
        assert!(turns.take(&"a", soon()).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn turns_of_other_keys_do_not_wait() {
        let turns = Turns::new(1);
        let _first = turns.take(&"a", soon()).await;

        assert!(turns.take(&"b", soon()).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn keys_nobody_uses_are_forgotten() {
        let turns = Turns::new(1);
        for key in 0..=SWEEP_AT {
            turns.take(&key, soon()).await.unwrap();
        }

        assert!(turns.known.lock().unwrap().len() <= SWEEP_AT);
    }
}
