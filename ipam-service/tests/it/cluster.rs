//! A cluster in this process: a fake cloud behind a real gateway port, replicas on one store, certificates of our own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ipam_service::app::{self, Running};
use ipam_service::config::Config;
use ipam_service::log::kv::Kv;
use ipam_service::log::memory::MemoryKv;
use mesh::ca::{Authority, Leaf};
use mesh::client::{Channel, Params};
use mesh::drain::Drain;
use mesh::health::Health;
use mesh::identity::{Identity, IdentityKind};
use mesh::metrics::Registry;
use mesh::run::Context;
use mesh::server::rpc_metrics::RpcMetrics;
use mesh::server::{Address, Bound};
use mesh::tasks::Tasks;
use mesh::telemetry::Telemetry;
use mesh::tls::verify::Expect;
use mesh::tls::{TlsConfig, TlsMaterial};
use proto::cloud::v1::cloud_server::CloudServer;
use proto::ipam::v1 as wire;
use tempfile::TempDir;
use tonic::service::Routes;

use crate::cloud::FakeGateway;

/// The longest wait for anything. A busy machine needs a part of it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const ZONE: &str = "cn-test-a";

/// See the module.
pub(crate) struct Cluster {
    pub(crate) gateway: FakeGateway,
    pub(crate) kv: Arc<dyn Kv>,
    pub(crate) eni_conf: String,
    /// Added to the configuration, later wins.
    pub(crate) extra: String,
    /// How long a surplus must last before it goes back, in milliseconds.
    pub(crate) shrink_after: u64,
    /// Readiness of its one replica.
    pub(crate) health: Health,
    /// Metrics of its one replica.
    pub(crate) registry: Registry,
    authority: Authority,
    dir: TempDir,
    gateway_at: SocketAddr,
    pub(crate) tasks: Tasks,
}

/// A replica of a cluster.
pub(crate) struct Replica {
    pub(crate) running: Running,
    tasks: Tasks,
}

impl Replica {
    /// Ends it as a crash does: nothing is handed over.
    pub(crate) async fn crash(self) {
        self.running.abandon();
        self.tasks.drain().stop();
        assert!(self.tasks.wait(PATIENCE).await, "tasks did not end");
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.running.abandon();
        self.tasks.drain().stop();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.tasks.drain().stop();
    }
}

impl Cluster {
    /// Two vSwitches of one zone with four shards each, one node type with `enis` ENIs of `per_eni` addresses.
    pub(crate) async fn new(enis: u32, per_eni: u32) -> Self {
        let gateway = FakeGateway::new();
        {
            let mut world = gateway.world();
            world.add_vswitch("vsw-a", ZONE, "10.1.0.0/24", "2001:db8:1::/64");
            world.add_vswitch("vsw-b", ZONE, "10.2.0.0/24", "2001:db8:2::/64");
            for node in ["i-a", "i-b", "i-c"] {
                world.add_instance(node, ZONE, enis, per_eni);
            }
        }
        let routes = Routes::new(CloudServer::new(gateway.clone()));
        Self::behind(routes, gateway, Tasks::new(Drain::new())).await
    }

    /// Behind a gateway with these routes; the fake one is for those who have it.
    pub(crate) async fn behind(routes: Routes, gateway: FakeGateway, tasks: Tasks) -> Self {
        mesh::tls::install_provider();
        install_telemetry();
        let authority = Authority::new(Duration::from_hours(1)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let tls = material(&authority, &dir, &Identity::gateway("g1"));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let port = Bound::tcp(any, tls, mesh::server::Params::default())
            .await
            .unwrap();
        let Address::Tcp(gateway_at) = port.address().clone() else {
            panic!("not TCP")
        };
        let rpc = RpcMetrics::register(&Registry::new());
        port.serve(routes, mesh::authz::TABLE, &rpc, &tasks);
        Self {
            gateway,
            kv: Arc::new(MemoryKv::new()),
            eni_conf: format!(
                r#"{{"vswitches": {{"{ZONE}": ["vsw-a", "vsw-b"]}}, "ip_stack": "dual", "security_groups": ["sg-pod"]}}"#
            ),
            extra: String::new(),
            shrink_after: 3_600_000,
            health: Health::new(),
            registry: Registry::new(),
            authority,
            dir,
            gateway_at,
            tasks,
        }
    }

    pub(crate) fn tls(&self, identity: &Identity) -> TlsMaterial {
        material(&self.authority, &self.dir, identity)
    }

    pub(crate) fn config(&self) -> Config {
        let eni_conf = self.dir.path().join("eni_conf");
        std::fs::write(&eni_conf, &self.eni_conf).unwrap();
        let text = format!(
            r#"
            tls = {{ ca = "/nowhere", cert = "/nowhere", key = "/nowhere" }}
            store.kind = "memory"
            cloud.gateways = ["{}"]
            cluster.id = "c1"
            cluster.eni_conf = "{}"
            cluster.shard_prefix_len = 26
            listen.grpc = "127.0.0.1:0"
            timing.cooldown = 100
            timing.shrink_after = {}
            timing.tick = 20
            timing.plan_every = 200
            timing.retry_min = 10
            timing.retry_max = 50
            timing.cloud_call = 60000
            timing.blocked = 1000
            timing.membership_poll = 50
            timing.session_ttl = 4000
            {}
            "#,
            self.gateway_at,
            eni_conf.display(),
            self.shrink_after,
            self.extra,
        );
        let file = self.dir.path().join("ipam.toml");
        std::fs::write(&file, text).unwrap();
        let sources = mesh::config::Sources {
            file: Some(file),
            ..mesh::config::Sources::default()
        };
        mesh::run::configure(&sources).unwrap()
    }

    pub(crate) async fn try_start(&self, name: &str) -> anyhow::Result<Replica> {
        let tasks = Tasks::new(Drain::new());
        // Several replicas of a test share them, which hurts nobody who does not look.
        let registry = self.registry.clone();
        let context = Context {
            config: self.config(),
            tasks: tasks.clone(),
            health: self.health.clone(),
            rpc: RpcMetrics::register(&registry),
            registry,
            admin: mesh::admin::Admin::new(),
        };
        let tls = self.tls(&Identity::ipam(name));
        let running = app::start(context, tls, Arc::clone(&self.kv)).await?;
        Ok(Replica { running, tasks })
    }

    /// A replica that owns all shards.
    pub(crate) async fn start(&self, name: &str) -> Replica {
        let replica = self.try_start(name).await.unwrap();
        let mut owned = replica.running.replica.watch();
        let all = owned.wait_for(|owned| owned.len() == 8);
        tokio::time::timeout(PATIENCE, all)
            .await
            .expect("all shards are claimed")
            .unwrap();
        replica
    }

    pub(crate) fn channel(&self, replica: &Replica, identity: &Identity) -> Channel {
        let target = replica.running.address.to_string();
        let expect = Expect::Kind(IdentityKind::Ipam);
        Channel::tcp(&target, self.tls(identity), expect, &Params::default())
            .unwrap()
            .without_deadline()
    }

    pub(crate) async fn dump(&self, replica: &Replica) -> Vec<wire::ShardDump> {
        let channel = self.channel(replica, &Identity::admin("tester"));
        let mut client = wire::admin_client::AdminClient::new(channel);
        let mut stream = client
            .dump_shards(wire::DumpShardsRequest::default())
            .await
            .unwrap()
            .into_inner();
        let mut dumps = Vec::new();
        while let Some(dump) = stream.message().await.unwrap() {
            dumps.push(dump);
        }
        dumps
    }

    /// Waits until `wanted` holds of the dump of all shards.
    pub(crate) async fn until_dump(
        &self,
        replica: &Replica,
        what: &str,
        wanted: impl Fn(&[wire::ShardDump]) -> bool,
    ) {
        let wait = async {
            loop {
                // Any commit of any shard may make it true.
                let views: Vec<_> = replica
                    .running
                    .replica
                    .all()
                    .iter()
                    .map(|o| o.handle.watch())
                    .collect();
                if wanted(&self.dump(replica).await) {
                    return;
                }
                let mut changes: futures::stream::FuturesUnordered<_> = views
                    .into_iter()
                    .map(|mut view| async move { view.changed().await.is_ok() })
                    .collect();
                futures::StreamExt::next(&mut changes).await;
            }
        };
        let result = tokio::time::timeout(PATIENCE, wait).await;
        assert!(
            result.is_ok(),
            "never: {what}: {:#?}",
            self.dump(replica).await
        );
    }
}

/// Traces for all tests of the process: a subscriber of one thread alone is not seen by spans that another thread
/// meets first.
fn install_telemetry() {
    static INSTALLED: OnceLock<Telemetry> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let params = mesh::telemetry::Params {
            log_filter: "off".to_owned(),
            ..mesh::telemetry::Params::default()
        };
        Telemetry::install(&params, "ipam-tests").unwrap()
    });
}

fn material(authority: &Authority, dir: &TempDir, identity: &Identity) -> TlsMaterial {
    let name: String = identity
        .to_string()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let dir: PathBuf = dir.path().join(name);
    if !dir.exists() {
        let leaf = Leaf::new(identity, Duration::from_hours(1));
        authority.issue(&leaf).unwrap().write(&dir).unwrap();
    }
    TlsMaterial::load(&TlsConfig::in_dir(&dir)).unwrap()
}
