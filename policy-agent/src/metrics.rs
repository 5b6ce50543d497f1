//! Counts and durations of the agent. A leaf: it knows no other module.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use mesh::metrics::Registry;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// What a change was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelValue)]
pub enum Kind {
    /// A pod of any node.
    Pod,
    /// A namespace.
    Namespace,
    /// A node.
    Node,
    /// A service account.
    ServiceAccount,
    /// A policy of any kind.
    Policy,
    /// An attachment of this node, by the gate.
    Attachment,
}

/// Labels of a duration by kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabels {
    /// What the change was about.
    pub kind: Kind,
}

/// How something ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// As asked.
    Ok,
    /// Refused, and nothing changed.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// Labels of an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// How it ended.
    pub outcome: Outcome,
}

type Count = Counter<u64, AtomicU64>;

/// All metrics of the agent.
#[derive(Debug, Clone)]
pub struct Metrics {
    enforced: Family<KindLabels, Histogram>,
    lag: Histogram,
    transaction_seconds: Histogram,
    transaction_operations: Histogram,
    transactions: Family<OutcomeLabels, Count>,
    gate_seconds: Histogram,
    /// Differences between what the kernel had and what it should have had, found by a comparison.
    pub resync_differences: Count,
    /// Foreign changes that were seen.
    pub foreign_changes: Count,
    /// Calls of the gate that wait.
    pub waiting: Gauge,
    /// Policies that could not be read whole.
    pub malformed: Gauge,
    /// Local pods that are closed because of such a policy or a refused change.
    pub failed_closed: Gauge,
    /// Flows that were cut.
    pub revoked: Count,
    /// Cut flows that were allowed again.
    pub restored: Count,
    /// Looks at conntrack.
    pub passes: Count,
    revoke_seconds: Histogram,
    /// Sets in the kernel.
    pub sets: Gauge,
    /// Members of these sets.
    pub members: Gauge,
    /// Chains in the kernel.
    pub chains: Gauge,
    /// Denied flows the kernel remembers.
    pub denied_flows: Gauge,
    /// Packets of flows that the kernel remembers as denied.
    pub denied_packets: Count,
    /// Local pods.
    pub local_pods: Gauge,
}

impl Metrics {
    /// Makes and registers them.
    pub fn register(registry: &Registry) -> Self {
        let quick = || Histogram::new(exponential_buckets(0.000_05, 2.0, 18));
        let metrics = Self {
            enforced: Family::new_with_constructor(quick),
            lag: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            transaction_seconds: quick(),
            transaction_operations: Histogram::new(exponential_buckets(1.0, 4.0, 12)),
            transactions: Family::default(),
            gate_seconds: quick(),
            resync_differences: Counter::default(),
            foreign_changes: Counter::default(),
            waiting: Gauge::default(),
            malformed: Gauge::default(),
            failed_closed: Gauge::default(),
            revoked: Counter::default(),
            restored: Counter::default(),
            passes: Counter::default(),
            revoke_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            sets: Gauge::default(),
            members: Gauge::default(),
            chains: Gauge::default(),
            denied_flows: Gauge::default(),
            denied_packets: Counter::default(),
            local_pods: Gauge::default(),
        };
        metrics.register_durations(registry);
        metrics.register_counts(registry);
        metrics
    }

    fn register_durations(&self, registry: &Registry) {
        registry.register(
            "policy_enforced_duration_seconds",
            "From reading a change to the kernel's acknowledgement",
            self.enforced.clone(),
        );
        registry.register(
            "policy_watch_lag_seconds",
            "From the watcher seeing a change to the kernel's acknowledgement",
            self.lag.clone(),
        );
        registry.register(
            "policy_transaction_duration_seconds",
            "One kernel transaction",
            self.transaction_seconds.clone(),
        );
        registry.register(
            "policy_transaction_operations",
            "Operations of one kernel transaction",
            self.transaction_operations.clone(),
        );
        registry.register(
            "policy_gate_duration_seconds",
            "How long a pod waited for its policy",
            self.gate_seconds.clone(),
        );
        registry.register(
            "policy_revocation_duration_seconds",
            "One look at conntrack",
            self.revoke_seconds.clone(),
        );
    }

    fn register_counts(&self, registry: &Registry) {
        registry.register(
            "policy_transactions",
            "Kernel transactions by outcome",
            self.transactions.clone(),
        );
        for (name, help, counter) in [
            (
                "policy_resync_differences",
                "Differences that comparisons with the kernel found",
                &self.resync_differences,
            ),
            (
                "policy_foreign_changes",
                "Changes of our tables by others",
                &self.foreign_changes,
            ),
            ("policy_revocations", "Flows that were cut", &self.revoked),
            (
                "policy_restorations",
                "Cut flows that were allowed again",
                &self.restored,
            ),
            (
                "policy_denied_packets",
                "Packets that policy denied, of flows that the kernel's set had room for",
                &self.denied_packets,
            ),
            (
                "policy_revocation_passes",
                "Looks at conntrack",
                &self.passes,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        for (name, help, gauge) in [
            (
                "policy_pods_waiting",
                "Pods that wait for their policy",
                &self.waiting,
            ),
            (
                "policy_malformed",
                "Policies that could not be read whole",
                &self.malformed,
            ),
            (
                "policy_failed_closed_pods",
                "Local pods that are closed by an error",
                &self.failed_closed,
            ),
            ("policy_sets", "Sets in the kernel", &self.sets),
            ("policy_set_members", "Members of these sets", &self.members),
            ("policy_chains", "Chains in the kernel", &self.chains),
            (
                "policy_denied_flows",
                "Denied flows of the last minute",
                &self.denied_flows,
            ),
            ("policy_local_pods", "Pods of this node", &self.local_pods),
        ] {
            registry.register(name, help, gauge.clone());
        }
    }

    /// A change of `kind` is in force `after` it was read.
    pub fn enforced(&self, kind: Kind, after: Duration) {
        let labels = KindLabels { kind };
        self.enforced
            .get_or_create(&labels)
            .observe(after.as_secs_f64());
    }

    /// A change is in force `after` the watcher saw it.
    pub fn lag(&self, after: Duration) {
        self.lag.observe(after.as_secs_f64());
    }

    /// A transaction of `operations` took `time` and ended so.
    pub fn transaction(&self, operations: usize, time: Duration, outcome: Outcome) {
        self.transaction_seconds.observe(time.as_secs_f64());
        // Exact up to 2^32 operations; a transaction has fewer.
        let operations = u32::try_from(operations).unwrap_or(u32::MAX);
        self.transaction_operations.observe(f64::from(operations));
        self.transactions
            .get_or_create(&OutcomeLabels { outcome })
            .inc();
    }

    /// The gate answered after so long.
    pub fn gated(&self, after: Duration) {
        self.gate_seconds.observe(after.as_secs_f64());
    }

    /// A look at conntrack took so long.
    pub fn looked(&self, time: Duration) {
        self.passes.inc();
        self.revoke_seconds.observe(time.as_secs_f64());
    }
}
