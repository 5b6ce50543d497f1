//! Policies of all kinds in one shape.
//!
//! Order of judgement per direction: that of [`Policy::place`]: tier by tier as [`Tier`] is ordered; in a tier by
//! `order`, those that only add before others of the same order, then by name, namespace and kind.
//! Within the tier [`Tier::Namespaced`] every policy of Kubernetes' own kind only adds (order
//! [`Policy::KUBERNETES_ORDER`]); a pod that any policy of that tier selects for a direction is denied at the
//! tier's end what no rule accepted. The tiers Admin and Baseline isolate nothing.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::flow::Protocol;
use crate::selector::Selector;

/// What kind of object a policy came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PolicyKind {
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// `network.alibabacloud.com` GlobalNetworkPolicy.
    AckGlobal,
    /// `policy.networking.k8s.io/v1alpha1` AdminNetworkPolicy.
    AdminNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
    ClusterNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha1` BaselineAdminNetworkPolicy.
    BaselineAdminNetworkPolicy,
    /// `crd.projectcalico.org/v1` GlobalNetworkPolicy.
    CalicoGlobal,
    /// `crd.projectcalico.org/v1` NetworkPolicy.
    CalicoNamespaced,
}

impl PolicyKind {
    /// The word in messages and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
            Self::CalicoGlobal => "calico GlobalNetworkPolicy",
            Self::CalicoNamespaced => "calico NetworkPolicy",
            Self::AckGlobal => "ACK GlobalNetworkPolicy",
        }
    }
}

/// Identity of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyId {
    /// Kind.
    pub kind: PolicyKind,
    /// Namespace; empty for kinds without one.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind.word(), self.name)
        } else {
            write!(f, "{} {}/{}", self.kind.word(), self.namespace, self.name)
        }
    }
}

/// Tiers in the order of judgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Tier {
    /// ClusterNetworkPolicy of the admin tier, AdminNetworkPolicy.
    Admin,
    /// NetworkPolicy and Calico's tier `default`.
    Namespaced,
    /// ClusterNetworkPolicy of the baseline tier, BaselineAdminNetworkPolicy.
    Baseline,
}

/// Place in the tier: lower comes first. Calico's `order` is a float; it is kept in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Order(pub i64);

impl Order {
    /// Before all others; where a policy stands whose order cannot be read.
    pub const FIRST: Self = Self(i64::MIN);
    /// After all others.
    pub const LAST: Self = Self(i64::MAX);
}

/// What a rule does with what it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Action {
    /// Ends this direction, allowed.
    Accept,
    /// Ends this direction, denied.
    Deny,
    /// Leaves the tier.
    Pass,
    /// Goes on with the next rule; matched packets are counted (Calico).
    Log,
}

/// Which namespaces a selector of pods is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NamespaceScope {
    /// All: there is no condition, so that a pod counts before the object of its namespace is known.
    Any,
    /// One, by name.
    Own(Arc<str>),
    /// Those whose labels match; none before its object is known, even with a selector that matches everything (B4).
    Matching(Arc<Selector>),
}

/// Pods by namespace, labels and service account; never those of the host network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodScope {
    /// Namespaces.
    pub namespaces: NamespaceScope,
    /// Labels.
    pub pods: Arc<Selector>,
    /// Labels of the service account; everything when the kind has no such condition. Before the object of the
    /// service account is known, anything else matches nothing.
    pub accounts: Arc<Selector>,
}

/// One CIDR and what is taken out of it. Families never cross.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Block {
    /// Network, host bits cleared.
    pub cidr: IpNet,
    /// Networks taken out.
    pub except: Vec<IpNet>,
}

/// The far end that a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Peer {
    /// Pods.
    Pods(PodScope),
    /// Addresses of nodes by label.
    Nodes(Arc<Selector>),
    /// Addresses.
    Block(Block),
    /// Pods (or, with `None`, anybody) that are within the blocks and outside of the others: Calico's `selector`
    /// together with `nets` and `notNets`. Empty `within` is no condition.
    Meet {
        /// Pods, if the rule has a selector.
        pods: Option<PodScope>,
        /// The address is in one of these.
        within: Vec<IpNet>,
        /// The address is in none of these.
        outside: Vec<IpNet>,
        /// Pods whose selector excludes them (Calico's `notSelector`).
        not_pods: Option<PodScope>,
    },
}

/// The far ends of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Peers {
    /// No condition.
    Anybody,
    /// At least one; an empty list matches nothing.
    OneOf(Vec<Peer>),
}

/// One condition on protocol and destination port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Port {
    /// Every port of the protocol.
    All(Protocol),
    /// Ports first to last, both included.
    Range(Protocol, u16, u16),
    /// The port that the destination pod gives this name; `None`: with any protocol.
    Named(Option<Protocol>, Arc<str>),
}

/// The ports of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Ports {
    /// No condition: every protocol.
    Every,
    /// At least one; an empty list matches nothing.
    OneOf(Vec<Port>),
    /// None of the second, and one of the first unless that is empty (Calico's `notPorts`). The protocol is that
    /// of the entries.
    Except(Vec<Port>, Vec<Port>),
}

/// One rule of one direction.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rule {
    /// Its name, or its place counted from 0 as text; for `explain`.
    pub name: Arc<str>,
    /// What it does.
    pub action: Action,
    /// The far ends.
    pub peers: Peers,
    /// Protocol and destination port.
    pub ports: Ports,
}

/// Something in a document that could not be read or is not supported; the policy fails closed because of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// Path of the field, such as `spec.ingress[0].from[1].ipBlock.cidr`.
    pub field: String,
    /// What is wrong.
    pub why: String,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Identity.
    pub id: PolicyId,
    /// Tier.
    pub tier: Tier,
    /// Place in the tier.
    pub order: Order,
    /// The pods it is about.
    pub subject: PodScope,
    /// Rules for traffic to the subjects; `None`: it says nothing about that direction.
    pub ingress: Option<Vec<Rule>>,
    /// Rules for traffic from the subjects; `None`: it says nothing about that direction.
    pub egress: Option<Vec<Rule>>,
    /// What was wrong in the document.
    pub problems: Vec<Problem>,
}

impl Policy {
    /// Where Kubernetes' own policies stand in the tier [`Tier::Namespaced`].
    ///
    /// Source: Calico documentation, "order" of Kubernetes policies: 1000.
    pub const KUBERNETES_ORDER: Order = Order(1_000_000_000);

    /// What policies are sorted by to be in the order of judgement.
    pub fn place(&self) -> impl Ord + '_ {
        let adds = matches!(
            self.id.kind,
            PolicyKind::NetworkPolicy | PolicyKind::AckGlobal
        );
        (
            self.tier,
            self.order,
            !adds,
            &*self.id.name,
            &*self.id.namespace,
            self.id.kind,
        )
    }

    /// Whether a pod that it selects is isolated by it in the directions it has.
    pub const fn isolates(&self) -> bool {
        matches!(self.tier, Tier::Namespaced)
    }
}
