//! Which sessions are open: one for each node, and a newer one takes the place of the older.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use types::cloud::InstanceId;

use crate::metrics::Metrics;

/// Open sessions of a replica.
#[derive(Debug, Clone)]
pub struct Registry {
    inner: Arc<Mutex<Inner>>,
    most: usize,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    open: BTreeMap<InstanceId, (u64, CancellationToken)>,
}

/// A session's place; given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    registry: Registry,
    instance: InstanceId,
    /// Higher than that of every earlier session.
    pub id: u64,
    /// Cancelled when a newer session of the node comes.
    pub replaced: CancellationToken,
}

/// There are as many sessions as there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} sessions are open, which is as many as there may be")]
pub struct Full(pub usize);

impl Registry {
    /// No session yet, at most `most`.
    pub fn new(most: usize, metrics: Metrics) -> Self {
        Self {
            inner: Arc::default(),
            most,
            metrics,
        }
    }

    /// A place for a session of `instance`; an older one of it is told to end.
    ///
    /// # Errors
    /// [`Full`].
    pub fn enter(&self, instance: &InstanceId) -> Result<Place, Full> {
        let mut inner = self.lock();
        if inner.open.len() >= self.most && !inner.open.contains_key(instance) {
            return Err(Full(self.most));
        }
        inner.last = inner.last.saturating_add(1);
        let (id, replaced) = (inner.last, CancellationToken::new());
        if let Some((_, older)) = inner.open.insert(instance.clone(), (id, replaced.clone())) {
            older.cancel();
        }
        self.metrics
            .sessions
            .set(i64::try_from(inner.open.len()).unwrap_or(i64::MAX));
        Ok(Place {
            registry: self.clone(),
            instance: instance.clone(),
            id,
            replaced,
        })
    }

    /// Whether a session of `instance` is open.
    pub fn has(&self, instance: &InstanceId) -> bool {
        self.lock().open.contains_key(instance)
    }

    /// Sessions open now.
    pub fn len(&self) -> usize {
        self.lock().open.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half-way.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        if inner
            .open
            .get(&self.instance)
            .is_some_and(|(id, _)| *id == self.id)
        {
            inner.open.remove(&self.instance);
        }
        self.registry
            .metrics
            .sessions
            .set(i64::try_from(inner.open.len()).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_session_of_a_node_replaces_the_older() {
        let registry = Registry::new(1, Metrics::default());
        let node: InstanceId = "i-a".parse().unwrap();

        let older = registry.enter(&node).unwrap();
        let newer = registry.enter(&node).unwrap();

        assert!(registry.has(&node) && !registry.has(&"i-b".parse().unwrap()));
        assert!(older.replaced.is_cancelled());
        assert!(!newer.replaced.is_cancelled());
        drop(older);
        assert_eq!(registry.len(), 1);
        drop(newer);
        assert!(registry.is_empty());
    }

    #[test]
    fn session_beyond_the_bound_is_refused() {
        let registry = Registry::new(1, Metrics::default());
        let _one = registry.enter(&"i-a".parse().unwrap()).unwrap();

        assert_eq!(
            registry.enter(&"i-b".parse().unwrap()).unwrap_err(),
            Full(1)
        );
    }
}
