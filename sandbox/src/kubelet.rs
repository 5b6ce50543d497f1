//! What kubelet does: pods come and go through the CNI plug-in.

use anyhow::{Context, bail};
use fabric::namespace::Namespace;
use serde_json::{Value, json};
use types::pod::PodKey;

use crate::cluster::{Cluster, run_plugin};
use crate::plugin::{CniCall, CniOutput};
use crate::pods::{Pod, manifest, manifest_file};
use crate::run_dir;

/// The specification's version that is spoken.
pub const CNI_VERSION: &str = "1.0.0";

impl Cluster {
    /// The network configuration of a node, as `10-terway.conf` has it.
    pub fn network_conf(&self, node: usize) -> Value {
        json!({
            "cniVersion": CNI_VERSION,
            "name": "terway",
            "type": "terway",
            "agent_socket": self.run_dir().agent_socket(node),
            "del_journal": self.run_dir().del_journal(node),
            "trace_file": self.run_dir().traces().join(format!("cni-{node}.jsonl")),
        })
    }

    /// Runs the plug-in on a node with this pod, sandbox and namespace.
    pub async fn cni(
        &self,
        node: usize,
        command: &str,
        pod: &PodKey,
        sandbox: &str,
        netns: Option<&Namespace>,
    ) -> anyhow::Result<CniOutput> {
        let call = CniCall {
            command: command.to_owned(),
            sandbox: Some(sandbox.to_owned()),
            netns: netns.map(Namespace::path),
            pod: Some((pod.namespace.clone(), pod.name.clone())),
            conf: self.network_conf(node),
            traceparent: None,
        };
        self.cni_call(node, &call).await
    }

    /// Runs the plug-in on a node as the call says.
    pub async fn cni_call(&self, node: usize, call: &CniCall) -> anyhow::Result<CniOutput> {
        run_plugin(self, node, call).await
    }

    /// Writes a pod's manifest and makes its sandbox: everything that comes before ADD.
    pub async fn prepare_pod(
        &self,
        node: usize,
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<Pod> {
        let mut pod = self.prepare_quiet_pod(node, namespace, name).await?;
        pod.serve().await?;
        Ok(pod)
    }

    /// As [`Cluster::prepare_pod`], without a server inside.
    pub async fn prepare_quiet_pod(
        &self,
        node: usize,
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<Pod> {
        self.prepare_labelled_pod(node, namespace, name, &[]).await
    }

    /// As [`Cluster::prepare_quiet_pod`], with labels.
    pub async fn prepare_labelled_pod(
        &self,
        node: usize,
        namespace: &str,
        name: &str,
        labels: &[(&str, &str)],
    ) -> anyhow::Result<Pod> {
        self.prepare_any(node, (namespace, name), labels, false)
            .await
    }

    /// As [`Cluster::create_labelled_pod`], of a pod that asks for an ENI of its own.
    ///
    /// # Errors
    /// As there.
    pub async fn create_whole_pod(
        &self,
        node: usize,
        namespace: &str,
        name: &str,
        labels: &[(&str, &str)],
    ) -> anyhow::Result<Pod> {
        let mut pod = self
            .prepare_any(node, (namespace, name), labels, true)
            .await?;
        pod.serve().await?;
        let output = self.add_pod(&mut pod).await?;
        if !output.is_ok() {
            bail!("ADD of {} on node {node}: {}", pod.key, output.text());
        }
        Ok(pod)
    }

    async fn prepare_any(
        &self,
        node: usize,
        (namespace, name): (&str, &str),
        labels: &[(&str, &str)],
        whole_eni: bool,
    ) -> anyhow::Result<Pod> {
        self.ensure_namespace(namespace, &[])?;
        let serial = self.next_serial();
        let fabric = self.fabric().clone();
        let netns =
            tokio::task::spawn_blocking(move || fabric.create_namespace(&format!("pod-{serial}")))
                .await??;
        let labels = labels.iter();
        let pod = Pod {
            key: PodKey::new(namespace, name),
            uid: format!("uid-{serial}"),
            labels: labels
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            whole_eni,
            node,
            sandbox: format!("sandbox{serial:012}"),
            netns,
            add: None,
            addresses: Vec::new(),
            echo: None,
        };
        self.tell(&pod)?;
        Ok(pod)
    }

    /// Writes what is known of a pod into its manifest, as kubelet and people do.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn tell(&self, pod: &Pod) -> anyhow::Result<()> {
        let text = manifest(pod, &self.node(pod.node)?.name).to_string();
        let file = self.run_dir().manifests().join(manifest_file(&pod.key));
        run_dir::write_atomically(&file, text.as_bytes()).context("write a manifest")
    }

    /// ADD of a prepared pod; on success its addresses are known.
    pub async fn add_pod(&self, pod: &mut Pod) -> anyhow::Result<CniOutput> {
        let netns = Some(&pod.netns);
        let output = self
            .cni(pod.node, "ADD", &pod.key, &pod.sandbox, netns)
            .await?;
        if output.is_ok() {
            pod.addresses = output.addresses();
            pod.addresses.sort_by_key(std::net::IpAddr::is_ipv6);
            pod.add = Some(output.clone());
            self.tell(pod)?;
        }
        Ok(output)
    }

    /// A pod from manifest to addresses.
    ///
    /// # Errors
    /// Also when ADD fails, with all that it said.
    pub async fn create_pod(
        &self,
        node: usize,
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<Pod> {
        let mut pod = self.prepare_pod(node, namespace, name).await?;
        let output = self.add_pod(&mut pod).await?;
        if !output.is_ok() {
            bail!("ADD of {} on node {node}: {}", pod.key, output.text());
        }
        Ok(pod)
    }

    /// As [`Cluster::create_pod`], with labels.
    ///
    /// # Errors
    /// As there.
    pub async fn create_labelled_pod(
        &self,
        node: usize,
        namespace: &str,
        name: &str,
        labels: &[(&str, &str)],
    ) -> anyhow::Result<Pod> {
        let mut pod = self
            .prepare_labelled_pod(node, namespace, name, labels)
            .await?;
        pod.serve().await?;
        let output = self.add_pod(&mut pod).await?;
        if !output.is_ok() {
            bail!("ADD of {} on node {node}: {}", pod.key, output.text());
        }
        Ok(pod)
    }

    /// DEL of a pod, with or without its namespace.
    pub async fn del_pod(&self, pod: &Pod, with_netns: bool) -> anyhow::Result<CniOutput> {
        let netns = with_netns.then_some(&pod.netns);
        self.cni(pod.node, "DEL", &pod.key, &pod.sandbox, netns)
            .await
    }

    /// Takes away what is left of a pod after DEL: its sandbox and its manifest.
    pub async fn remove_pod(&self, pod: Pod) -> anyhow::Result<()> {
        let file = self.run_dir().manifests().join(manifest_file(&pod.key));
        match std::fs::remove_file(&file) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context("remove a manifest"),
        }
        tokio::task::spawn_blocking(move || pod.netns.delete()).await??;
        Ok(())
    }

    /// A pod's whole end: DEL, sandbox, manifest.
    ///
    /// # Errors
    /// Also when DEL fails, with all that it said; the pod is then left as it is.
    pub async fn delete_pod(&self, pod: Pod) -> anyhow::Result<CniOutput> {
        let output = self.del_pod(&pod, true).await?;
        if !output.is_ok() {
            bail!("DEL of {} on node {}: {}", pod.key, pod.node, output.text());
        }
        self.remove_pod(pod).await?;
        Ok(output)
    }
}
