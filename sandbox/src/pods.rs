//! Pods: a manifest, a network namespace, a sandbox id, and a server inside.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fabric::error::FabricError;
use fabric::namespace::Namespace;
use serde_json::json;
use types::pod::PodKey;

use crate::echo::EchoServer;
use crate::plugin::CniOutput;
use crate::reachability::Place;

/// A pod as the sandbox made it.
#[derive(Debug)]
pub struct Pod {
    /// Namespace and name.
    pub key: PodKey,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// Whether it asks for an ENI of its own.
    pub whole_eni: bool,
    /// Number of its node, from 1.
    pub node: usize,
    /// Sandbox id.
    pub sandbox: String,
    /// Its network namespace.
    pub netns: Namespace,
    /// The answer of its ADD, once it succeeded.
    pub add: Option<CniOutput>,
    /// Its addresses by that answer, IPv4 first; empty before.
    pub addresses: Vec<IpAddr>,
    /// What answers connections inside.
    pub(crate) echo: Option<EchoServer>,
}

impl Pod {
    /// What its server answers.
    pub fn answer(&self) -> String {
        self.key.to_string()
    }

    /// Starts its server, which answers with its name.
    ///
    /// # Errors
    /// When it can not listen.
    pub async fn serve(&mut self) -> Result<(), FabricError> {
        self.echo = Some(EchoServer::start(&self.netns, &self.answer()).await?);
        Ok(())
    }

    /// Stops its server, as a crashed container's would.
    pub fn stop_server(&mut self) {
        self.echo = None;
    }

    /// As one end of connections.
    pub fn place(&self) -> Place {
        Place {
            name: self.answer(),
            namespace: self.netns.clone(),
            addresses: self.addresses.clone(),
        }
    }

    /// Its address of a family.
    pub fn address(&self, v4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|ip| ip.is_ipv4() == v4)
    }
}

/// The manifest of a pod, as it is when kubelet knows these of its addresses.
pub fn manifest(pod: &Pod, node_name: &str) -> serde_json::Value {
    let mut manifest = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": pod.key.namespace,
            "name": pod.key.name,
            "uid": pod.uid,
            "labels": pod.labels,
        },
        "spec": {
            "nodeName": node_name,
            "containers": [{"name": "app", "image": "none"}],
        },
    });
    if pod.whole_eni {
        manifest["spec"]["containers"][0]["resources"] =
            json!({"limits": {"aliyun/eni": "1"}, "requests": {"aliyun/eni": "1"}});
    }
    let ips: Vec<_> = pod.addresses.iter().map(|ip| json!({"ip": ip})).collect();
    manifest["status"] = match pod.addresses.first() {
        Some(first) => json!({"phase": "Running", "podIP": first, "podIPs": ips}),
        None => json!({"phase": "Pending"}),
    };
    manifest
}

/// The file of a pod's manifest.
pub fn manifest_file(key: &PodKey) -> String {
    format!("{}.{}.json", key.namespace, key.name)
}
