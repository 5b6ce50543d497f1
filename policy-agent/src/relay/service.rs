//! The process of the relay: documents in, frames out.

use std::path::PathBuf;

use anyhow::Context as _;
use cluster::documents::{Change, Documents};
use cluster::health::Health;
use cluster::metrics::Metrics;
use cluster::source::Place;
use mesh::authz;
use mesh::metrics::Registry;
use mesh::server::rpc_metrics::RpcMetrics;
use mesh::server::{Address, Bound};
use mesh::tasks::Tasks;
use policy_core::object::{Event, Object, ObjectKey};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tonic::service::Routes;

use crate::notices::{Notices, Role, Sink};
use crate::relay::server::Server;
use crate::relay::source::{Limits, Source};
use crate::relay::wire;

/// What a relay is made of beside its port.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The cluster whose nodes may read.
    pub cluster: &'a str,
    /// What it watches.
    pub place: &'a Place,
    /// File that gets an Event per malformed policy.
    pub notices: Option<PathBuf>,
    /// Agents at a time.
    pub agents_max: usize,
    /// Where its gauges go.
    pub registry: &'a Registry,
    /// Metrics of the port.
    pub rpc: &'a RpcMetrics,
    /// Where it runs.
    pub tasks: &'a Tasks,
}

/// A relay that serves.
#[derive(Debug)]
pub struct Relay {
    /// The state that it sends.
    pub source: Source,
    /// Its port.
    pub address: Address,
    /// Turns true, once and for good, when all documents were read.
    pub synced: watch::Receiver<bool>,
    /// How the API server fares; nothing for a folder.
    pub health: Option<watch::Receiver<Health>>,
}

/// Watches and serves agents on `bound`.
///
/// # Errors
/// When the place can not be watched.
pub async fn start(bound: Bound, parts: &Parts<'_>) -> anyhow::Result<Relay> {
    let source = Source::new(Limits::default());
    let opened = parts.place.documents(wire::wanted).await;
    let (documents, changes) = opened.context("cluster")?;
    let tasks = parts.tasks;
    let health = documents.health();
    if let Some(health) = health.clone() {
        let metrics = Metrics::register(parts.registry);
        tasks.spawn("source metrics", metrics.follow(health, tasks.stopping()));
    }
    tasks.spawn("source", documents.run(tasks.stopping()));
    let server = Server::new(source.clone(), parts.cluster, parts.agents_max, tasks);
    let gauges = Gauges::register(parts.registry);
    let (synced, is_synced) = watch::channel(false);
    let watcher = Watcher {
        source: source.clone(),
        server: server.clone(),
        gauges,
        synced,
        notices: Notices::new(
            Role::Speaker,
            Sink {
                file: parts.notices.clone(),
            },
        ),
    };
    let stopping = tasks.stopping();
    tasks.spawn("relay source", async move {
        tokio::select! {
            biased;
            () = stopping.cancelled() => {}
            () = watcher.run(changes) => {}
        }
    });
    let address = bound.address().clone();
    bound.serve(Routes::new(server), authz::TABLE, parts.rpc, tasks);
    Ok(Relay {
        source,
        address,
        synced: is_synced,
        health,
    })
}

struct Gauges {
    agents: Gauge,
    objects: Gauge,
    malformed: Gauge,
}

impl Gauges {
    fn register(registry: &Registry) -> Self {
        let gauges = Self {
            agents: Gauge::default(),
            objects: Gauge::default(),
            malformed: Gauge::default(),
        };
        registry.register(
            "policy_malformed",
            "Policies that could not be read whole",
            gauges.malformed.clone(),
        );
        registry.register(
            "policy_relay_agents",
            "Streams of agents that are open",
            gauges.agents.clone(),
        );
        registry.register(
            "policy_relay_objects",
            "Objects in the state that is sent",
            gauges.objects.clone(),
        );
        gauges
    }
}

struct Watcher {
    source: Source,
    server: Server,
    gauges: Gauges,
    synced: watch::Sender<bool>,
    notices: Notices,
}

impl Watcher {
    async fn run(mut self, mut changes: Documents) {
        let mut look = tokio::time::interval(std::time::Duration::from_secs(1));
        loop {
            tokio::select! {
                batch = changes.next() => {
                    let Some(batch) = batch else { return };
                    self.source.publish(&batch.changes, mesh::clock::wall_ms());
                    batch.changes.iter().for_each(|change| self.note(change));
                    if batch.synced {
                        self.source.set_synced();
                        self.synced.send_replace(true);
                        // Agents behind a relay say nothing of malformed policies.
                        drop(self.notices.say());
                    }
                }
                _ = look.tick() => {
                    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
                    self.gauges.agents.set(count(self.server.streams()));
                    self.gauges.objects.set(count(self.source.objects()));
                    self.gauges.malformed.set(count(self.notices.malformed()));
                }
            }
        }
    }

    /// Remembers what is wrong in a policy, to say it once for the whole cluster.
    fn note(&mut self, change: &Change) {
        match wire::event(change) {
            Some(Event::Upsert(Object::Policy(policy))) => self.notices.policy(&policy),
            Some(Event::Delete(ObjectKey::Policy(id))) => self.notices.policy_gone(&id),
            Some(_) | None => {}
        }
    }
}
