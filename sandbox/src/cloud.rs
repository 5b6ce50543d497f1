//! The simulated cloud of a run, on the wire inside the VPC.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use axum::Router;
use ecs_api::model::address::AssignIpv6Addresses;
use ecs_api::model::{Pick, Request};
use ecs_api::request::{Endpoint, Stamp, build};
use ecs_api::sign::{Credentials, Scheme};
use ecs_sim::config::{Latency as SimLatency, SimConfig};
use ecs_sim::dump::{EniDump, SimDump};
use ecs_sim::sim::Sim;
use ecs_sim::spec::{InstanceSpec, SecurityGroupKind, SecurityGroupSpec, VSwitchSpec, VpcSpec};
use fabric::shell;
use fabric::vpc::{Fabric, METADATA, OPENAPI};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use types::cloud::{EniId, InstanceId};
use types::time::Tick;

use crate::layout::{InstancePlan, Layout, REGION, Role, VSwitchPlan};
use crate::options::{ClusterOptions, Latency};
use crate::run_dir::write_secret;

/// The key of the sandbox's account.
const KEY_ID: &str = "LTAIsandbox";
/// Its secret; it opens nothing but a simulation.
const KEY_SECRET: &str = "sandbox-secret";

/// The simulated cloud, with its endpoints in the VPC.
#[derive(Debug)]
pub struct Cloud {
    sim: Sim,
    credentials_dir: PathBuf,
    servers: tokio::sync::Mutex<JoinSet<()>>,
}

impl std::ops::Deref for Cloud {
    type Target = Sim;

    fn deref(&self) -> &Sim {
        &self.sim
    }
}

impl Cloud {
    /// Makes the world of the plan: VPC, vSwitches, and instances in their namespaces.
    pub async fn start(
        options: &ClusterOptions,
        layout: &Layout,
        fabric: &Fabric,
        root: &Path,
    ) -> anyhow::Result<Self> {
        let mut config = SimConfig::new(REGION.parse()?);
        config.latency = match options.latency {
            Latency::Fast => SimLatency::fast(),
            Latency::Real => SimLatency::real(),
        };
        let sim = Sim::new(config, Arc::new(fabric.clone()));
        sim.add_access_key(KEY_ID, KEY_SECRET);
        let cloud = Self {
            credentials_dir: credentials(root).context("write the account's key")?,
            servers: tokio::sync::Mutex::default(),
            sim,
        };
        cloud.add_ranges(layout)?;
        for plan in &layout.instances {
            cloud.add_instance(options, layout, plan, fabric).await?;
        }
        let metadata = fabric.listen(METADATA).await?;
        let openapi = fabric.listen(OPENAPI).await?;
        let mut servers = cloud.servers.lock().await;
        servers.spawn(serve("metadata", metadata, cloud.sim.metadata_router()));
        servers.spawn(serve("OpenAPI", openapi, cloud.sim.openapi_router()));
        drop(servers);
        Ok(cloud)
    }

    fn add_ranges(&self, layout: &Layout) -> anyhow::Result<()> {
        self.sim.add_vpc(VpcSpec {
            id: layout.vpc.clone(),
            ipv4_cidr: layout.vpc_ipv4,
            ipv6_cidr: layout.vpc_ipv6,
        })?;
        self.sim.add_security_group(SecurityGroupSpec {
            id: layout.security_group.clone(),
            vpc: layout.vpc.clone(),
            kind: SecurityGroupKind::Enterprise,
        })?;
        for zone in &layout.zones {
            self.sim.add_zone(zone.id.clone())?;
            for vswitch in zone.pods.iter().chain([&zone.hosts]) {
                let VSwitchPlan { id, ipv4, ipv6 } = vswitch.clone();
                self.sim.add_vswitch(VSwitchSpec {
                    id,
                    vpc: layout.vpc.clone(),
                    zone: zone.id.clone(),
                    ipv4_cidr: ipv4,
                    ipv6_cidr: ipv6,
                })?;
            }
        }
        Ok(())
    }

    async fn add_instance(
        &self,
        options: &ClusterOptions,
        layout: &Layout,
        plan: &InstancePlan,
        fabric: &Fabric,
    ) -> anyhow::Result<()> {
        let zone = layout.zones.get(plan.zone).context("no such zone")?;
        let namespace = fabric.add_instance(&plan.id, &plan.name).await?;
        let view = self
            .sim
            .run_instance(InstanceSpec {
                id: plan.id.clone(),
                instance_type: options.instance_type.parse()?,
                vswitch: zone.hosts.id.clone(),
                security_groups: vec![layout.security_group.clone()],
                primary_ip: Some(plan.ip),
                name: plan.name.clone(),
            })
            .await?;
        if !options.dual_stack || plan.role == Role::Services {
            return Ok(());
        }
        // As an operator does for an instance that is to speak IPv6; the guest takes it by DHCPv6.
        self.call(&AssignIpv6Addresses {
            eni: view.primary.eni,
            ipv6: Pick::Count(1),
            client_token: None,
        })
        .await?;
        for ip in self
            .primary_addresses(&plan.id)?
            .iter()
            .filter(|ip| ip.is_ipv6())
        {
            let script = format!("address replace {ip}/128 dev eth0 nodad\n");
            shell::ip_batch(&namespace, &script).await?;
        }
        Ok(())
    }

    /// The handle for faults, foreign addresses, and the rest.
    pub fn handle(&self) -> &Sim {
        &self.sim
    }

    /// Calls the OpenAPI with the account's key, as the operator would.
    ///
    /// # Errors
    /// Also when it refuses, with its answer.
    pub async fn call<R: Request>(&self, request: &R) -> anyhow::Result<serde_json::Value> {
        let endpoint = Endpoint {
            scheme: "http".to_owned(),
            authority: OPENAPI.ip().to_string(),
            region: REGION.parse()?,
        };
        let now = mesh::clock::wall().duration_since(std::time::UNIX_EPOCH)?;
        let stamp = Stamp {
            now: Tick(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
            nonce: uuid::Uuid::new_v4().to_string(),
        };
        let key = Credentials::lasting(KEY_ID, KEY_SECRET);
        let request = build(request, &endpoint, &key, &stamp, Scheme::V3)?;
        let answer = self.sim.answer(request).await;
        let answer = answer.context("the answer was lost by an injected fault")?;
        let (status, body) = (answer.status(), answer.into_body());
        if !status.is_success() {
            bail!("{} {}", status, String::from_utf8_lossy(&body));
        }
        serde_json::from_slice(&body).context("an answer that is not JSON")
    }

    /// Addresses of an instance's primary ENI, IPv4 first.
    pub fn primary_addresses(&self, instance: &InstanceId) -> anyhow::Result<Vec<IpAddr>> {
        let dump = self.sim.dump();
        let known = dump.instances.iter().find(|i| i.id == *instance);
        let primary = known.and_then(|i| i.enis.first());
        let primary = primary.with_context(|| format!("{instance} has no ENI"))?;
        let eni = eni_of(&dump, primary).with_context(|| format!("{primary} is gone"))?;
        Ok(addresses(eni))
    }

    /// The folder with the account's key, as cloud-gateway wants it.
    pub fn credentials_dir(&self) -> PathBuf {
        self.credentials_dir.clone()
    }

    /// The OpenAPI's endpoint for instances of the VPC.
    pub fn openapi_url(&self) -> String {
        format!("http://{}", OPENAPI.ip())
    }

    /// Ends the endpoints.
    pub async fn stop(&self) {
        self.servers.lock().await.shutdown().await;
    }
}

/// An ENI of a dump.
pub fn eni_of<'a>(dump: &'a SimDump, eni: &EniId) -> Option<&'a EniDump> {
    dump.enis.iter().find(|e| e.id == *eni)
}

/// All addresses of an ENI, IPv4 first.
pub fn addresses(eni: &EniDump) -> Vec<IpAddr> {
    let v4 = eni.ipv4.iter().map(|ip| IpAddr::V4(*ip));
    v4.chain(eni.ipv6.iter().map(|ip| IpAddr::V6(*ip)))
        .collect()
}

fn credentials(root: &Path) -> io::Result<PathBuf> {
    let dir = root.join("credentials");
    std::fs::create_dir_all(&dir)?;
    write_secret(&dir.join("access-key-id"), KEY_ID.as_bytes())?;
    write_secret(&dir.join("access-key-secret"), KEY_SECRET.as_bytes())?;
    Ok(dir)
}

async fn serve(what: &'static str, listener: TcpListener, router: Router) {
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    if let Err(error) = axum::serve(listener, service).await {
        tracing::error!(what, %error, "endpoint of the simulated cloud ended");
    }
}
