//! What the engine answers about itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use nft_wire::snapshot::Snapshot;
use types::pod::{AttachmentKey, PodKey};

use super::assignment::Assignment;
use super::{Engine, PodView, ProblemView, ProfileView, SetView, Stats};
use crate::compile::rule_chain_name;
use crate::flow::{Direction, Flow};
use crate::index::PeerKey;
use crate::judge::{Explanation, Reason, Verdict, key_text, reasons};
use crate::layout::frame::is_always_allowed;
use crate::layout::names::Table;
use crate::layout::rules::peer_set_name;
use crate::plan::{Object, Plan, Target};
use crate::policy::PolicyId;
use crate::profile::Role;

impl Engine {
    /// Why an attachment is not ready, in words; `None` when it is.
    pub fn waiting_for(&self, attachment: &AttachmentKey) -> Option<String> {
        if !self.synced {
            return Some("pods and policies are not listed yet".to_owned());
        }
        if self.dirty {
            return Some("the last events are not worked in yet".to_owned());
        }
        let Some(key) = self.attached.get(attachment) else {
            return Some("the attachment is not known".to_owned());
        };
        let Some(assignment) = self.assigned.get(key) else {
            return Some(format!("{key} is not known"));
        };
        if !assignment.known {
            return Some(format!("the object of {key} is not known"));
        }
        self.assignment_waits(assignment)
    }

    fn assignment_waits(&self, assignment: &Assignment) -> Option<String> {
        for (target, slot) in &assignment.slots {
            let plan = self.plans.get(target)?;
            if plan.is_unknown() {
                return Some("what the kernel has is not known".to_owned());
            }
            if !plan.is_enforcing() {
                return Some("the base chains are not committed yet".to_owned());
            }
            if let Some(why) = plan.slot_waits(slot) {
                return Some(why);
            }
        }
        let host = self.plans.get(&Target::Host)?;
        let open = assignment
            .spoof
            .keys()
            .find(|link| !host.spoof_settled(link));
        open.map(|link| format!("the anti-spoof chain of {link} is not committed yet"))
    }

    /// Why a flow is allowed or denied.
    pub fn explain(&self, flow: &Flow) -> Explanation {
        let first = |ip| {
            self.addresses
                .get(&ip)
                .and_then(|pods| pods.iter().next().cloned())
        };
        let (source, destination) = (first(flow.source), first(flow.destination));
        let mut told: Vec<Reason> = Vec::new();
        let mut side = |pod: &Option<PodKey>, direction| {
            let (verdict, list) = self.side(pod.as_ref()?, direction, flow);
            told.extend(list);
            Some(verdict)
        };
        let egress = side(&source, Direction::Egress);
        let ingress = side(&destination, Direction::Ingress);
        Explanation {
            flow: *flow,
            source,
            destination,
            egress,
            ingress,
            reasons: told,
        }
    }

    fn side(&self, pod: &PodKey, direction: Direction, flow: &Flow) -> (Verdict, Vec<Reason>) {
        let note = |text: String| Reason {
            direction,
            tier: None,
            policy: None,
            rule: None,
            action: None,
            chain: None,
            text,
        };
        if direction == Direction::Ingress && self.is_node(flow) {
            let text = format!("ingress to {pod}: the node itself always reaches its own pods");
            return (Verdict::Allowed, vec![note(text)]);
        }
        let assignment = self.assigned.get(pod);
        if direction == Direction::Egress
            && is_always_allowed(&self.settings, flow.destination)
            && assignment.is_some_and(|a| !a.is_closed())
        {
            let text = format!(
                "egress of {pod}: the configuration allows {}",
                flow.destination
            );
            return (Verdict::Allowed, vec![note(text)]);
        }
        let known = assignment.and_then(|a| Some((a, self.live.get(&a.profile(direction))?)));
        let (Some((assignment, live)), Some(subject)) = (known, self.index.subject(pod)) else {
            return (Verdict::Denied, vec![note(format!("{pod} is not known"))]);
        };
        if self.is_refused(live) {
            let text = format!("{pod} is closed: the kernel refuses an object that it needs");
            return (Verdict::Denied, vec![note(text)]);
        }
        reasons(self.judge_of(live, assignment), &subject, direction, flow)
    }

    /// One local pod: its policies, profiles, chains and elements.
    pub fn show_pod(&self, pod: &PodKey) -> Option<PodView> {
        let assignment = self.assigned.get(pod)?;
        let links: BTreeSet<String> = assignment
            .slots
            .iter()
            .filter(|(_, slot)| slot.table == Table::ToPod)
            .filter_map(|(_, slot)| slot.key.values(slot.table.fields()))
            .flat_map(|values| values.into_iter().map(|v| v.to_string()))
            .collect();
        let attachments = assignment.placements.iter().map(|p| {
            let key = p.attachment.clone();
            let ready = self.is_ready(&key);
            (key, ready)
        });
        let closed = if assignment.is_closed() {
            Some("its object is not known".to_owned())
        } else {
            [assignment.ingress, assignment.egress]
                .iter()
                .filter_map(|id| self.live.get(id))
                .any(|live| self.is_refused(live))
                .then(|| "the kernel refuses an object that it needs".to_owned())
        };
        Some(PodView {
            key: pod.clone(),
            ips: assignment.ips.clone(),
            links: links.into_iter().collect(),
            attachments: attachments.collect(),
            profiles: [Direction::Ingress, Direction::Egress]
                .into_iter()
                .filter_map(|direction| self.show_profile(assignment, direction))
                .collect(),
            closed,
        })
    }

    fn show_profile(&self, assignment: &Assignment, direction: Direction) -> Option<ProfileView> {
        let live = self.live.get(&assignment.profile(direction))?;
        let profile = &live.compiled.profile;
        let mut policies = Vec::new();
        let mut keys: BTreeSet<(&PeerKey, Role)> = BTreeSet::new();
        for part in &profile.tiers {
            let ends = part.tier == crate::policy::Tier::Namespaced && profile.isolated;
            let joined = part.passes().then(|| rule_chain_name(&part.bodies, ends));
            for body in &part.bodies {
                let own = || rule_chain_name(std::slice::from_ref(body), false);
                policies.push((body.policy.clone(), joined.clone().unwrap_or_else(own)));
                keys.extend(body.sets());
            }
        }
        let sets = keys
            .into_iter()
            .flat_map(|(k, role)| [true, false].map(|v4| peer_set_name(k, v4, role)));
        Some(ProfileView {
            direction,
            isolated: profile.isolated,
            chain: live.compiled.verdict.chain().map(ToString::to_string),
            policies,
            sets: sets.collect(),
        })
    }

    /// Every set of far ends that rules look in.
    pub fn show_sets(&self) -> Vec<SetView> {
        let keys: BTreeSet<(&PeerKey, Role)> = self
            .live
            .values()
            .flat_map(|live| live.compiled.profile.bodies())
            .flat_map(|body| body.sets())
            .collect();
        let mut out = Vec::new();
        for (key, role) in keys {
            let members = self
                .index
                .set(key)
                .map_or_else(Vec::new, |id| self.index.members(id));
            for v4 in [true, false] {
                out.push(SetView {
                    name: peer_set_name(key, v4, role),
                    about: key_text(key),
                    members: members.iter().filter(|m| m.ip.is_ipv4() == v4).count(),
                });
            }
        }
        out
    }

    /// Policies with problems, and objects that the kernel refuses.
    pub fn problems(&self) -> Vec<ProblemView> {
        let mut out = Vec::new();
        for (id, problems) in self.index.problems() {
            let pods = self.selected_by(id);
            out.extend(problems.iter().map(|problem| ProblemView {
                policy: Some(id.clone()),
                what: problem.field.clone(),
                why: problem.why.clone(),
                pods: pods.clone(),
            }));
        }
        for plan in self.plans.values() {
            for (object, refusal) in plan.refusals().iter().filter(|(_, r)| r.stuck) {
                let closing = matches!(object, Object::Unit(_) | Object::Members(_));
                let closed = if closing {
                    plan.closed_pods()
                } else {
                    BTreeSet::new()
                };
                out.push(ProblemView {
                    policy: None,
                    what: object.to_string(),
                    why: format!("the kernel refuses it with error {}", refusal.errno),
                    pods: closed.into_iter().collect(),
                });
            }
        }
        out.sort();
        out
    }

    fn selected_by(&self, policy: &PolicyId) -> Vec<PodKey> {
        let subjects = self
            .assigned
            .keys()
            .filter_map(|key| self.index.subject(key));
        subjects
            .filter(|s| s.policies.iter().any(|p| p.id == *policy))
            .map(|s| s.key)
            .collect()
    }

    /// Figures.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats {
            pods: self.assigned.len(),
            profiles: self.live.len(),
            steps: self.steps,
            refused: self.refused,
            problem_policies: self.index.problems().len(),
            ..Stats::default()
        };
        for plan in self.plans.values() {
            let [chains, peers, fixed, members] = plan.counts(&self.index);
            stats.chains += chains;
            stats.peer_sets += peers;
            stats.fixed_sets += fixed;
            stats.members += members;
        }
        stats.closed_pods = self.closed_pods();
        stats
    }

    /// How many pods are closed because the kernel refuses one of their objects. Costs nothing while it refuses none.
    pub fn closed_pods(&self) -> usize {
        let closed: BTreeSet<PodKey> = self.plans.values().flat_map(Plan::closed_pods).collect();
        closed.len()
    }

    /// Differences between what the kernel has and what it should have, a line each; empty when equal.
    pub fn diff(&self, target: &Target, dump: &[Snapshot]) -> Vec<String> {
        self.plans
            .get(target)
            .map_or_else(Vec::new, |plan| plan.diff(dump, &self.index))
    }

    /// Chains and sets by content that a namespace has, as far as known.
    pub fn applied_units(&self, target: &Target) -> BTreeSet<Arc<str>> {
        self.plans
            .get(target)
            .map_or_else(BTreeSet::new, Plan::applied_names)
    }
}
