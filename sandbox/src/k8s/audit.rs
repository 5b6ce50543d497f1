//! What must be gone: from nodes and the cloud when the release has gone, from this machine when the test bed has.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use fabric::shell;
use serde_json::Value;

use crate::k8s::bed::Bed;
use crate::k8s::cgroup::Groups;
use crate::k8s::node::{BedNode, CNI_CONF};

/// Tables of nf_tables that are others': kube-proxy's, and what Debian's `portmap` leaves when a hostPort has gone.
const FOREIGN_TABLES: &[&str] = &["kube-proxy", "nat"];

impl Bed {
    /// What the release has left on nodes and in the cloud; one line each.
    ///
    /// # Errors
    /// When something can not be looked at.
    pub async fn left_by_release(&self) -> anyhow::Result<Vec<String>> {
        let mut left = Vec::new();
        for node in self.nodes.iter().filter(|node| node.machine().is_ok()) {
            let name = &node.plan().name;
            left.extend(
                left_on(node)
                    .await?
                    .into_iter()
                    .map(|what| format!("{name}: {what}")),
            );
        }
        let dump = self.cloud().dump();
        let primary: BTreeSet<_> = dump
            .instances
            .iter()
            .filter_map(|i| i.enis.first())
            .collect();
        for eni in &dump.enis {
            if !primary.contains(&eni.id) {
                left.push(format!(
                    "the cloud: {} with {} addresses",
                    eni.id,
                    eni.ipv4.len()
                ));
            } else if eni.ipv4.len() > 1 {
                left.push(format!(
                    "the cloud: {} addresses on {}",
                    eni.ipv4.len(),
                    eni.id
                ));
            }
        }
        Ok(left)
    }
}

async fn left_on(node: &BedNode) -> anyhow::Result<Vec<String>> {
    let network = node.machine()?.network();
    let mut left = Vec::new();
    for link in list(&shell::ip_json(network, &["link", "show"]).await?)? {
        let name = link
            .get("ifname")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if name != "lo" && name != "eth0" {
            left.push(format!("link {name}"));
        }
    }
    for rule in list(&shell::ip_json(network, &["rule", "show"]).await?)? {
        let priority = rule.get("priority").and_then(Value::as_u64);
        if !matches!(priority, Some(0 | 32766 | 32767)) {
            left.push(format!("rule {rule}"));
        }
    }
    let tables: Value =
        serde_json::from_str(&shell::nft_json(network, &["list", "tables"]).await?)?;
    let tables = tables
        .get("nftables")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    for table in tables.filter_map(|item| item.get("table")) {
        let name = table
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if !FOREIGN_TABLES.contains(&name) {
            left.push(format!("table {name} of nf_tables"));
        }
    }
    for entry in fs::read_dir(node.file(CNI_CONF))? {
        left.push(format!(
            "CNI configuration {}",
            entry?.file_name().display()
        ));
    }
    Ok(left)
}

fn list(json: &str) -> anyhow::Result<Vec<Value>> {
    serde_json::from_str(json).context("ip's JSON")
}

/// By what everything that a test bed makes on this machine is known.
#[derive(Debug, Clone)]
pub struct BedTraces {
    prefix: String,
    groups: Groups,
    dir: PathBuf,
    links: BTreeSet<String>,
}

impl BedTraces {
    /// Those of this one; to be taken while it runs.
    ///
    /// # Errors
    /// When links can not be listed.
    pub fn of(bed: &Bed) -> anyhow::Result<Self> {
        Ok(Self {
            prefix: bed.fabric().prefix().to_owned(),
            groups: bed.groups().clone(),
            dir: bed.options().dir.clone(),
            links: links()?,
        })
    }

    /// What is left; one line each. A folder that was to stay is fine.
    ///
    /// # Errors
    /// When something can not be looked at.
    pub fn left(&self, folder_stays: bool) -> anyhow::Result<Vec<String>> {
        let mut left = Vec::new();
        for namespace in fabric::namespace::with_prefix(&self.prefix) {
            left.push(format!("network namespace {}", namespace.name()));
        }
        for group in self.groups.left()? {
            left.push(format!("control group {}", group.display()));
        }
        let dir = self.dir.display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
        for mount in mounts.lines().filter(|line| line.contains(&dir)) {
            left.push(format!("mount {mount}"));
        }
        for entry in fs::read_dir("/proc").context("list processes")? {
            // Who ends while we look is not left behind; we ourselves may name the folder.
            let entry = entry?;
            if entry.file_name().to_str() == Some(&std::process::id().to_string()) {
                continue;
            }
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&format!("{dir}/")) {
                left.push(format!("process {line}"));
            }
        }
        for link in links()?.difference(&self.links) {
            left.push(format!("link {link}"));
        }
        if self.dir.exists() && !folder_stays {
            left.push(format!("folder {dir}"));
        }
        Ok(left)
    }
}

/// Links of the machine's own network.
fn links() -> anyhow::Result<BTreeSet<String>> {
    let entries = fs::read_dir("/sys/class/net").context("list links")?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect())
}
