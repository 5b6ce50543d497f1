//! Looks at everything that a node needs to serve, and acts on it: readiness, the plug-in's configuration, what is
//! said to the control plane, and leaving.
//!
//! Judgement is in [`crate::standing`]; here are eyes and hands.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use cluster::health::Health;
use cluster::object::{Phase, Seen};
use cluster::reports::{Reports, Tone};
use mesh::causes;
use mesh::health::Condition;
use mesh::tls::TlsMaterial;
use proto::control::v1::{NodeCondition, ReportNodeRequest};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use types::cloud::{InstanceId, RegionId};

use crate::conflist::Conflist;
use crate::device_plugin::Offer;
use crate::gate::Gate;
use crate::identity;
use crate::ledger::{Ledger, View};
use crate::metrics::Metrics;
use crate::reconcile::Retirement;
use crate::standing::{Fault, Feed, READY, Situation};
use crate::target::Targets;

/// Time between looks.
const LOOK: Duration = Duration::from_millis(500);
/// Time between looks at what costs a call or a file.
const LOOK_FAR: Duration = Duration::from_secs(3);
/// A fault that is younger is not worth an event, nor is a start that is shorter worth a report: it is a restart.
const SETTLED: Duration = Duration::from_secs(5);
/// A fault that lasts is told again, and counted up; Terway's time for exhausted vSwitches.
const TELL_AGAIN: Duration = Duration::from_mins(10);
/// Texts that change while everything else is the same are told after this time.
const TEXTS: Duration = Duration::from_mins(1);
/// Faults that keep the process from being ready.
const OURS: [&str; 2] = ["IdentityMismatch", "ConfigError"];
/// Names in "waits for"; of more only the number is told.
const NAMES_MAX: usize = 20;

/// What is looked at, and what is acted on.
#[derive(Debug)]
pub struct Overseer {
    /// Kubernetes name of the node.
    pub node_name: String,
    /// Our instance.
    pub instance: InstanceId,
    /// Its region.
    pub region: RegionId,
    /// Our certificate.
    pub tls: TlsMaterial,
    /// The Node object.
    pub node: watch::Receiver<Seen>,
    /// Whether nodes serve or leave.
    pub phase: watch::Receiver<Phase>,
    /// How the feed of pods fares; a folder has nothing to say.
    pub feed: Option<watch::Receiver<Health>>,
    /// The way to policy-agent.
    pub gate: Gate,
    /// What the reconciler complains of.
    pub kernel: watch::Receiver<Option<String>>,
    /// The way to ipam.
    pub targets: Targets,
    /// Addresses and bindings.
    pub ledger: Ledger,
    /// Where it is said how many whole ENIs there are for pods; nothing where they are not offered.
    pub offer: Option<watch::Sender<Offer>>,
    /// The plug-in's configuration, if it is ours to write.
    pub conflist: Option<Conflist>,
    /// Where it is said; nowhere without a control plane.
    pub reports: Option<Reports>,
    /// Readiness of the process.
    pub ready: Condition,
    /// Gauges.
    pub metrics: Arc<Metrics>,
    /// By which the node's own settings are taken back, last of all.
    pub retirement: Retirement,
}

/// What is remembered from look to look.
#[derive(Debug, Default)]
struct Memory {
    policy: Option<String>,
    configuration: Option<String>,
    looked_far: Option<Instant>,
    faults: BTreeMap<String, Lasting>,
    begun: Option<Instant>,
    said: Option<(ReportNodeRequest, Instant)>,
    served: bool,
    left: bool,
}

/// A fault and what was told of it.
#[derive(Debug, Clone, Copy)]
struct Lasting {
    since: Instant,
    told: Option<Instant>,
}

impl Overseer {
    /// Looks until `drain` is cancelled.
    pub async fn run(mut self, drain: CancellationToken) {
        let mut memory = Memory::default();
        let mut every = tokio::time::interval(LOOK);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                // Whoever leaves removes the configuration at once.
                changed = self.phase.changed() => if changed.is_err() {
                    drain.cancelled().await;
                    return;
                },
                _ = every.tick() => {}
            }
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                () = self.look(&mut memory) => {}
            }
        }
    }

    async fn look(&mut self, memory: &mut Memory) {
        let leaving = *self.phase.borrow_and_update() == Phase::Leave;
        if leaving {
            self.take_away(memory);
        }
        self.targets.set_leaving(leaving);
        let far = memory.looked_far.is_none_or(|at| at.elapsed() >= LOOK_FAR);
        if far {
            memory.looked_far = Some(Instant::now());
            memory.policy = self.gate.complaint().await;
        }
        let view = self.ledger.view();
        let situation = self.situation(leaving, &view, memory);
        let serves = situation.serves();
        if serves && (far || !memory.served) {
            self.put(memory);
        }
        let faults = situation.faults();
        self.show(&situation, &faults, memory);
        let idle = leaving && self.holds(&view).is_empty();
        self.retirement
            .ask
            .send_if_modified(|asked| std::mem::replace(asked, idle) != idle);
        let left = leaving && self.waits_for(&view).is_empty();
        if left && !memory.left {
            tracing::info!("the node has left: no pods, no addresses, no configuration");
        }
        memory.left = left;
        self.tell(&faults, serves, memory);
        let offer = self.offer(leaving, &view);
        self.report(&situation, &view, offer, memory);
        memory.served = serves;
    }

    fn situation(&self, leaving: bool, view: &View, memory: &Memory) -> Situation {
        let feed = self.feed.as_ref().map(|health| Feed::of(&health.borrow()));
        let now = UNIX_EPOCH + Duration::from_millis(mesh::clock::wall_ms());
        Situation {
            leaving,
            identity: identity::compare(&self.node.borrow(), &self.region, &self.instance),
            certificate_expired: self.tls.not_after() <= now,
            feed: feed.unwrap_or(Feed {
                synced: true,
                trouble: None,
            }),
            policy: memory.policy.clone(),
            kernel: self.kernel.borrow().clone(),
            configuration: memory.configuration.clone(),
            ipam: self.targets.ipam(),
            free: view.free(),
        }
    }

    /// Writes the configuration, should it differ.
    fn put(&self, memory: &mut Memory) {
        let Some(conflist) = &self.conflist else {
            return;
        };
        match conflist.put() {
            Ok(changed) => {
                memory.configuration = None;
                if changed {
                    tracing::info!(dir = %conflist.dir.display(), "the plug-in's configuration is in place");
                }
            }
            Err(error) => {
                let why = causes::text(&error);
                if memory.configuration.as_ref() != Some(&why) {
                    tracing::error!(error = why, "the plug-in's configuration is not written");
                }
                memory.configuration = Some(why);
            }
        }
    }

    fn take_away(&self, memory: &mut Memory) {
        let Some(conflist) = &self.conflist else {
            return;
        };
        match conflist.take_away() {
            Ok(true) => tracing::info!("the node leaves: the plug-in's configuration is removed"),
            Ok(false) => {}
            Err(error) => tracing::warn!(error = %causes::text(&error), "not removed"),
        }
        memory.configuration = None;
    }

    fn show(&self, situation: &Situation, faults: &[Fault], memory: &Memory) {
        // What other processes lack is theirs to say; addresses and the feed have conditions of their own.
        let ours = |fault: &&Fault| OURS.contains(&fault.reason.as_str());
        match faults.iter().find(ours) {
            Some(fault) => self
                .ready
                .unmet(&format!("{}: {}", fault.reason, fault.message)),
            None => self.ready.met(),
        }
        self.metrics
            .show_faults(faults.iter().map(|f| f.reason.as_str()));
        self.metrics.serving.set(i64::from(situation.serves()));
        if situation.serves() != memory.served {
            let missing = situation.missing();
            tracing::info!(
                serves = situation.serves(),
                missing,
                "whether the node serves"
            );
        }
    }

    /// Events about the node: each fault once, and again while it lasts; and that all is well after it was not.
    fn tell(&self, faults: &[Fault], serves: bool, memory: &mut Memory) {
        let now = Instant::now();
        memory
            .faults
            .retain(|reason, _| faults.iter().any(|fault| fault.reason == *reason));
        for fault in faults {
            let lasting = memory.faults.entry(fault.reason.clone());
            let lasting = lasting.or_insert(Lasting {
                since: now,
                told: None,
            });
            let due = match lasting.told {
                None => now - lasting.since >= SETTLED,
                Some(told) => now - told >= TELL_AGAIN,
            };
            if !due {
                continue;
            }
            lasting.told = Some(now);
            tracing::warn!(
                reason = fault.reason,
                why = fault.message,
                "fault of the node"
            );
            if let Some(reports) = &self.reports {
                let (reason, key) = (&fault.reason, fault.reason.clone());
                reports.node_event(Tone::Warning, reason, fault.message.clone(), key);
            }
        }
        if serves
            && !memory.served
            && let Some(reports) = &self.reports
        {
            let message = "pods can be started".to_owned();
            reports.node_event(Tone::Normal, READY, message, READY.to_owned());
        }
    }

    /// What keeps the node from having left.
    fn waits_for(&self, view: &View) -> Vec<String> {
        let mut waits = self.holds(view);
        if waits.is_empty() && !*self.retirement.done.borrow() {
            waits.push("settings of the kernel".to_owned());
        }
        waits
    }

    /// What is there for pods.
    fn holds(&self, view: &View) -> Vec<String> {
        let mut waits: Vec<String> = view
            .bindings
            .values()
            .map(|binding| format!("pod {}", binding.pod))
            .collect();
        waits.sort();
        waits.dedup();
        waits.extend(view.enis.keys().map(|eni| format!("eni {eni}")));
        if self.conflist.as_ref().is_some_and(Conflist::is_there) {
            waits.push("the plug-in's configuration".to_owned());
        }
        let more = waits.len().saturating_sub(NAMES_MAX);
        if more > 0 {
            waits.truncate(NAMES_MAX);
            waits.push(format!("{more} more"));
        }
        waits
    }

    /// Says how many whole ENIs there are for pods.
    fn offer(&self, leaving: bool, view: &View) -> Offer {
        let Some(told) = &self.offer else {
            return Offer::default();
        };
        let offer = match self.targets.capacity() {
            Some(capacity) if !leaving => {
                let wanted = self.targets.total().div_ceil(capacity.per_eni.max(1));
                let shared = view.enis.values().filter(|eni| !eni.record.whole).count();
                let shared = u32::try_from(shared).unwrap_or(u32::MAX);
                Offer::of(capacity.secondary_enis(), shared.max(wanted))
            }
            Some(_) | None => Offer::default(),
        };
        told.send_if_modified(|old| std::mem::replace(old, offer) != offer);
        self.metrics.whole_enis.set(offer.whole.into());
        offer
    }

    fn report(&self, situation: &Situation, view: &View, offer: Offer, memory: &mut Memory) {
        let Some(reports) = &self.reports else {
            return;
        };
        let waits_for = if situation.leaving {
            self.waits_for(view)
        } else {
            Vec::new()
        };
        let report = ReportNodeRequest {
            node_name: self.node_name.clone(),
            instance_id: self.instance.to_string(),
            serving: situation.serves(),
            conditions: situation.conditions(),
            pod_capacity: self.targets.capacity().map_or(0, |c| c.max_pods),
            whole_enis: offer.whole,
            left: situation.leaving && waits_for.is_empty(),
            waits_for,
            component: String::new(),
        };
        let begun = *memory.begun.get_or_insert_with(Instant::now);
        let news = match &memory.said {
            // A restart is no news: what was said before holds for the moment that it takes.
            None => report.serving || situation.leaving || begun.elapsed() >= SETTLED,
            Some((said, at)) => {
                *said != report && (bare(said) != bare(&report) || at.elapsed() >= TEXTS)
            }
        };
        if news {
            reports.report(report.clone());
            memory.said = Some((report, Instant::now()));
        }
    }
}

/// Without the texts that may change from look to look.
fn bare(report: &ReportNodeRequest) -> ReportNodeRequest {
    let without = |condition: &NodeCondition| NodeCondition {
        message: String::new(),
        ..condition.clone()
    };
    ReportNodeRequest {
        conditions: report.conditions.iter().map(without).collect(),
        ..report.clone()
    }
}
