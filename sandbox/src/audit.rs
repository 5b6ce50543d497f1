//! The words of `terwayctl audit` for this cluster.

use crate::cluster::Cluster;
use crate::layout::host_port;
use crate::service_config::{GATEWAY_GRPC, ipam_grpc};

impl Cluster {
    /// The command that audits the whole cluster, to be run by anybody on this machine.
    ///
    /// # Errors
    /// When a path is not UTF-8.
    pub fn audit_command(&self) -> anyhow::Result<Vec<String>> {
        let ip = self.services_ip()?;
        let mut words = self.services_host().namespace.entry();
        let program = self.bin_dir().join("terwayctl");
        words.extend([text(&program)?, "audit".to_owned(), "--json".to_owned()]);
        words.extend(["--tls".to_owned(), text(&self.certificates().admin_dir())?]);
        words.extend(["--gateway".to_owned(), host_port(ip, GATEWAY_GRPC)]);
        for replica in 1..=self.ipam_replicas() {
            words.extend(["--ipam".to_owned(), host_port(ip, ipam_grpc(replica))]);
        }
        for (number, host) in (1..).zip(self.nodes()) {
            let socket = text(&self.run_dir().agent_socket(number))?;
            let netns = text(&host.namespace.path())?;
            words.extend([
                "--node".to_owned(),
                format!("{}={socket},{netns}", host.name),
            ]);
        }
        Ok(words)
    }
}

fn text(path: &std::path::Path) -> anyhow::Result<String> {
    let text = path.to_str();
    text.map(str::to_owned)
        .ok_or_else(|| anyhow::anyhow!("{} is not UTF-8", path.display()))
}
