//! The composition root: what the agent is made of, and in which order it comes to life.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cluster::object::Phase;
use mesh::health::{Condition, Health};
use mesh::identity::Identity;
use mesh::metrics::Registry;
use mesh::run::{App, Context};
use mesh::tls::TlsMaterial;
use mesh::{authz, backoff, server};
use policy_core::engine::Engine;
use policy_core::layout::Settings;
use proto::policy::v1::gate_server::GateServer;
use proto::policy::v1::policies_server::PoliciesServer;
use tokio::sync::watch;
use types::pod::PodKey;

use crate::attachments::{Attached, Attachments};
use crate::config::{Config, Established, Mode};
use crate::denied::Denied;
use crate::departure::{self, Departure, PhaseWatch};
use crate::doors::{GateDoor, PoliciesDoor};
use crate::feed::{self, Fallback, Origin, Relays};
use crate::gate::{Gate, State, Waits};
use crate::lock::Lock;
use crate::metrics::Metrics;
use crate::notices::{Notices, Role, Sink};
use crate::relay::client::Client;
use crate::relay::service::{self, Parts};
use crate::rules::{self, Handover, OpenError, Place};
use crate::scope::Pending;
use crate::switches::{self, Calico, Power};
use crate::trace::Tracer;
use crate::{enforcer, probes, revoker};

/// How often certificates are looked at.
const TLS_EVERY: Duration = Duration::from_secs(30);
/// Between two looks for another Calico that is in the way, or for an owner that does not give the table up.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Where processes are seen.
const PROC: &str = "/proc";
/// The node's namespace is this process's own.
const HERE: Place = Place::Here;
/// Name of the condition of readiness.
const CONDITION: &str = "policy";

/// Every place at which a debug build can be made to die.
pub const CRASH_POINTS: &[&str] = &[
    "policy.commit.before",
    "policy.commit.after",
    "policy.revoke.before_mark",
    "policy.revoke.after_mark",
];

/// Builds the service; it serves when this returns.
///
/// # Errors
/// Whatever keeps it from starting, naming it.
pub async fn build(context: Context<Config>) -> anyhow::Result<App> {
    match context.config.mode {
        Mode::Agent => agent(context).await,
        Mode::Relay => relay(context).await,
        Mode::Remove => remove(context).await,
    }
}

async fn agent(context: Context<Config>) -> anyhow::Result<App> {
    let config = &context.config;
    let metrics = Metrics::register(&context.registry);
    let tls = certificates(&context)?;
    let wanted = switches::Settings {
        enabled: config.policy.enabled,
        registered: config.policy.registered,
        eni_config: config.policy.eni_config.clone(),
    };
    let (power, warnings) = switches::wanted(&wanted).context("policy.eni_config")?;
    for warning in warnings {
        tracing::warn!(warning, "eni-config");
    }
    lock(&context).await?;
    let list = Attachments::open(&config.node.state_dir).context("node.state_dir")?;
    let place = config.place_of_phase()?;
    let mut phase = PhaseWatch::open(config.control.which(), &place, &context.tasks).await?;
    let left = phase.first().await == Phase::Leave && list.iter().next().is_none();
    let power = if left {
        Power::Off(departure::LEFT.to_owned())
    } else {
        power
    };
    let pending = Pending::default();
    let flows = rules::flows(&HERE).context("conntrack")?;
    let (revoker, revocations) =
        revoker::new(revoking(config), flows, pending.clone(), metrics.clone());
    let waits = Waits {
        longest: Duration::from_millis(config.gate.wait_ms),
        unknown: Duration::from_millis(config.gate.unknown_ms),
    };
    let tasks = context.tasks.clone();
    let gate = Gate::new(
        list,
        revocations.clone(),
        waits,
        metrics.clone(),
        tasks.clone(),
    );
    let ready = context.health.condition(CONDITION);
    let probes = open_probes(config).await;
    let start = Start {
        config: config.clone(),
        tls,
        gate: gate.clone(),
        pending,
        metrics: metrics.clone(),
        tasks: tasks.clone(),
        registry: context.registry.clone(),
        ready,
        health: context.health.clone(),
        trouble: None,
        felix_port: probes.as_ref().err().cloned(),
    };
    if let Ok(Some(port)) = probes {
        port.serve(context.health.clone(), &tasks);
    }
    let settings = settings(config);
    let tables = vec![settings.table.clone(), settings.spoof_table.clone()];
    let of_reader = settings.clone();
    let open: enforcer::port::OpenRules = Arc::new(move || rules::reader(&HERE, &of_reader));
    let denied = Denied::new(Arc::clone(&open), gate.clone(), tasks.clone());
    let policies = PoliciesDoor {
        gate: gate.clone(),
        revoker: revocations,
        denied: denied.clone(),
        rules: open,
        tracer: Tracer::new(Arc::new(|| rules::packets(&HERE)), tables),
        tasks: tasks.clone(),
    };
    let routes = tonic::service::Routes::new(GateServer::new(GateDoor { gate: gate.clone() }))
        .add_service(PoliciesServer::new(policies));
    server::Bound::unix(&config.node.socket, server::Params::default())
        .context("node.socket")?
        .serve(routes, authz::TABLE, &context.rpc, &tasks);
    depart(&context, start.tls.clone(), phase, gate.clone(), left)?;
    match power {
        Power::On => {
            tasks.spawn("denied flows", denied.run(metrics));
            tasks.spawn_fallible("start", start.run(revoker));
        }
        Power::Off(why) | Power::Refused(why) => {
            tracing::info!(why, "policy is off");
            // What was written while policy was on would go on dropping.
            take_away(config, &gate.known(), &tasks).await?;
            gate.set_state(State::Off(why));
            start.ready.met();
        }
    }
    Ok(App::new())
}

/// Says how we fare, and leaves when that is asked.
fn depart(
    context: &Context<Config>,
    tls: Option<TlsMaterial>,
    phase: PhaseWatch,
    gate: Gate,
    left: bool,
) -> anyhow::Result<()> {
    let (config, tasks) = (&context.config, &context.tasks);
    let instance = match tls.as_ref().map(TlsMaterial::identity) {
        Some(Identity::Node { instance, .. }) => instance.into(),
        Some(_) | None => String::new(),
    };
    let reports = match (&config.control.endpoint, tls) {
        (Some(endpoint), Some(tls)) => {
            let (params, registry) = (&config.client, &context.registry);
            let reports = departure::reports(endpoint, tls, params, registry, tasks)?;
            Some(reports)
        }
        (None, _) | (_, None) => None,
    };
    let departure = Departure {
        node_name: config.node.name.clone(),
        instance,
        phase,
        gate,
        reports,
        left,
        tasks: tasks.clone(),
    };
    tasks.spawn("departure", departure.run());
    Ok(())
}

/// Takes the node for this agent, until the process ends.
async fn lock(context: &Context<Config>) -> anyhow::Result<()> {
    let config = &context.config;
    let lock = Lock::take(&config.node.state_dir, config.owner_wait()).await?;
    let stopping = context.tasks.stopping();
    context.tasks.spawn("lock", async move {
        stopping.cancelled().await;
        drop(lock);
    });
    Ok(())
}

fn certificates(context: &Context<Config>) -> anyhow::Result<Option<TlsMaterial>> {
    let Some(params) = &context.config.tls else {
        return Ok(None);
    };
    let tls = TlsMaterial::load(params).context("certificates")?;
    tls.register(&context.registry);
    tls.watch(TLS_EVERY, &context.tasks);
    Ok(Some(tls))
}

fn revoking(config: &Config) -> revoker::Params {
    revoker::Params {
        judge: config.revoke.established == Established::Reevaluate,
        bit: config.policy.revoke_bit,
        pause: Duration::from_millis(config.revoke.pause_ms),
        again: Duration::from_millis(config.revoke.again_ms),
    }
}

fn settings(config: &Config) -> Settings {
    // The name of a link follows from the pod's for Terway's own prefix; others are known when the gate is asked.
    let usual = config
        .policy
        .veth_prefixes
        .iter()
        .any(|p| p == datapath::names::DEFAULT_VETH_PREFIX);
    let name: fn(&PodKey) -> String = link_name;
    Settings {
        veth_prefixes: config.policy.veth_prefixes.clone(),
        link_name: usual.then_some(name),
        revoke_bit: config.policy.revoke_bit,
        anti_spoof: config.policy.anti_spoof,
        always_allowed: config.policy.host_stack_cidrs.clone(),
        owner: config.policy.owned,
        persist: config.policy.owned,
        ..Settings::default()
    }
}

/// The link that a pod will get.
fn link_name(pod: &PodKey) -> String {
    // The default prefix is good.
    datapath::names::host_link("", pod, "eth0").unwrap_or_default()
}

/// Opens the port for probes made for Felix; in words who else may have it.
async fn open_probes(config: &Config) -> Result<Option<probes::Bound>, String> {
    let listen = config.felix_health.listen;
    if !config.felix_health.enabled {
        return Ok(None);
    }
    match probes::Bound::open(listen).await {
        Ok(port) => Ok(Some(port)),
        Err(error) => {
            tracing::warn!(%listen, %error, "the port for Felix' probes is not open");
            Err(format!("somebody serves Felix' health port {listen}"))
        }
    }
}

/// What it takes to put policy in force.
struct Start {
    config: Config,
    tls: Option<TlsMaterial>,
    gate: Gate,
    pending: Pending,
    metrics: Metrics,
    tasks: mesh::tasks::Tasks,
    registry: Registry,
    ready: Condition,
    health: Health,
    /// What is wrong with the feed, once there is one.
    trouble: Option<watch::Receiver<Option<String>>>,
    /// Who may have Felix' health port; looked at again until nobody has it.
    felix_port: Option<String>,
}

impl Start {
    /// Waits until nothing is in the way, starts the threads, and stays until drain.
    async fn run(mut self, revoker: revoker::Revoker) -> anyhow::Result<()> {
        let stopping = self.tasks.stopping();
        tokio::select! {
            biased;
            () = stopping.cancelled() => return Ok(()),
            () = self.no_calico() => {}
        }
        let path = &self.config.policy.owner_socket;
        let mut handover = Handover::listen(path).context("policy.owner_socket")?;
        let opened = tokio::select! {
            biased;
            () = stopping.cancelled() => return Ok(()),
            opened = self.kernel(&mut handover) => opened?,
        };
        let settings = opened.settings.clone();
        if let Some(socket) = opened.owner {
            handover.keep(socket, &self.tasks);
        }
        let engine = Engine::new(&self.config.node.name, opened.settings);
        let notices = Notices::new(
            self.role(),
            Sink {
                file: self.config.notices.file.clone(),
            },
        );
        let feed = feed::open(self.origin()?, &self.tasks, &self.registry)
            .await
            .context("feed")?;
        self.trouble = Some(feed.trouble());
        let params = |known| enforcer::Params {
            engine,
            rules: opened.rules,
            notices,
            metrics: self.metrics.clone(),
            pending: self.pending.clone(),
            retry: backoff::Params {
                first_ms: self.config.policy.retry_first_ms,
                max_ms: self.config.policy.retry_max_ms,
            },
            known,
        };
        let handle = self
            .gate
            .enforce(|known| enforcer::start(params(known), feed, &self.tasks))
            .await?;
        revoker
            .start(handle.clone(), &self.tasks)
            .context("start the revoker")?;
        if !settings.owner {
            // The kernel keeps others out of what is owned.
            rules::watch(&HERE, &settings, opened.port, handle.clone(), &self.tasks)
                .context("watch the kernel")?;
        }
        self.follow(&handle).await
    }

    /// Keeps readiness: met once the first whole state is in the kernel.
    async fn follow(&self, handle: &enforcer::Handle) -> anyhow::Result<()> {
        let stopping = self.tasks.stopping();
        let mut every = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => return Ok(()),
                _ = every.tick() => {}
            }
            match handle.readiness().await {
                Ok(None) => self.ready.met(),
                Ok(Some(why)) => {
                    // Before the first whole state the reason is often who tells it.
                    let trouble = self.trouble.as_ref().and_then(|t| t.borrow().clone());
                    let why = [Some(why), trouble].into_iter().flatten();
                    self.ready.unmet(&why.collect::<Vec<_>>().join("; "));
                }
                Err(why) => self.ready.unmet(&why.to_string()),
            }
        }
    }

    /// Waits until no other Calico owns the node.
    async fn no_calico(&mut self) {
        loop {
            self.look_at_felix_port().await;
            let look = {
                let (felix, settings) = (self.felix_port.clone(), settings(&self.config));
                self.tasks.spawn_blocking(move || {
                    let chains = rules::foreign_chains(&HERE, &settings)?;
                    Ok::<_, OpenError>(Calico::look(&chains, Path::new(PROC), felix))
                })
            };
            match look.await {
                Ok(Ok(found)) => {
                    if let Some(left) = found.leftovers() {
                        tracing::warn!(left, "they go on judging packets");
                    }
                    match found.refusal() {
                        None => return,
                        Some(why) => {
                            tracing::error!(why, "policy is refused");
                            self.ready.unmet(&why);
                            self.gate.set_state(State::Refused(why));
                        }
                    }
                }
                Ok(Err(error)) => {
                    let why = format!("the kernel's chains can not be read: {error}");
                    tracing::error!(why, "policy waits");
                    self.ready.unmet(&why);
                    self.gate.set_state(State::Starting(why));
                }
                Err(_) => return,
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Opens Felix' health port, should whoever had it be gone.
    async fn look_at_felix_port(&mut self) {
        if self.felix_port.is_none() {
            return;
        }
        match open_probes(&self.config).await {
            Ok(port) => {
                if let Some(port) = port {
                    port.serve(self.health.clone(), &self.tasks);
                }
                self.felix_port = None;
            }
            Err(who) => self.felix_port = Some(who),
        }
    }

    /// Opens the kernel, as the owner of the table where that can be.
    async fn kernel(&self, handover: &mut Handover) -> anyhow::Result<rules::Opened> {
        let settings = settings(&self.config);
        let wait = self.config.owner_wait();
        loop {
            match handover.open(&HERE, &settings, wait, &self.tasks).await {
                Ok(opened) => return Ok(opened),
                Err(OpenError::Owned(why)) => {
                    tracing::error!(why, "policy waits for the table's owner");
                    self.ready.unmet(&why);
                    self.gate.set_state(State::Starting(why));
                }
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn role(&self) -> Role {
        let name = self.config.node.name.clone();
        if self.config.feed.relays.is_empty() {
            Role::Node(name)
        } else {
            Role::Silent(name)
        }
    }

    fn origin(&self) -> anyhow::Result<Origin> {
        let feed = &self.config.feed;
        let fallback = self.config.source()?.map(|place| Fallback {
            place,
            after: Duration::from_millis(feed.fallback_ms),
        });
        match (&self.tls, fallback) {
            (_, Some(fallback)) if feed.relays.is_empty() => Ok(Origin::Direct(fallback.place)),
            (Some(tls), fallback) if !feed.relays.is_empty() => Ok(Origin::Relays(Relays {
                targets: feed.relays.clone(),
                client: Client {
                    tls: tls.clone(),
                    params: self.config.client,
                    cluster: self.config.node.cluster.as_str().to_owned(),
                    node_name: self.config.node.name.clone(),
                },
                fallback,
            })),
            _ => anyhow::bail!("feed names nothing that can be read"),
        }
    }
}

async fn relay(context: Context<Config>) -> anyhow::Result<App> {
    let tls = certificates(&context)?.context("tls is missing")?;
    let config = &context.config;
    let place = config.source()?;
    let bound = server::Bound::tcp(config.relay.listen, tls, config.relay.server)
        .await
        .context("relay.listen")?;
    let parts = Parts {
        cluster: config.node.cluster.as_str(),
        place: place.as_ref().context("cluster names nothing to watch")?,
        notices: config.notices.file.clone(),
        agents_max: config.relay.agents_max,
        registry: &context.registry,
        rpc: &context.rpc,
        tasks: &context.tasks,
    };
    let relay = service::start(bound, &parts).await?;
    let ready = context.health.condition("feed");
    let (mut synced, health) = (relay.synced, relay.health);
    let stopping = context.tasks.stopping();
    context.tasks.spawn("readiness", async move {
        let mut look = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                // It fails when the source has ended, which ends the process by itself.
                listed = synced.wait_for(|synced| *synced) => {
                    if listed.is_ok() {
                        ready.met();
                    }
                    break;
                }
                _ = look.tick() => {
                    let why = health.as_ref().and_then(|health| health.borrow().complaint());
                    ready.unmet(why.as_deref().unwrap_or("not everything was read yet"));
                }
            }
        }
        stopping.cancelled().await;
    });
    Ok(App::new())
}

/// Removes our tables from the node and from namespaces of pods; what is owned, by the socket that owns it.
async fn take_away(
    config: &Config,
    known: &[Attached],
    tasks: &mesh::tasks::Tasks,
) -> anyhow::Result<()> {
    let namespaces = known.iter().filter(|a| a.host_link.is_empty());
    let namespaces: Vec<String> = namespaces.map(|a| a.netns.clone()).collect();
    let settings = settings(config);
    let mut handover =
        Handover::listen(&config.policy.owner_socket).context("policy.owner_socket")?;
    handover
        .remove(&HERE, &settings, &namespaces, config.owner_wait(), tasks)
        .await
        .context("remove our tables")
}

/// Removes what an agent made, and ends the process.
async fn remove(context: Context<Config>) -> anyhow::Result<App> {
    let config = &context.config;
    // An agent that lives would make them again.
    lock(&context).await?;
    let list = Attachments::open(&config.node.state_dir).context("node.state_dir")?;
    let known: Vec<Attached> = list.iter().cloned().collect();
    take_away(config, &known, &context.tasks).await?;
    tracing::info!("our tables are removed");
    context.tasks.drain().start("our tables are removed");
    Ok(App::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crash_points_are_those_of_the_parts() {
        let parts: Vec<&str> = [enforcer::CRASH_POINTS, revoker::CRASH_POINTS].concat();

        assert_eq!(CRASH_POINTS, parts);
    }

    #[test]
    fn link_of_a_pod_is_known_from_its_name() {
        // printf 'default.web-0' | sha1sum
        let pod = PodKey::new("default", "web-0");

        assert_eq!(link_name(&pod), "cali0d7763386da");
    }
}
