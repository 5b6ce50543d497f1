//! How the parts are put together.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use ipam_core::plan::PlanPolicy;
use ipam_core::spec::ShardSpec;
use k8s_api::eni_conf::EniConf;
use mesh::admin::Admin;
use mesh::authz::TABLE;
use mesh::backoff::{Backoff, Params as BackoffParams};
use mesh::client::Channel;
use mesh::identity::{Identity, IdentityKind};
use mesh::run::{App, Context};
use mesh::server::{Address, Bound};
use mesh::tasks::Tasks;
use mesh::tls::TlsMaterial;
use mesh::tls::verify::Expect;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use types::cloud::VSwitchId;
use types::op::ShardId;

use crate::api::Api;
use crate::cloud::Cloud;
use crate::config::{Config, StoreKind, Timing};
use crate::door::Door;
use crate::drive::Driver;
use crate::facts::Facts;
use crate::gone::GoneNodes;
use crate::log::etcd::endpoint::Security;
use crate::log::etcd::{EtcdKv, Settings as EtcdSettings};
use crate::log::keys::Keys;
use crate::log::kv::Kv;
use crate::log::memory::MemoryKv;
use crate::log::redb::RedbKv;
use crate::log::shards::KvLog;
use crate::log::{ReplicaId, SharedLog};
use crate::membership::{Advert, Membership, ShardEntry, Timing as MembershipTiming};
use crate::metrics::Metrics;
use crate::owned::Owned;
use crate::owner::Limits;
use crate::plan::Planner;
use crate::reconcile::Reconciler;
use crate::replica::{Parts, Replica};
use crate::routing::Router;
use crate::session::registry::Registry as Sessions;
use crate::space::{Misfit, Space};

/// How often certificates are looked at.
const TLS_REREAD: Duration = Duration::from_secs(30);

/// How long the start waits for the gateway and the store before it gives up.
///
/// Reason: start order is gateway first; a gateway that restarts takes seconds.
const START_WITHIN: Duration = Duration::from_mins(2);

/// Wait before shards are told to the store again.
const MAP_AGAIN: Duration = Duration::from_secs(1);

/// A replica that runs.
#[derive(Debug)]
pub struct Running {
    /// Where nodes reach it.
    pub address: SocketAddr,
    /// Its shards.
    pub replica: Replica,
    stop: CancellationToken,
}

impl Running {
    /// Stops everything at once, as a crash does: nothing is handed over, no session is closed.
    pub fn abandon(&self) {
        self.stop.cancel();
    }
}

/// Builds the service as its `main` does.
///
/// # Errors
/// Whatever keeps it from serving.
pub async fn build(context: Context<Config>) -> anyhow::Result<App> {
    let tls = TlsMaterial::load(&context.config.tls)?;
    tls.register(&context.registry);
    tls.watch(TLS_REREAD, &context.tasks);
    let kv = open_store(&context.config, &tls).await?;
    let running = start(context, tls, kv).await?;
    let replica = running.replica.clone();
    Ok(App::new().on_hand_over(async move { replica.give_up().await }))
}

/// Opens the configured store.
///
/// # Errors
/// A file or endpoint that can not be used.
pub async fn open_store(config: &Config, tls: &TlsMaterial) -> anyhow::Result<Arc<dyn Kv>> {
    let store = &config.store;
    Ok(match store.kind {
        StoreKind::Memory => Arc::new(MemoryKv::new()),
        StoreKind::Redb => {
            if let Some(dir) = store.path.parent() {
                tokio::fs::create_dir_all(dir)
                    .await
                    .with_context(|| format!("make folder {}", dir.display()))?;
            }
            Arc::new(RedbKv::open(&store.path)?)
        }
        StoreKind::Etcd => {
            let security = if store.insecure {
                warn!("etcd is spoken to without TLS");
                Security::Insecure
            } else {
                Security::MutualTls(tls.clone())
            };
            let settings = EtcdSettings {
                endpoints: store.endpoints.clone(),
                security,
            };
            Arc::new(EtcdKv::new(&settings).await?)
        }
    })
}

/// Starts a replica on a store. Tests and simulations give their own.
///
/// # Errors
/// Whatever keeps it from serving: an unknown vSwitch is named.
pub async fn start(
    context: Context<Config>,
    tls: TlsMaterial,
    kv: Arc<dyn Kv>,
) -> anyhow::Result<Running> {
    let Context {
        config,
        tasks,
        health,
        registry,
        rpc,
        admin,
    } = context;
    let id = replica_id(&tls)?;
    let eni_conf = read_eni_conf(&config).await?;
    let metrics = Metrics::default();
    metrics.register(&registry);
    let cloud = Cloud::new(
        config.cluster.authority().to_owned(),
        channels(&config, &tls)?,
        Timing::ms(config.timing.cloud_call),
    );
    let space = Space::new(&config, &eni_conf, cloud.clone(), &metrics)?;
    // The port is open before anybody is told of it, and tells whoever comes sooner what it waits for.
    let port = Bound::tcp(config.listen.grpc, tls, config.server).await?;
    let Address::Tcp(address) = port.address().clone() else {
        bail!("the gRPC port is no TCP port");
    };
    let door = Door::new(space.clone());
    port.serve(door.routes(), TABLE, &rpc, &tasks);
    show_faults(&admin, &space, Vec::new);
    space.open(&health.condition("vswitches")).await?;
    let keys = Keys::new(&config.store.prefix)?;
    let log: SharedLog = Arc::new(KvLog::new(Arc::clone(&kv), keys.clone()));
    let advertise = if config.listen.advertise.is_empty() {
        address.to_string()
    } else {
        config.listen.advertise.clone()
    };
    let store = kv.kind();
    let membership = join(&config, kv, keys, id.clone(), advertise, &tasks).await?;
    membership.ensure_map(&entries(&space.specs())).await?;
    let replica = Replica::new(id, membership.clone());
    let facts = Arc::new(Facts::new(
        cloud.clone(),
        eni_conf.stack,
        eni_conf.security_groups.clone(),
        Timing::ms(config.timing.facts),
    ));
    let parts = parts(
        &config,
        &eni_conf,
        Machinery {
            log,
            membership: &membership,
            space: &space,
            cloud: cloud.clone(),
            facts: &facts,
            metrics: &metrics,
            tasks: &tasks,
        },
    );
    let stop = CancellationToken::new();
    let space_follows = follow_space(space.clone(), membership.clone(), stop.clone());
    tasks.spawn_once("space", space_follows);
    run(&tasks, replica.clone().run(parts, stop.clone()), &stop);
    let sessions = Sessions::new(config.limits.sessions, metrics.clone());
    let gone = GoneNodes::new(
        replica.clone(),
        cloud,
        sessions.clone(),
        Timing::ms(config.timing.reconcile_age),
        metrics.clone(),
    );
    let api = Api {
        router: Router::new(
            replica.clone(),
            membership.ownership(),
            eni_conf.vswitches.clone(),
            eni_conf.vswitch_policy,
            space.faults(),
        ),
        replica: replica.clone(),
        facts,
        registry: sessions,
        gone,
        cluster: config.cluster.id.clone(),
        store,
        session_queue: config.limits.session_queue,
        tasks: tasks.clone(),
        metrics,
    };
    let shown = replica.clone();
    admin.dump("shards", move || std::future::ready(summary(&shown)));
    let shown = replica.clone();
    show_faults(&admin, &space, move || shown.all());
    door.open(api.routes());
    info!(replica = %replica.id(), %address, store, "the replica serves");
    Ok(Running {
        address,
        replica,
        stop,
    })
}

/// Runs the replica until it is abandoned or the service stops.
fn run(
    tasks: &Tasks,
    replica: impl Future<Output = ()> + Send + 'static,
    stop: &CancellationToken,
) {
    let (stopping, ending) = (tasks.stopping(), stop.clone());
    tasks.spawn_once("replica", replica);
    tasks.spawn_once("stop", async move {
        tokio::select! {
            () = stopping.cancelled() => ending.cancel(),
            () = ending.cancelled() => {}
        }
    });
}

async fn read_eni_conf(config: &Config) -> anyhow::Result<EniConf> {
    let path = &config.cluster.eni_conf;
    let text = tokio::fs::read_to_string(path)
        .await
        .with_context(|| format!("cluster.eni_conf: read {}", path.display()))?;
    let eni_conf =
        EniConf::parse(&text).with_context(|| format!("cluster.eni_conf: {}", path.display()))?;
    for warning in &eni_conf.warnings {
        warn!(warning, "eni_conf");
    }
    Ok(eni_conf)
}

fn replica_id(tls: &TlsMaterial) -> anyhow::Result<ReplicaId> {
    match tls.identity() {
        Identity::Ipam { replica } => Ok(replica.parse()?),
        other @ (Identity::Node { .. }
        | Identity::Gateway { .. }
        | Identity::Controller { .. }
        | Identity::Relay { .. }
        | Identity::Admin { .. }
        | Identity::Etcd { .. }) => {
            bail!("tls.cert: the certificate is of {other}, not of an ipam replica")
        }
    }
}

fn channels(config: &Config, tls: &TlsMaterial) -> anyhow::Result<Vec<Channel>> {
    let params = mesh::client::Params {
        deadline_ms: config.timing.cloud_call,
        ..mesh::client::Params::default()
    };
    config
        .cloud
        .gateways
        .iter()
        .map(|gateway| {
            let expect = Expect::Kind(IdentityKind::Gateway);
            Channel::tcp(gateway, tls.clone(), expect, &params).context("cloud.gateways")
        })
        .collect()
}

async fn join(
    config: &Config,
    kv: Arc<dyn Kv>,
    keys: Keys,
    id: ReplicaId,
    address: String,
    tasks: &Tasks,
) -> anyhow::Result<Membership> {
    let advert = Advert {
        id,
        address,
        zone: config.replica.zone.clone(),
        capacity: config.replica.capacity.max(1),
    };
    let ttl = Timing::ms(config.timing.session_ttl);
    let timing = MembershipTiming {
        session_ttl: ttl,
        renew_every: ttl / 4,
        stop_after: ttl * 3 / 4,
        poll_every: Timing::ms(config.timing.membership_poll),
        rebalance_after: Timing::ms(config.timing.rebalance_after),
        ..MembershipTiming::default()
    };
    let mut backoff = Backoff::default();
    let deadline = tokio::time::Instant::now() + START_WITHIN;
    loop {
        let joined =
            Membership::join(Arc::clone(&kv), keys.clone(), advert.clone(), timing, tasks).await;
        match joined {
            Ok(membership) => return Ok(membership),
            Err(error) if tokio::time::Instant::now() >= deadline => return Err(error.into()),
            Err(error) => {
                warn!(%error, "the store can not be joined yet");
                tokio::time::sleep(backoff.next_wait()).await;
            }
        }
    }
}

/// Makes shards of vSwitches that are usable after all.
async fn follow_space(space: Space, membership: Membership, stop: CancellationToken) {
    let mut specs = space.watch();
    let follow = async {
        loop {
            let found = specs.borrow_and_update().clone();
            if let Err(error) = membership.ensure_map(&entries(&found)).await {
                warn!(%error, "shards were not made known");
                tokio::time::sleep(MAP_AGAIN).await;
                specs.mark_changed();
            }
            if specs.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = space.follow() => {}
        () = follow => {}
    }
}

fn entries(specs: &BTreeMap<ShardId, ShardSpec>) -> Vec<ShardEntry> {
    specs
        .values()
        .map(|spec| ShardEntry {
            shard: spec.id().clone(),
            zone: spec.vswitch().zone.clone(),
            ipv4: Some(spec.v4_block()),
            ipv6: spec.v6_block(),
        })
        .collect()
}

struct Machinery<'a> {
    log: SharedLog,
    membership: &'a Membership,
    space: &'a Space,
    cloud: Cloud,
    facts: &'a Arc<Facts>,
    metrics: &'a Metrics,
    tasks: &'a Tasks,
}

fn parts(config: &Config, eni_conf: &EniConf, machinery: Machinery<'_>) -> Parts {
    let Machinery {
        log,
        membership,
        space,
        cloud,
        facts,
        metrics,
        tasks,
    } = machinery;
    let (timing, limits) = (&config.timing, &config.limits);
    Parts {
        limits: Limits {
            queue: limits.shard_queue,
            snapshot_every: limits.snapshot_every,
            store_call: Timing::ms(timing.store_call),
            tick: Timing::ms(timing.tick),
        },
        driver: Driver {
            cloud: cloud.clone(),
            cluster: config.cluster.id.clone(),
            eni_tags: eni_conf.eni_tags.clone(),
            operations: limits.operations,
            backoff: BackoffParams {
                first_ms: timing.retry_min,
                max_ms: timing.retry_max,
            },
            blocked: Timing::ms(timing.blocked),
            metrics: metrics.clone(),
        },
        planner: Planner {
            log: Arc::clone(&log),
            policy: PlanPolicy {
                settle: Timing::ms(timing.shrink_after),
                ..PlanPolicy::default()
            },
            every: Timing::ms(timing.plan_every),
            retry_after: Timing::ms(timing.blocked),
            vpcs: space.vpcs(),
            fault_age: (Timing::ms(timing.blocked) + Timing::ms(timing.retry_max)) * 3,
            metrics: metrics.clone(),
        },
        reconciler: Reconciler {
            cloud,
            facts: Arc::clone(facts),
            every: Timing::ms(timing.reconcile_every),
            age: Timing::ms(timing.reconcile_age),
            metrics: metrics.clone(),
        },
        log,
        membership: membership.clone(),
        specs: space.watch(),
        metrics: metrics.clone(),
        tasks: tasks.clone(),
    }
}

/// Shows what a person must mend; replaces what was shown before.
fn show_faults(
    admin: &Admin,
    space: &Space,
    shards: impl Fn() -> Vec<Arc<Owned>> + Send + Sync + 'static,
) {
    let of_space = space.faults();
    admin.dump("faults", move || {
        std::future::ready(faults(&shards(), &of_space.borrow()))
    });
}

/// What the admin port shows of what a person must mend.
fn faults(shards: &[Arc<Owned>], of_space: &BTreeMap<VSwitchId, Misfit>) -> serde_json::Value {
    let mut rows: Vec<serde_json::Value> = of_space
        .iter()
        .map(|(vswitch, misfit)| misfit.fault.row("vswitch", vswitch.as_str()))
        .collect();
    for owned in shards {
        let faults = owned.faults.borrow();
        rows.extend(faults.all().map(|(instance, fault)| {
            let mut row = fault.row("instance", instance.as_str());
            if let Some(fields) = row.as_object_mut() {
                fields.insert("shard".to_owned(), owned.id().to_string().into());
            }
            row
        }));
    }
    serde_json::Value::Array(rows)
}

/// What the admin port shows.
fn summary(replica: &Replica) -> serde_json::Value {
    let shards: Vec<serde_json::Value> = replica
        .all()
        .iter()
        .map(|owned| {
            let view = owned.handle.view();
            let nodes = owned.demand.borrow().len();
            serde_json::json!({
                "shard": owned.id().to_string(),
                "epoch": view.epoch.0,
                "seq": view.shard.last_seq().0,
                "enis": view.shard.enis().count(),
                "open_ops": view.shard.open_ops().count(),
                "nodes": nodes,
            })
        })
        .collect();
    serde_json::Value::Array(shards)
}
