//! Kubernetes objects, cut to what policies look at.

use std::net::IpAddr;
use std::sync::Arc;

use types::pod::PodKey;

use crate::flow::Protocol;
pub use crate::labels::Labels;
use crate::policy::{Policy, PolicyId};

/// A port that a container names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamedPort {
    /// `name`.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `containerPort`, 1 to 65535.
    pub number: u16,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub key: PodKey,
    /// `metadata.uid`; may be empty in hand-written manifests.
    pub uid: Arc<str>,
    /// `spec.nodeName`; empty while unscheduled.
    pub node: Arc<str>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `status.podIPs`, and those of the annotation `k8s.aliyun.com/pod-ips`.
    pub ips: Vec<IpAddr>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `status.phase` is `Succeeded` or `Failed`.
    pub finished: bool,
    /// Named ports of containers and of init containers that restart.
    pub ports: Vec<NamedPort>,
    /// `spec.serviceAccountName`; `default` when absent.
    pub service_account: Arc<str>,
    /// Whether annotations ask for no anti-spoof filter.
    pub spoofs: bool,
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Name.
    pub name: Arc<str>,
    /// Labels as the object has them.
    pub labels: Labels,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: Arc<str>,
    /// Labels.
    pub labels: Labels,
    /// All `status.addresses` that are addresses.
    pub ips: Vec<IpAddr>,
}

/// A service account, for selectors of Calico policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Labels.
    pub labels: Labels,
}

/// Which object a deletion means.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKey {
    /// A pod.
    Pod(PodKey),
    /// A namespace.
    Namespace(Arc<str>),
    /// A node.
    Node(Arc<str>),
    /// A service account: namespace and name.
    ServiceAccount(Arc<str>, Arc<str>),
    /// A policy of any kind.
    Policy(PolicyId),
}

/// Any object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A pod.
    Pod(Pod),
    /// A namespace.
    Namespace(Namespace),
    /// A node.
    Node(Node),
    /// A service account.
    ServiceAccount(ServiceAccount),
    /// A policy of any kind.
    Policy(Policy),
}

/// What a feed says. No history is assumed: the same event may come twice, late, or not at all before a later one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The object is now so.
    Upsert(Object),
    /// The object is not there.
    Delete(ObjectKey),
}
