//! The folder of one run: configuration, certificates, stores, sockets, logs, traces.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use tempfile::TempDir;

use crate::options::Service;

/// Removed with everything in it when dropped, unless [`RunDir::keep`] was called.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    temporary: std::sync::Mutex<Option<TempDir>>,
}

impl RunDir {
    /// Makes it below `parent`, or where the system keeps temporary files.
    pub fn create(parent: Option<&Path>) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("terway-");
        let temporary = match parent {
            Some(parent) => builder.tempdir_in(parent)?,
            None => builder.tempdir()?,
        };
        let dir = Self {
            root: temporary.path().to_owned(),
            temporary: std::sync::Mutex::new(Some(temporary)),
        };
        for folder in [dir.manifests(), dir.eni_config(), dir.logs(), dir.traces()] {
            fs::create_dir_all(folder)?;
        }
        Ok(dir)
    }

    /// Leaves the folder where it is.
    pub fn keep(&self) {
        let mut temporary = self
            .temporary
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(temporary) = temporary.take() {
            let _kept_path = temporary.keep();
        }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Manifests of everything in the cluster, watched by all agents.
    pub fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// One log per process.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The log of a process.
    pub fn log(&self, service: Service) -> PathBuf {
        self.logs().join(format!("{service}.log"))
    }

    /// One file of spans per process, JSON lines.
    pub fn traces(&self) -> PathBuf {
        self.root.join("traces")
    }

    /// The spans of a process.
    pub fn trace(&self, service: Service) -> PathBuf {
        self.traces().join(format!("{service}.jsonl"))
    }

    /// The folder of a process, made when asked for.
    pub fn service(&self, service: Service) -> io::Result<PathBuf> {
        let folder = self.root.join(service.to_string());
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Terway's `eni_conf`.
    pub fn eni_conf(&self) -> PathBuf {
        self.root.join("eni_conf.json")
    }

    /// The folder of Terway's `eni-config`, as it is mounted on every node; empty at first.
    pub fn eni_config(&self) -> PathBuf {
        self.root.join("eni-config")
    }

    /// The socket of a node's agent.
    pub fn agent_socket(&self, node: usize) -> PathBuf {
        self.root
            .join(Service::Agent(node).to_string())
            .join("agent.sock")
    }

    /// The socket of a node's policy agent.
    pub fn policy_socket(&self, node: usize) -> PathBuf {
        self.root
            .join(Service::Policy(node).to_string())
            .join("policy.sock")
    }

    /// Where a node's two agents meet over the socket that owns the rules.
    pub fn owner_socket(&self, node: usize) -> PathBuf {
        self.root
            .join(Service::Agent(node).to_string())
            .join("owner.sock")
    }

    /// Where the plug-in notes DELs that its agent could not hear.
    pub fn del_journal(&self, node: usize) -> PathBuf {
        self.root
            .join(Service::Agent(node).to_string())
            .join("del-journal")
    }
}

/// Writes a file whole or not at all: readers that watch its folder see one change.
pub fn write_atomically(path: &Path, text: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("draft");
    fs::write(&draft, text)?;
    fs::rename(&draft, path)
}

/// Writes a file that only root may read.
pub fn write_secret(path: &Path, text: &[u8]) -> io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
}
