//! What we are compared with on the same nodes: Debian's `ptp` and `host-local`.

use std::fs;

use serde_json::json;

use crate::k8s::bed::Bed;
use crate::k8s::node::CNI_CONF;
use crate::run_dir::write_atomically;

/// The first of a folder is the one that is used.
const FILE: &str = "00-bare.conflist";

impl Bed {
    /// Puts `ptp` and `host-local` before ours on all nodes, or takes them away. There must be no pods with addresses
    /// in a namespace that is used meanwhile: what one plug-in has made, another does not take away.
    ///
    /// # Errors
    /// When a file can not be written.
    pub fn bare_network(&self, on: bool) -> anyhow::Result<()> {
        for node in &self.nodes {
            let file = node.file(CNI_CONF).join(FILE);
            if !on {
                fs::remove_file(file)?;
                continue;
            }
            let number = node.plan().number;
            let conf = json!({
                "cniVersion": "1.0.0",
                "name": "bare",
                "plugins": [
                    {
                        "type": "ptp",
                        "ipMasq": false,
                        "ipam": {
                            "type": "host-local",
                            "dataDir": "/run/bare",
                            "ranges": [[{"subnet": format!("192.168.{number}.0/24")}]],
                            "routes": [{"dst": "0.0.0.0/0"}],
                        },
                    },
                    {"type": "portmap", "capabilities": {"portMappings": true}},
                ],
            });
            write_atomically(&file, conf.to_string().as_bytes())?;
        }
        Ok(())
    }
}
