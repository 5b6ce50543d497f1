//! What was seen.

use jiff::Timestamp;

use crate::status::objects::{ConfigMap, Event, Lease, Node, Pod, Workload};
use crate::status::samples::Sample;

/// Which kind of workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `deployments`.
    Deployment,
    /// `statefulsets`.
    StatefulSet,
    /// `daemonsets`.
    DaemonSet,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Deployment, Self::StatefulSet, Self::DaemonSet];

    /// As kubectl takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::StatefulSet => "statefulset",
            Self::DaemonSet => "daemonset",
        }
    }

    /// As it stands in paths.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Deployment => "deployments",
            Self::StatefulSet => "statefulsets",
            Self::DaemonSet => "daemonsets",
        }
    }
}

/// The metrics of one pod of ours, or why there are none.
#[derive(Debug, Clone, PartialEq)]
pub struct Scrape {
    /// Its component: `gateway`, `ipam`, `controlplane`.
    pub component: String,
    /// The pod.
    pub pod: String,
    /// What it counts.
    pub samples: Result<Vec<Sample>, String>,
}

/// Something that could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blind {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

/// An installation and its cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Picture {
    /// Where it is installed.
    pub namespace: String,
    /// Name of the release; empty where none was found.
    pub release: String,
    /// Other releases in the namespace.
    pub others: Vec<String>,
    /// When it was looked at.
    pub now: Timestamp,
    /// What of it runs.
    pub workloads: Vec<(Kind, Workload)>,
    /// Its pods.
    pub pods: Vec<Pod>,
    /// Whether it serves or leaves.
    pub phase: Option<ConfigMap>,
    /// Authorities that are trusted; nothing where certificates come from elsewhere.
    pub trust: Option<ConfigMap>,
    /// Who leads.
    pub lease: Option<Lease>,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// Pods of anybody that are on a node and do not run.
    pub pending: Vec<Pod>,
    /// Warnings about nodes and pods.
    pub events: Vec<Event>,
    /// Metrics of the central services.
    pub scrapes: Vec<Scrape>,
    /// What could not be looked at.
    pub blind: Vec<Blind>,
}

/// Label that names the release.
pub const INSTANCE: &str = "app.kubernetes.io/instance";
/// Label that names the component.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// Label and value that all our objects have.
pub const PART_OF: &str = "app.kubernetes.io/part-of=terway-mesh";
/// The component of which every node has a pod.
pub const NODE: &str = "node";
