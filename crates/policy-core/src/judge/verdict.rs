//! Answers.

use types::pod::PodKey;

use crate::flow::{Direction, Flow};
use crate::policy::{Action, PolicyId, Tier};

/// Whether a flow passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// It passes.
    Allowed,
    /// It is dropped.
    Denied,
}

/// One step of a judgement, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// The direction that was judged.
    pub direction: Direction,
    /// The tier, where the step belongs to one.
    pub tier: Option<Tier>,
    /// The policy, where the step belongs to one.
    pub policy: Option<PolicyId>,
    /// The rule's name, where the step belongs to one.
    pub rule: Option<String>,
    /// What the rule does when it matched; `None` for a rule that did not match, and for steps that are no rule.
    pub action: Option<Action>,
    /// The kernel's chain that holds the rule, where it is compiled; counters are read there.
    pub chain: Option<String>,
    /// A plain sentence.
    pub text: String,
}

/// Why a flow is allowed or denied, both directions together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The flow.
    pub flow: Flow,
    /// The local pod that sends, if the source is one.
    pub source: Option<PodKey>,
    /// The local pod that receives, if the destination is one.
    pub destination: Option<PodKey>,
    /// The verdict of the egress direction; `None` when the source is no pod of this node.
    pub egress: Option<Verdict>,
    /// The verdict of the ingress direction; `None` when the destination is no pod of this node.
    pub ingress: Option<Verdict>,
    /// The steps that led there.
    pub reasons: Vec<Reason>,
}

impl Explanation {
    /// The verdict of this node: denied if either direction is.
    pub fn verdict(&self) -> Verdict {
        self.egress
            .unwrap_or(Verdict::Allowed)
            .max(self.ingress.unwrap_or(Verdict::Allowed))
    }
}
