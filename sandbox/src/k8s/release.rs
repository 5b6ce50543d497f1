//! The product on the test bed: the real Helm with the real chart.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use fabric::vpc::OPENAPI;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::k8s::bed::Bed;
use crate::k8s::control::SERVICES;
use crate::layout::REGION;
use crate::run_dir::write_secret;

/// Name of the release.
pub const RELEASE: &str = "terway";
/// Its namespace.
pub const NAMESPACE: &str = "kube-system";
/// Id of the cluster.
pub const CLUSTER: &str = "cbed";
/// The Secret with the keys of the simulated account.
const SECRET: &str = "alibaba-addon-secret";
/// How long Helm may wait for what it installs.
const WAIT: &str = "180s";
/// How long Helm itself may take.
const LIMIT: Duration = Duration::from_mins(4);

/// The values for the test bed; a story may change them.
pub fn values(bed: &Bed) -> Value {
    let mut vswitches = serde_json::Map::new();
    let mut exclusive = Vec::new();
    for zone in &bed.layout().zones {
        let ids: Vec<_> = zone.pods.iter().map(|v| v.id.as_str()).collect();
        exclusive.extend(ids.clone());
        vswitches.insert(zone.id.to_string(), json!(ids));
    }
    let endpoint = format!("http://{}", OPENAPI.ip());
    let first = bed.nodes.first().map(|node| node.plan().name.clone());
    json!({
        "cluster": {"id": CLUSTER, "region": REGION},
        "image": {"pullPolicy": "Never"},
        "telemetry": {"logFormat": "text", "logFilter": "info"},
        "eniConfig": {
            "vswitches": vswitches,
            "securityGroups": [bed.layout().security_group],
            "minPoolSize": 5,
            "maxPoolSize": 15,
            "serviceCIDR": SERVICES,
        },
        "gateway": {"ecsEndpoint": endpoint, "vpcEndpoint": endpoint},
        "ipam": {
            "exclusiveVSwitches": exclusive,
            "nodeSelector": {"kubernetes.io/hostname": first},
            "store": {"kind": "redb", "volume": {"kind": "host-path"}},
        },
    })
}

impl Bed {
    /// Makes the Secret, installs the chart, and waits until nodes and DNS are ready.
    ///
    /// # Errors
    /// With what Helm said, and what pods of the release are waiting for.
    pub async fn install(&self, values: &Value) -> anyhow::Result<()> {
        self.make_secret().await?;
        self.helm_with(&["install"], values).await?;
        self.nodes_ready().await?;
        let dns = [
            "rollout",
            "status",
            "deployment/coredns",
            "-n",
            "kube-system",
            "--timeout=60s",
        ];
        let ready = self.kube().run_for(&dns, Duration::from_secs(70)).await;
        ready.context("CoreDNS, the first pods with an address")?;
        Ok(())
    }

    /// `helm upgrade` with these values.
    ///
    /// # Errors
    /// As for [`Bed::install`].
    pub async fn upgrade(&self, values: &Value) -> anyhow::Result<()> {
        self.helm_with(&["upgrade"], values).await
    }

    /// `helm uninstall`, which waits until all nodes have left.
    ///
    /// # Errors
    /// With what Helm said.
    pub async fn uninstall(&self) -> anyhow::Result<()> {
        let words = ["uninstall", RELEASE, "--wait", "--timeout", WAIT];
        self.helm(&words).await?;
        let secret = [
            "delete",
            "secret",
            SECRET,
            "-n",
            NAMESPACE,
            "--ignore-not-found",
        ];
        self.kube().run(&secret).await?;
        Ok(())
    }

    async fn helm_with(&self, verb: &[&str], values: &Value) -> anyhow::Result<()> {
        let file = self.options().dir.join("values.json");
        write_secret(&file, values.to_string().as_bytes())?;
        let (chart, file) = (
            self.options().chart.display().to_string(),
            file.display().to_string(),
        );
        let mut words = verb.to_vec();
        words.extend([
            RELEASE,
            &chart,
            "--values",
            &file,
            "--wait",
            "--timeout",
            WAIT,
        ]);
        let done = self.helm(&words).await;
        if let Err(error) = done {
            let pods = self.kube().run(&["get", "pods", "-A", "-o", "wide"]).await;
            let pods = pods.unwrap_or_else(|error| error.to_string());
            return Err(error.context(format!("pods are\n{pods}")));
        }
        Ok(())
    }

    /// The real helm with these words, in the release's namespace.
    ///
    /// # Errors
    /// With what it said.
    pub async fn helm(&self, words: &[&str]) -> anyhow::Result<String> {
        let program: PathBuf = self.options().kubernetes.join("helm");
        let home = self.options().dir.join("helm");
        let output = Command::new(program)
            .args(words)
            .args(["--namespace", NAMESPACE])
            .env("KUBECONFIG", self.kube().kubeconfig())
            .env("HELM_CACHE_HOME", &home)
            .env("HELM_CONFIG_HOME", &home)
            .env("HELM_DATA_HOME", &home)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(LIMIT, output)
            .await
            .with_context(|| format!("helm took more than {LIMIT:?}"))?
            .context("start helm")?;
        if !output.status.success() {
            bail!(
                "helm {} ended with {}: {}",
                words.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    async fn make_secret(&self) -> anyhow::Result<()> {
        let dir = self.cloud().credentials_dir();
        let from = |key: &str| format!("--from-file={key}={}", dir.join(key).display());
        let words = [
            "create",
            "secret",
            "generic",
            SECRET,
            "-n",
            NAMESPACE,
            &from("access-key-id"),
            &from("access-key-secret"),
        ];
        self.kube().run(&words).await?;
        Ok(())
    }
}
