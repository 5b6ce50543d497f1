//! The registry of a process, in OpenMetrics text.
//!
//! Names get the prefix `terway_`; a service registers `<service>_<noun>_<unit>`. Labels are
//! structs of closed enums: never a pod, an address or a node.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::{Metric, Registry as Inner, Unit};

/// Content type of [`Registry::encode`].
///
/// Source: OpenMetrics 1.0, "Text format".
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A registry that clones share.
#[derive(Debug, Clone)]
pub struct Registry {
    inner: Arc<Mutex<Inner>>,
}

impl Registry {
    /// An empty registry with the project's prefix.
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner::with_prefix("terway"))),
        }
    }

    /// Registers a metric. `name` has neither prefix nor the `_total` of counters.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.lock().register(name, help, metric);
    }

    /// Registers a metric with a unit, which is appended to its name.
    pub fn register_with_unit(&self, name: &str, help: &str, unit: Unit, metric: impl Metric) {
        self.lock().register_with_unit(name, help, unit, metric);
    }

    /// Everything, as text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        if encode(&mut text, &self.lock()).is_err() {
            text.clear();
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while registering leaves the registry readable.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::Registry;

    #[test]
    fn metric_has_the_prefix_of_the_project() {
        let registry = Registry::new();
        let counter = Counter::<u64>::default();
        registry.register("agent_adds", "ADDs answered", counter.clone());

        counter.inc();

        let text = registry.encode();
        assert!(text.contains("terway_agent_adds_total 1"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
