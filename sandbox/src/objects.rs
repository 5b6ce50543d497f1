//! Objects of the cluster beside pods: nodes, namespaces, and whatever is applied, as files that agents watch.

use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::Context;
use proto::policy::v1::StatusResponse;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::doors;
use crate::run_dir;

impl Cluster {
    /// Writes an object where all agents see it; one of the same kind and name is replaced.
    ///
    /// # Errors
    /// When it has no kind or name, or could not be written.
    pub fn apply(&self, document: &Value) -> anyhow::Result<()> {
        let file = self.file_of(document)?;
        run_dir::write_atomically(&file, document.to_string().as_bytes())
            .with_context(|| format!("write {}", file.display()))
    }

    /// Takes an object away; one that is not there is no error.
    ///
    /// # Errors
    /// When it has no kind or name, or could not be removed.
    pub fn withdraw(&self, document: &Value) -> anyhow::Result<()> {
        let file = self.file_of(document)?;
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", file.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Names of kinds begin with a capital, which no namespace does: no file of a pod is called so.
    fn file_of(&self, document: &Value) -> anyhow::Result<PathBuf> {
        let text = |pointer| document.pointer(pointer).and_then(Value::as_str);
        let kind = text("/kind").context("the object has no kind")?;
        let name = text("/metadata/name").context("the object has no name")?;
        let namespace = text("/metadata/namespace").unwrap_or_default();
        let file = format!("{kind}.{namespace}.{name}.json");
        Ok(self.run_dir().manifests().join(file))
    }

    /// Makes a namespace unless there is one of this name.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn ensure_namespace(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<()> {
        let mut document = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        });
        for (key, value) in labels {
            document["metadata"]["labels"][*key] = json!(value);
        }
        if self.file_of(&document)?.exists() {
            return Ok(());
        }
        self.apply(&document)
    }

    /// Writes the nodes, as the cloud controller does.
    pub(crate) fn announce_nodes(&self) -> anyhow::Result<()> {
        for host in self.nodes() {
            let addresses: Vec<_> = host
                .addresses
                .iter()
                .map(|ip| json!({"type": "InternalIP", "address": ip}))
                .collect();
            self.apply(&json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": host.name,
                    "labels": {
                        "kubernetes.io/hostname": host.name,
                        "topology.kubernetes.io/zone": host.zone,
                    },
                },
                "status": {"addresses": addresses},
            }))?;
        }
        Ok(())
    }

    /// What a node's policy agent says of itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn policy_status(&self, node: usize) -> anyhow::Result<StatusResponse> {
        doors::policy_status(&self.run_dir().policy_socket(node)).await
    }

    /// Whether policy agents run.
    pub const fn has_policy(&self) -> bool {
        self.options.policy.is_some()
    }

    /// What a node's kernel has otherwise than its policy agent says, one line each.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn policy_diff(&self, node: usize) -> anyhow::Result<Vec<String>> {
        doors::policy_diff(&self.run_dir().policy_socket(node)).await
    }
}
