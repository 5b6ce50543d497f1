//! What an audit of the whole cluster looks at, here and by `terwayctl audit`.

use std::collections::BTreeMap;

use anyhow::{Context, bail};

use crate::agreement::{AuditInputs, NodeInputs};
use crate::cluster::{AUDITOR, Cluster};
use crate::pods::Pod;
use crate::{kernel, layout, service_config};

impl Cluster {
    /// Everything that an audit compares. `pods` are those that should exist.
    pub async fn audit_inputs(&self, pods: &[Pod]) -> anyhow::Result<AuditInputs> {
        let mut nodes = Vec::new();
        for (number, host) in (1..).zip(self.nodes()) {
            let mut kernels = BTreeMap::new();
            for pod in pods.iter().filter(|pod| pod.node == number) {
                kernels.insert(pod.key.clone(), kernel::look(&pod.netns).await?);
            }
            nodes.push(NodeInputs {
                name: host.name.clone(),
                instance: host.instance.to_string(),
                store: self.node_dump(number).await?,
                kernel: kernel::look(&host.namespace).await?,
                pods: kernels,
            });
        }
        Ok(AuditInputs {
            nodes,
            shards: self.shard_dumps().await?,
            cloud: self.sim().dump(),
        })
    }

    /// The words of `terwayctl audit` for this cluster, the program first: JSON on standard output, one object per
    /// finding; exit code 0 without any.
    pub fn audit_command(&self) -> anyhow::Result<Vec<String>> {
        let ip = self.services_ip()?;
        let at = |port| layout::host_port(ip, port);
        let mut words = self.services_host().namespace.entry();
        words.push(self.bin_dir().join(AUDITOR).display().to_string());
        words.push("audit".to_owned());
        words.push(format!(
            "--tls={}",
            self.certificates().admin_dir().display()
        ));
        words.push(format!("--gateway={}", at(service_config::GATEWAY_GRPC)));
        for n in 1..=self.ipam_replicas() {
            words.push(format!("--ipam={}", at(service_config::ipam_grpc(n))));
        }
        for (number, host) in (1..).zip(self.nodes()) {
            let socket = self.run_dir().agent_socket(number);
            let netns = host.namespace.path();
            words.push(format!(
                "--node={}={},{}",
                host.name,
                socket.display(),
                netns.display()
            ));
        }
        words.push("--json".to_owned());
        Ok(words)
    }

    /// Runs [`Cluster::audit_command`]; one line of JSON per finding.
    pub async fn audit(&self) -> anyhow::Result<Vec<String>> {
        let words = self.audit_command()?;
        let (program, args) = words.split_first().context("the command is empty")?;
        let output = tokio::process::Command::new(program)
            .args(args)
            .kill_on_drop(true)
            .output()
            .await
            .context("start terwayctl")?;
        match serde_json::from_slice::<Vec<serde_json::Value>>(&output.stdout) {
            Ok(findings) => Ok(findings.iter().map(ToString::to_string).collect()),
            Err(_) => bail!(
                "terwayctl audit ended with {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            ),
        }
    }
}
