//! Faults that a person must mend, all the way: the simulated cloud, the real gateway, a replica, a node's session.
//!
//! Each is told by a reason of its own with the object's name in words, counts in a metric of gateway and replica, and
//! ends by itself once it is mended: nothing is restarted, no configuration is read again.

use std::net::SocketAddr;
use std::path::Path;

use cloud_gateway::app::assemble;
use cloud_gateway::credentials::{FILE_ID, FILE_SECRET};
use ecs_sim::config::SimConfig;
use ecs_sim::faults::{Effect, Fault};
use ecs_sim::plane::NoPlane;
use ecs_sim::sim::Sim;
use ecs_sim::spec::{InstanceSpec, SecurityGroupKind, SecurityGroupSpec, VSwitchSpec, VpcSpec};
use mesh::ca::{Authority, Leaf};
use mesh::drain::Drain;
use mesh::health::Health;
use mesh::identity::Identity;
use mesh::metrics::Registry;
use mesh::tasks::Tasks;
use mesh::tls::TlsConfig;
use proto::cloud::v1::cloud_server::CloudServer;
use proto::ipam::v1 as wire;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::service::Routes;

use crate::agent::Agent;
use crate::cloud::FakeGateway;
use crate::cluster::{Cluster, PATIENCE, Replica, ZONE};

const OTHER_ZONE: &str = "cn-test-b";
const SHARD: &str = "vsw-pods.0";

/// The whole way.
struct Chain {
    sim: Sim,
    cluster: Cluster,
    gateway: Registry,
    keys: TempDir,
}

fn write_keys(dir: &Path, id: &str, secret: &str) {
    std::fs::write(dir.join(FILE_ID), id).unwrap();
    std::fs::write(dir.join(FILE_SECRET), secret).unwrap();
}

fn add_vswitch(sim: &Sim, id: &str, vpc: &str, zone: &str, ipv4: &str) {
    sim.add_vswitch(VSwitchSpec {
        id: id.parse().unwrap(),
        vpc: vpc.parse().unwrap(),
        zone: zone.parse().unwrap(),
        ipv4_cidr: ipv4.parse().unwrap(),
        ipv6_cidr: None,
    })
    .unwrap();
}

fn add_group(sim: &Sim, id: &str, vpc: &str) {
    sim.add_security_group(SecurityGroupSpec {
        id: id.parse().unwrap(),
        vpc: vpc.parse().unwrap(),
        kind: SecurityGroupKind::Normal,
    })
    .unwrap();
}

/// Two zones with a node each, a VPC of ours and another one.
async fn region() -> Sim {
    let sim = Sim::new(
        SimConfig::new("cn-test".parse().unwrap()),
        std::sync::Arc::new(NoPlane),
    );
    sim.add_access_key("id-1", "secret-1");
    sim.add_access_key("id-2", "secret-2");
    for zone in [ZONE, OTHER_ZONE] {
        sim.add_zone(zone.parse().unwrap()).unwrap();
    }
    for vpc in ["vpc-ours", "vpc-other"] {
        sim.add_vpc(VpcSpec {
            id: vpc.parse().unwrap(),
            ipv4_cidr: "10.0.0.0/8".parse().unwrap(),
            ipv6_cidr: None,
        })
        .unwrap();
    }
    add_vswitch(&sim, "vsw-pods", "vpc-ours", ZONE, "10.1.0.0/26");
    add_vswitch(&sim, "vsw-other", "vpc-other", ZONE, "10.2.0.0/26");
    add_vswitch(&sim, "vsw-nodes-a", "vpc-ours", ZONE, "10.3.0.0/24");
    add_vswitch(&sim, "vsw-nodes-b", "vpc-ours", OTHER_ZONE, "10.4.0.0/24");
    add_group(&sim, "sg-pods", "vpc-ours");
    add_group(&sim, "sg-other", "vpc-other");
    for (id, vswitch) in [("i-a", "vsw-nodes-a"), ("i-b", "vsw-nodes-b")] {
        sim.run_instance(InstanceSpec {
            id: id.parse().unwrap(),
            instance_type: "ecs.g7.xlarge".parse().unwrap(),
            vswitch: vswitch.parse().unwrap(),
            security_groups: vec!["sg-pods".parse().unwrap()],
            primary_ip: None,
            name: String::new(),
        })
        .await
        .unwrap();
    }
    sim
}

fn eni_conf(vswitches: &[(&str, &str)], group: &str) -> String {
    let zones: Vec<String> = vswitches
        .iter()
        .map(|(zone, vswitch)| format!(r#""{zone}": ["{vswitch}"]"#))
        .collect();
    format!(
        r#"{{"vswitches": {{{}}}, "security_groups": ["{group}"]}}"#,
        zones.join(", ")
    )
}

impl Chain {
    async fn new(eni_conf: String) -> Self {
        mesh::tls::install_provider();
        let (sim, tasks) = (region().await, Tasks::new(Drain::new()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at: SocketAddr = listener.local_addr().unwrap();
        let openapi = sim.openapi_router();
        tasks.spawn_once("cloud", async move {
            axum::serve(listener, openapi).await.unwrap();
        });
        let keys = tempfile::tempdir().unwrap();
        write_keys(keys.path(), "id-1", "secret-1");
        let gateway = Registry::new();
        let config = gateway_config(keys.path(), at);
        let api = assemble(&config, &tasks, &gateway, &Health::new())
            .await
            .unwrap()
            .api;
        let routes = Routes::new(CloudServer::new(api));
        let mut cluster = Cluster::behind(routes, FakeGateway::new(), tasks).await;
        cluster.eni_conf = eni_conf;
        cluster.extra = "timing.facts = 20".to_owned();
        Self {
            sim,
            cluster,
            gateway,
            keys,
        }
    }

    /// A replica that owns `shards` shards.
    async fn start(&self, shards: usize) -> Replica {
        let replica = self.cluster.try_start("r0").await.unwrap();
        let mut owned = replica.running.replica.watch();
        let all = owned.wait_for(|owned| owned.len() == shards);
        tokio::time::timeout(PATIENCE, all).await.unwrap().unwrap();
        replica
    }

    /// Waits until the replica's gauge has that value.
    async fn until_faults(&self, reason: &str, value: u32) {
        let wanted = format!("terway_ipam_faults{{reason=\"{reason}\"}} {value}\n");
        let wait = async {
            let mut every = tokio::time::interval(std::time::Duration::from_millis(10));
            while !self.cluster.registry.encode().contains(&wanted) {
                every.tick().await;
            }
        };
        let seen = tokio::time::timeout(PATIENCE, wait).await;
        assert!(
            seen.is_ok(),
            "never {wanted}: {}",
            self.cluster.registry.encode()
        );
    }

    fn counted_by_gateway(&self, reason: &str) -> bool {
        let counter = format!("terway_gateway_faults_total{{reason=\"{reason}\"}} ");
        self.gateway.encode().contains(&counter)
    }

    /// A fault from its beginning to its end, seen from a node.
    async fn tell(&self, case: &Case) {
        (case.spoil)(self);
        let replica = self.start(1).await;
        let mut agent = Agent::join(&self.cluster, &replica, "i-a").await;
        agent.want(SHARD, 4).await;
        let what = case.reason;
        agent
            .until(what, |agent| agent.reason(SHARD) == case.reason)
            .await;

        let state = agent.states[SHARD].clone();
        for name in case.names {
            assert!(state.message.contains(name), "{name}: {state:?}");
        }
        assert_eq!(state.begun, case.begun, "{state:?}");
        assert!(agent.enis().is_empty());
        self.until_faults(case.reason, 1).await;
        assert!(self.counted_by_gateway(case.reason), "{what}");

        (case.mend)(self);
        agent
            .until("addresses", |agent| agent.v4().len() >= 4)
            .await;
        agent
            .until("no complaint", |agent| agent.reason(SHARD).is_empty())
            .await;
        self.until_faults(case.reason, 0).await;
    }
}

fn gateway_config(keys: &Path, cloud: SocketAddr) -> cloud_gateway::config::Config {
    let ca = Authority::new(std::time::Duration::from_hours(1)).unwrap();
    let leaf = Leaf::new(&Identity::gateway("g1"), std::time::Duration::from_hours(1));
    ca.issue(&leaf).unwrap().write(&keys.join("tls")).unwrap();
    let TlsConfig { ca, cert, key } = TlsConfig::in_dir(&keys.join("tls"));
    let text = format!(
        "[tls]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n\
         [cloud]\nregion = \"cn-test\"\nendpoint = \"http://{cloud}\"\n\
         vpc_endpoint = \"http://{cloud}\"\nbackoff = {{first_ms = 2, max_ms = 20}}\n\
         [credentials]\ndir = {keys:?}\nreread_ms = 20\n\
         [facts]\ninstances_ms = 10\nvswitches_ms = 10\n\
         [readback]\nwindow_ms = 2\ntick_ms = 5\nfirst_ms = 5\nmax_ms = 20\nsettle_ms = 60\n"
    );
    let file = keys.join("gateway.toml");
    std::fs::write(&file, text).unwrap();
    let sources = mesh::config::Sources {
        file: Some(file),
        ..mesh::config::Sources::default()
    };
    mesh::run::configure(&sources).unwrap()
}

/// A fault that a node meets.
struct Case {
    eni_conf: fn() -> String,
    spoil: fn(&Chain),
    reason: &'static str,
    /// What the words name.
    names: &'static [&'static str],
    /// Whether what was wanted waits, or is begun anew.
    begun: bool,
    mend: fn(&Chain),
}

fn plain() -> String {
    eni_conf(&[(ZONE, "vsw-pods")], "sg-pods")
}

fn refuse_create(chain: &Chain, code: &str, message: &str) {
    let effect = Effect::Refuse {
        status: 403,
        code: code.to_owned(),
        message: message.to_owned(),
    };
    let action = "CreateNetworkInterface".parse().unwrap();
    chain.sim.inject_fault(Fault::on(action, effect));
}

fn clear(chain: &Chain) {
    chain.sim.clear_faults();
}

const CASES: &[Case] = &[
    Case {
        eni_conf: plain,
        spoil: |chain| {
            refuse_create(
                chain,
                "Forbidden.RAM",
                "User not authorized to operate on the specified resource.",
            );
        },
        reason: "REASON_CLOUD_FORBIDDEN",
        names: &["ecs:CreateNetworkInterface", "vsw-pods", "i-a"],
        begun: true,
        mend: clear,
    },
    Case {
        eni_conf: || eni_conf(&[(ZONE, "vsw-pods")], "sg-typo"),
        spoil: |_| {},
        reason: "REASON_SECURITY_GROUP_INVALID",
        names: &["sg-typo", "InvalidSecurityGroupId.NotFound"],
        begun: false,
        mend: |chain| add_group(&chain.sim, "sg-typo", "vpc-ours"),
    },
    Case {
        eni_conf: plain,
        spoil: |chain| {
            refuse_create(
                chain,
                "InvalidVSwitchId.IpNotEnough",
                "The specified vSwitch has no free address.",
            );
        },
        reason: "REASON_VSWITCH_EXHAUSTED",
        names: &["vsw-pods", "InvalidVSwitchId.IpNotEnough"],
        begun: false,
        mend: clear,
    },
    Case {
        eni_conf: plain,
        spoil: |chain| {
            refuse_create(
                chain,
                "MaxEniCountExceeded",
                "The number of ENI exceeds the limit per region.",
            );
        },
        reason: "REASON_ENI_LIMIT",
        names: &["i-a", "MaxEniCountExceeded"],
        begun: false,
        mend: clear,
    },
    Case {
        eni_conf: plain,
        spoil: |chain| {
            refuse_create(
                chain,
                "SecurityGroupInstanceLimitExceed",
                "The maximum number of instances in a security group is exceeded.",
            );
        },
        reason: "REASON_SECURITY_GROUP_FULL",
        names: &["SecurityGroupInstanceLimitExceed"],
        begun: false,
        mend: clear,
    },
];

#[tokio::test]
async fn fault_is_told_to_the_node_by_name_counted_and_over_when_it_is_mended() {
    for case in CASES {
        let chain = Chain::new((case.eni_conf)()).await;
        Box::pin(chain.tell(case)).await;
    }
}

#[tokio::test]
async fn keys_that_are_disabled_while_a_node_wants_more_are_told_and_mended_by_other_keys() {
    let chain = Chain::new(plain()).await;
    let replica = chain.start(1).await;
    let mut agent = Agent::join(&chain.cluster, &replica, "i-a").await;

    assert!(chain.sim.disable_access_key("id-1"));
    agent.want(SHARD, 4).await;
    agent
        .until("the fault", |agent| {
            agent.reason(SHARD) == "REASON_CLOUD_CREDENTIALS"
        })
        .await;
    let state = agent.states[SHARD].clone();
    chain.until_faults("REASON_CLOUD_CREDENTIALS", 1).await;
    write_keys(chain.keys.path(), "id-2", "secret-2");
    agent
        .until("addresses", |agent| agent.v4().len() >= 4)
        .await;

    assert!(
        state.begun && state.message.contains("InvalidAccessKeyId.Inactive"),
        "{state:?}"
    );
    assert!(!state.message.contains("secret-1"), "{state:?}");
    chain.until_faults("REASON_CLOUD_CREDENTIALS", 0).await;
}

#[tokio::test]
async fn group_of_another_vpc_and_vswitch_of_another_vpc_are_told_apart() {
    for (conf, reason, names) in [
        (
            eni_conf(&[(ZONE, "vsw-pods")], "sg-other"),
            "REASON_SECURITY_GROUP_INVALID",
            ["sg-other", "vsw-pods"],
        ),
        (
            eni_conf(&[(ZONE, "vsw-other")], "sg-pods"),
            "REASON_VSWITCH_INVALID",
            ["vsw-other", "vpc-other"],
        ),
    ] {
        let shard = format!(
            "{}.0",
            if conf.contains("vsw-other") {
                "vsw-other"
            } else {
                "vsw-pods"
            }
        );
        let chain = Chain::new(conf).await;
        let replica = chain.start(1).await;
        let mut agent = Agent::join(&chain.cluster, &replica, "i-a").await;

        agent.want(&shard, 4).await;
        agent
            .until(reason, |agent| agent.reason(&shard) == reason)
            .await;

        let message = &agent.states[&shard].message;
        for name in names {
            assert!(message.contains(name), "{name}: {message}");
        }
        chain.until_faults(reason, 1).await;
    }
}

async fn routes_of(
    chain: &Chain,
    replica: &Replica,
    node: &str,
) -> Result<wire::RouteUpdate, tonic::Status> {
    let channel = chain.cluster.channel(replica, &Identity::node("c1", node));
    let request = wire::WatchRoutesRequest {
        cluster: "c1".to_owned(),
        instance_id: node.to_owned(),
    };
    let mut stream = wire::routing_client::RoutingClient::new(channel)
        .watch_routes(request)
        .await?
        .into_inner();
    Ok(stream.message().await?.expect("an answer"))
}

#[tokio::test]
async fn vswitch_that_does_not_fit_is_told_to_its_zone_while_the_others_serve() {
    for (vswitch, names) in [
        // Unknown to the cloud, and one of the other zone.
        ("vsw-typo", ["vsw-typo", "knows no vSwitch"]),
        ("vsw-nodes-a", ["vsw-nodes-a", ZONE]),
    ] {
        let conf = eni_conf(&[(ZONE, "vsw-pods"), (OTHER_ZONE, vswitch)], "sg-pods");
        let chain = Chain::new(conf).await;
        let replica = chain.start(1).await;
        assert!(chain.cluster.health.is_ready());
        chain.until_faults("REASON_VSWITCH_INVALID", 1).await;

        let served = routes_of(&chain, &replica, "i-a").await.unwrap();
        let refused = routes_of(&chain, &replica, "i-b").await.unwrap_err();

        assert_eq!(served.routes.len(), 1);
        assert_eq!(
            mesh::status::reason(&refused).as_deref(),
            Some("REASON_VSWITCH_INVALID")
        );
        for name in names {
            assert!(refused.message().contains(name), "{refused:?}");
        }
        if vswitch == "vsw-typo" {
            add_vswitch(&chain.sim, vswitch, "vpc-ours", OTHER_ZONE, "10.5.0.0/26");
            let mut owned = replica.running.replica.watch();
            let both = owned.wait_for(|owned| owned.len() == 2);
            tokio::time::timeout(PATIENCE, both).await.unwrap().unwrap();
            let served = routes_of(&chain, &replica, "i-b").await.unwrap();
            assert_eq!(served.routes.len(), 1);
            chain.until_faults("REASON_VSWITCH_INVALID", 0).await;
        }
    }
}

#[tokio::test]
async fn replica_without_a_vswitch_is_not_ready_says_why_and_starts_when_it_is_mended() {
    let forbid = |chain: &Chain| {
        let effect = Effect::Refuse {
            status: 403,
            code: "Forbidden.RAM".to_owned(),
            message: "User not authorized to operate on the specified resource.".to_owned(),
        };
        let action = "DescribeVSwitches".parse().unwrap();
        chain.sim.inject_fault(Fault::on(action, effect));
    };
    for (conf, spoiled, reason, names) in [
        (
            plain(),
            true,
            "REASON_CLOUD_FORBIDDEN",
            ["vpc:DescribeVSwitches", "vsw-pods"],
        ),
        (
            eni_conf(&[(ZONE, "vsw-typo")], "sg-pods"),
            false,
            "REASON_VSWITCH_INVALID",
            ["vsw-typo", "knows no vSwitch"],
        ),
    ] {
        let chain = Chain::new(conf).await;
        if spoiled {
            forbid(&chain);
        }
        let mended = async {
            chain.until_faults(reason, 1).await;
            let unmet = chain.cluster.health.unmet();
            clear(&chain);
            if !spoiled {
                add_vswitch(&chain.sim, "vsw-typo", "vpc-ours", ZONE, "10.5.0.0/26");
            }
            unmet
        };

        let (_replica, unmet) = tokio::join!(chain.start(1), mended);

        let (_, why) = unmet
            .iter()
            .find(|(name, _)| *name == "vswitches")
            .expect("a complaint");
        for name in names {
            assert!(why.contains(name), "{name}: {why}");
        }
        assert!(chain.cluster.health.is_ready());
        chain.until_faults(reason, 0).await;
    }
}
