//! What must be gone when a cluster was stopped: its processes, namespaces, and the folder with stores and sockets.
//! Tables of the kernel go with the namespaces that they are in.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use sandbox::cluster::Cluster;

/// Everything by which what a cluster made is known.
#[derive(Debug)]
pub struct Traces {
    prefix: String,
    root: PathBuf,
}

impl Traces {
    /// Those of this cluster; to be taken while it runs.
    pub fn of(cluster: &Cluster) -> Self {
        Self {
            prefix: cluster.fabric().prefix().to_owned(),
            root: cluster.run_dir().root().to_owned(),
        }
    }

    /// Fails if anything is left. The folder may stay after a story that failed.
    ///
    /// # Errors
    /// What is left; or that it can not be known.
    pub fn check(&self, folder_stays: bool) -> Result<()> {
        let namespaces = fabric::namespace::with_prefix(&self.prefix);
        let processes = self.processes()?;
        let folder = !folder_stays && self.root.exists();
        if namespaces.is_empty() && processes.is_empty() && !folder {
            return Ok(());
        }
        let folder = if folder { "its folder, " } else { "" };
        bail!("left behind: {folder}namespaces {namespaces:?}, processes {processes:?}");
    }

    /// Command lines that name the cluster's folder.
    fn processes(&self) -> Result<Vec<String>> {
        let root = self.root.display().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").context("list processes")? {
            // Who ends while we look is not left behind.
            let Ok(line) = std::fs::read(entry?.path().join("cmdline")) else {
                continue;
            };
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&root) {
                found.push(line);
            }
        }
        Ok(found)
    }
}
