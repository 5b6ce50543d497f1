//! A simulated region and a gateway in front of it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use cloud_gateway::app::{Gateway, assemble};
use cloud_gateway::config::Config;
use cloud_gateway::credentials::{FILE_ID, FILE_SECRET};
use ecs_api::action::Action;
use ecs_sim::config::SimConfig;
use ecs_sim::dump::EniDump;
use ecs_sim::plane::NoPlane;
use ecs_sim::sim::Sim;
use ecs_sim::spec::{InstanceSpec, SecurityGroupSpec, VSwitchSpec, VpcSpec};
use mesh::ca::{Authority, Leaf};
use mesh::config::Sources;
use mesh::drain::Drain;
use mesh::health::Health;
use mesh::identity::Identity;
use mesh::metrics::Registry;
use mesh::run::configure;
use mesh::tasks::Tasks;
use mesh::tls::TlsConfig;
use proto::cloud::v1::cloud_server::Cloud;
use proto::cloud::v1::{
    AssignAddressesRequest, AttachEniRequest, CreateEniRequest, DeleteEniRequest, DetachEniRequest,
    Eni, OpKey, UnassignAddressesRequest,
};
use tokio::net::TcpListener;
use tonic::{Request, Status};

pub(crate) const VSWITCH: &str = "vsw-pods";
pub(crate) const GROUP: &str = "sg-pods";
pub(crate) const INSTANCE: &str = "i-one";
pub(crate) const OTHER_INSTANCE: &str = "i-two";
const DAY: Duration = Duration::from_hours(24);

pub(crate) struct World {
    pub(crate) sim: Sim,
    pub(crate) gateway: Gateway,
    pub(crate) config: Config,
    pub(crate) tasks: Tasks,
    pub(crate) registry: Registry,
    pub(crate) health: Health,
    pub(crate) ca: Authority,
    pub(crate) dir: tempfile::TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(&[]).await
    }

    /// A world with some keys of the configuration set.
    pub(crate) async fn with(sets: &[&str]) -> Self {
        let sim = region(|_| {}).await;
        let dir = tempfile::tempdir().unwrap();
        write_keys(dir.path(), "id-1", "secret-1");
        let credentials = format!("dir = {:?}\nreread_ms = 3600000", dir.path());
        Self::signed_by(sim, dir, &credentials, sets).await
    }

    /// A gateway before a simulated region, with another source of credentials.
    pub(crate) async fn signed_by(
        sim: Sim,
        dir: tempfile::TempDir,
        credentials: &str,
        sets: &[&str],
    ) -> Self {
        mesh::tls::install_provider();
        let tasks = Tasks::new(Drain::new());
        let endpoint = serve(sim.openapi_router(), &tasks).await;
        let credentials = credentials.replace("<sts>", &endpoint);
        let metadata = sim
            .metadata_router()
            .into_make_service_with_connect_info::<SocketAddr>();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let credentials = credentials.replace(
            "<metadata>",
            &format!("http://{}", listener.local_addr().unwrap()),
        );
        tasks.spawn_once("metadata", async move {
            axum::serve(listener, metadata).await.unwrap();
        });
        let ca = Authority::new(DAY).unwrap();
        issue(&ca, &Identity::gateway("gw-1"), &dir.path().join("tls"));
        let config = config(dir.path(), &endpoint, &credentials, sets);
        let registry = Registry::new();
        let health = Health::new();
        let gateway = assemble(&config, &tasks, &registry, &health).await.unwrap();
        Self {
            sim,
            gateway,
            config,
            tasks,
            registry,
            health,
            ca,
            dir,
        }
    }

    /// The gateway after a restart: the same configuration, no memory.
    pub(crate) async fn restart(&mut self) {
        self.registry = Registry::new();
        self.gateway = assemble(&self.config, &self.tasks, &self.registry, &self.health)
            .await
            .unwrap();
    }

    /// Calls that had an effect, or would have had one the first time.
    pub(crate) fn succeeded(&self, action: Action) -> u64 {
        let dump = self.sim.dump();
        dump.calls
            .get(action.name())
            .map_or(0, |count| count.succeeded)
    }

    pub(crate) fn total(&self, action: Action) -> u64 {
        let dump = self.sim.dump();
        dump.calls.get(action.name()).map_or(0, |count| count.total)
    }

    /// ENIs beside the primary ones.
    pub(crate) fn enis(&self) -> Vec<EniDump> {
        let dump = self.sim.dump();
        let ours = dump.enis.into_iter();
        ours.filter(|eni| eni.kind != "Primary" && !eni.foreign)
            .collect()
    }

    pub(crate) fn eni(&self, id: &str) -> Option<EniDump> {
        self.enis().into_iter().find(|eni| eni.id.as_str() == id)
    }

    pub(crate) async fn create(&self, request: CreateEniRequest) -> Result<Eni, Status> {
        let answer = self.gateway.api.create_eni(Request::new(request)).await?;
        Ok(answer.into_inner().eni.unwrap())
    }

    pub(crate) async fn attach(&self, sequence: u64, eni: &str) -> Result<Eni, Status> {
        let request = AttachEniRequest {
            op: Some(op(sequence, 1)),
            eni_id: eni.to_owned(),
            instance_id: INSTANCE.to_owned(),
            ..AttachEniRequest::default()
        };
        let answer = self.gateway.api.attach_eni(Request::new(request)).await?;
        Ok(answer.into_inner().eni.unwrap())
    }

    pub(crate) async fn detach(&self, sequence: u64, eni: &str) -> Result<(), Status> {
        let request = DetachEniRequest {
            op: Some(op(sequence, 1)),
            eni_id: eni.to_owned(),
            instance_id: INSTANCE.to_owned(),
            ..DetachEniRequest::default()
        };
        self.gateway
            .api
            .detach_eni(Request::new(request))
            .await
            .map(drop)
    }

    pub(crate) async fn delete(&self, sequence: u64, eni: &str) -> Result<(), Status> {
        let request = DeleteEniRequest {
            op: Some(op(sequence, 1)),
            eni_id: eni.to_owned(),
            ..DeleteEniRequest::default()
        };
        self.gateway
            .api
            .delete_eni(Request::new(request))
            .await
            .map(drop)
    }

    pub(crate) async fn assign(
        &self,
        sequence: u64,
        eni: &str,
        ipv4: &[&str],
        ipv6: &[&str],
    ) -> Result<Eni, Status> {
        let request = AssignAddressesRequest {
            op: Some(op(sequence, 1)),
            eni_id: eni.to_owned(),
            ipv4: texts(ipv4),
            ipv6: texts(ipv6),
            ..AssignAddressesRequest::default()
        };
        let answer = self
            .gateway
            .api
            .assign_addresses(Request::new(request))
            .await?;
        Ok(answer.into_inner().eni.unwrap())
    }

    pub(crate) async fn unassign(
        &self,
        sequence: u64,
        eni: &str,
        ipv4: &[&str],
        ipv6: &[&str],
    ) -> Result<Option<Eni>, Status> {
        let request = UnassignAddressesRequest {
            op: Some(op(sequence, 1)),
            eni_id: eni.to_owned(),
            ipv4: texts(ipv4),
            ipv6: texts(ipv6),
            ..UnassignAddressesRequest::default()
        };
        let answer = self
            .gateway
            .api
            .unassign_addresses(Request::new(request))
            .await?;
        Ok(answer.into_inner().eni)
    }

    /// An ENI with its primary address alone, made as operation `sequence`.
    pub(crate) async fn made(&self, sequence: u64, primary: &str) -> String {
        self.create(new_eni(sequence, primary)).await.unwrap().id
    }

    /// The same, attached by operation `sequence + 1`.
    pub(crate) async fn attached(&self, sequence: u64, primary: &str) -> String {
        let id = self.made(sequence, primary).await;
        self.attach(sequence + 1, &id).await.unwrap();
        id
    }
}

pub(crate) fn op(sequence: u64, epoch: u64) -> OpKey {
    OpKey {
        authority: "cluster-a".to_owned(),
        shard: format!("{VSWITCH}.0"),
        epoch,
        sequence,
    }
}

pub(crate) fn new_eni(sequence: u64, primary: &str) -> CreateEniRequest {
    CreateEniRequest {
        op: Some(op(sequence, 1)),
        vswitch_id: VSWITCH.to_owned(),
        security_group_ids: vec![GROUP.to_owned()],
        primary_ip: primary.to_owned(),
        tags: [("terway.io/op".to_owned(), format!("{VSWITCH}.0/{sequence}"))].into(),
        ..CreateEniRequest::default()
    }
}

pub(crate) fn texts(items: &[&str]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

pub(crate) fn reason(status: &Status) -> String {
    mesh::status::reason(status).unwrap_or_else(|| format!("no reason: {status:?}"))
}

pub(crate) fn write_keys(dir: &Path, id: &str, secret: &str) {
    std::fs::write(dir.join(FILE_ID), id).unwrap();
    std::fs::write(dir.join(FILE_SECRET), secret).unwrap();
}

pub(crate) fn issue(ca: &Authority, identity: &Identity, dir: &Path) {
    ca.issue(&Leaf::new(identity, DAY))
        .unwrap()
        .write(dir)
        .unwrap();
}

fn config(dir: &Path, endpoint: &str, credentials: &str, sets: &[&str]) -> Config {
    let file = dir.join("gateway.toml");
    let TlsConfig { ca, cert, key } = TlsConfig::in_dir(&dir.join("tls"));
    let text = format!(
        "[tls]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n\
         [cloud]\nregion = \"cn-test\"\nendpoint = \"{endpoint}\"\nvpc_endpoint = \"{endpoint}\"\n\
         timeout_ms = 2000\nbackoff = {{first_ms = 2, max_ms = 20}}\n\
         [credentials]\n{credentials}\n\
         [readback]\nwindow_ms = 2\ntick_ms = 5\nfirst_ms = 5\nmax_ms = 20\nreissue_ms = 300\nsettle_ms = 60\n\
         [ops]\ntimeout_ms = 40000\nread_timeout_ms = 40000\n"
    );
    std::fs::write(&file, text).unwrap();
    let sources = Sources {
        file: Some(file),
        sets: texts(sets),
        ..Sources::default()
    };
    configure(&sources).unwrap()
}

pub(crate) async fn region(change: impl FnOnce(&mut SimConfig)) -> Sim {
    let mut config = SimConfig::new("cn-test".parse().unwrap());
    change(&mut config);
    let sim = Sim::new(config, std::sync::Arc::new(NoPlane));
    sim.add_access_key("id-1", "secret-1");
    sim.add_zone("cn-test-a".parse().unwrap()).unwrap();
    sim.add_vpc(VpcSpec {
        id: "vpc-1".parse().unwrap(),
        ipv4_cidr: "10.0.0.0/16".parse().unwrap(),
        ipv6_cidr: Some("2001:db8::/56".parse().unwrap()),
    })
    .unwrap();
    for (id, ipv4, ipv6) in [
        (VSWITCH, "10.0.0.0/24", "2001:db8::/64"),
        ("vsw-nodes", "10.0.1.0/24", "2001:db8:0:1::/64"),
        ("vsw-small", "10.0.2.0/29", "2001:db8:0:2::/64"),
    ] {
        sim.add_vswitch(VSwitchSpec {
            id: id.parse().unwrap(),
            vpc: "vpc-1".parse().unwrap(),
            zone: "cn-test-a".parse().unwrap(),
            ipv4_cidr: ipv4.parse().unwrap(),
            ipv6_cidr: Some(ipv6.parse().unwrap()),
        })
        .unwrap();
    }
    sim.add_security_group(SecurityGroupSpec {
        id: GROUP.parse().unwrap(),
        vpc: "vpc-1".parse().unwrap(),
        kind: ecs_sim::spec::SecurityGroupKind::Normal,
    })
    .unwrap();
    for id in [INSTANCE, OTHER_INSTANCE] {
        sim.run_instance(InstanceSpec {
            id: id.parse().unwrap(),
            instance_type: "ecs.g7.xlarge".parse().unwrap(),
            vswitch: "vsw-nodes".parse().unwrap(),
            security_groups: vec![GROUP.parse().unwrap()],
            primary_ip: None,
            name: String::new(),
        })
        .await
        .unwrap();
    }
    sim
}

async fn serve(router: axum::Router, tasks: &Tasks) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tasks.spawn_once("cloud", async move {
        axum::serve(listener, router).await.unwrap();
    });
    endpoint
}
