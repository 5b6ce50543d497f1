//! What the gateway counts. Labels are actions and codes of the cloud, both closed sets.

use std::time::Duration;

use ecs_api::action::Action;
use mesh::metrics::Registry;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use proto::types::v1::Reason;

use crate::place::Place;

/// Which call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabel {
    action: &'static str,
}

/// Which call, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    action: &'static str,
    code: String,
}

/// Why a verb did not reach its state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Where the credentials come from: one set per process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
    place: String,
    secret: String,
}

/// Upper bounds in seconds: describes take tens of milliseconds, creates a second, a timeout twenty.
const SECONDS: [f64; 12] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0,
];
/// Upper bounds of ids in one merged read; the API takes 100.
const IDS: [f64; 8] = [1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 70.0, 100.0];

#[derive(Debug, Clone, Copy)]
struct InSeconds;

impl MetricConstructor<Histogram> for InSeconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(SECONDS)
    }
}

/// The gateway's metrics.
#[derive(Debug)]
pub struct Metrics {
    requests: Family<CodeLabel, Counter>,
    seconds: Family<ActionLabel, Histogram, InSeconds>,
    queue_depth: Family<ActionLabel, Gauge>,
    tokens: Family<ActionLabel, Gauge>,
    share: Family<ActionLabel, Gauge>,
    merged_ids: Histogram,
    running: Gauge,
    joined: Counter,
    credentials_read: Counter,
    credentials_failed: Counter,
    credentials_usable: Family<SourceLabel, Gauge>,
    credentials_expiry: Gauge,
    faults: Family<ReasonLabel, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(InSeconds),
            queue_depth: Family::default(),
            tokens: Family::default(),
            share: Family::default(),
            merged_ids: Histogram::new(IDS),
            running: Gauge::default(),
            joined: Counter::default(),
            credentials_read: Counter::default(),
            credentials_failed: Counter::default(),
            credentials_usable: Family::default(),
            credentials_expiry: Gauge::default(),
            faults: Family::default(),
        }
    }
}

impl Metrics {
    /// Makes the metrics part of `registry`. The registry adds the project's prefix.
    pub fn register(&self, registry: &Registry) {
        registry.register(
            "cloud_requests",
            "Calls of the cloud by action and by the code of the answer (OK, or why there was none)",
            self.requests.clone(),
        );
        registry.register(
            "cloud_request_duration_seconds",
            "Time from sending a call to its answer",
            self.seconds.clone(),
        );
        registry.register(
            "gateway_queue_depth",
            "Calls that wait for their action's budget",
            self.queue_depth.clone(),
        );
        registry.register(
            "gateway_budget_tokens",
            "Calls that the action's budget would let through, estimated at its last change",
            self.tokens.clone(),
        );
        registry.register(
            "gateway_budget_share_permille",
            "The action's rate in thousandths of the full one; below 1000 after the cloud throttled",
            self.share.clone(),
        );
        registry.register(
            "gateway_describe_merged_ids",
            "ENI ids in one merged DescribeNetworkInterfaces",
            self.merged_ids.clone(),
        );
        registry.register(
            "gateway_ops_running",
            "Operations that are under way",
            self.running.clone(),
        );
        registry.register(
            "gateway_ops_joined",
            "Calls that joined, or were answered by, an operation of the same key",
            self.joined.clone(),
        );
        registry.register(
            "gateway_credentials_read",
            "Times that the source gave other credentials",
            self.credentials_read.clone(),
        );
        registry.register(
            "gateway_credentials_failed",
            "Times that the source of credentials gave none",
            self.credentials_failed.clone(),
        );
        registry.register(
            "gateway_credentials_usable",
            "Whether there are credentials to sign with, by where they come from",
            self.credentials_usable.clone(),
        );
        registry.register(
            "gateway_credentials_expiry_seconds",
            "When the credentials end, in seconds since 1970; 0 if nothing says",
            self.credentials_expiry.clone(),
        );
        registry.register(
            "gateway_faults",
            "Verbs and reads that failed, by the reason that their caller was told",
            self.faults.clone(),
        );
    }

    /// A call of the cloud ended.
    pub fn request(&self, action: Action, code: &str, took: Duration) {
        let action = action.name();
        self.requests
            .get_or_create(&CodeLabel {
                action,
                code: code.to_owned(),
            })
            .inc();
        self.seconds
            .get_or_create(&ActionLabel { action })
            .observe(took.as_secs_f64());
    }

    /// The state of an action's budget.
    pub fn budget(&self, action: Action, waiting: usize, tokens: u32, share_permille: u32) {
        let label = ActionLabel {
            action: action.name(),
        };
        set(&self.queue_depth.get_or_create(&label), waiting);
        set(&self.tokens.get_or_create(&label), tokens);
        set(&self.share.get_or_create(&label), share_permille);
    }

    /// A merged read asked for `ids` ENIs.
    pub fn merged(&self, ids: usize) {
        self.merged_ids
            .observe(f64::from(u32::try_from(ids).unwrap_or(u32::MAX)));
    }

    /// How many operations are under way.
    pub fn running(&self, operations: usize) {
        set(&self.running, operations);
    }

    /// A call was answered by another call's operation.
    pub fn joined(&self) {
        self.joined.inc();
    }

    /// Whether there are credentials, and when they end.
    pub fn credentials_usable(&self, place: &Place, usable: bool, end: Option<u64>) {
        let label = SourceLabel {
            source: place.key,
            place: place.at.clone(),
            secret: place.secret.clone().unwrap_or_default(),
        };
        set(
            &self.credentials_usable.get_or_create(&label),
            u8::from(usable),
        );
        set(&self.credentials_expiry, end.unwrap_or(0));
    }

    /// A verb or a read failed.
    pub fn fault(&self, reason: Reason) {
        let reason = reason.as_str_name();
        self.faults.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// The source was looked at: other credentials, or a failure.
    pub fn credentials(&self, read: bool) {
        if read {
            self.credentials_read.inc();
        } else {
            self.credentials_failed.inc();
        }
    }
}

fn set<N>(gauge: &Gauge, value: N)
where
    i64: TryFrom<N>,
{
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}
