//! The test bed: cloud, VPC, control plane and nodes.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use fabric::namespace::Namespace;
use fabric::vpc::{Fabric, FabricConfig};
use futures::future::try_join_all;
use serde_json::Value;

use crate::cloud::Cloud;
use crate::k8s::cgroup::Groups;
use crate::k8s::control::{API_PORT, ControlPlane};
use crate::k8s::dns;
use crate::k8s::door::Door;
use crate::k8s::kube::Kube;
use crate::k8s::node::{BedNode, NodePlan, Surroundings};
use crate::k8s::pki::{Pki, kubeconfig};
use crate::layout::{Layout, REGION, Role};
use crate::options::ClusterOptions;
use crate::report::Report;

/// How long nodes may take to be known to the API server, and to be Ready.
const NODES_LIMIT: Duration = Duration::from_secs(90);
/// The type of the nodes: four ENIs with fifteen addresses.
const INSTANCE_TYPE: &str = "ecs.g7.xlarge";

/// What to start.
#[derive(Debug, Clone)]
pub struct BedOptions {
    /// Nodes, in two zones.
    pub nodes: usize,
    /// The run's folder; it is made, and removed at the end.
    pub dir: PathBuf,
    /// Where kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy, kubectl and helm are.
    pub kubernetes: PathBuf,
    /// Where archives of images are: those of the product and those of the tests.
    pub images: PathBuf,
    /// The program that is run as first process of nodes: `sandbox`.
    pub sandbox: PathBuf,
    /// Port of the API server on this machine's loopback; 0 takes any.
    pub port: u16,
    /// The chart.
    pub chart: PathBuf,
    /// Whether the folder with its logs stays.
    pub keep: bool,
}

impl BedOptions {
    /// Programs that must be in [`BedOptions::kubernetes`].
    pub const PROGRAMS: [&'static str; 7] = [
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kube-proxy",
        "kubectl",
        "helm",
    ];

    fn check(&self) -> anyhow::Result<()> {
        ensure!((1..=9).contains(&self.nodes), "1 to 9 nodes are possible");
        for program in Self::PROGRAMS {
            let path = self.kubernetes.join(program);
            ensure!(path.is_file(), "{} is not there", path.display());
        }
        Ok(())
    }
}

/// The running test bed. [`Bed::stop`] it; dropping it kills everything too, without removing its folder.
#[derive(Debug)]
pub struct Bed {
    options: BedOptions,
    cluster: ClusterOptions,
    layout: Layout,
    // Processes go before the namespaces they run in.
    /// The nodes.
    pub nodes: Vec<BedNode>,
    /// The control plane.
    pub control: ControlPlane,
    door: Door,
    kube: Kube,
    pki: Pki,
    groups: Groups,
    services: Namespace,
    cloud: Cloud,
    fabric: Fabric,
}

impl Bed {
    /// Starts everything; nodes are known then, but not Ready, since they have no network plug-in.
    ///
    /// # Errors
    /// The first thing that did not work. The folder stays then.
    pub async fn start<W: Write>(
        options: BedOptions,
        report: &mut Report<W>,
    ) -> anyhow::Result<Self> {
        options.check()?;
        mesh::tls::install_provider();
        let root = options.dir.clone();
        ensure!(!root.exists(), "{} is there already", root.display());
        for folder in ["pki", "logs", "nodes", "control"] {
            fs::create_dir_all(root.join(folder)).with_context(|| root.display().to_string())?;
        }
        let cluster = ClusterOptions {
            nodes: options.nodes,
            plain_hosts: 1,
            instance_type: INSTANCE_TYPE.to_owned(),
            pod_vswitch_prefix: 20,
            shard_prefix: 20,
            dual_stack: false,
            ..ClusterOptions::default()
        };
        let layout = Layout::plan(&cluster)?;
        report.step("simulated VPC and cloud");
        let fabric = Fabric::start(FabricConfig {
            link_lag: cluster.link_lag,
            source_check: true,
        })
        .await?;
        let cloud = Cloud::start(&cluster, &layout, &fabric, &root).await?;
        let host = layout.of_role(Role::Services).next();
        let host = host.context("the plan has no host for services")?;
        let services = fabric.namespace(&host.id).await;
        let services = services.context("the host has no namespace")?;
        let pki = Pki::create(&root.join("pki"))?;
        let mut control = ControlPlane::prepare(
            &pki,
            (services.clone(), host.ip),
            &options.kubernetes,
            &root.join("control"),
            &root.join("logs"),
        )?;
        let api = control.api();
        let door = Door::open(options.port, &services, api).await?;
        let kube = admin(&options, &door)?;
        report.step("etcd, API server, controller manager, scheduler");
        control.start(&pki, &kube).await?;
        let groups = Groups::named(format!("{}k8s", fabric.prefix()));
        let mut bed = Self {
            nodes: Vec::new(),
            cluster,
            layout,
            control,
            door,
            kube,
            pki,
            groups,
            services,
            cloud,
            fabric,
            options,
        };
        report.step("nodes: containerd, images, kubelet, kube-proxy");
        bed.start_nodes(api).await?;
        bed.kube.apply(&dns::objects(bed.nodes.len())).await?;
        report.step("the cluster is up; nodes wait for a network plug-in");
        Ok(bed)
    }

    async fn start_nodes(&mut self, api: SocketAddr) -> anyhow::Result<()> {
        let mut starts = Vec::new();
        for (number, plan) in (1..).zip(self.layout.of_role(Role::Node)) {
            let network = self.fabric.namespace(&plan.id).await;
            let zone = self.layout.zones.get(plan.zone).context("no such zone")?;
            let node = NodePlan {
                number,
                name: plan.name.clone(),
                instance: plan.id.clone(),
                instance_type: INSTANCE_TYPE.to_owned(),
                region: REGION.to_owned(),
                zone: zone.id.to_string(),
                ip: plan.ip,
                network: network.context("an instance has no namespace")?,
            };
            let around = Surroundings {
                root: self.options.dir.clone(),
                programs: self.options.kubernetes.clone(),
                images: self
                    .options
                    .images
                    .canonicalize()
                    .context("folder of images")?,
                sandbox: self.options.sandbox.clone(),
                api,
                groups: self.groups.clone(),
            };
            starts.push(BedNode::start(node, around, &self.pki));
        }
        self.nodes = try_join_all(starts).await?;
        let wanted = self.nodes.len();
        self.kube
            .until(NODES_LIMIT, async |kube| {
                let known = kube.list(&["nodes"]).await?.len();
                ensure!(known == wanted, "{known} of {wanted} nodes are known");
                Ok(())
            })
            .await?;
        self.check()
    }

    /// Waits until all nodes are Ready.
    ///
    /// # Errors
    /// When one is not, with what it says.
    pub async fn nodes_ready(&self) -> anyhow::Result<()> {
        self.kube
            .until(NODES_LIMIT, async |kube| {
                for node in kube.list(&["nodes"]).await? {
                    let conditions = node.pointer("/status/conditions");
                    let mut conditions = conditions.and_then(Value::as_array).into_iter().flatten();
                    let ready = conditions.find(|c| c.get("type") == Some(&Value::from("Ready")));
                    let ready = ready.cloned().unwrap_or_default();
                    if ready.get("status") != Some(&Value::from("True")) {
                        bail!(
                            "{} is not Ready: {}",
                            name_of(&node),
                            text(&ready, "/message")
                        );
                    }
                }
                Ok(())
            })
            .await
    }

    /// Fails when a process that should run has ended.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn check(&self) -> anyhow::Result<()> {
        self.control.check()?;
        for node in &self.nodes {
            node.check()?;
        }
        Ok(())
    }

    /// Starts what does not run of the control plane.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn start_control(&mut self) -> anyhow::Result<()> {
        self.control.start(&self.pki, &self.kube).await
    }

    /// The options.
    pub const fn options(&self) -> &BedOptions {
        &self.options
    }

    /// The plan of the VPC.
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Options of the simulated cluster below.
    pub const fn cluster(&self) -> &ClusterOptions {
        &self.cluster
    }

    /// kubectl with all rights.
    pub const fn kube(&self) -> &Kube {
        &self.kube
    }

    /// The simulated cloud.
    pub const fn cloud(&self) -> &Cloud {
        &self.cloud
    }

    /// The simulated VPC.
    pub const fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// The host of the control plane, a place in the VPC that is no node.
    pub const fn services(&self) -> &Namespace {
        &self.services
    }

    /// Control groups of the run.
    pub const fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Port of the API server on this machine's loopback.
    pub const fn port(&self) -> u16 {
        self.door.port()
    }

    /// A node by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> anyhow::Result<&BedNode> {
        let node = self.nodes.iter().find(|node| node.plan().name == name);
        node.with_context(|| format!("there is no node {name}"))
    }

    /// Ends everything and removes the folder, unless it is to stay.
    ///
    /// # Errors
    /// The first thing that did not end; the rest was tried.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        for node in &mut self.nodes {
            outcome = outcome.and(node.switch_off().await);
        }
        outcome = outcome.and(self.control.stop().await);
        self.cloud.stop().await;
        outcome = outcome.and(self.groups.remove().await);
        outcome = outcome.and(self.fabric.stop().await.map_err(Into::into));
        if !self.options.keep && outcome.is_ok() {
            let dir = self.options.dir.clone();
            let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(dir)).await?;
            outcome = outcome.and(removed.context("remove the run's folder"));
        }
        outcome
    }
}

fn admin(options: &BedOptions, door: &Door) -> anyhow::Result<Kube> {
    let root = &options.dir;
    let file = root.join("kubeconfig");
    let server = format!("https://127.0.0.1:{}", door.port());
    let text = kubeconfig(&server, &root.join("pki"), "admin").to_string();
    crate::run_dir::write_secret(&file, text.as_bytes())?;
    Ok(Kube::new(options.kubernetes.join("kubectl"), file))
}

/// A text of an object, empty if it is not there.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The name of an object.
pub fn name_of(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// The API server's port in the VPC, for values of the chart.
pub const fn api_port() -> u16 {
    API_PORT
}
