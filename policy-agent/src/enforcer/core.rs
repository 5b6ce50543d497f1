//! What the enforcer does with each command and each batch; no queue, no waiting, no clock of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use mesh::backoff::Backoff;
use mesh::crash_point;
use policy_core::engine::Engine;
use policy_core::flow::Flow;
use policy_core::index::LocalPod;
use policy_core::object::{Event, Object, ObjectKey};
use policy_core::plan::{Failure, Step, Target};
use policy_core::policy::PolicyId;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::Span;
use types::pod::AttachmentKey;

use super::command::Command;
use super::port::{DumpError, Rules};
use super::waiter::{Unready, Waiter, Waiters};
use crate::attachments::Attached;
use crate::feed::Batch;
use crate::metrics::{Kind, Metrics, Outcome};
use crate::notices::{self, Notices};
use crate::scope::{Pending, Scope};

/// Refused steps in a row after which there is a pause even though each refusal named its object: the engine
/// sets such an object aside and goes on without it, but something is very wrong when there are so many.
const REFUSALS: u32 = 64;

/// Most calls that a transaction's span is linked to.
const LINKS: usize = 64;

/// Least time between two counts of what is applied, for gauges.
const GAUGES: Duration = Duration::from_millis(500);

/// Calls that wait for the kernel to be settled, at most.
const SETTLERS: usize = 1024;

/// What the feed and the kernel have come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Everything was listed once.
    pub synced: bool,
    /// Feed position read.
    pub seen: u64,
    /// Feed position in the kernel.
    pub applied: u64,
    /// Transactions that took effect; the generation that the gate answers with.
    pub transactions: u64,
}

/// A change that was read and is not in force yet.
#[derive(Debug)]
struct Unenforced {
    kind: Kind,
    read: Instant,
}

/// Everything the enforcer has.
pub(crate) struct Core {
    pub(crate) engine: Engine,
    pub(crate) rules: Box<dyn Rules + Send>,
    pub(crate) notices: Notices,
    pub(crate) progress: Progress,
    /// Why the kernel does not have what it should, when the last try was refused.
    pub(crate) trouble: Option<String>,
    metrics: Metrics,
    pending: Pending,
    waiters: Waiters,
    settlers: Vec<oneshot::Sender<Result<(), Unready>>>,
    unenforced: Vec<Unenforced>,
    /// Wall time of the newest change that is not in force yet, in milliseconds; 0: unknown.
    seen_at_ms: u64,
    backoff: Backoff,
    refusals: u32,
    /// The kernel refused something that was not said yet, or had refused something that may be gone.
    refusals_to_say: bool,
    retry_at: Option<Instant>,
    /// Namespaces of pods that do not exist any more.
    gone: BTreeSet<Target>,
    /// Attachments whose rules stand in their own namespaces.
    inside: BTreeMap<AttachmentKey, Target>,
    /// Namespaces of attachments that are over.
    leaving: BTreeSet<Target>,
    /// The first complete state is in the kernel.
    begun: bool,
    /// When gauges are next counted; until then only that they are not what they should be is noted.
    gauges_at: Option<Instant>,
    gauges_stale: bool,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

/// What a core is made of.
pub(super) struct Parts {
    pub(super) engine: Engine,
    pub(super) rules: Box<dyn Rules + Send>,
    pub(super) notices: Notices,
    pub(super) metrics: Metrics,
    pub(super) pending: Pending,
    pub(super) backoff: Backoff,
}

impl Core {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            engine: parts.engine,
            rules: parts.rules,
            notices: parts.notices,
            progress: Progress::default(),
            trouble: None,
            metrics: parts.metrics,
            pending: parts.pending,
            waiters: Waiters::default(),
            settlers: Vec::new(),
            unenforced: Vec::new(),
            seen_at_ms: 0,
            backoff: parts.backoff,
            refusals: 0,
            refusals_to_say: false,
            retry_at: None,
            gone: BTreeSet::new(),
            inside: BTreeMap::new(),
            leaving: BTreeSet::new(),
            begun: false,
            gauges_at: None,
            gauges_stale: false,
        }
    }

    /// Notes attachments that were known before the start.
    pub(super) fn place_all(&mut self, known: Vec<Attached>) {
        for attached in known {
            self.place(attached);
        }
        let addresses = self.rules.node_addresses();
        self.engine.set_node_addresses(addresses);
    }

    /// Takes a batch of the feed.
    pub(super) fn take_batch(&mut self, batch: Batch, now: Instant) {
        for event in batch.events {
            let kind = kind_of(&event);
            // One entry per kind and moment: a batch of a hundred thousand pods is one wait, not as many.
            if !self
                .unenforced
                .iter()
                .any(|u| u.kind == kind && u.read == now)
            {
                self.unenforced.push(Unenforced { kind, read: now });
            }
            self.note(&event);
            self.engine.apply(event);
        }
        self.progress.seen = batch.sequence;
        self.seen_at_ms = self.seen_at_ms.max(batch.seen_at_ms);
        if batch.synced && !self.progress.synced {
            self.progress.synced = true;
            self.engine.set_synced();
        }
    }

    /// Takes a command.
    pub(super) fn take_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Ready {
                pod,
                over,
                until,
                unknown_until,
                span,
                answer,
            } => {
                let waiter = Waiter {
                    attachment: pod.attachment.clone(),
                    pod: pod.pod.clone(),
                    uid: pod.uid.clone(),
                    until,
                    unknown_until,
                    span,
                    answer,
                };
                self.place(*pod);
                self.unplace(&over);
                self.waiters.push(waiter);
                self.changed(now);
            }
            Command::Release {
                attachments,
                answer,
            } => {
                self.unplace(&attachments);
                self.settle_later(answer);
                self.changed(now);
            }
            Command::Restore {
                there,
                over,
                answer,
            } => {
                for attached in there {
                    self.place(attached);
                }
                self.unplace(&over);
                if over.is_empty() {
                    // Whoever asked may be gone.
                    drop(answer.send(Ok(())));
                } else {
                    self.settle_later(answer);
                }
                self.changed(now);
            }
            Command::Mistrust(target) => {
                self.metrics.foreign_changes.inc();
                tracing::warn!(?target, "somebody else changed our tables");
                self.engine.mistrust(&target);
            }
            Command::Look(look) => look(self),
        }
    }

    /// Brings the kernel up to date, as far as it lets us, and tells those who wait.
    pub(super) fn pump(&mut self, now: Instant) {
        if self.retry_at.is_none_or(|at| now >= at) {
            self.retry_at = None;
            let settled = self.write();
            if settled {
                self.settled();
            }
        }
        self.tell(now);
    }

    /// When [`Core::pump`] has something to do though nothing was taken.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let gauges = self.gauges_at.filter(|_| self.gauges_stale);
        [self.retry_at, self.waiters.next_deadline(), gauges]
            .into_iter()
            .flatten()
            .min()
    }

    /// Why policy is not in force as it should be.
    pub(super) fn unready(&self) -> Option<String> {
        if !self.progress.synced {
            return Some("pods and policies are not listed yet".to_owned());
        }
        if !self.begun {
            let why = self.trouble.as_deref().unwrap_or("being written");
            return Some(format!("the kernel does not have the first state: {why}"));
        }
        // Known pods go on with what they have; a refusal for a while shows in metrics and status.
        None
    }

    /// Which flows are allowed now.
    pub(super) fn judge(
        &mut self,
        flows: &[Flow],
        node: Option<Vec<IpAddr>>,
    ) -> Result<Vec<bool>, Unready> {
        if let Some(addresses) = node {
            self.engine.set_node_addresses(addresses);
        }
        if !self.begun {
            return Err(Unready::NotInSync);
        }
        Ok(flows.iter().map(|flow| self.engine.allows(flow)).collect())
    }

    fn unplace(&mut self, attachments: &[AttachmentKey]) {
        for attachment in attachments {
            self.engine.unplace(attachment);
            self.waiters.release(attachment);
            if let Some(target) = self.inside.remove(attachment) {
                self.leaving.insert(target);
            }
        }
    }

    fn changed(&mut self, now: Instant) {
        self.unenforced.push(Unenforced {
            kind: Kind::Attachment,
            read: now,
        });
    }

    fn settle_later(&mut self, answer: oneshot::Sender<Result<(), Unready>>) {
        if self.settlers.len() < SETTLERS {
            self.settlers.push(answer);
        } else {
            // Whoever asked may be gone.
            drop(answer.send(Err(Unready::Overloaded)));
        }
    }

    /// Writes until there is nothing to write; false when the kernel refused.
    fn write(&mut self) -> bool {
        if self.progress.synced && !self.adopt() {
            return false;
        }
        while let Some(step) = self.engine.next_step() {
            if !self.commit(&step) {
                return false;
            }
            // What a step is refused for may be that somebody changed the ground under it.
            if !self.adopt() {
                return false;
            }
        }
        true
    }

    /// Reads what the kernel has wherever that is not known.
    fn adopt(&mut self) -> bool {
        for target in self.engine.unknown_targets() {
            if self.gone.contains(&target) {
                continue;
            }
            match self.rules.dump(&target) {
                Ok(dump) => {
                    if self.begun {
                        let differences = self.engine.diff(&target, &dump);
                        let count = u64::try_from(differences.len()).unwrap_or(u64::MAX);
                        self.metrics.resync_differences.inc_by(count);
                        for line in differences.iter().take(10) {
                            tracing::warn!(?target, line, "the kernel differs");
                        }
                    }
                    self.engine.adopt(&target, &dump);
                }
                Err(DumpError::NamespaceGone) => self.forget(target),
                Err(DumpError::Failed(why)) => {
                    self.pause(format!("read what the kernel has: {why}"));
                    return false;
                }
            }
        }
        true
    }

    /// The transaction as part of the first call that waits; the others that it serves are linked. A transaction that
    /// no call waits for has none: there may be thousands in a second.
    fn span_of(&self, step: &Step) -> Span {
        let mut calls = self.waiters.spans();
        let Some(first) = calls.next() else {
            return Span::none();
        };
        let span = tracing::info_span!(
            parent: first,
            "policy.commit",
            step = step.number,
            kind = step.kind.word(),
            changes = step.changes.len(),
        );
        for call in calls.take(LINKS) {
            mesh::telemetry::link(&span, call);
        }
        span
    }

    /// Says whether there is no reason to pause.
    fn commit(&mut self, step: &Step) -> bool {
        crash_point!("policy.commit.before");
        let span = self.span_of(step);
        let started = Instant::now();
        let result = span.in_scope(|| self.rules.commit(&step.target, &step.changes));
        let time = started.elapsed();
        crash_point!("policy.commit.after");
        match result {
            Ok(()) => {
                self.metrics
                    .transaction(step.changes.len(), time, Outcome::Ok);
                tracing::debug!(
                    step = step.number,
                    kind = step.kind.word(),
                    changes = step.changes.len(),
                    "committed"
                );
                self.progress.transactions = self.progress.transactions.saturating_add(1);
                self.refusals = 0;
                self.backoff.reset();
                self.trouble = None;
                self.engine.committed(step);
                let disturbance = self.engine.take_disturbance();
                if self.begun {
                    self.pending.add(Scope::of(disturbance));
                }
                true
            }
            Err(refused) => {
                let outcome = match refused.failure {
                    Failure::Unknown => Outcome::Unknown,
                    Failure::Change { .. } | Failure::Whole { .. } | Failure::NotSent => {
                        Outcome::Refused
                    }
                };
                self.metrics.transaction(step.changes.len(), time, outcome);
                tracing::warn!(
                    step = step.number,
                    kind = step.kind.word(),
                    error = %refused,
                    "the kernel refused"
                );
                self.engine.failed(step, refused.failure);
                self.refusals_to_say = true;
                if refused.namespace_gone {
                    // Without an adopted content the engine has no further steps for it.
                    self.engine.mistrust(&step.target);
                    self.forget(step.target.clone());
                    return true;
                }
                self.refusals = self.refusals.saturating_add(1);
                let named = matches!(refused.failure, Failure::Change { .. });
                if named && self.refusals < REFUSALS {
                    self.trouble = Some(refused.text);
                    return true;
                }
                self.pause(refused.text);
                false
            }
        }
    }

    /// The namespace does not exist: its tables went with it, and nothing is written until somebody is attached there.
    fn forget(&mut self, target: Target) {
        tracing::info!(?target, "the namespace is gone");
        self.rules.forget(&target);
        self.gone.insert(target);
    }

    fn place(&mut self, attached: Attached) {
        if let Some(target) = attached.own_namespace() {
            if self.gone.remove(&target) {
                self.engine.mistrust(&target);
            }
            self.inside.insert(attached.attachment.clone(), target);
        }
        self.engine.place(local_pod(attached));
    }

    fn pause(&mut self, why: String) {
        let wait = self.backoff.next_wait();
        tracing::warn!(why, wait_ms = wait.as_millis(), "next try later");
        self.trouble = Some(why);
        self.retry_at = Some(Instant::now() + wait);
    }

    /// All that was read is in force.
    fn settled(&mut self) {
        if !self.progress.synced {
            // Nothing is written before everything was listed: nothing is settled either.
            return;
        }
        self.progress.applied = self.progress.seen;
        let leaving = std::mem::take(&mut self.leaving);
        for target in leaving {
            if !self.inside.values().any(|t| *t == target) {
                self.rules.forget(&target);
            }
        }
        if self.begun {
            self.measure();
        } else {
            self.begin();
        }
        for answer in self.settlers.drain(..) {
            // Whoever asked may be gone.
            drop(answer.send(Ok(())));
        }
        self.notices.say();
        if self.refusals_to_say {
            self.say_refusals();
        }
    }

    /// Names what the kernel refuses by itself, so that everything else is in force and its pods are closed.
    fn say_refusals(&mut self) {
        let mut refused = Vec::new();
        for problem in self.engine.problems() {
            if problem.policy.is_some() {
                continue;
            }
            let views = problem.pods.iter();
            let views = views.filter_map(|pod| self.engine.show_pod(pod));
            let mut policies: Vec<PolicyId> = Vec::new();
            for profile in views.flat_map(|view| view.profiles) {
                // A chain or a set by its name, or members of a set.
                let name = problem.what.rsplit(' ').next().unwrap_or_default();
                let in_set = profile.sets.iter().any(|set| set == name);
                let of = profile.policies.into_iter();
                policies.extend(of.filter(|(_, chain)| in_set || chain == name).map(|p| p.0));
            }
            policies.sort();
            policies.dedup();
            let pods: Vec<String> = problem.pods.iter().map(ToString::to_string).collect();
            let text = format!(
                "{}: {}; closed: {}",
                problem.what,
                problem.why,
                pods.join(", ")
            );
            refused.push(notices::Refused { text, policies });
        }
        // While there are some, their end is looked for.
        self.refusals_to_say = !refused.is_empty();
        self.notices.refused(&refused);
    }

    fn measure(&mut self) {
        let now = Instant::now();
        for change in self.unenforced.drain(..) {
            self.metrics
                .enforced(change.kind, now.saturating_duration_since(change.read));
        }
        let seen_at = std::mem::take(&mut self.seen_at_ms);
        if seen_at > 0 {
            let lag = mesh::clock::wall_ms().saturating_sub(seen_at);
            self.metrics.lag(Duration::from_millis(lag));
        }
    }

    /// The first whole state is in force. How long it took says nothing about a change.
    fn begin(&mut self) {
        self.begun = true;
        self.unenforced.clear();
        self.seen_at_ms = 0;
        drop(self.engine.take_disturbance());
        // Whatever was allowed before we came, or was not cut because we ended, is judged anew.
        self.pending.add(Scope::everything());
        let transactions = self.progress.transactions;
        tracing::info!(transactions, "policy is in force");
    }

    fn tell(&mut self, now: Instant) {
        self.waiters
            .settle(&self.engine, self.begun, self.progress.transactions, now);
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.waiting.set(gauge(self.waiters.len()));
        self.metrics.malformed.set(gauge(self.notices.malformed()));
        self.metrics
            .failed_closed
            .set(gauge(self.engine.closed_pods()));
        if self.gauges_at.is_some_and(|at| now < at) {
            self.gauges_stale = true;
            return;
        }
        // All of what is applied is counted for these: not after each of a thousand events in a second.
        self.gauges_at = Some(now + GAUGES);
        self.gauges_stale = false;
        let stats = self.engine.stats();
        self.metrics.local_pods.set(gauge(stats.pods));
        self.metrics
            .sets
            .set(gauge(stats.peer_sets.saturating_add(stats.fixed_sets)));
        self.metrics.members.set(gauge(stats.members));
        self.metrics.chains.set(gauge(stats.chains));
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::Upsert(Object::Node(node)) => self.notices.node(&node.name),
            Event::Upsert(Object::Policy(policy)) => self.notices.policy(policy),
            Event::Delete(ObjectKey::Node(name)) => self.notices.node_gone(name),
            Event::Delete(ObjectKey::Policy(id)) => self.notices.policy_gone(id),
            Event::Upsert(Object::Pod(_) | Object::Namespace(_) | Object::ServiceAccount(_))
            | Event::Delete(
                ObjectKey::Pod(_) | ObjectKey::Namespace(_) | ObjectKey::ServiceAccount(..),
            ) => {}
        }
    }
}

/// The attachment as the engine takes it.
fn local_pod(attached: Attached) -> LocalPod {
    // With a link on the node, that is where the rules stand.
    let own_namespace = attached.own_namespace().is_some();
    LocalPod {
        key: attached.pod,
        uid: attached.uid.into(),
        attachment: attached.attachment,
        host_link: (!attached.host_link.is_empty()).then(|| attached.host_link.into()),
        netns: own_namespace.then(|| attached.netns.into()),
        ips: attached.ips,
    }
}

const fn kind_of(event: &Event) -> Kind {
    match event {
        Event::Upsert(Object::Pod(_)) | Event::Delete(ObjectKey::Pod(_)) => Kind::Pod,
        Event::Upsert(Object::Namespace(_)) | Event::Delete(ObjectKey::Namespace(_)) => {
            Kind::Namespace
        }
        Event::Upsert(Object::Node(_)) | Event::Delete(ObjectKey::Node(_)) => Kind::Node,
        Event::Upsert(Object::ServiceAccount(_)) | Event::Delete(ObjectKey::ServiceAccount(..)) => {
            Kind::ServiceAccount
        }
        Event::Upsert(Object::Policy(_)) | Event::Delete(ObjectKey::Policy(_)) => Kind::Policy,
    }
}
