//! Instances whose Node object is gone: told to ipam until it holds nothing of them any more.
//!
//! That a Node object is gone proves nothing about its instance; ipam asks the cloud before it frees anything. What
//! had a Node object is remembered in a ConfigMap, so that one that vanishes while nobody leads is found, too. Whoever
//! leads does all of this.

mod register;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, PostParams};
use mesh::client::{self, Channel};
use mesh::identity::IdentityKind;
use mesh::tls::TlsMaterial;
use mesh::tls::verify::Expect;
use proto::ipam::v1::NodeGoneRequest;
use proto::ipam::v1::nodes_client::NodesClient;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
pub use crate::gone::register::Register;
use crate::kubernetes::{Failure, Kubernetes};
use crate::metrics::Metrics;
use crate::nodes::Nodes;

/// Key of the ConfigMap: one instance in each line.
const INSTANCES: &str = "instances";
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Pause after a look that failed.
const FAILED: Duration = Duration::from_secs(5);
/// Declarations in one round, so that a lost lead is noticed.
const ROUND_MAX: usize = 64;

/// What people can look at.
#[derive(Debug, Clone, Default)]
pub struct View {
    gone: Arc<Mutex<Value>>,
}

impl View {
    /// Instances without a Node object and what they wait for; empty where we do not lead.
    pub fn dump(&self) -> Value {
        // What is guarded is plain data: a panic leaves it usable.
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.clone()
    }

    fn set(&self, value: Value) {
        *self.gone.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

/// Declares instances gone.
#[derive(Debug)]
pub struct Undertaker {
    kubernetes: Kubernetes,
    nodes: Nodes,
    tls: TlsMaterial,
    cluster: String,
    namespace: String,
    map: String,
    after: Duration,
    replicas: Vec<String>,
    selector: String,
    metrics: Metrics,
    view: View,
    channels: HashMap<String, Channel>,
}

impl Undertaker {
    /// Declares with the certificate `tls`, once it runs.
    pub fn new(
        kubernetes: Kubernetes,
        nodes: Nodes,
        tls: TlsMaterial,
        config: &Config,
        metrics: Metrics,
    ) -> Self {
        Self {
            kubernetes,
            nodes,
            tls,
            cluster: config.cluster.id.clone(),
            namespace: config.cluster.namespace.clone(),
            map: config.nodes.instances.clone(),
            after: Duration::from_millis(config.nodes.gone_after_ms),
            replicas: config.ipam.replicas.clone(),
            selector: config.pods_of("ipam"),
            metrics,
            view: View::default(),
            channels: HashMap::new(),
        }
    }

    /// What people can look at.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Works whenever we lead, until `drain` is cancelled.
    pub async fn run(mut self, leads: watch::Receiver<bool>, drain: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                () = self.once(leads.clone()) => {}
            }
        }
    }

    /// One lead, from its beginning to its end.
    async fn once(&mut self, mut leads: watch::Receiver<bool>) {
        let mut nodes = self.nodes.changes();
        // Both live as long as we do: a wait that fails is the end of the process.
        let led = leads.wait_for(|leads| *leads).await.is_ok();
        let synced = led && nodes.wait_for(|picture| picture.synced).await.is_ok();
        if !synced {
            std::future::pending::<()>().await;
        }
        let remembered = match self.remembered().await {
            Ok(remembered) => remembered,
            Err(failure) => {
                tracing::warn!(%failure, "instances that had a Node object are not known yet");
                tokio::time::sleep(FAILED).await;
                return;
            }
        };
        let mut register = Register::new(self.after, remembered, Instant::now());
        while *leads.borrow() {
            register.look(self.nodes.now().instances(), Instant::now());
            if let Err(failure) = self.remember(&mut register).await {
                tracing::warn!(%failure, "instances are not remembered");
                tokio::time::sleep(FAILED).await;
                continue;
            }
            let due = register.due(Instant::now());
            if !due.is_empty() {
                self.declare(&mut register, due).await;
            }
            let gone: Vec<Value> = register
                .gone()
                .map(|(id, why)| json!({"instance": id, "waits_for": why}))
                .collect();
            let number = i64::try_from(gone.len()).unwrap_or(i64::MAX);
            self.metrics.gone.set(number);
            self.view.set(Value::Array(gone));
            tokio::time::sleep(LOOK).await;
        }
        self.metrics.gone.set(0);
        self.view.set(Value::Array(Vec::new()));
    }

    async fn remembered(&self) -> Result<Vec<String>, Failure> {
        let maps = self.kubernetes.config_maps(&self.namespace);
        let get = self
            .kubernetes
            .ask("read the instances", maps.get(&self.map));
        let data = get.await?.data.unwrap_or_default();
        let lines = data.get(INSTANCES).map(String::as_str).unwrap_or_default();
        Ok(lines.lines().map(str::to_owned).collect())
    }

    async fn remember(&self, register: &mut Register) -> Result<(), Failure> {
        let Some(text) = register.to_remember() else {
            return Ok(());
        };
        let maps = self.kubernetes.config_maps(&self.namespace);
        let get = self
            .kubernetes
            .ask("read the instances", maps.get(&self.map));
        let map = get.await?;
        let changed = ConfigMap {
            data: Some(BTreeMap::from([(INSTANCES.to_owned(), text)])),
            ..map
        };
        let params = PostParams::default();
        let replaced = maps.replace(&self.map, &params, &changed);
        self.kubernetes
            .ask("remember the instances", replaced)
            .await?;
        register.remembered();
        Ok(())
    }

    async fn declare(&mut self, register: &mut Register, due: Vec<String>) {
        let replicas = match self.replicas().await {
            Ok(replicas) => replicas,
            Err(failure) => {
                tracing::warn!(%failure, "replicas of ipam are not known");
                return;
            }
        };
        self.channels
            .retain(|replica, _| replicas.contains(replica));
        for id in due.into_iter().take(ROUND_MAX) {
            // It may have come back while the others were declared.
            if self.nodes.now().has(&id) {
                continue;
            }
            match self.gone_everywhere(&id, &replicas).await {
                Ok(()) => {
                    if register.done(&id, Instant::now()) {
                        tracing::info!(instance = id, "ipam holds nothing of it any more");
                        self.metrics.gone_done.inc();
                    }
                }
                Err(why) => {
                    tracing::info!(instance = id, why, "ipam holds something of it still");
                    register.not_yet(&id, why, Instant::now());
                }
            }
        }
    }

    /// Declares one instance to all replicas; says why one is not done.
    async fn gone_everywhere(&mut self, id: &str, replicas: &[String]) -> Result<(), String> {
        for replica in replicas {
            let channel = self.channel(replica)?;
            let request = NodeGoneRequest {
                cluster: self.cluster.clone(),
                instance_id: id.to_owned(),
            };
            let answer = NodesClient::new(channel).node_gone(request).await;
            let answer = answer
                .map_err(|status| format!("{replica}: {}", status.message()))?
                .into_inner();
            if !answer.done {
                let enis = answer.enis;
                return Err(format!("{replica}: {enis} ENIs: {}", answer.waits_for));
            }
        }
        Ok(())
    }

    fn channel(&mut self, replica: &str) -> Result<Channel, String> {
        if let Some(channel) = self.channels.get(replica) {
            return Ok(channel.clone());
        }
        let expect = Expect::Kind(IdentityKind::Ipam);
        let params = client::Params::default();
        let channel = Channel::tcp(replica, self.tls.clone(), expect, &params)
            .map_err(|error| error.to_string())?;
        self.channels.insert(replica.to_owned(), channel.clone());
        Ok(channel)
    }

    /// Where the replicas are: the release's pods of ipam, and where there are none, what the configuration says. Each
    /// must be asked, since each answers for its own shards.
    async fn replicas(&self) -> Result<Vec<String>, Failure> {
        let pods = self.kubernetes.pods(&self.namespace);
        let params = ListParams::default().labels(&self.selector).limit(100);
        let list = self.kubernetes.ask("list ipam's pods", pods.list(&params));
        let list = list.await?;
        let port = self.replicas.first().and_then(|one| one.rsplit_once(':'));
        let port = port.map_or("7301", |(_, port)| port);
        let mut found: Vec<String> = list
            .items
            .iter()
            .filter_map(|pod| {
                let address = pod.status.as_ref()?.pod_ip.as_deref()?;
                let v6 = address.contains(':');
                Some(if v6 {
                    format!("[{address}]:{port}")
                } else {
                    format!("{address}:{port}")
                })
            })
            .collect();
        if found.is_empty() {
            found.clone_from(&self.replicas);
        }
        Ok(found)
    }
}
