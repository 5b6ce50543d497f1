//! What the installation asks of nodes, and what this agent does about it: pods that are there keep their policy, and
//! when the last one has gone our tables go.
//!
//! An agent that is to change between serving and having left ends, and is started anew: what it is, is decided at
//! the start alone.

use std::time::Duration;

use anyhow::Context as _;
use cluster::object::{Phase, Seen, Which};
use cluster::reports::Reports;
use cluster::source::{ObjectSource, Place};
use mesh::client::{Channel, Params};
use mesh::identity::IdentityKind;
use mesh::metrics::Registry;
use mesh::tasks::Tasks;
use mesh::tls::TlsMaterial;
use mesh::tls::verify::Expect;
use proto::control::v1::ReportNodeRequest;
use tokio::sync::watch;

use crate::gate::{Gate, State};

/// Time between looks at the attachments.
const LOOK: Duration = Duration::from_secs(1);
/// So many looks without any pod: the last one has gone.
const EMPTY_LOOKS: u32 = 5;
/// How long the phase is waited for at the start; an API server that is away delays nobody for longer.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// Names in "waits for"; of more only the number is told.
const NAMES_MAX: usize = 20;

/// Why an agent that has left says no.
pub const LEFT: &str = "the node has left: the network plug-in is being uninstalled";

/// The phase of the installation.
#[derive(Debug, Clone)]
pub struct PhaseWatch(watch::Receiver<Seen>);

impl PhaseWatch {
    /// Follows the ConfigMap on `tasks`; without one nodes serve.
    ///
    /// # Errors
    /// When the place can not be read.
    pub async fn open(which: Option<Which>, place: &Place, tasks: &Tasks) -> anyhow::Result<Self> {
        let Some(which) = which else {
            return Ok(Self(watch::channel(Seen::Absent).1));
        };
        let opened = place.object(which).await.context("control.phase")?;
        let (source, seen): (ObjectSource, _) = opened;
        tasks.spawn("phase", source.run(tasks.stopping()));
        Ok(Self(seen))
    }

    /// What is asked now, waiting a little for the first answer.
    pub async fn first(&mut self) -> Phase {
        let known = self.0.wait_for(|seen| *seen != Seen::Unknown);
        // Nobody leaves because nobody answers.
        drop(tokio::time::timeout(FIRST_WAIT, known).await);
        self.after(Phase::Serve)
    }

    fn after(&self, before: Phase) -> Phase {
        before.after(&self.0.borrow())
    }
}

/// What is looked at, and acted on.
#[derive(Debug)]
pub struct Departure {
    /// Kubernetes name of the node.
    pub node_name: String,
    /// Our instance, by our certificate.
    pub instance: String,
    /// The phase.
    pub phase: PhaseWatch,
    /// Who is attached, and whether policy is on.
    pub gate: Gate,
    /// Where it is said; nowhere without a control plane.
    pub reports: Option<Reports>,
    /// Our tables were removed at the start, because the node leaves.
    pub left: bool,
    /// Ends the process.
    pub tasks: Tasks,
}

impl Departure {
    /// Looks until the process ends.
    pub async fn run(self) {
        let stopping = self.tasks.stopping();
        let mut every = tokio::time::interval(LOOK);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut empty = 0_u32;
        let mut phase = if self.left {
            Phase::Leave
        } else {
            Phase::Serve
        };
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                _ = every.tick() => {}
            }
            phase = self.phase.after(phase);
            let leaving = phase == Phase::Leave;
            let pods = self.pods();
            empty = if pods.is_empty() {
                empty.saturating_add(1)
            } else {
                0
            };
            let off = matches!(self.gate.state(), State::Off(_));
            self.report(leaving, off, pods);
            if leaving && !off && empty >= EMPTY_LOOKS {
                self.end("the last pod has gone, and the node leaves");
            } else if !leaving && self.left {
                self.end("the node is to serve again");
            }
        }
    }

    fn end(&self, why: &'static str) {
        if self.tasks.drain().why().is_none() {
            tracing::info!(why, "ending, to be started anew");
            self.tasks.drain().start(why);
        }
    }

    fn pods(&self) -> Vec<String> {
        let known = self.gate.known();
        let mut pods: Vec<String> = known.iter().map(|a| format!("pod {}", a.pod)).collect();
        pods.sort();
        pods.dedup();
        let more = pods.len().saturating_sub(NAMES_MAX);
        if more > 0 {
            pods.truncate(NAMES_MAX);
            pods.push(format!("{more} more pods"));
        }
        pods
    }

    fn report(&self, leaving: bool, off: bool, pods: Vec<String>) {
        let Some(reports) = &self.reports else {
            return;
        };
        let on = matches!(self.gate.state(), State::On(_));
        // Tables were removed where policy is off, pods or not.
        let left = leaving && off;
        let waits_for = match (leaving, left) {
            (true, false) if pods.is_empty() => vec!["rules of policy".to_owned()],
            (true, false) => pods,
            (true, true) | (false, _) => Vec::new(),
        };
        reports.report(ReportNodeRequest {
            node_name: self.node_name.clone(),
            instance_id: self.instance.clone(),
            serving: !leaving && (on || off),
            left,
            waits_for,
            ..ReportNodeRequest::default()
        });
    }
}

/// Says to the control plane at `endpoint` what is reported.
///
/// # Errors
/// When the endpoint is not `host:port`.
pub fn reports(
    endpoint: &str,
    tls: TlsMaterial,
    params: &Params,
    registry: &Registry,
    tasks: &Tasks,
) -> anyhow::Result<Reports> {
    let reports = Reports::new("policy-agent", registry);
    let expect = Expect::Kind(IdentityKind::Controller);
    let channel = Channel::tcp(endpoint, tls, expect, params).context("control.endpoint")?;
    tasks.spawn("reports", reports.clone().run(channel, tasks.stopping()));
    Ok(reports)
}
