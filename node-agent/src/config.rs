//! Everything that can be set. Only `app` imports this.

use std::path::PathBuf;
use std::time::Duration;

use cluster::source::Place;
use k8s_api::eni_conf::EniConf;
use mesh::config::Invalid;
use mesh::run::{Params, Settings};
use mesh::{client, tls};
use serde::{Deserialize, Serialize};
use types::cloud::ClusterId;

use crate::conflist::Conflist;
use crate::gate::Gate;
use crate::metadata;
use crate::pods::Patience;
use crate::reconcile::Pace;
use crate::target::Sizes;

/// The file, with environment and `--set` on top.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who we are and where things lie.
    pub node: Node,
    /// Where the pods of this node are known from.
    #[serde(default)]
    pub cluster: cluster::source::Settings,
    /// Where ipam is.
    pub ipam: Ipam,
    /// Sizes of the pool.
    #[serde(default)]
    pub pool: Pool,
    /// Waits of an ADD.
    #[serde(default)]
    pub waits: Waits,
    /// Paces of the reconciler.
    #[serde(default)]
    pub reconcile: Reconcile,
    /// Whether pods wait for their policy, and where it is made.
    #[serde(default)]
    pub policy: Policy,
    /// The control plane, and what it says to nodes.
    #[serde(default)]
    pub control: cluster::control::Settings,
    /// The plug-in's configuration.
    #[serde(default)]
    pub cni: Cni,
    /// The resource `aliyun/eni`.
    #[serde(default)]
    pub device_plugin: DevicePlugin,
    /// Certificates.
    pub tls: tls::TlsConfig,
    /// Bounds of channels to ipam.
    #[serde(default)]
    pub client: client::Params,
    /// Telemetry, health, admin, drain.
    #[serde(default)]
    pub service: Params,
}

/// Who we are and where things lie.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Kubernetes name of the node.
    pub name: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// Older name of `cluster.folder`.
    #[serde(default)]
    pub manifests: Option<PathBuf>,
    /// Terway's `eni_conf` file, for the pool's sizes.
    #[serde(default)]
    pub eni_conf: Option<PathBuf>,
    /// Where the store and the DEL journal lie.
    #[serde(default = "state_dir")]
    pub state_dir: PathBuf,
    /// The plug-in's door.
    #[serde(default = "socket")]
    pub socket: PathBuf,
    /// Replaces the kernel's boot id, where several nodes share one kernel.
    #[serde(default)]
    pub boot_id: Option<String>,
    /// Where the metadata service answers.
    #[serde(default = "metadata_endpoint")]
    pub metadata: String,
    /// Where settings of the kernel are read and written.
    #[serde(default = "proc_sys")]
    pub proc_sys: PathBuf,
}

fn proc_sys() -> PathBuf {
    PathBuf::from("/proc/sys")
}

fn state_dir() -> PathBuf {
    PathBuf::from("/var/lib/terway")
}

fn socket() -> PathBuf {
    PathBuf::from("/run/terway/agent.sock")
}

fn metadata_endpoint() -> String {
    metadata::ENDPOINT.to_owned()
}

/// Where ipam is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ipam {
    /// `host:port` of replicas; any of them tells the routes.
    pub replicas: Vec<String>,
}

/// Sizes of the pool; what is not set comes from `eni_conf`, or is Terway's default.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// Idle addresses at least.
    pub min_idle: Option<u32>,
    /// Idle addresses at most.
    pub max_idle: Option<u32>,
    /// Addresses asked for in one step; 16 when not set.
    pub batch: Option<u32>,
    /// Rest of a freed address before another sandbox of this node gets it, in milliseconds; 30 s when not set.
    pub reuse_after_ms: Option<u64>,
}

/// Waits of an ADD, in milliseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Waits {
    /// For the pod's manifest.
    pub manifest_ms: u64,
    /// For an address.
    pub address_ms: u64,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            manifest_ms: 2_000,
            address_ms: 60_000,
        }
    }
}

/// Paces of the reconciler, in milliseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reconcile {
    /// Between full looks.
    pub every_ms: u64,
    /// How long a sandbox must look gone before its addresses are freed.
    pub gone_after_ms: u64,
    /// Notifications within this time are one look.
    pub gather_ms: u64,
    /// Whether lost kernel state is put back.
    pub repair: bool,
}

impl Default for Reconcile {
    fn default() -> Self {
        Self {
            every_ms: 30_000,
            gone_after_ms: 60_000,
            gather_ms: 100,
            repair: true,
        }
    }
}

/// Whether pods wait for their policy, and where it is made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Whether policy-agent is asked before an ADD answers. Off unless said: with it on and no policy-agent on the
    /// node no pod starts at all, so who installs policy-agent switches it on.
    pub enabled: bool,
    /// The door of policy-agent.
    pub socket: PathBuf,
    /// Where policy-agent hands out the socket that owns its rules, to be kept while it is away.
    pub owner_socket: PathBuf,
    /// How long an ADD waits for its policy, in milliseconds.
    pub wait_ms: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            enabled: false,
            socket: PathBuf::from("/run/terway/policy.sock"),
            owner_socket: PathBuf::from("/run/terway/policy-owner.sock"),
            wait_ms: 5_000,
        }
    }
}

/// The plug-in's configuration, which is written when the node can serve.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cni {
    /// Folder with `10-terway.conflist` or `10-terway.conf`; nothing is written without it.
    pub source: Option<PathBuf>,
    /// Folder where the runtime looks.
    pub dir: Option<PathBuf>,
}

/// The resource `aliyun/eni`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DevicePlugin {
    /// Whether kubelet is told of it.
    pub enabled: bool,
    /// kubelet's folder of device plug-ins.
    pub dir: PathBuf,
}

impl Default for DevicePlugin {
    fn default() -> Self {
        Self {
            enabled: false,
            dir: PathBuf::from("/var/lib/kubelet/device-plugins"),
        }
    }
}

impl Settings for Config {
    fn service(&self) -> &Params {
        &self.service
    }

    fn check(&self) -> Result<(), Invalid> {
        let fail = |key: &str, why: &str| Err(Invalid::new(key, why));
        if self.node.name.is_empty() {
            return fail("node.name", "is empty");
        }
        self.source()?;
        if self.ipam.replicas.is_empty() {
            return fail("ipam.replicas", "names no replica");
        }
        if self.reconcile.every_ms < 100 {
            return fail("reconcile.every_ms", "is below 100");
        }
        if !(1..=120_000).contains(&self.policy.wait_ms) {
            return fail("policy.wait_ms", "is not within 1 and 120000");
        }
        let control = self.control.check();
        control.map_err(|wrong| Invalid::new(wrong.key, wrong.why))?;
        if self.cni.source.is_some() != self.cni.dir.is_some() {
            return fail("cni", "needs both source and dir, or neither");
        }
        if !self.node.proc_sys.is_absolute() {
            return fail("node.proc_sys", "is not an absolute path");
        }
        if self.pool.batch == Some(0) {
            return fail("pool.batch", "is 0");
        }
        let (sizes, _) = self.sizes()?;
        if sizes.min_idle > sizes.max_idle {
            return fail("pool.min_idle", "is above pool.max_idle");
        }
        Ok(())
    }
}

impl Config {
    /// Where the pods of this node are known from.
    ///
    /// # Errors
    /// [`Invalid`] when nothing is named, or more than one thing.
    pub fn source(&self) -> Result<Place, Invalid> {
        let place = self.cluster.place(self.node.manifests.as_deref());
        place
            .map_err(|wrong| Invalid::new(wrong.key, wrong.why))?
            .ok_or_else(|| Invalid::new("cluster.source", "is missing, and no folder is named"))
    }

    /// Sizes of the pool, with `eni_conf` below what is set here, and the warnings of that file.
    ///
    /// # Errors
    /// [`Invalid`] when the file can not be read or is wrong.
    pub fn sizes(&self) -> Result<(Sizes, Vec<String>), Invalid> {
        let conf = self.eni_conf()?;
        let sizes = Sizes {
            min_idle: self.pool.min_idle.unwrap_or(conf.min_pool_size),
            max_idle: self.pool.max_idle.unwrap_or(conf.max_pool_size),
            batch: self.pool.batch.unwrap_or(16),
        };
        Ok((sizes, conf.warnings))
    }

    /// Ranges of Services, as `eni_conf` names them.
    ///
    /// # Errors
    /// [`Invalid`] when the file can not be read or is wrong.
    pub fn service_ranges(&self) -> Result<Vec<ipnet::IpNet>, Invalid> {
        Ok(self.eni_conf()?.service_cidr)
    }

    fn eni_conf(&self) -> Result<EniConf, Invalid> {
        let invalid = |why: String| Invalid::new("node.eni_conf", why);
        let text = match &self.node.eni_conf {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|e| invalid(format!("{}: {e}", path.display())))?,
            None => "{}".to_owned(),
        };
        EniConf::parse(&text).map_err(|e| invalid(e.to_string()))
    }

    /// Rest of a freed address.
    pub fn reuse_after(&self) -> Duration {
        Duration::from_millis(self.pool.reuse_after_ms.unwrap_or(30_000))
    }

    /// The way to policy-agent, or none when policy is off.
    pub fn gate(&self) -> Gate {
        if self.policy.enabled {
            Gate::new(
                &self.policy.socket,
                Duration::from_millis(self.policy.wait_ms),
            )
        } else {
            Gate::off()
        }
    }

    /// The plug-in's configuration, if it is ours to write.
    pub fn conflist(&self) -> Option<Conflist> {
        let (source, dir) = (self.cni.source.clone()?, self.cni.dir.clone()?);
        Some(Conflist { source, dir })
    }

    /// Waits of an ADD.
    pub fn patience(&self) -> Patience {
        Patience {
            manifest: Duration::from_millis(self.waits.manifest_ms),
            address: Duration::from_millis(self.waits.address_ms),
        }
    }

    /// Paces of the reconciler.
    pub fn pace(&self) -> Pace {
        Pace {
            every: Duration::from_millis(self.reconcile.every_ms),
            gone_after: Duration::from_millis(self.reconcile.gone_after_ms),
            gather: Duration::from_millis(self.reconcile.gather_ms),
            repair: self.reconcile.repair,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mesh::config::Sources;

    use super::*;

    const DOCUMENT: &str = include_str!("../../docs/configuration.md");

    const GOOD: &str = r#"
        node.name = "node-1"
        node.cluster = "c1"
        node.manifests = "/manifests"
        ipam.replicas = ["10.0.0.1:7301"]
        tls.ca = "/tls/ca.crt"
        tls.cert = "/tls/tls.crt"
        tls.key = "/tls/tls.key"
    "#;

    #[test]
    fn pods_come_from_one_place() {
        let read = |sets: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("agent.toml");
            let text: Vec<&str> = GOOD.lines().filter(|l| !l.contains("manifests")).collect();
            std::fs::write(&file, text.join("\n")).unwrap();
            mesh::run::configure::<Config>(&Sources {
                file: Some(file),
                variables: Vec::new(),
                sets: sets.iter().map(|set| (*set).to_owned()).collect(),
            })
        };
        let place = |sets: &[&str]| read(sets).unwrap().source().unwrap();

        let folder = Place::Folder(PathBuf::from("/f"));
        assert_eq!(place(&["node.manifests=/f"]), folder);
        assert_eq!(place(&["cluster.folder=/f"]), folder);
        assert_eq!(
            place(&["cluster.source=kubernetes"]),
            Place::Kubernetes(None)
        );
        for sets in [
            vec![],
            vec!["cluster.source=folder"],
            vec!["cluster.source=kubernetes", "node.manifests=/f"],
            vec!["cluster.source=etcd"],
        ] {
            let why = format!("{:#}", read(&sets).unwrap_err());
            assert!(why.contains("cluster."), "{sets:?}: {why}");
        }
    }

    /// Every key, down to values.
    fn keys(prefix: &str, value: &serde_json::Value, found: &mut BTreeSet<String>) {
        match value.as_object() {
            Some(table) => {
                for (name, inner) in table {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    keys(&format!("{prefix}{dot}{name}"), inner, found);
                }
            }
            None => {
                found.insert(prefix.to_owned());
            }
        }
    }

    /// The keys in the tables of a chapter of the document.
    fn documented(chapter: &str) -> BTreeSet<String> {
        let (_, text) = DOCUMENT.split_once(&format!("\n## {chapter}\n")).unwrap();
        let text = text.split_once("\n## ").map_or(text, |(text, _)| text);
        let rows = text.lines().filter_map(|row| row.strip_prefix("| `"));
        rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned()))
            .collect()
    }

    #[test]
    fn every_key_is_documented() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        std::fs::write(&file, GOOD).unwrap();
        let sources = Sources {
            file: Some(file),
            ..Sources::default()
        };
        let config: Config = mesh::run::configure(&sources).unwrap();
        let mut found = BTreeSet::new();
        keys("", &serde_json::to_value(&config).unwrap(), &mut found);
        let (own, shared) = (documented("node-agent"), documented("Every service"));

        let missing: Vec<_> = found
            .iter()
            .filter(|key| !own.contains(*key) && !shared.contains(*key))
            .collect();
        let gone: Vec<_> = own.difference(&found).collect();

        assert!(missing.is_empty(), "not in the document: {missing:?}");
        assert!(gone.is_empty(), "documented, but no key: {gone:?}");
    }
}
