//! What the engine tells of itself.

use std::collections::BTreeSet;
use std::net::IpAddr;

use types::pod::{AttachmentKey, PodKey};

use crate::flow::Direction;
use crate::policy::PolicyId;

/// Whose established flows have to be judged again. Coalesced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disturbance {
    /// Addresses of local pods whose rules changed: every flow of theirs.
    pub locals: BTreeSet<IpAddr>,
    /// Far addresses that left a set in use here: their flows with local pods may be denied now.
    pub lost: BTreeSet<IpAddr>,
    /// Far addresses that joined a set in use here: their revoked flows may be allowed again.
    pub gained: BTreeSet<IpAddr>,
    /// Addresses that no local pod has any more: their conntrack entries are to be deleted.
    pub gone: BTreeSet<IpAddr>,
}

impl Disturbance {
    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        self.locals.is_empty()
            && self.lost.is_empty()
            && self.gained.is_empty()
            && self.gone.is_empty()
    }
}

/// One direction of a local pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileView {
    /// Direction.
    pub direction: Direction,
    /// Whether a policy of the tier of namespaces selects the pod for this direction.
    pub isolated: bool,
    /// The chain that the pod's elements should lead to; `None`: they accept.
    pub chain: Option<String>,
    /// Policies in the order of judgement, each with the chain that has its rules (one per tier where a rule passes).
    pub policies: Vec<(PolicyId, String)>,
    /// Sets that the rules look in, by name.
    pub sets: Vec<String>,
}

/// A local pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    /// Namespace and name.
    pub key: PodKey,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Host-side links, with what their elements should be in effect.
    pub links: Vec<String>,
    /// Attachments and whether each is ready.
    pub attachments: Vec<(AttachmentKey, bool)>,
    /// Ingress and egress.
    pub profiles: Vec<ProfileView>,
    /// Why everything of the pod is denied, when it is because of a fault and not of a policy.
    pub closed: Option<String>,
}

/// A set of far ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetView {
    /// Name in the kernel.
    pub name: String,
    /// What it is about, in words.
    pub about: String,
    /// Members now.
    pub members: usize,
}

/// Something that is wrong and stays so until somebody acts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProblemView {
    /// The policy, when it is one's fault.
    pub policy: Option<PolicyId>,
    /// The field of the policy, or the object that the kernel refuses.
    pub what: String,
    /// What is wrong.
    pub why: String,
    /// Local pods that are closed because of it.
    pub pods: Vec<PodKey>,
}

/// Figures. Sizes are counts of objects of all namespaces together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Local pods.
    pub pods: usize,
    /// Profiles in use, both directions.
    pub profiles: usize,
    /// Chains applied, without base chains.
    pub chains: usize,
    /// Sets applied whose members follow pods or nodes.
    pub peer_sets: usize,
    /// Members of those, as desired.
    pub members: usize,
    /// Sets and maps applied with fixed content.
    pub fixed_sets: usize,
    /// Pods that are closed because the kernel refuses one of their objects.
    pub closed_pods: usize,
    /// Steps committed since the start.
    pub steps: u64,
    /// Steps refused since the start.
    pub refused: u64,
    /// Policies with problems.
    pub problem_policies: usize,
}
