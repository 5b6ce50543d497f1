//! What a replica counts. No pod, address or node is ever a label.

use std::time::Duration;

use ipam_core::shard::SlotCounts;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use proto::types::v1::Reason;

/// How a cloud operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum CallResult {
    /// Done and read back.
    Done,
    /// Refused for good.
    Refused,
    /// Not known, or not now: repeated.
    Retried,
}

/// Labels of cloud calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallLabels {
    /// `create`, `attach`, `assign`, `unassign`, `detach`, `delete`.
    pub call: &'static str,
    /// How it ended.
    pub result: CallResult,
}

/// Labels of slots.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SlotLabels {
    /// The vSwitch.
    pub vswitch: String,
    /// `v4` or `v6`.
    pub family: &'static str,
    /// State, as in dumps.
    pub state: &'static str,
    /// Which shard of the vSwitch.
    pub shard: u32,
}

/// Labels of differences that a reconcile found.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DriftLabels {
    /// What differs.
    pub kind: &'static str,
}

/// Label of a fault.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Counts in a gauge for as long as it lives.
#[derive(Debug)]
pub struct Shown(Gauge);

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The counters; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    commit_seconds: Histogram,
    commit_records: Histogram,
    /// Appends whose answer was lost.
    pub commit_unknown: Counter,
    /// Times that another owner was found.
    pub fenced: Counter,
    /// Shards that were claimed.
    pub claims: Counter,
    /// Shards owned now.
    pub owned: Gauge,
    /// Sessions open now.
    pub sessions: Gauge,
    /// Sessions that were refused.
    pub sessions_refused: Counter,
    calls: Family<CallLabels, Counter>,
    slots: Family<SlotLabels, Gauge>,
    drift: Family<DriftLabels, Counter>,
    faults: Family<ReasonLabel, Gauge>,
    clock_skew: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            commit_seconds: Histogram::new(exponential_buckets(0.000_2, 2.0, 16)),
            commit_records: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            commit_unknown: Counter::default(),
            fenced: Counter::default(),
            claims: Counter::default(),
            owned: Gauge::default(),
            sessions: Gauge::default(),
            sessions_refused: Counter::default(),
            calls: Family::default(),
            slots: Family::default(),
            drift: Family::default(),
            faults: Family::default(),
            clock_skew: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Makes them visible.
    pub fn register(&self, registry: &mesh::metrics::Registry) {
        registry.register(
            "ipam_commit_duration_seconds",
            "time of one append",
            self.commit_seconds.clone(),
        );
        registry.register(
            "ipam_commit_batch_records",
            "records of one append",
            self.commit_records.clone(),
        );
        registry.register(
            "ipam_commit_unknown",
            "appends whose answer was lost",
            self.commit_unknown.clone(),
        );
        registry.register(
            "ipam_fenced",
            "times that another owner was found",
            self.fenced.clone(),
        );
        registry.register("ipam_claims", "shards claimed", self.claims.clone());
        registry.register("ipam_shards_owned", "shards owned now", self.owned.clone());
        registry.register(
            "ipam_sessions",
            "node sessions open now",
            self.sessions.clone(),
        );
        registry.register(
            "ipam_sessions_refused",
            "node sessions refused",
            self.sessions_refused.clone(),
        );
        registry.register(
            "ipam_cloud_calls",
            "calls to the gateway",
            self.calls.clone(),
        );
        registry.register("ipam_slots", "addresses by state", self.slots.clone());
        registry.register(
            "ipam_reconcile_drift",
            "differences between books and cloud",
            self.drift.clone(),
        );
        registry.register(
            "ipam_faults",
            "faults in force that a person must mend, by reason: one for each shard and node, or for a vSwitch",
            self.faults.clone(),
        );
        registry.register(
            "ipam_clock_skew_milliseconds",
            "wall clock against committed time, when it is worth a look",
            self.clock_skew.clone(),
        );
    }

    /// Notes an append.
    pub fn commit(&self, took: Duration, records: usize) {
        self.commit_seconds.observe(took.as_secs_f64());
        self.commit_records
            .observe(f64::from(u32::try_from(records).unwrap_or(u32::MAX)));
    }

    /// Notes a call to the gateway.
    pub fn call(&self, call: &'static str, result: CallResult) {
        self.calls.get_or_create(&CallLabels { call, result }).inc();
    }

    /// Notes a difference.
    pub fn drift(&self, kind: &'static str) {
        self.drift.get_or_create(&DriftLabels { kind }).inc();
    }

    /// Shows a fault until the answer is dropped.
    pub fn show_fault(&self, reason: Reason) -> Shown {
        let reason = reason.as_str_name();
        let gauge = self.faults.get_or_create(&ReasonLabel { reason }).clone();
        gauge.inc();
        Shown(gauge)
    }

    /// Notes how far the wall clock is off.
    pub fn clock_skew(&self, skew: Duration) {
        self.clock_skew
            .set(i64::try_from(skew.as_millis()).unwrap_or(i64::MAX));
    }

    /// Shows the slots of one family of a shard.
    pub fn slots(&self, shard: &types::op::ShardId, family: &'static str, counts: SlotCounts) {
        let states = [
            ("free", counts.free),
            ("intent", counts.intent),
            ("assigned", counts.assigned),
            ("held", counts.held),
            ("revoking", counts.revoking),
            ("unassign", counts.unassign),
            ("cooling", counts.cooling),
            ("foreign", counts.foreign),
            ("quarantine", counts.quarantine),
        ];
        for (state, count) in states {
            let labels = SlotLabels {
                vswitch: shard.vswitch.to_string(),
                family,
                state,
                shard: shard.index,
            };
            self.slots.get_or_create(&labels).set(i64::from(count));
        }
    }
}
