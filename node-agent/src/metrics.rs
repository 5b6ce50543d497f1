//! Counts and durations of the agent. A leaf: it knows no other module.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mesh::metrics::Registry;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use tokio::time::Instant;

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// As asked.
    Ok,
    /// Not as asked.
    Error,
}

/// Labels of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// How it ended.
    pub outcome: Outcome,
}

/// All metrics of the agent.
#[derive(Debug)]
pub struct Metrics {
    add_seconds: Family<OutcomeLabels, Histogram>,
    /// Pods that could be bound now.
    pub pool_free: Gauge,
    /// Bound pods.
    pub pool_used: Gauge,
    /// Target in pods.
    pub pool_target: Gauge,
    /// Sessions with ipam replicas.
    pub sessions: Gauge,
    /// Kernel objects that were put back.
    pub repairs: Counter<u64, AtomicU64>,
    /// Bindings freed because their sandbox was gone.
    pub reaped: Counter<u64, AtomicU64>,
    /// 1 while pods can be started.
    pub serving: Gauge,
    /// Chains of others that may drop pods' traffic and could not be changed.
    pub forward_unsettled: Gauge,
    /// Whole ENIs that kubelet is told of.
    pub whole_enis: Gauge,
    /// Registrations with kubelet.
    pub registrations: Counter<u64, AtomicU64>,
    faults: Family<FaultLabels, Gauge>,
    shown: Mutex<BTreeSet<String>>,
}

/// Labels of a fault.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FaultLabels {
    reason: String,
}

impl Metrics {
    /// Makes and registers them.
    pub fn register(registry: &Registry) -> Self {
        let metrics = Self {
            add_seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.0005, 2.0, 18))
            }),
            pool_free: Gauge::default(),
            pool_used: Gauge::default(),
            pool_target: Gauge::default(),
            sessions: Gauge::default(),
            repairs: Counter::default(),
            reaped: Counter::default(),
            serving: Gauge::default(),
            forward_unsettled: Gauge::default(),
            whole_enis: Gauge::default(),
            registrations: Counter::default(),
            faults: Family::default(),
            shown: Mutex::default(),
        };
        registry.register(
            "agent_add_duration_seconds",
            "ADD from request to answer",
            metrics.add_seconds.clone(),
        );
        registry.register(
            "agent_pool_free",
            "Pods that could be bound now",
            metrics.pool_free.clone(),
        );
        registry.register("agent_pool_used", "Bound pods", metrics.pool_used.clone());
        registry.register(
            "agent_pool_target",
            "Pods the node wants addresses for",
            metrics.pool_target.clone(),
        );
        registry.register(
            "agent_sessions",
            "Sessions with ipam replicas",
            metrics.sessions.clone(),
        );
        registry.register(
            "agent_repairs",
            "Kernel objects put back",
            metrics.repairs.clone(),
        );
        registry.register(
            "agent_reaped",
            "Bindings freed without DEL",
            metrics.reaped.clone(),
        );
        registry.register(
            "agent_serving",
            "1 while pods can be started",
            metrics.serving.clone(),
        );
        registry.register(
            "agent_forward_unsettled",
            "Chains of others at the forward hook that may drop pods' traffic and could not be changed; the log names them",
            metrics.forward_unsettled.clone(),
        );
        registry.register(
            "agent_fault",
            "1 while the fault lasts; its name is that of conditions and events",
            metrics.faults.clone(),
        );
        registry.register(
            "agent_whole_enis",
            "Whole ENIs that kubelet is told of",
            metrics.whole_enis.clone(),
        );
        registry.register(
            "agent_device_plugin_registrations",
            "Registrations of aliyun/eni with kubelet",
            metrics.registrations.clone(),
        );
        metrics
    }

    /// Shows exactly these faults.
    pub fn show_faults<'a>(&self, reasons: impl Iterator<Item = &'a str>) {
        let now: BTreeSet<String> = reasons.map(str::to_owned).collect();
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let label = |reason: &String| FaultLabels {
            reason: reason.clone(),
        };
        for gone in shown.difference(&now) {
            self.faults.remove(&label(gone));
        }
        for reason in &now {
            self.faults.get_or_create(&label(reason)).set(1);
        }
        *shown = now;
    }

    /// Starts the clock of an ADD.
    pub fn add_started(&self) -> AddTimer<'_> {
        AddTimer {
            metrics: self,
            start: Instant::now(),
        }
    }
}

/// Measures one ADD.
#[derive(Debug)]
#[must_use = "an ADD is counted when the timer is finished"]
pub struct AddTimer<'a> {
    metrics: &'a Metrics,
    start: Instant,
}

impl AddTimer<'_> {
    /// Counts the ADD.
    pub fn finish(self, ok: bool) {
        let outcome = if ok { Outcome::Ok } else { Outcome::Error };
        let elapsed: Duration = self.start.elapsed();
        let labels = OutcomeLabels { outcome };
        self.metrics
            .add_seconds
            .get_or_create(&labels)
            .observe(elapsed.as_secs_f64());
    }
}
