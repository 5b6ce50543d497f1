//! The order of judgement in one direction: admin tier, NetworkPolicies, baseline tier, allow.

use crate::calico::{CalicoPolicy, KUBERNETES_ORDER};
use crate::calico_rule;
use crate::cluster_policy::{Action, ClusterPolicy, Tier};
use crate::flow::Flow;
use crate::network_policy::NetworkPolicy;

/// All policies, in the order in which they are judged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policies {
    /// Both tiers, sorted by priority and name.
    pub(crate) cluster: Vec<ClusterPolicy>,
    /// In any order: they only add.
    pub(crate) network: Vec<NetworkPolicy>,
    /// Sorted by order and name.
    pub(crate) calico: Vec<CalicoPolicy>,
}

/// What the tier of NetworkPolicies says.
enum Middle {
    /// The pod is not isolated; the baseline tier decides.
    NotIsolated,
    Allow,
    Deny,
}

impl Policies {
    /// Puts the policies in order.
    pub(crate) fn sort(&mut self) {
        self.cluster
            .sort_by(|a, b| (a.priority, &a.name, &a.title).cmp(&(b.priority, &b.name, &b.title)));
        self.calico.sort_by(CalicoPolicy::compare);
    }

    /// Whether the direction is allowed. `hairpin`: the pod reaches itself through a Service, and
    /// is exempt from the tier of NetworkPolicies.
    pub(crate) fn allow(&self, flow: Flow<'_>, hairpin: bool, reasons: &mut Vec<String>) -> bool {
        match self.cluster_tier(Tier::Admin, flow, reasons) {
            Some(Action::Accept) => return true,
            Some(Action::Deny) => return false,
            Some(Action::Pass) | None => {}
        }
        match self.middle_tier(flow, hairpin, reasons) {
            Middle::Allow => return true,
            Middle::Deny => return false,
            Middle::NotIsolated => {}
        }
        match self.cluster_tier(Tier::Baseline, flow, reasons) {
            Some(Action::Accept) => true,
            Some(Action::Deny) => false,
            Some(Action::Pass) | None => {
                reasons.push("nothing denies it: allowed".to_owned());
                true
            }
        }
    }

    /// What the first rule that matches says.
    fn cluster_tier(
        &self,
        tier: Tier,
        flow: Flow<'_>,
        reasons: &mut Vec<String>,
    ) -> Option<Action> {
        self.cluster
            .iter()
            .filter(|policy| policy.tier == tier)
            .filter(|policy| policy.governs(flow.subject, flow.inventory))
            .find_map(|policy| policy.judge(flow, reasons))
    }

    fn middle_tier(&self, flow: Flow<'_>, hairpin: bool, reasons: &mut Vec<String>) -> Middle {
        let network: Vec<&NetworkPolicy> = self
            .network
            .iter()
            .filter(|policy| policy.isolates(flow.subject, flow.direction, flow.inventory))
            .collect();
        let calico: Vec<&CalicoPolicy> = self
            .calico
            .iter()
            .filter(|policy| policy.governs(flow.subject, flow.direction, flow.inventory))
            .collect();
        let titles: Vec<&str> = network
            .iter()
            .map(|policy| policy.title.as_str())
            .chain(calico.iter().map(|policy| policy.title.as_str()))
            .collect();
        if titles.is_empty() {
            reasons.push("no NetworkPolicy selects the pod".to_owned());
            return Middle::NotIsolated;
        }
        reasons.push(format!("selected by {}", titles.join(", ")));
        if hairpin {
            reasons.push("the pod reaches itself through a service: exempt, allowed".to_owned());
            return Middle::Allow;
        }

        let (before, after): (Vec<_>, Vec<_>) = calico
            .into_iter()
            .partition(|policy| policy.order < KUBERNETES_ORDER);
        if let Some(verdict) = judge_calico(&before, flow, reasons) {
            return verdict;
        }
        if network.iter().any(|policy| policy.allows(flow, reasons)) {
            return Middle::Allow;
        }
        if let Some(verdict) = judge_calico(&after, flow, reasons) {
            return verdict;
        }
        reasons.push("no policy that selects the pod allows it: denied".to_owned());
        Middle::Deny
    }
}

fn judge_calico(
    policies: &[&CalicoPolicy],
    flow: Flow<'_>,
    reasons: &mut Vec<String>,
) -> Option<Middle> {
    let action = policies
        .iter()
        .find_map(|policy| policy.judge(flow, reasons))?;
    match action {
        calico_rule::Action::Allow => Some(Middle::Allow),
        calico_rule::Action::Deny => Some(Middle::Deny),
        calico_rule::Action::Pass => Some(Middle::NotIsolated),
        calico_rule::Action::Log => None,
    }
}
