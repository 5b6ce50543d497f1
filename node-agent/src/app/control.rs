//! The part of the root that has to do with the installation as a whole: its phase, the control plane, kubelet.

use std::sync::Arc;

use anyhow::Context as _;
use cluster::object::{Phase, Seen, Which};
use cluster::reports::Reports;
use cluster::source::Place;
use mesh::client::Channel;
use mesh::identity::IdentityKind;
use mesh::run::Context;
use mesh::tls::verify::Expect;
use tokio::sync::watch;

use crate::app::{Me, Node};
use crate::config::Config;
use crate::device_plugin::{DevicePlugin, Offer};
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::overseer::Overseer;
use crate::reconcile::Retirement;
use crate::target::Targets;

/// What comes from the control plane, and goes there.
pub(super) struct Control {
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) reports: Option<Reports>,
    pub(super) metrics: Arc<Metrics>,
}

/// Follows what the installation asks of nodes, says how this one fares, and acts on both.
pub(super) async fn start(
    context: &Context<Config>,
    me: &Me,
    (node, retirement): (&Node, Retirement),
    ledger: &Ledger,
    targets: &Targets,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Control> {
    let (config, tasks) = (&context.config, &context.tasks);
    let place = config.source()?;
    let phase = follow_phase(context, &place).await?;
    let reports = match &config.control.endpoint {
        None => None,
        Some(endpoint) => {
            let reports = Reports::new("node-agent", &context.registry);
            let expect = Expect::Kind(IdentityKind::Controller);
            let channel = Channel::tcp(endpoint, me.tls.clone(), expect, &config.client);
            let channel = channel.context("control.endpoint")?;
            let speaking = reports.clone().run(channel, tasks.stopping());
            tasks.spawn("reports", speaking);
            Some(reports)
        }
    };
    let offer = config.device_plugin.enabled.then(|| {
        let (tell, offer) = watch::channel(Offer::default());
        let plugin = DevicePlugin {
            dir: config.device_plugin.dir.clone(),
            offer,
            rpc: context.rpc.clone(),
            metrics: Arc::clone(metrics),
        };
        tasks.spawn("device plugin", plugin.run(tasks.stopping()));
        tell
    });
    let overseer = Overseer {
        node_name: config.node.name.clone(),
        instance: me.facts.instance.clone(),
        region: me.facts.region.clone(),
        tls: me.tls.clone(),
        node: follow_node(context, &place).await?,
        phase: phase.clone(),
        feed: node.source.clone(),
        gate: node.gate.clone(),
        kernel: node.complaint.clone(),
        targets: targets.clone(),
        ledger: ledger.clone(),
        offer,
        conflist: config.conflist(),
        reports: reports.clone(),
        ready: context.health.condition("node"),
        metrics: Arc::clone(metrics),
        retirement,
    };
    tasks.spawn("overseer", overseer.run(tasks.stopping()));
    Ok(Control {
        phase,
        reports,
        metrics: Arc::clone(metrics),
    })
}

/// The phase of the installation; "serve" where none is named.
async fn follow_phase(
    context: &Context<Config>,
    place: &Place,
) -> anyhow::Result<watch::Receiver<Phase>> {
    let (tell, phase) = watch::channel(Phase::Serve);
    let tasks = &context.tasks;
    let stopping = tasks.stopping();
    let Some(which) = context.config.control.which() else {
        tasks.spawn("phase", async move {
            stopping.cancelled().await;
            drop(tell);
        });
        return Ok(phase);
    };
    let (source, mut seen) = place.object(which).await.context("control.phase")?;
    tasks.spawn("phase source", source.run(tasks.stopping()));
    tasks.spawn("phase", async move {
        loop {
            let before = *tell.borrow();
            let now = before.after(&seen.borrow_and_update());
            if tell.send_if_modified(|old| std::mem::replace(old, now) != now) {
                tracing::info!(phase = ?now, "phase of the installation");
            }
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                changed = seen.changed() => if changed.is_err() {
                    stopping.cancelled().await;
                    return;
                },
            }
        }
    });
    Ok(phase)
}

/// The Node object; a folder is not asked for it.
async fn follow_node(
    context: &Context<Config>,
    place: &Place,
) -> anyhow::Result<watch::Receiver<Seen>> {
    match place {
        Place::Folder(_) => Ok(watch::channel(Seen::Absent).1),
        Place::Kubernetes(_) => {
            let which = Which::Node(context.config.node.name.clone());
            let (source, seen) = place.object(which).await.context("the Node object")?;
            let tasks = &context.tasks;
            tasks.spawn("node object", source.run(tasks.stopping()));
            Ok(seen)
        }
    }
}
