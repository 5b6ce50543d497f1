//! What the control plane counts.

use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use mesh::metrics::Registry;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// What became of a request to the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Asked {
    /// It was done.
    Done,
    /// The server said no.
    Refused,
    /// The server did not answer, or is in trouble.
    Failed,
    /// It was not sent: the server was in trouble a moment ago, or too many waited.
    Held,
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Issue {
    /// It was issued.
    Issued,
    /// The proof is not one.
    Refused,
    /// The API server or the authority is away.
    Failed,
    /// Too many asked at once.
    Shed,
}

/// What a node wants written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Report {
    /// What it says of itself.
    Node,
    /// Annotations of a pod.
    Annotation,
    /// An event.
    Event,
}

/// What became of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// It is written.
    Written,
    /// It was so already.
    Same,
    /// It is about somebody else, or malformed, or about what is no more.
    Refused,
    /// The API server is away, or the node says too much.
    Later,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AskedLabel {
    outcome: Asked,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IssueLabel {
    outcome: Issue,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReportLabel {
    what: Report,
    outcome: Outcome,
}

/// All of them; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    asked: Family<AskedLabel, Counter>,
    issued: Family<IssueLabel, Counter>,
    reports: Family<ReportLabel, Counter>,
    /// 1 while we lead.
    pub leads: Gauge,
    /// Nodes that are known by their instance.
    pub nodes: Gauge,
    /// Instances without a Node object whose ENIs ipam has not given back yet.
    pub gone: Gauge,
    /// Instances that ipam has nothing of any more.
    pub gone_done: Counter,
    /// 1 while nodes are to leave.
    pub leaving: Gauge,
    /// Nodes that have not left yet.
    pub waiting: Gauge,
    authority_end: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Registers them. Once per process.
    pub fn register(registry: &Registry) -> Self {
        let this = Self::default();
        registry.register(
            "controlplane_api_requests",
            "requests to the API server",
            this.asked.clone(),
        );
        registry.register(
            "controlplane_certificates",
            "certificates that were asked for",
            this.issued.clone(),
        );
        registry.register(
            "controlplane_reports",
            "what nodes wanted written",
            this.reports.clone(),
        );
        registry.register(
            "controlplane_leads",
            "1 while this replica leads",
            this.leads.clone(),
        );
        registry.register(
            "controlplane_nodes",
            "nodes that are known by their instance",
            this.nodes.clone(),
        );
        registry.register(
            "controlplane_gone_instances",
            "instances without a Node object of which ipam still has something",
            this.gone.clone(),
        );
        registry.register(
            "controlplane_gone_instances_done",
            "instances without a Node object of which ipam has nothing any more",
            this.gone_done.clone(),
        );
        registry.register(
            "controlplane_leaving",
            "1 while nodes are to leave",
            this.leaving.clone(),
        );
        registry.register(
            "controlplane_leaving_nodes",
            "nodes that are to leave and have not left",
            this.waiting.clone(),
        );
        registry.register(
            "controlplane_authority_not_after_seconds",
            "end of the authority's certificate, in seconds since 1970; 0 without one",
            this.authority_end.clone(),
        );
        this
    }

    pub(crate) fn asked(&self, outcome: Asked) {
        self.asked.get_or_create(&AskedLabel { outcome }).inc();
    }

    pub(crate) fn issued(&self, outcome: Issue) {
        self.issued.get_or_create(&IssueLabel { outcome }).inc();
    }

    pub(crate) fn reported(&self, what: Report, outcome: Outcome) {
        self.reports
            .get_or_create(&ReportLabel { what, outcome })
            .inc();
    }

    pub(crate) fn authority_ends(&self, at: SystemTime) {
        let since = at.duration_since(SystemTime::UNIX_EPOCH);
        self.authority_end
            .set(since.unwrap_or_default().as_secs_f64());
    }
}
