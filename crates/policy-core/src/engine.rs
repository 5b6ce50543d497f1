//! Index, compiler and plan in one: events in, transactions out.
//!
//! One owner calls it: events with [`Engine::apply`], links with [`Engine::place`] and [`Engine::unplace`], then
//! [`Engine::next_step`] until it has none, each step answered by [`Engine::committed`] or [`Engine::failed`]. Events
//! that come while a step is under way are merged per object. Nothing is written before [`Engine::set_synced`], and
//! nothing in a namespace before its content was given to [`Engine::adopt`].

mod assignment;
mod report;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use nft_wire::snapshot::Snapshot;
use types::pod::{AttachmentKey, PodKey};

use assignment::Assignment;
pub use report::{Disturbance, PodView, ProblemView, ProfileView, SetView, Stats};

use crate::compile::{Compiled, Compiler};
use crate::flow::{Direction, Flow};
use crate::index::{Index, LocalPod};
use crate::judge::{Judge, Sets, Verdict};
use crate::layout::Settings;
use crate::layout::frame::is_always_allowed;
use crate::object::Event;
use crate::plan::{Failure, Plan, Step, StepKind, Target};

/// A profile in use, with its sets looked up.
#[derive(Debug)]
struct Live {
    compiled: Arc<Compiled>,
    sets: Sets,
    users: usize,
}

/// Everything the policies of one node come to.
#[derive(Debug)]
pub struct Engine {
    index: Index,
    settings: Settings,
    compiler: Compiler,
    plans: BTreeMap<Target, Plan>,
    assigned: BTreeMap<PodKey, Assignment>,
    attached: HashMap<AttachmentKey, PodKey>,
    live: HashMap<u64, Live>,
    addresses: BTreeMap<IpAddr, BTreeSet<PodKey>>,
    node: BTreeSet<IpAddr>,
    /// Contents given before the feeds were in sync.
    dumps: BTreeMap<Target, Vec<Snapshot>>,
    synced: bool,
    /// Something came that the plans do not know yet.
    dirty: bool,
    disturbance: Disturbance,
    steps: u64,
    refused: u64,
}

impl Engine {
    /// An engine for the node of this name.
    pub fn new(node: &str, settings: Settings) -> Self {
        let mut plans = BTreeMap::new();
        plans.insert(Target::Host, Plan::new(Target::Host, &settings));
        Self {
            index: Index::new(node),
            compiler: Compiler::new(&settings),
            settings,
            plans,
            assigned: BTreeMap::new(),
            attached: HashMap::new(),
            live: HashMap::new(),
            addresses: BTreeMap::new(),
            node: BTreeSet::new(),
            dumps: BTreeMap::new(),
            synced: false,
            dirty: false,
            disturbance: Disturbance::default(),
            steps: 0,
            refused: 0,
        }
    }

    /// Takes one event of a feed.
    pub fn apply(&mut self, event: Event) {
        self.index.apply(event);
        self.dirty = true;
    }

    /// Notes a pod's attachment, whose link exists now: its anti-spoof chain can be made.
    pub fn place(&mut self, pod: LocalPod) {
        if let Some(netns) = &pod.netns {
            let target = Target::Namespace(Arc::clone(netns));
            self.plans
                .entry(target.clone())
                .or_insert_with(|| Plan::new(target, &self.settings));
        }
        self.index.place(pod);
        self.dirty = true;
    }

    /// Forgets an attachment; a late call for an old sandbox leaves its successor alone.
    pub fn unplace(&mut self, attachment: &AttachmentKey) {
        self.index.unplace(attachment);
        self.dirty = true;
    }

    /// Every feed has given its first full list; from now on there are steps.
    pub fn set_synced(&mut self) {
        self.synced = true;
        self.dirty = true;
    }

    /// The addresses of the node itself, as its kernel has them; replaces those said before.
    pub fn set_node_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        let addresses: BTreeSet<IpAddr> = addresses.into_iter().collect();
        if addresses == self.node {
            return;
        }
        self.node = addresses;
        let inside: Vec<PodKey> = self
            .assigned
            .iter()
            .filter(|(_, a)| a.is_in_namespace())
            .map(|(key, _)| key.clone())
            .collect();
        for key in inside {
            self.refresh(&key);
        }
    }

    /// Namespaces whose content the engine does not know: dump our tables there, and call [`Engine::adopt`].
    pub fn unknown_targets(&self) -> Vec<Target> {
        let unknown = self
            .plans
            .iter()
            .filter(|(target, plan)| plan.is_unknown() && !self.dumps.contains_key(*target));
        unknown.map(|(target, _)| target.clone()).collect()
    }

    /// Takes what a namespace's kernel has now for the state that steps start from: our tables, those that are there.
    pub fn adopt(&mut self, target: &Target, dump: &[Snapshot]) {
        if !self.plans.contains_key(target) {
            return;
        }
        // What is not compared with a whole desired state would look like garbage.
        if self.synced {
            self.reconcile();
            self.adopt_now(target, dump);
        } else {
            self.dumps.insert(target.clone(), dump.to_vec());
        }
    }

    fn adopt_now(&mut self, target: &Target, dump: &[Snapshot]) {
        let Some(plan) = self.plans.get_mut(target) else {
            return;
        };
        plan.adopt(dump, &mut self.index);
        // A kill between an answer and the mark leaves no difference to see.
        self.disturbance.locals.extend(self.addresses.keys());
    }

    /// Somebody else changed our tables in this namespace (a notification said so): they have to be dumped again.
    pub fn mistrust(&mut self, target: &Target) {
        self.dumps.remove(target);
        if let Some(plan) = self.plans.get_mut(target) {
            plan.mistrust();
        }
    }

    /// Brings the plans in line with the index.
    fn reconcile(&mut self) {
        if !self.dirty || !self.synced {
            return;
        }
        self.dirty = false;
        let changes = self.index.take_changes();
        for delta in &changes.sets {
            for plan in self.plans.values_mut() {
                plan.take_delta(delta);
            }
        }
        for policy in &changes.policies {
            self.compiler.forget(policy);
        }
        for key in &changes.subjects {
            self.refresh(key);
        }
        let idle = |target: &Target, plan: &Plan| *target != Target::Host && plan.is_idle();
        let closed: Vec<Target> = self
            .plans
            .iter()
            .filter(|(target, plan)| idle(target, plan))
            .map(|(target, _)| target.clone())
            .collect();
        for target in closed {
            // The namespace goes with its pod, and our tables with it.
            if let Some(mut plan) = self.plans.remove(&target) {
                plan.close(&mut self.index);
            }
            self.dumps.remove(&target);
        }
        for (target, dump) in std::mem::take(&mut self.dumps) {
            self.adopt_now(&target, &dump);
        }
    }

    /// The next transaction; `None` when there is nothing to do now, when all that is left waits for the answer to
    /// another step or for a dump, or when feeds are not in sync.
    pub fn next_step(&mut self) -> Option<Step> {
        if !self.synced {
            return None;
        }
        self.reconcile();
        let index = &self.index;
        self.plans.values_mut().find_map(|plan| plan.next(index))
    }

    /// Whether [`Engine::next_step`] would have one, removals of unreferenced objects not counted.
    pub fn has_work(&self) -> bool {
        self.synced && (self.dirty || self.plans.values().any(Plan::has_work))
    }

    /// The step took effect.
    pub fn committed(&mut self, step: &Step) {
        let Some(plan) = self.plans.get_mut(&step.target) else {
            return;
        };
        let outcome = plan.committed(step.number, &mut self.index);
        self.steps = self.steps.saturating_add(1);
        let disturbance = &mut self.disturbance;
        disturbance.lost.extend(outcome.lost);
        disturbance.gained.extend(outcome.gained);
        if outcome.everything {
            disturbance.locals.extend(self.addresses.keys());
        }
        for pod in &outcome.moved {
            if let Some(assignment) = self.assigned.get(pod) {
                disturbance.locals.extend(&assignment.ips);
            }
        }
    }

    /// The step did not take effect.
    pub fn failed(&mut self, step: &Step, failure: Failure) {
        if let Some(plan) = self.plans.get_mut(&step.target) {
            plan.failed(step.number, failure, &mut self.index);
            self.refused = self.refused.saturating_add(1);
        }
    }

    /// Whose established flows the committed steps may have denied, or allowed again, since the last call.
    pub fn take_disturbance(&mut self) -> Disturbance {
        std::mem::take(&mut self.disturbance)
    }

    /// Whether all that a pod's attachment needs is committed; the gate answers with it.
    pub fn is_ready(&self, attachment: &AttachmentKey) -> bool {
        self.waiting_for(attachment).is_none()
    }

    /// One direction of a flow at a local pod, as the kernel judges its first packet. A pod that is not here: denied.
    pub fn judge(&self, pod: &PodKey, direction: Direction, flow: &Flow) -> Verdict {
        let Some(assignment) = self.assigned.get(pod) else {
            return Verdict::Denied;
        };
        if direction == Direction::Egress
            && is_always_allowed(&self.settings, flow.destination)
            && !assignment.is_closed()
        {
            return Verdict::Allowed;
        }
        let Some(live) = self.live.get(&assignment.profile(direction)) else {
            return Verdict::Denied;
        };
        if self.is_refused(live) {
            return Verdict::Denied;
        }
        self.judge_of(live, assignment).verdict(flow)
    }

    fn judge_of<'a>(&'a self, live: &'a Live, assignment: &'a Assignment) -> Judge<'a> {
        Judge {
            profile: &live.compiled.profile,
            sets: &live.sets,
            index: &self.index,
            own: &assignment.ips,
        }
    }

    /// Whether the kernel refuses something that a profile needs, so that its pods are closed.
    fn is_refused(&self, live: &Live) -> bool {
        live.compiled
            .root
            .as_ref()
            .is_some_and(|root| self.plans.values().any(|plan| plan.is_blocked(&root.name)))
    }

    /// Both directions of a flow as this node judges it; traffic of the node itself to its pods is allowed.
    pub fn allows(&self, flow: &Flow) -> bool {
        let passes = |ip: IpAddr, direction| {
            self.addresses.get(&ip).is_none_or(|pods| {
                pods.iter()
                    .any(|pod| self.judge(pod, direction, flow) == Verdict::Allowed)
            })
        };
        passes(flow.source, Direction::Egress)
            && (self.is_node(flow) || passes(flow.destination, Direction::Ingress))
    }

    /// Whether the node itself sends: its own address, that is no pod's.
    fn is_node(&self, flow: &Flow) -> bool {
        self.node.contains(&flow.source) && !self.addresses.contains_key(&flow.source)
    }

    /// Removes everything of ours from a namespace, tables that are not there included.
    pub fn teardown(&self, target: &Target) -> Step {
        let changes = self.plans.get(target).map_or_else(
            || Plan::new(target.clone(), &self.settings).teardown(),
            Plan::teardown,
        );
        Step {
            number: 0,
            target: target.clone(),
            kind: StepKind::Delete,
            changes,
        }
    }

    /// Addresses of local pods.
    pub fn local_addresses(&self) -> BTreeSet<IpAddr> {
        self.addresses.keys().copied().collect()
    }

    /// What the engine knows of the cluster.
    pub const fn index(&self) -> &Index {
        &self.index
    }
}

#[cfg(test)]
mod tests;
