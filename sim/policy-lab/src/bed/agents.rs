//! Real agents: one `policy-agent` process per node, fed by a relay in this process.
//!
//! The relay's state is one; its port is opened once per node, on the loopback of that node's namespace. A thread of
//! its own drives it, so that agents are served while a test is busy with packets.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cluster::documents::{Change, DocumentKey};
use datapath::owner::Holder;
use mesh::ca::Authority;
use mesh::ca::Leaf;
use mesh::client::{Channel, Params};
use mesh::drain::Drain;
use mesh::identity::Identity;
use mesh::metrics::Registry;
use mesh::server::Bound;
use mesh::server::rpc_metrics::RpcMetrics;
use mesh::tasks::Tasks;
use mesh::tls::{TlsConfig, TlsMaterial};
use policy_agent::relay::server::Server;
use policy_agent::relay::source::{Limits, Source};
use proto::node::v1::{Attachment, PodRef};
use proto::policy::v1::gate_client::GateClient;
use proto::policy::v1::policies_client::PoliciesClient;
use proto::policy::v1::{
    DiffRequest, LocalPod, ReadyRequest, ReleaseRequest, StatusRequest, StatusResponse,
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::bed::program::{self, Process};
use crate::bed::topology::{Node, Standing};

/// Name of the bed's cluster.
const CLUSTER: &str = "bed";
/// The relay's port on each node's loopback.
const RELAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7401);
/// Certificates outlive any bed.
const LIFETIME: Duration = Duration::from_hours(24);
/// How long an agent may take for a world.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where an agent hands over the socket that owns its table.
const OWNER_SOCKET: &str = "owner.sock";
/// Between two looks for an agent by the holder of its socket.
const HOLDER_LOOK: Duration = Duration::from_millis(20);
/// Between two looks at an agent's position.
const LOOK: Duration = Duration::from_millis(1);

/// Agents and their relay.
#[derive(Debug)]
pub struct Agents {
    nodes: Vec<Agent>,
    source: Source,
    known: BTreeSet<DocumentKey>,
    sequence: u64,
    drain: Drain,
    relay: Option<Runtime>,
    folder: tempfile::TempDir,
}

/// One node's agent.
#[derive(Debug)]
struct Agent {
    name: String,
    namespace: fabric::namespace::Namespace,
    program: PathBuf,
    config: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    process: Option<Process>,
    channel: Option<Channel>,
}

impl Drop for Agents {
    fn drop(&mut self) {
        self.drain.start("the bed goes");
        self.drain.stop();
        if let Some(relay) = self.relay.take() {
            relay.shutdown_background();
        }
    }
}

impl Agents {
    /// Starts the relay, and an agent on each node; the relay has nothing yet and says so (not synced).
    ///
    /// # Errors
    /// What did not start.
    pub async fn start(nodes: &[Node], overrides: &Value) -> anyhow::Result<Self> {
        mesh::tls::install_provider();
        let program = tokio::task::spawn_blocking(|| program::built("policy-agent")).await??;
        let folder = tempfile::tempdir()?;
        let authority = Authority::new(LIFETIME)?;
        let leaf = Leaf::new(&Identity::relay("bed"), LIFETIME).host("127.0.0.1");
        let tls = folder.path().join("relay");
        authority.issue(&leaf)?.write(&tls)?;
        let relay = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let source = Source::new(Limits::default());
        let drain = Drain::new();
        let mut agents = Vec::new();
        for node in nodes {
            let listener = node
                .namespace
                .enter_async(|| std::net::TcpListener::bind(RELAY))
                .await??;
            listener.set_nonblocking(true)?;
            let material = TlsMaterial::load(&TlsConfig::in_dir(&tls))?;
            let inside = relay.enter();
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let tasks = Tasks::new(drain.clone());
            let bound = Bound::from_listener(listener, material, mesh::server::Params::default())?;
            let server = Server::new(source.clone(), CLUSTER, 16, &tasks);
            let metrics = RpcMetrics::register(&Registry::new());
            bound.serve(Routes::new(server), mesh::authz::TABLE, &metrics, &tasks);
            let dir = folder.path().join(&node.spec.name);
            std::fs::create_dir_all(&dir)?;
            tasks.spawn("holder", hold(dir.join(OWNER_SOCKET), tasks.stopping()));
            drop(inside);
            let identity = Identity::node(CLUSTER, node.spec.name.as_str());
            authority
                .issue(&Leaf::new(&identity, LIFETIME))?
                .write(&dir)?;
            let socket = dir.join("policy.sock");
            let config = dir.join("config.toml");
            let mut values = configuration(node, &dir);
            merge(&mut values, overrides);
            std::fs::write(&config, toml::to_string(&values)?)?;
            agents.push(Agent {
                name: format!("policy-agent of {}", node.spec.name),
                namespace: node.namespace.clone(),
                program: program.clone(),
                log: dir.join("log"),
                config,
                socket,
                process: None,
                channel: None,
            });
        }
        let mut all = Self {
            nodes: agents,
            source,
            known: BTreeSet::new(),
            sequence: 0,
            drain,
            relay: Some(relay),
            folder,
        };
        for node in 0..all.nodes.len() {
            all.run(node, &[])?;
        }
        Ok(all)
    }

    /// The folder with logs and state of all agents.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Publishes documents as the whole of the cluster; says how many objects changed hands.
    ///
    /// # Errors
    /// None now; a relay may refuse later.
    pub fn publish(&mut self, documents: &[Value]) {
        let now: BTreeSet<_> = documents.iter().map(DocumentKey::of).collect();
        let gone = self.known.difference(&now).cloned().map(Change::Delete);
        let there = documents.iter().cloned().map(Change::Upsert);
        let changes: Vec<_> = gone.chain(there).collect();
        self.publish_changes(&changes);
        self.known = now;
    }

    /// Publishes changes that belong together.
    pub fn publish_changes(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Upsert(document) => self.known.insert(DocumentKey::of(document)),
                Change::Delete(key) => self.known.remove(key),
            };
        }
        self.sequence = self.source.publish(changes, mesh::clock::wall_ms());
        self.source.set_synced();
    }

    /// Waits until each agent that runs has everything published so far in its kernel.
    ///
    /// # Errors
    /// An agent ended, or did not come so far in time.
    pub async fn settle(&mut self) -> anyhow::Result<()> {
        for node in 0..self.nodes.len() {
            if self.is_running(node) {
                self.wait_applied(node, self.sequence).await?;
            }
        }
        Ok(())
    }

    async fn wait_applied(&mut self, node: usize, sequence: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.agent(node)?.check()?;
            let seen = match self.status(node).await {
                Ok(status) if status.in_sync && status.applied >= sequence => return Ok(()),
                Ok(status) => format!("{status:?}"),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() > deadline {
                let log = program::tail(&self.agent(node)?.log);
                bail!("agent {node} did not come to {sequence} in {PATIENCE:?}: {seen}\n{log}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn agent(&mut self, node: usize) -> anyhow::Result<&mut Agent> {
        self.nodes
            .get_mut(node)
            .with_context(|| format!("no agent {node}"))
    }

    /// What an agent says of itself.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn status(&mut self, node: usize) -> anyhow::Result<StatusResponse> {
        let channel = self.agent(node)?.channel();
        let answer = PoliciesClient::new(channel)
            .status(StatusRequest {})
            .await?;
        Ok(answer.into_inner())
    }

    /// What an agent says is different between its kernel and what it should be.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn diff(&mut self, node: usize) -> anyhow::Result<Vec<String>> {
        let channel = self.agent(node)?.channel();
        let answer = PoliciesClient::new(channel).diff(DiffRequest {}).await?;
        Ok(answer.into_inner().lines)
    }

    /// Why an agent allows or denies a flow, in words.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn explain(
        &mut self,
        node: usize,
        request: proto::policy::v1::ExplainRequest,
    ) -> anyhow::Result<proto::policy::v1::ExplainResponse> {
        let channel = self.agent(node)?.channel();
        Ok(PoliciesClient::new(channel)
            .explain(request)
            .await?
            .into_inner())
    }

    /// Asks a node's gate to let a pod start; repeated while the agent is on its way up.
    ///
    /// # Errors
    /// The gate refuses, or nobody answers in time.
    pub async fn ready(&mut self, pod: &Standing) -> anyhow::Result<u64> {
        let request = ReadyRequest {
            pod: Some(local_pod(pod)),
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.agent(pod.spec.node)?.check()?;
            let channel = self.agent(pod.spec.node)?.channel();
            match GateClient::new(channel).ready(request.clone()).await {
                Ok(answer) => return Ok(answer.into_inner().generation),
                Err(status) if Instant::now() > deadline => return Err(status.into()),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Tells a node's gate that an attachment ends; repeated while the agent is on its way up.
    ///
    /// # Errors
    /// Nobody answers in time.
    pub async fn release(&mut self, pod: &Standing) -> anyhow::Result<()> {
        let local = local_pod(pod);
        let request = ReleaseRequest {
            attachment: local.attachment,
            host_link: local.host_link,
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.agent(pod.spec.node)?.check()?;
            let channel = self.agent(pod.spec.node)?.channel();
            match GateClient::new(channel).release(request.clone()).await {
                Ok(_) => return Ok(()),
                Err(status) if Instant::now() > deadline => return Err(status.into()),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Whether an agent's process was started and not killed.
    pub fn is_running(&self, node: usize) -> bool {
        self.nodes.get(node).is_some_and(|a| a.process.is_some())
    }

    /// The process id of an agent that was started and not killed.
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.nodes.get(node)?.process.as_ref().map(Process::pid)
    }

    /// Whether an agent's process has ended by itself, for instance at a crash point.
    ///
    /// # Errors
    /// It was not started.
    pub fn has_ended(&mut self, node: usize) -> anyhow::Result<bool> {
        let process = self.agent(node)?.process.as_mut();
        process.context("the agent was not started")?.has_ended()
    }

    /// Starts an agent, with `env` added to our own environment.
    ///
    /// # Errors
    /// It does not start.
    pub fn run(&mut self, node: usize, env: &[(String, String)]) -> anyhow::Result<()> {
        let agent = self.agent(node)?;
        let args = ["--config".to_owned(), agent.config.display().to_string()];
        let process = Process::start(
            &agent.name,
            &agent.namespace,
            &agent.program,
            &args,
            env,
            &agent.log,
        )?;
        agent.process = Some(process);
        agent.channel = None;
        Ok(())
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// It was not running.
    pub fn kill(&mut self, node: usize) -> anyhow::Result<()> {
        let agent = self.agent(node)?;
        agent.channel = None;
        let mut process = agent.process.take().context("the agent does not run")?;
        process.kill()
    }

    /// How long an agent's threads had to wait for a CPU that others had: what a busy machine costs it.
    ///
    /// # Errors
    /// It does not run.
    pub fn waited(&mut self, node: usize) -> anyhow::Result<Duration> {
        let process = self.agent(node)?.process.as_ref();
        process.context("the agent does not run")?.waited()
    }

    /// Whether the kernel keeps one of an agent's threads waiting for something that others hold.
    ///
    /// # Errors
    /// It does not run.
    pub fn is_blocked(&mut self, node: usize) -> anyhow::Result<bool> {
        let process = self.agent(node)?.process.as_ref();
        process.context("the agent does not run")?.is_blocked()
    }

    /// The end of an agent's log.
    pub fn log(&self, node: usize) -> String {
        self.nodes
            .get(node)
            .map(|a| program::tail(&a.log))
            .unwrap_or_default()
    }
}

impl Agent {
    fn check(&mut self) -> anyhow::Result<()> {
        match &mut self.process {
            Some(process) => process.check(),
            None => bail!("{} does not run", self.name),
        }
    }

    fn channel(&mut self) -> Channel {
        let made = || Channel::unix(&self.socket, &Params::default());
        self.channel.get_or_insert_with(made).clone()
    }
}

/// Keeps an agent's socket while it is away, as node-agent does.
async fn hold(path: PathBuf, stopping: CancellationToken) {
    let mut holder = Holder::new();
    loop {
        tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            attended = holder.attend(&path) => {
                tracing::debug!(?attended, held = holder.held().is_some(), "the agent went away");
            }
        }
        tokio::time::sleep(HOLDER_LOOK).await;
    }
}

fn configuration(node: &Node, dir: &std::path::Path) -> Value {
    json!({
        "mode": "agent",
        "node": {
            "name": node.spec.name,
            "cluster": CLUSTER,
            "state_dir": dir.join("state"),
            "socket": dir.join("policy.sock"),
        },
        "feed": {"relays": [RELAY.to_string()]},
        "policy": {
            "enabled": true,
            "owner_socket": dir.join(OWNER_SOCKET),
        },
        "tls": {"ca": dir.join("ca.crt"), "cert": dir.join("tls.crt"), "key": dir.join("tls.key")},
        "service": {
            "health": {"listen": "127.0.0.1:7412"},
            "admin": {"listen": "127.0.0.1:7413"},
            "drain": {"grace_ms": 1_000, "stop_ms": 500},
        },
    })
}

/// Lays `over` on top of `base`.
fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (base, over) => *base = over.clone(),
    }
}

/// A standing pod as node-agent would speak of it.
pub fn local_pod(pod: &Standing) -> LocalPod {
    LocalPod {
        attachment: Some(Attachment {
            sandbox_id: pod.desired.attachment.sandbox.clone(),
            ifname: pod.desired.attachment.ifname.clone(),
        }),
        pod: Some(PodRef {
            namespace: pod.spec.key.namespace.clone(),
            name: pod.spec.key.name.clone(),
            uid: pod.spec.uid.clone(),
        }),
        host_link: pod.desired.host_link.clone(),
        netns: pod.desired.netns.display().to_string(),
        ips: pod.spec.addresses().map(|ip| ip.to_string()).collect(),
    }
}
