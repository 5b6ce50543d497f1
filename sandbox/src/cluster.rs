//! A cluster on one machine: simulated cloud and VPC, real services, real kernel.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use fabric::namespace::Namespace;
use fabric::vpc::{Fabric, FabricConfig};
use proto::ipam::v1::ShardDump;
use types::cloud::InstanceId;

use crate::certificates::Certificates;
use crate::cloud::Cloud;
use crate::doors;
use crate::echo::{Dial, EchoServer, Outcome, dial_all};
use crate::layout::{InstancePlan, Layout, Role};
use crate::options::{ClusterOptions, PolicyFeed, Service, Store};
use crate::plugin;
use crate::probe;
use crate::process::{Process, Spec};
use crate::reachability::Place;
use crate::run_dir::{self, RunDir};
use crate::service_config::{self, Inputs};
use crate::spans::{self, Span};

/// How long a process may take to be ready.
pub const READY_LIMIT: Duration = Duration::from_secs(30);
/// Time between two looks at readiness.
const READY_LOOK: Duration = Duration::from_millis(40);
/// The CNI plug-in's binary.
const PLUGIN: &str = "terway";
/// The binary that audits.
pub(crate) const AUDITOR: &str = "terwayctl";

/// An instance with a namespace, and a server that answers with its name.
#[derive(Debug)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its instance.
    pub instance: InstanceId,
    /// Its zone's id.
    pub zone: String,
    /// Where its processes run.
    pub namespace: Namespace,
    /// Its own addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    _echo: EchoServer,
}

impl Host {
    /// As one end of connections.
    pub fn place(&self) -> Place {
        Place {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            addresses: self.addresses.clone(),
        }
    }
}

/// The running cluster. [`Cluster::stop`] it; dropping it kills everything too, without a farewell.
#[derive(Debug)]
pub struct Cluster {
    pub(crate) options: ClusterOptions,
    layout: Layout,
    // Children go before the namespaces they run in.
    processes: tokio::sync::Mutex<BTreeMap<Service, Process>>,
    services: Host,
    nodes: Vec<Host>,
    plain: Vec<Host>,
    certificates: Certificates,
    cloud: Cloud,
    fabric: Fabric,
    bin_dir: PathBuf,
    serial: AtomicU64,
    run: RunDir,
}

impl Cluster {
    /// Starts everything and waits until all of it is ready.
    ///
    /// # Errors
    /// The first thing that did not work, with the end of the log of the process concerned. The run's folder stays
    /// then.
    pub async fn start(options: ClusterOptions) -> anyhow::Result<Self> {
        options.check()?;
        mesh::tls::install_provider();
        let bin_dir = bin_dir(&options)?;
        let run = RunDir::create(options.run_root.as_deref()).context("make the run's folder")?;
        let layout = Layout::plan(&options)?;
        let eni_conf = layout.eni_conf(&options).to_string();
        run_dir::write_atomically(&run.eni_conf(), eni_conf.as_bytes())?;
        let certificates = Certificates::create(run.root())?;
        certificates.issue_admin()?;
        let fabric = Fabric::start(FabricConfig {
            link_lag: options.link_lag,
            source_check: true,
        })
        .await?;
        let cloud = Cloud::start(&options, &layout, &fabric, run.root()).await?;
        let mut hosts = Vec::new();
        for plan in &layout.instances {
            hosts.push((plan.role, host(&layout, plan, &cloud, &fabric).await?));
        }
        let mut of_role = |role| -> Vec<Host> {
            let (of, rest) = std::mem::take(&mut hosts)
                .into_iter()
                .partition(|(r, _)| *r == role);
            hosts = rest;
            let of: Vec<(Role, Host)> = of;
            of.into_iter().map(|(_, host)| host).collect()
        };
        let services = of_role(Role::Services).pop();
        let cluster = Self {
            services: services.context("the plan has no instance for services")?,
            nodes: of_role(Role::Node),
            plain: of_role(Role::Plain),
            processes: tokio::sync::Mutex::default(),
            options,
            layout,
            certificates,
            cloud,
            fabric,
            bin_dir,
            serial: AtomicU64::new(1),
            run,
        };
        cluster.announce_nodes()?;
        if let Err(error) = cluster.start_services().await {
            cluster.run.keep();
            let root = cluster.run.root().display();
            return Err(error.context(format!("logs are in {root}/logs")));
        }
        Ok(cluster)
    }

    async fn start_services(&self) -> anyhow::Result<()> {
        let all = self.all_services();
        for service in &all {
            self.prepare(*service)?;
        }
        // A client retries until its server is there, so nothing waits but for etcd, which makes ipam quicker.
        for service in &all {
            self.spawn(*service, true).await?;
            if *service == Service::Etcd {
                self.wait_ready(*service, READY_LIMIT).await?;
            }
        }
        for service in &all {
            self.wait_ready(*service, READY_LIMIT).await?;
        }
        Ok(())
    }

    /// All processes, servers before their clients.
    pub fn all_services(&self) -> Vec<Service> {
        let etcd = (self.options.store == Store::Etcd).then_some(Service::Etcd);
        let ipam = (1..=self.options.ipam_replicas).map(Service::Ipam);
        let policy = self.options.policy;
        let relay = (policy == Some(PolicyFeed::Relay)).then_some(Service::Relay);
        let nodes = 1..=self.nodes.len();
        let policies = nodes.clone().filter(|_| policy.is_some());
        let policies = policies.map(Service::Policy);
        let agents = nodes.map(Service::Agent);
        let central = etcd.into_iter().chain([Service::Gateway]).chain(ipam);
        central.chain(relay).chain(policies).chain(agents).collect()
    }

    /// The instance on which a process runs.
    pub fn host_of(&self, service: Service) -> anyhow::Result<&Host> {
        match service {
            Service::Etcd | Service::Gateway | Service::Ipam(_) | Service::Relay => {
                Ok(&self.services)
            }
            Service::Policy(n) | Service::Agent(n) => self.node(n),
        }
    }

    /// A node by its number, from 1.
    pub fn node(&self, number: usize) -> anyhow::Result<&Host> {
        let node = number.checked_sub(1).and_then(|n| self.nodes.get(n));
        node.with_context(|| format!("there is no node {number}"))
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Host] {
        &self.nodes
    }

    /// Instances without an agent.
    pub fn plain_hosts(&self) -> &[Host] {
        &self.plain
    }

    /// The instance of the central services.
    pub fn services_host(&self) -> &Host {
        &self.services
    }

    /// The plan.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The simulated cloud.
    pub fn sim(&self) -> &Cloud {
        &self.cloud
    }

    /// The simulated VPC.
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// The run's folder.
    pub fn run_dir(&self) -> &RunDir {
        &self.run
    }

    /// The certificate authority.
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// The folder of our binaries.
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// Writes configuration and certificates of a process.
    fn prepare(&self, service: Service) -> anyhow::Result<()> {
        let folder = self.run.service(service)?;
        let host = self.host_of(service)?;
        let ips: Vec<_> = host.addresses.iter().map(ToString::to_string).collect();
        let mut names = ips;
        names.extend(["127.0.0.1".to_owned(), "localhost".to_owned()]);
        self.certificates.issue(service, &host.instance, &names)?;
        let inputs = self.inputs()?;
        let config = match service {
            Service::Etcd => return Ok(()),
            Service::Gateway => {
                inputs.gateway(&self.cloud.credentials_dir(), &self.cloud.openapi_url())
            }
            Service::Ipam(n) => inputs.ipam(n),
            Service::Relay => inputs.relay(&host.name),
            Service::Policy(n) => inputs.policy(n, &host.name),
            Service::Agent(n) => inputs.agent(n, &host.name),
        };
        let text = toml::to_string(&config).context("write a configuration")?;
        run_dir::write_secret(&folder.join("config.toml"), text.as_bytes())?;
        Ok(())
    }

    /// Address of the instance on which gateway and ipam run.
    ///
    /// # Errors
    /// When the plan has no such instance.
    pub fn services_ip(&self) -> anyhow::Result<Ipv4Addr> {
        let services = self.layout.of_role(Role::Services).next();
        Ok(services.context("no services instance")?.ip)
    }

    /// How many replicas of ipam there are.
    pub const fn ipam_replicas(&self) -> usize {
        self.options.ipam_replicas
    }

    fn inputs(&self) -> anyhow::Result<Inputs<'_>> {
        Ok(Inputs {
            options: &self.options,
            layout: &self.layout,
            run: &self.run,
            services_ip: self.services_ip()?,
        })
    }

    async fn spawn(&self, service: Service, first: bool) -> anyhow::Result<()> {
        let env = self.options.env.get(&service).cloned();
        let env = env.filter(|_| first).unwrap_or_default();
        self.spawn_with(service, env, &[]).await
    }

    async fn spawn_with(
        &self,
        service: Service,
        env: Vec<(String, String)>,
        set: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let folder = self.run.service(service)?;
        let (program, args) = if service == Service::Etcd {
            let args = self.inputs()?.etcd(&self.certificates.dir(service));
            (PathBuf::from("etcd"), args)
        } else {
            let config = folder.join("config.toml").display().to_string();
            let mut args = vec!["--config".to_owned(), config];
            let fixed = self.options.set.get(&service).into_iter().flatten();
            let all = fixed
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .chain(set.iter().copied());
            args.extend(all.flat_map(|(k, v)| ["--set".to_owned(), format!("{k}={v}")]));
            (self.bin_dir.join(service.binary()), args)
        };
        let process = Process::start(Spec {
            name: service.to_string(),
            namespace: self.host_of(service)?.namespace.clone(),
            program,
            args,
            env,
            log: self.run.log(service),
        })?;
        self.processes.lock().await.insert(service, process);
        Ok(())
    }

    /// Waits until a process says that it is ready.
    ///
    /// # Errors
    /// It died, or it did not get ready within `limit`: with what it waits for and the end of its log.
    pub async fn wait_ready(&self, service: Service, limit: Duration) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + limit;
        let mut look = tokio::time::interval(READY_LOOK);
        loop {
            look.tick().await;
            let Some(why) = self.readiness(service).await? else {
                return Ok(());
            };
            if let Some(process) = self.processes.lock().await.get(&service) {
                process.check()?;
            }
            if tokio::time::Instant::now() >= deadline {
                let tail = crate::process::tail(&self.run.log(service));
                bail!(
                    "{service} is not ready after {} s: {why}\n{tail}",
                    limit.as_secs()
                );
            }
        }
    }

    /// `None`: ready. Otherwise why not.
    async fn readiness(&self, service: Service) -> anyhow::Result<Option<String>> {
        let namespace = &self.host_of(service)?.namespace;
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let at = match service {
            Service::Etcd => {
                let ip = self.services_ip()?;
                let at = SocketAddr::from((ip, service_config::ETCD_CLIENT));
                let open = probe::is_open(namespace, at).await?;
                return Ok((!open).then(|| format!("{at} is closed")));
            }
            Service::Gateway => local(service_config::GATEWAY_HEALTH),
            Service::Ipam(n) => local(service_config::ipam_health(n)),
            Service::Relay => local(service_config::RELAY_HEALTH),
            Service::Policy(_) => local(service_config::POLICY_HEALTH),
            Service::Agent(_) => local(service_config::AGENT_HEALTH),
        };
        Ok(match probe::get(namespace, at, "/readyz").await? {
            Ok(answer) if answer.status == 200 => None,
            Ok(answer) => Some(answer.body.trim().to_owned()),
            Err(error) => Some(error.to_string()),
        })
    }

    /// Fails if any process that should run has ended.
    pub async fn check_processes(&self) -> anyhow::Result<()> {
        for process in self.processes.lock().await.values() {
            process.check()?;
        }
        Ok(())
    }

    /// SIGKILL by process id. The process stays down until [`Cluster::restart`].
    pub async fn kill(&self, service: Service) -> anyhow::Result<()> {
        let process = self.processes.lock().await.remove(&service);
        process
            .with_context(|| format!("{service} does not run"))?
            .kill()
            .await?;
        Ok(())
    }

    /// SIGTERM by process id, as a rolling update does. The process stays down until [`Cluster::restart`].
    pub async fn terminate(&self, service: Service) -> anyhow::Result<()> {
        let process = self.processes.lock().await.remove(&service);
        process
            .with_context(|| format!("{service} does not run"))?
            .stop()
            .await?;
        Ok(())
    }

    /// Starts a process that was killed or has died; does not wait for it.
    pub async fn restart(&self, service: Service) -> anyhow::Result<()> {
        self.restart_with(service, Vec::new(), &[]).await
    }

    /// As [`Cluster::restart`], with an environment (such as an armed crash point) and configuration overrides.
    pub async fn restart_with(
        &self,
        service: Service,
        env: Vec<(String, String)>,
        set: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let old = self.processes.lock().await.remove(&service);
        if let Some(old) = old {
            old.kill().await?;
        }
        self.spawn_with(service, env, set).await
    }

    /// Waits until a process ends by itself, as at a crash point. False if it runs on.
    pub async fn wait_exit(&self, service: Service, limit: Duration) -> bool {
        let processes = self.processes.lock().await;
        match processes.get(&service) {
            Some(process) => process.wait_exit(limit).await.is_some(),
            None => true,
        }
    }

    /// Process id of a running process.
    pub async fn pid(&self, service: Service) -> Option<i32> {
        let processes = self.processes.lock().await;
        let process = processes.get(&service)?;
        process.exit_status().is_none().then(|| process.pid())
    }

    /// A number that no other pod, sandbox or boot of this run has.
    pub(crate) fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    /// The plug-in's binary.
    pub(crate) fn plugin(&self) -> PathBuf {
        self.bin_dir.join(PLUGIN)
    }

    /// Tries one connection from a namespace, from `source` if given, to the server at `to`.
    pub async fn tcp_reachable(
        &self,
        from: &Namespace,
        to: IpAddr,
        expect: &str,
        source: Option<IpAddr>,
        limit: Duration,
    ) -> anyhow::Result<Outcome> {
        let dial = Dial {
            source,
            target: to,
            expect: expect.to_owned(),
        };
        let mut outcomes = dial_all(from, vec![dial], limit).await?;
        outcomes.pop().context("a dial has no outcome")
    }

    /// Cloud calls by action name since the start.
    pub fn call_counts(&self) -> BTreeMap<String, ecs_sim::dump::CallCount> {
        self.cloud.dump().calls
    }

    /// All spans that the processes have written so far.
    pub fn traces(&self) -> anyhow::Result<Vec<Span>> {
        spans::read_all(&self.run.traces()).context("read the spans")
    }

    /// What a node's agent holds.
    pub async fn node_dump(
        &self,
        node: usize,
    ) -> anyhow::Result<proto::node::v1::DumpNodeResponse> {
        doors::dump_node(&self.run.agent_socket(node)).await
    }

    /// The shards of each replica that runs.
    pub async fn shards_by_replica(&self) -> anyhow::Result<BTreeMap<Service, Vec<ShardDump>>> {
        let ip = self.services_ip()?;
        let tls = self.certificates.admin_dir();
        let mut all = BTreeMap::new();
        for n in 1..=self.options.ipam_replicas {
            if self.pid(Service::Ipam(n)).await.is_some() {
                let at = SocketAddr::from((ip, service_config::ipam_grpc(n)));
                let shards = doors::dump_shards(&self.services.namespace, at, &tls).await?;
                all.insert(Service::Ipam(n), shards);
            }
        }
        Ok(all)
    }

    /// All shards of all replicas that run.
    pub async fn shard_dumps(&self) -> anyhow::Result<Vec<ShardDump>> {
        let by_replica = self.shards_by_replica().await?;
        let mut all: Vec<_> = by_replica.into_values().flatten().collect();
        all.sort_by(|a, b| a.shard.cmp(&b.shard));
        Ok(all)
    }

    /// Ends every process (clients first), then removes the namespaces and, unless it is to stay, the folder.
    pub async fn stop(self) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        let mut processes = std::mem::take(&mut *self.processes.lock().await);
        for round in [true, false] {
            let (now, later): (BTreeMap<_, _>, _) = std::mem::take(&mut processes)
                .into_iter()
                .partition(|(service, _)| {
                    matches!(service, Service::Agent(_) | Service::Policy(_)) == round
                });
            processes = later;
            let stops = now.values().map(Process::stop);
            for stopped in futures::future::join_all(stops).await {
                outcome = outcome.and(stopped);
            }
        }
        self.cloud.stop().await;
        self.fabric.stop().await?;
        if self.options.keep_files {
            self.run.keep();
        }
        outcome.map_err(Into::into)
    }
}

async fn host(
    layout: &Layout,
    plan: &InstancePlan,
    cloud: &Cloud,
    fabric: &Fabric,
) -> anyhow::Result<Host> {
    let namespace = fabric.namespace(&plan.id).await;
    let namespace = namespace.with_context(|| format!("{} has no namespace", plan.name))?;
    let zone = layout.zones.get(plan.zone).map(|z| z.id.to_string());
    Ok(Host {
        name: plan.name.clone(),
        instance: plan.id.clone(),
        zone: zone.unwrap_or_default(),
        addresses: cloud.primary_addresses(&plan.id)?,
        _echo: EchoServer::start(&namespace, &plan.name).await?,
        namespace,
    })
}

/// Where our binaries are, all of them there.
fn bin_dir(options: &ClusterOptions) -> anyhow::Result<PathBuf> {
    let dir = match &options.bin_dir {
        Some(dir) => dir.clone(),
        None => beside_us()?,
    };
    for binary in [
        "cloud-gateway",
        "ipam-service",
        "policy-agent",
        "node-agent",
        PLUGIN,
        AUDITOR,
    ] {
        if !dir.join(binary).is_file() {
            bail!(
                "{binary} is not in {}; build the workspace first",
                dir.display()
            );
        }
    }
    Ok(dir)
}

/// The folder of the running program; test programs lie one below.
fn beside_us() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("find the running program")?;
    let dir = program
        .parent()
        .context("the running program has no folder")?;
    let dir = if dir.ends_with("deps") {
        dir.parent().unwrap_or(dir)
    } else {
        dir
    };
    Ok(dir.to_owned())
}

/// Runs the plug-in; see [`plugin::run`].
pub(crate) async fn run_plugin(
    cluster: &Cluster,
    node: usize,
    call: &plugin::CniCall,
) -> anyhow::Result<plugin::CniOutput> {
    let namespace = &cluster.node(node)?.namespace;
    plugin::run(namespace, &cluster.plugin(), call)
        .await
        .context("run the plug-in")
}
