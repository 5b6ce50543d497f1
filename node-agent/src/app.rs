//! The composition root: what the agent is made of, and in which order it comes to life.

use std::net::IpAddr;
mod control;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cluster::health::Health;
use datapath::kernel::Datapath;
use mesh::run::{App, Context};
use mesh::tls::TlsMaterial;
use mesh::{authz, server};
use proto::node::v1::cni_server::CniServer;
use proto::node::v1::inspect_server::InspectServer;
use tokio::sync::watch;
use types::address::Stack;

use crate::announcer::Announcer;
use crate::api::{CniDoor, InspectDoor};
use crate::app::control::Control;
use crate::config::Config;
use crate::dial::Dial;
use crate::gate::Gate;
use crate::ledger::{self, Ledger};
use crate::metadata::{self, Facts};
use crate::metrics::Metrics;
use crate::pods::{self, Pods};
use crate::pool::Pool;
use crate::reconcile::{Reconciler, Retirement};
use crate::routes::Routes;
use crate::session::{Greeting, Sessions};
use crate::store::Store;
use crate::target::{Inputs, Sizes, Targets};
use crate::uplinks::{NodeAddresses, Uplinks};
use crate::{journal, owner, target};

/// Where the store lies below the state folder.
const STORE_FILE: &str = "agent.redb";
/// Where the DEL journal lies below the state folder.
const JOURNAL_FOLDER: &str = "del-journal";
/// Time for one metadata item.
const METADATA_TIMEOUT: Duration = Duration::from_secs(3);
/// How often certificates are looked at.
const TLS_EVERY: Duration = Duration::from_secs(30);
/// Where the kernel tells its boot id.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Every place at which a debug build can be made to die.
pub const CRASH_POINTS: &[&str] = &[
    "agent.add.before_bind",
    "agent.add.after_persist",
    "agent.add.after_kernel",
    "agent.add.before_reply",
    "agent.del.before_kernel",
    "agent.del.after_kernel",
    "agent.del.after_persist",
    "agent.eni.after_persist",
    "agent.eni.after_kernel",
    "agent.eni.after_ready",
    "agent.grant.after_persist",
    "agent.revoke.after_persist",
    "agent.remove_eni.after_kernel",
    "agent.remove_eni.after_persist",
];

/// Builds the agent; it serves when this returns.
///
/// # Errors
/// Whatever keeps the agent from starting, naming it.
pub async fn build(context: Context<Config>) -> anyhow::Result<App> {
    if !datapath::host::set_root(&context.config.node.proc_sys) {
        anyhow::bail!("node.proc_sys: settings of the kernel are reached another way already");
    }
    let metrics = Arc::new(Metrics::register(&context.registry));
    let (sizes, warnings) = context.config.sizes()?;
    for warning in warnings {
        tracing::warn!(warning, "eni_conf");
    }
    let me = identify(&context).await?;
    let ledger = open_ledger(&context)?;
    let (node, retirement) = start_node(&context, &me, &ledger, &metrics).await?;
    let targets = start_ipam(&context, &me, &node, &ledger, sizes);
    watch_readiness(&context, &ledger, &targets, &metrics);
    let control = control::start(
        &context,
        &me,
        (&node, retirement),
        &ledger,
        &targets,
        &metrics,
    )
    .await?;
    open_doors(context, me, node, ledger, targets, control)?;
    Ok(App::new())
}

/// Who this agent is.
struct Me {
    tls: TlsMaterial,
    facts: Facts,
    boot_id: String,
}

/// What works on the kernel.
struct Node {
    uplinks: Uplinks,
    pods: Pods,
    feed: cluster::pods::Pods,
    gate: Gate,
    /// How the feed fares; nothing for a folder.
    source: Option<watch::Receiver<Health>>,
    /// What the reconciler complains of.
    complaint: watch::Receiver<Option<String>>,
}

async fn identify(context: &Context<Config>) -> anyhow::Result<Me> {
    let config = &context.config;
    let tls = TlsMaterial::load(&config.tls).context("certificates")?;
    tls.register(&context.registry);
    tls.watch(TLS_EVERY, &context.tasks);
    let facts = whoami(config).await?;
    check_identity(&tls, config, &facts)?;
    let boot_id = match &config.node.boot_id {
        Some(id) => id.clone(),
        None => std::fs::read_to_string(BOOT_ID)
            .context(BOOT_ID)?
            .trim()
            .to_owned(),
    };
    Ok(Me {
        tls,
        facts,
        boot_id,
    })
}

fn open_ledger(context: &Context<Config>) -> anyhow::Result<Ledger> {
    let config = &context.config;
    let store = Store::open(&config.node.state_dir.join(STORE_FILE)).context("store")?;
    // Until ipam says otherwise both families are needed: nobody gets half of a pair.
    let pool = Pool::new(Stack::Dual, config.reuse_after());
    let (ledger, writer) = ledger::open(store, pool).context("store")?;
    let writing = context.tasks.spawn_blocking(move || writer.run());
    context.tasks.spawn_fallible("ledger", async move {
        match writing.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(anyhow::Error::from(error).context("ledger")),
            Err(error) => Err(anyhow::Error::from(error).context("ledger thread")),
        }
    });
    Ok(ledger)
}

/// Opens the kernel, adopts what is there, and keeps it so.
async fn start_node(
    context: &Context<Config>,
    me: &Me,
    ledger: &Ledger,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<(Node, Retirement)> {
    let (config, tasks) = (&context.config, &context.tasks);
    let datapath = Arc::new(Datapath::open().context("kernel")?.with_steps(step));
    let addresses = NodeAddresses {
        v4: me.facts.ipv4,
        v6: me.facts.ipv6,
    };
    let uplinks = Uplinks::new(Arc::clone(&datapath), ledger.clone(), addresses);
    let host = uplinks.host(true);
    datapath.ensure_host(&host).await.context("host settings")?;
    let place = config.source()?;
    let opened = place.pods(&config.node.name).await;
    let (source, feed) = opened.context("where pods are known from")?;
    let health = source.health();
    if let Some(health) = &health {
        watch_source(context, health.clone());
    }
    tasks.spawn("source", source.run(tasks.stopping()));
    let gate = config.gate();
    let pods = Pods::new(pods::Parts {
        ledger: ledger.clone(),
        uplinks: uplinks.clone(),
        datapath: Arc::clone(&datapath),
        gate: gate.clone(),
        feed: feed.clone(),
        patience: config.patience(),
        boot_id: me.boot_id.clone(),
        through_node: through_node(config, &me.facts)?,
    });
    let (complain, complaint) = watch::channel(None);
    let (retirement, retiring) = Retirement::pair();
    let reconciler = Reconciler {
        complaint: complain,
        retiring,
        ledger: ledger.clone(),
        uplinks: uplinks.clone(),
        pods: pods.clone(),
        datapath,
        boot_id: me.boot_id.clone(),
        metrics: Arc::clone(metrics),
        pace: config.pace(),
    };
    reconciler.adopt().await.context("adopt what is there")?;
    // After the adoption, which frees what no longer is.
    if config.policy.enabled {
        let path = config.policy.owner_socket.clone();
        tasks.spawn("policy owner", owner::hold(path, tasks.stopping()));
    }
    let following = gate.clone().follow(ledger.clone(), tasks.stopping());
    tasks.spawn("policy", following);
    tasks.spawn_fallible("reconcile", reconciler.run(tasks.stopping()));
    let folder = config.node.state_dir.join(JOURNAL_FOLDER);
    tasks.spawn(
        "journal",
        journal::run(folder, pods.clone(), tasks.stopping()),
    );
    let node = Node {
        uplinks,
        pods,
        feed,
        gate,
        source: health,
        complaint,
    };
    Ok((node, retirement))
}

/// Shows how the API server serves us, and is not ready before it has told all pods of this node once.
fn watch_source(context: &Context<Config>, health: watch::Receiver<Health>) {
    let tasks = &context.tasks;
    let metrics = cluster::metrics::Metrics::register(&context.registry);
    tasks.spawn(
        "source metrics",
        metrics.follow(health.clone(), tasks.stopping()),
    );
    let ready = context.health.condition("source");
    let stopping = tasks.stopping();
    tasks.spawn("source readiness", async move {
        let mut health = health;
        let wait = async {
            loop {
                let (synced, complaint) = {
                    let now = health.borrow_and_update();
                    (now.synced(), now.complaint())
                };
                if synced {
                    ready.met();
                    return;
                }
                ready.unmet(complaint.as_deref().unwrap_or("pods are not known yet"));
                if health.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            () = wait => {}
        }
        stopping.cancelled().await;
    });
}

/// Follows the routes, computes the wants, and keeps the sessions.
fn start_ipam(
    context: &Context<Config>,
    me: &Me,
    node: &Node,
    ledger: &Ledger,
    sizes: Sizes,
) -> Targets {
    let (config, tasks) = (&context.config, &context.tasks);
    let targets = Targets::default();
    let (latest, routes) = watch::channel(Vec::new());
    let inputs = Inputs {
        ledger: ledger.clone(),
        feed: node.feed.clone(),
        waiting: node.pods.waiting(),
        routes: routes.clone(),
        sizes,
    };
    tasks.spawn(
        "targets",
        target::run(targets.clone(), inputs, tasks.stopping()),
    );
    let dial = Dial {
        tls: me.tls.clone(),
        params: config.client,
    };
    let follow = Routes {
        dial: dial.clone(),
        replicas: config.ipam.replicas.clone(),
        cluster: config.node.cluster.clone(),
        instance: me.facts.instance.clone(),
        latest,
        targets: targets.clone(),
    };
    tasks.spawn("routes", follow.run(tasks.stopping()));
    let sessions = Sessions {
        dial,
        greeting: Greeting {
            cluster: config.node.cluster.clone(),
            node_name: config.node.name.clone(),
            instance: me.facts.instance.clone(),
            boot_id: me.boot_id.clone(),
        },
        ledger: ledger.clone(),
        uplinks: node.uplinks.clone(),
        targets: targets.clone(),
        routes,
    };
    tasks.spawn("sessions", sessions.run(tasks.clone(), tasks.stopping()));
    targets
}

fn open_doors(
    context: Context<Config>,
    me: Me,
    node: Node,
    ledger: Ledger,
    targets: Targets,
    control: Control,
) -> anyhow::Result<()> {
    let config = context.config;
    let dumped = targets.clone();
    context.admin.dump("exhausted", move || {
        let exhausted = dumped.exhausted();
        async move {
            let rows = exhausted
                .iter()
                .map(|(shard, why)| (shard.to_string(), why.clone().into()));
            serde_json::Value::Object(rows.collect())
        }
    });
    let cni = CniDoor {
        pods: node.pods,
        ledger: ledger.clone(),
        targets: targets.clone(),
        metrics: control.metrics,
        phase: control.phase,
        announcer: Announcer {
            reports: control.reports,
            feed: node.feed,
        },
    };
    let inspect = InspectDoor {
        node_name: config.node.name,
        instance: me.facts.instance,
        boot_id: me.boot_id,
        ledger,
        uplinks: node.uplinks,
        targets,
    };
    let routes =
        tonic::service::Routes::new(CniServer::new(cni)).add_service(InspectServer::new(inspect));
    server::Bound::unix(&config.node.socket, server::Params::default())
        .context("node.socket")?
        .serve(routes, authz::TABLE, &context.rpc, &context.tasks);
    Ok(())
}

/// What pods with an ENI of their own reach by way of the node.
fn through_node(config: &Config, facts: &Facts) -> anyhow::Result<Vec<ipnet::IpNet>> {
    let node = [facts.ipv4.map(IpAddr::V4), facts.ipv6.map(IpAddr::V6)];
    let node = node.into_iter().flatten().map(ipnet::IpNet::from);
    Ok(node.chain(config.service_ranges()?).collect())
}

fn step(name: &'static str) {
    mesh::crash_point!(name);
}

async fn whoami(config: &Config) -> anyhow::Result<Facts> {
    let mut pauses = crate::dial::pauses(200, 2_000);
    let mut last = None;
    for _ in 0..5 {
        match metadata::read(&config.node.metadata, METADATA_TIMEOUT).await {
            Ok(facts) => return Ok(facts),
            Err(error) => {
                tracing::warn!(%error, "metadata");
                last = Some(error);
            }
        }
        tokio::time::sleep(pauses.next_wait()).await;
    }
    let error = last.map(anyhow::Error::from);
    Err(error
        .unwrap_or_else(|| anyhow::anyhow!("no attempt was made"))
        .context("metadata service"))
}

/// The certificate must be this very instance's: with another one every replica would refuse us.
fn check_identity(tls: &TlsMaterial, config: &Config, facts: &Facts) -> anyhow::Result<()> {
    use mesh::identity::Identity;
    let expected = Identity::Node {
        cluster: config.node.cluster.as_str().into(),
        instance: facts.instance.as_str().into(),
    };
    let found = tls.identity();
    if found != expected {
        anyhow::bail!("the certificate is for {found}, this node is {expected}");
    }
    Ok(())
}

/// Ready while an address is free or ipam is reached; keeps the gauges along the way.
fn watch_readiness(
    context: &Context<Config>,
    ledger: &Ledger,
    targets: &Targets,
    metrics: &Arc<Metrics>,
) {
    let ready = context.health.condition("addresses");
    let (ledger, targets, metrics) = (ledger.clone(), targets.clone(), Arc::clone(metrics));
    let stopping = context.tasks.stopping();
    context.tasks.spawn("readiness", async move {
        let mut view = ledger.watch();
        let mut every = tokio::time::interval(Duration::from_secs(1));
        loop {
            let now = Arc::clone(&view.borrow_and_update());
            metrics.pool_free.set(now.free().into());
            metrics.pool_used.set(now.used().into());
            metrics.pool_target.set(targets.total().into());
            metrics.sessions.set(targets.session_count().into());
            if now.free() > 0 || targets.connected() {
                ready.met();
            } else {
                ready.unmet("no address is free and no ipam replica is reached");
            }
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                changed = view.changed() => if changed.is_err() { return },
                _ = every.tick() => {}
            }
        }
    });
}
