//! How a source fares, as metrics.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use mesh::metrics::Registry;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::health::{Health, Trouble};

/// Time between looks.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    resource: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct Wrong {
    resource: String,
    verb: &'static str,
    reason: &'static str,
}

/// Metrics of a source that follows an API server.
#[derive(Debug)]
pub struct Metrics {
    contact_age: Gauge<f64, AtomicU64>,
    synced: Family<Of, Gauge>,
    objects: Family<Of, Gauge>,
    lists: Family<Of, Counter>,
    failures: Family<Of, Counter>,
    trouble: Family<Wrong, Gauge>,
    wrong: BTreeSet<Wrong>,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Self {
        let metrics = Self {
            contact_age: Gauge::default(),
            synced: Family::default(),
            objects: Family::default(),
            lists: Family::default(),
            failures: Family::default(),
            trouble: Family::default(),
            wrong: BTreeSet::new(),
        };
        registry.register(
            "cluster_contact_age_seconds",
            "since the API server last said something sensible; -1 when it never did",
            metrics.contact_age.clone(),
        );
        registry.register(
            "cluster_synced",
            "1 when all objects of the resource were read once",
            metrics.synced.clone(),
        );
        registry.register(
            "cluster_objects",
            "objects of the resource that are known",
            metrics.objects.clone(),
        );
        registry.register(
            "cluster_lists",
            "how often the resource was read as a whole",
            metrics.lists.clone(),
        );
        registry.register(
            "cluster_request_failures",
            "requests for the resource that failed",
            metrics.failures.clone(),
        );
        registry.register(
            "cluster_trouble",
            "1 while the verb on the resource fails for the reason",
            metrics.trouble.clone(),
        );
        metrics
    }

    /// Keeps them until `drain` is cancelled.
    pub async fn follow(mut self, health: watch::Receiver<Health>, drain: CancellationToken) {
        let mut every = tokio::time::interval(EVERY);
        loop {
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                _ = every.tick() => {}
            }
            let now = health.borrow().clone();
            self.show(&now);
        }
    }

    fn show(&mut self, health: &Health) {
        let age = health.contact_age().map_or(-1.0, |age| age.as_secs_f64());
        self.contact_age.set(age);
        for (name, resource) in &health.resources {
            let of = Of {
                resource: name.clone(),
            };
            let objects = i64::try_from(resource.objects).unwrap_or(i64::MAX);
            self.synced
                .get_or_create(&of)
                .set(i64::from(resource.synced));
            self.objects.get_or_create(&of).set(objects);
            raise(&self.lists.get_or_create(&of), resource.listed);
            raise(&self.failures.get_or_create(&of), resource.failures);
        }
        let wrong: BTreeSet<Wrong> = health.troubles().map(|(name, t)| wrong(name, t)).collect();
        for mended in self.wrong.difference(&wrong) {
            self.trouble.remove(mended);
        }
        for wrong in &wrong {
            self.trouble.get_or_create(wrong).set(1);
        }
        self.wrong = wrong;
    }
}

fn wrong(resource: &str, trouble: &Trouble) -> Wrong {
    Wrong {
        resource: resource.to_owned(),
        verb: trouble.verb,
        reason: trouble.reason.as_str(),
    }
}

fn raise(counter: &Counter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::health::{Reason, Resource};

    #[tokio::test]
    async fn permission_that_lacks_is_named_while_it_lacks() {
        let registry = Registry::new();
        let mut metrics = Metrics::register(&registry);
        let mut health = Health::default();
        let pods = Resource {
            failures: 3,
            trouble: Some(Trouble {
                reason: Reason::Forbidden,
                verb: "watch",
                message: String::new(),
                since: Instant::now(),
            }),
            ..Resource::default()
        };
        health.resources.insert("pods".to_owned(), pods);

        metrics.show(&health);
        let lacking = registry.encode();
        let pods = health.resources.get_mut("pods").unwrap();
        (pods.trouble, pods.synced, pods.objects) = (None, true, 7);
        pods.contact = Some(Instant::now());
        metrics.show(&health);
        let mended = registry.encode();

        let named = r#"terway_cluster_trouble{resource="pods",verb="watch",reason="forbidden"} 1"#;
        assert!(lacking.contains(named), "{lacking}");
        assert!(
            lacking.contains("terway_cluster_contact_age_seconds -1.0"),
            "{lacking}"
        );
        assert!(!mended.contains("forbidden"), "{mended}");
        let failures = r#"terway_cluster_request_failures_total{resource="pods"} 3"#;
        assert!(mended.contains(failures), "{mended}");
        assert!(
            mended.contains(r#"terway_cluster_objects{resource="pods"} 7"#),
            "{mended}"
        );
    }
}
