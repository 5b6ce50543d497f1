//! Kubernetes objects, as far as they are looked at here.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

/// Labels, or whatever else maps names to texts.
pub type Texts = BTreeMap<String, String>;

/// A page of a list.
#[derive(Debug, Deserialize)]
pub struct List<T> {
    /// Where it goes on.
    #[serde(default)]
    pub metadata: ListMeta,
    /// Nothing is `null` in some lists.
    pub items: Option<Vec<T>>,
}

/// Where a list goes on.
#[derive(Debug, Default, Deserialize)]
pub struct ListMeta {
    /// Token for the next page; empty on the last one.
    #[serde(rename = "continue")]
    pub next: Option<String>,
}

/// `metadata`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Name.
    pub name: String,
    /// Namespace; empty for what has none.
    pub namespace: String,
    /// Its id.
    pub uid: String,
    /// Labels.
    pub labels: Texts,
    /// Since when it is there.
    pub creation_timestamp: Option<Timestamp>,
    /// Since when it is to go.
    pub deletion_timestamp: Option<Timestamp>,
}

/// A Deployment, StatefulSet or DaemonSet. Which one says the path it was read from.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Workload {
    /// `metadata`.
    pub metadata: Meta,
    /// `spec`.
    pub spec: WorkloadSpec,
    /// `status`.
    pub status: WorkloadStatus,
}

/// `spec` of a workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct WorkloadSpec {
    /// Replicas that are wanted; a DaemonSet has none.
    pub replicas: Option<u32>,
}

/// `status` of a workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadStatus {
    /// Ready pods of a Deployment or StatefulSet.
    pub ready_replicas: u32,
    /// Nodes that should have a pod of the DaemonSet.
    pub desired_number_scheduled: u32,
    /// Nodes that have a ready one.
    pub number_ready: u32,
}

/// A pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// `metadata`.
    pub metadata: Meta,
    /// `spec`.
    pub spec: PodSpec,
    /// `status`.
    pub status: PodStatus,
}

/// `spec` of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Its node, once it has one.
    pub node_name: String,
    /// Whether it uses the node's network.
    pub host_network: bool,
}

/// `status` of a pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, …
    pub phase: String,
    /// Its conditions.
    pub conditions: Vec<Condition>,
    /// Of containers that come first.
    pub init_container_statuses: Vec<ContainerStatus>,
    /// Of containers.
    pub container_statuses: Vec<ContainerStatus>,
}

/// A condition of a pod or a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// Which.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False`, `Unknown`.
    pub status: String,
    /// One word.
    pub reason: String,
    /// In words.
    pub message: String,
    /// When somebody last said so; nodes only.
    pub last_heartbeat_time: Option<Timestamp>,
    /// Since when it is so.
    pub last_transition_time: Option<Timestamp>,
}

/// How a container fares.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// Its name.
    pub name: String,
    /// Whether it is ready.
    pub ready: bool,
    /// How often it was started again.
    pub restart_count: u32,
    /// What it does.
    pub state: ContainerState,
    /// What it did before.
    pub last_state: ContainerState,
}

/// One of these.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    /// It waits.
    pub waiting: Option<Why>,
    /// It runs; since when is not looked at.
    pub running: Option<Value>,
    /// It has ended.
    pub terminated: Option<Why>,
}

/// Why a container waits or has ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Why {
    /// One word.
    pub reason: String,
    /// In words.
    pub message: String,
    /// Of an end.
    pub exit_code: i32,
}

/// A node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Node {
    /// `metadata`.
    pub metadata: Meta,
    /// `status`.
    pub status: NodeStatus,
}

/// `status` of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Its conditions.
    pub conditions: Vec<Condition>,
}

/// An event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Event {
    /// What it is about.
    pub involved_object: Reference,
    /// One word.
    pub reason: String,
    /// In words.
    pub message: String,
    /// When it was last seen, as old clients say it.
    pub last_timestamp: Option<Timestamp>,
    /// When it was seen, as new ones do.
    pub event_time: Option<Timestamp>,
    /// Of a row of events.
    pub series: Option<Series>,
    /// `metadata`.
    pub metadata: Meta,
}

/// A row of events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Series {
    /// When it was last seen.
    pub last_observed_time: Option<Timestamp>,
}

/// What an event is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Reference {
    /// `Pod`, `Node`, …
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Id.
    pub uid: String,
}

impl Event {
    /// When it was last seen.
    pub fn seen(&self) -> Option<Timestamp> {
        let series = self.series.as_ref().and_then(|s| s.last_observed_time);
        let latest = [series, self.last_timestamp, self.event_time];
        let latest = latest.into_iter().flatten().max();
        latest.or(self.metadata.creation_timestamp)
    }
}

/// A ConfigMap.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ConfigMap {
    /// `metadata`.
    pub metadata: Meta,
    /// Its texts.
    pub data: Texts,
}

/// A Lease.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Lease {
    /// `metadata`.
    pub metadata: Meta,
    /// `spec`.
    pub spec: LeaseSpec,
}

/// `spec` of a Lease.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LeaseSpec {
    /// Who has it; empty for nobody.
    pub holder_identity: String,
    /// When it was last renewed.
    pub renew_time: Option<Timestamp>,
    /// How long that holds, in seconds.
    pub lease_duration_seconds: u32,
}

/// The condition of this type.
pub fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.kind == kind)
}
