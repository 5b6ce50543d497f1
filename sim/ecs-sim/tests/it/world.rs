//! The world of the tests, a client for it, and a data plane that remembers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use ecs_api::fault::Fault;
use ecs_api::model::Request;
use ecs_api::model::eni::{
    AttachNetworkInterface, CreateNetworkInterface, CreatedEni, DescribeNetworkInterfaces, Eni,
    EniStatus,
};
use ecs_api::reply::{Answer, ReplyError, decode};
use ecs_api::request::{Endpoint, Stamp, build};
use ecs_api::sign::encode::parse_timestamp;
use ecs_api::sign::{Credentials, Scheme};
use ecs_sim::clock::Clock;
use ecs_sim::config::{Latency, SimConfig};
use ecs_sim::plane::{DataPlane, PlaneError, Port};
use ecs_sim::sim::Sim;
use ecs_sim::spec::{InstanceSpec, InstanceView};
use ecs_sim::world::World as WorldFile;
use types::cloud::{EniId, InstanceId};

pub(crate) const WORLD: &str = r#"
region = "cn-hangzhou"
latency = "none"
zones = ["cn-hangzhou-h", "cn-hangzhou-i"]

[[access_keys]]
id = "testid"
secret = "testsecret"

[[vpcs]]
id = "vpc-a"
ipv4_cidr = "10.0.0.0/8"
ipv6_cidr = "2001:db8:0:100::/56"

[[vpcs]]
id = "vpc-b"
ipv4_cidr = "10.0.0.0/8"

[[vswitches]]
id = "vsw-h"
vpc = "vpc-a"
zone = "cn-hangzhou-h"
ipv4_cidr = "10.0.0.0/24"
ipv6_cidr = "2001:db8:0:100::/64"

[[vswitches]]
id = "vsw-i"
vpc = "vpc-a"
zone = "cn-hangzhou-i"
ipv4_cidr = "10.0.1.0/24"
ipv6_cidr = "2001:db8:0:101::/64"

[[vswitches]]
id = "vsw-small"
vpc = "vpc-a"
zone = "cn-hangzhou-h"
ipv4_cidr = "10.0.2.0/29"

[[vswitches]]
id = "vsw-b"
vpc = "vpc-b"
zone = "cn-hangzhou-h"
ipv4_cidr = "10.0.0.0/24"

[[security_groups]]
id = "sg-a"
vpc = "vpc-a"

[[security_groups]]
id = "sg-b"
vpc = "vpc-b"
"#;

/// The test's wall time: 2026-01-02T03:04:05Z.
pub(crate) fn start() -> types::time::Tick {
    parse_timestamp("2026-01-02T03:04:05Z").unwrap()
}

#[derive(Debug, Default)]
pub(crate) struct Plane {
    pub(crate) ports: Mutex<BTreeMap<EniId, Port>>,
    pub(crate) broken: AtomicBool,
}

impl Plane {
    fn check(&self) -> Result<(), PlaneError> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(PlaneError {
                what: "broken".to_owned(),
            });
        }
        Ok(())
    }

    /// Addresses that are routed to the ENI; `None` when it is not plugged in.
    pub(crate) fn addresses(&self, eni: &EniId) -> Option<Vec<IpAddr>> {
        let ports = self.ports.lock().unwrap();
        ports.get(eni).map(|port| port.addresses.clone())
    }
}

#[async_trait]
impl DataPlane for Plane {
    async fn plug(&self, port: &Port) -> Result<(), PlaneError> {
        self.check()?;
        self.ports
            .lock()
            .unwrap()
            .insert(port.eni.clone(), port.clone());
        Ok(())
    }

    async fn unplug(&self, eni: &EniId) -> Result<(), PlaneError> {
        self.check()?;
        self.ports.lock().unwrap().remove(eni);
        Ok(())
    }

    async fn set_addresses(&self, port: &Port) -> Result<(), PlaneError> {
        self.check()?;
        let mut ports = self.ports.lock().unwrap();
        assert!(ports.contains_key(&port.eni), "addresses before the plug");
        ports.insert(port.eni.clone(), port.clone());
        Ok(())
    }
}

/// Why a call has no reply.
#[derive(Debug)]
pub(crate) enum Failed {
    Fault(Fault),
    Lost,
    Malformed(String),
}

impl Failed {
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Fault(fault) => &fault.code,
            Self::Lost => "lost",
            Self::Malformed(what) => panic!("malformed reply: {what}"),
        }
    }

    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Fault(fault) => fault.status,
            Self::Lost | Self::Malformed(_) => 0,
        }
    }
}

pub(crate) struct World {
    pub(crate) sim: Sim,
    pub(crate) plane: Arc<Plane>,
    pub(crate) clock: Clock,
    pub(crate) scheme: Scheme,
    nonce: AtomicU64,
}

impl World {
    /// The world above; nothing takes time, and time stands still.
    pub(crate) async fn new() -> Self {
        Self::with(WORLD, |_| {}).await
    }

    pub(crate) async fn with(text: &str, change: impl FnOnce(&mut SimConfig)) -> Self {
        let file = WorldFile::parse(text).unwrap();
        let clock = Clock::manual(start());
        let mut config = file.config();
        config.clock = clock.clone();
        change(&mut config);
        let plane = Arc::new(Plane::default());
        let sim = Sim::new(config, Arc::<Plane>::clone(&plane));
        file.build(&sim).await.unwrap();
        Self {
            sim,
            plane,
            clock,
            scheme: Scheme::V3,
            nonce: AtomicU64::new(0),
        }
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp {
            now: self.clock.now(),
            nonce: format!("nonce-{}", self.nonce.fetch_add(1, Ordering::SeqCst)),
        }
    }

    pub(crate) async fn ask<R: Request>(&self, request: &R) -> Result<Answer<R::Reply>, Failed> {
        let endpoint = Endpoint {
            scheme: "http".to_owned(),
            authority: "ecs.test:18080".to_owned(),
            region: "cn-hangzhou".parse().unwrap(),
        };
        let credentials = Credentials::lasting("testid", "testsecret");
        let stamp = self.stamp();
        let request = build(request, &endpoint, &credentials, &stamp, self.scheme).unwrap();
        let Some(response) = self.sim.answer(request).await else {
            return Err(Failed::Lost);
        };
        match decode::<R>(response.status(), response.headers(), response.body()) {
            Ok(answer) => Ok(answer),
            Err(ReplyError::Fault(fault)) => Err(Failed::Fault(fault)),
            Err(ReplyError::Malformed(malformed)) => Err(Failed::Malformed(malformed.what)),
        }
    }

    pub(crate) async fn code<R: Request>(&self, request: &R) -> String {
        match self.ask(request).await {
            Ok(_) => "ok".to_owned(),
            Err(failed) => failed.code().to_owned(),
        }
    }

    pub(crate) async fn instance(&self, id: &str, vswitch: &str) -> InstanceView {
        self.instance_of("ecs.g7.xlarge", id, vswitch).await
    }

    pub(crate) async fn instance_of(&self, kind: &str, id: &str, vswitch: &str) -> InstanceView {
        let group = if vswitch == "vsw-b" { "sg-b" } else { "sg-a" };
        let spec = InstanceSpec {
            id: id.parse().unwrap(),
            instance_type: kind.parse().unwrap(),
            vswitch: vswitch.parse().unwrap(),
            security_groups: vec![group.parse().unwrap()],
            primary_ip: None,
            name: id.to_owned(),
        };
        self.sim.run_instance(spec).await.unwrap()
    }

    /// Creates an ENI.
    pub(crate) async fn create(&self, request: &CreateNetworkInterface) -> Eni {
        let answer = self.ask(request).await;
        match answer
            .unwrap_or_else(|failed| panic!("{}", failed.code()))
            .reply
        {
            CreatedEni::Made(eni) => *eni,
            CreatedEni::NotMade => panic!("not made"),
        }
    }

    /// Creates a plain ENI in a vSwitch.
    pub(crate) async fn eni(&self, vswitch: &str) -> Eni {
        self.create(&create_in(vswitch)).await
    }

    /// Creates an ENI and attaches it.
    pub(crate) async fn attached(
        &self,
        instance: &InstanceId,
        request: &CreateNetworkInterface,
    ) -> EniId {
        let eni = self.create(request).await.id;
        assert_eq!(self.code(&attach(&eni, instance)).await, "ok");
        self.sim.settled().await;
        assert_eq!(self.describe(&eni).await.unwrap().status, EniStatus::InUse);
        eni
    }

    pub(crate) async fn describe(&self, eni: &EniId) -> Option<Eni> {
        let request = DescribeNetworkInterfaces {
            enis: vec![eni.clone()],
            ..DescribeNetworkInterfaces::default()
        };
        let answer = self.ask(&request).await;
        let page = answer
            .unwrap_or_else(|failed| panic!("{}", failed.code()))
            .reply;
        page.enis.into_iter().next()
    }

    pub(crate) fn available(&self, vswitch: &str) -> u64 {
        let dump = self.sim.dump();
        let row = dump.vswitches.iter().find(|row| row.id.as_str() == vswitch);
        row.unwrap().available_ipv4
    }
}

pub(crate) fn create_in(vswitch: &str) -> CreateNetworkInterface {
    let group = if vswitch == "vsw-b" { "sg-b" } else { "sg-a" };
    CreateNetworkInterface::new(vswitch.parse().unwrap(), vec![group.parse().unwrap()])
}

pub(crate) fn attach(eni: &EniId, instance: &InstanceId) -> AttachNetworkInterface {
    AttachNetworkInterface {
        eni: eni.clone(),
        instance: instance.clone(),
        trunk: None,
    }
}

pub(crate) fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

pub(crate) fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// Latencies at which changes stay under way until the test is over.
pub(crate) fn endless() -> Latency {
    let long = ecs_sim::config::Span::new(600_000, 600_000);
    Latency {
        attach: long,
        attach_member: long,
        detach: long,
        delete: long,
        ..Latency::none()
    }
}

pub(crate) const MINUTE: Duration = Duration::from_mins(1);

#[tokio::test]
async fn world_with_a_vswitch_in_no_zone_is_refused_by_name() {
    let text = WORLD.replace("zone = \"cn-hangzhou-i\"", "zone = \"cn-hangzhou-z\"");
    let file = WorldFile::parse(&text).unwrap();
    let sim = Sim::new(file.config(), Arc::new(Plane::default()));

    let message = file.build(&sim).await.unwrap_err().to_string();

    assert!(
        message.contains("vsw-i") && message.contains("cn-hangzhou-z"),
        "{message}"
    );
}

#[tokio::test]
async fn world_with_overlapping_vswitches_is_refused() {
    let text = WORLD.replace("10.0.1.0/24", "10.0.0.128/25");
    let file = WorldFile::parse(&text).unwrap();
    let sim = Sim::new(file.config(), Arc::new(Plane::default()));

    let message = file.build(&sim).await.unwrap_err().to_string();

    assert!(message.contains("overlaps"), "{message}");
}

#[tokio::test]
async fn instance_whose_primary_eni_cannot_be_plugged_does_not_exist() {
    let world = World::new().await;
    world.plane.broken.store(true, Ordering::SeqCst);
    let spec = InstanceSpec {
        id: "i-a".parse().unwrap(),
        instance_type: "ecs.g7.xlarge".parse().unwrap(),
        vswitch: "vsw-h".parse().unwrap(),
        security_groups: vec!["sg-a".parse().unwrap()],
        primary_ip: None,
        name: String::new(),
    };

    assert!(world.sim.run_instance(spec).await.is_err());

    let dump = world.sim.dump();
    assert!(dump.instances.is_empty() && dump.enis.is_empty());
}

#[tokio::test]
async fn released_instance_takes_its_enis_with_it() {
    let world = World::new().await;
    let instance = world.instance("i-a", "vsw-h").await;
    let before = world.available("vsw-h");
    let eni = world.attached(&instance.id, &create_in("vsw-h")).await;

    world.sim.release_instance(&instance.id).await.unwrap();

    assert_eq!(world.describe(&eni).await, None);
    assert_eq!(world.available("vsw-h"), before + 1);
    assert!(world.plane.ports.lock().unwrap().is_empty());
}

#[tokio::test]
async fn example_world_can_be_built() {
    let text = include_str!("../../example.toml");

    let world = World::with(text, |_| {}).await;

    assert_eq!(world.sim.dump().instances.len(), 2);
}
