//! What an operator can set, and what it may be.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use mesh::config::Invalid;
use mesh::identity::Identity;
use mesh::run::{Params, Settings};
use mesh::tls::TlsConfig;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const HOUR_MS: u64 = 3_600_000;
/// Longest life of an authority: ten years.
const LIFE_MAX_MS: u64 = 10 * 365 * 24 * HOUR_MS;

/// The file of a control plane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What it does.
    #[serde(default)]
    pub mode: Mode,
    /// The gRPC port.
    #[serde(default)]
    pub listen: Listen,
    /// Certificate, key and trust roots. With an authority of its own it writes them itself.
    pub tls: TlsConfig,
    /// Which cluster.
    pub cluster: Cluster,
    /// Who leads.
    #[serde(default)]
    pub leader: Leader,
    /// What it issues.
    #[serde(default)]
    pub certificates: Certificates,
    /// What it does about nodes.
    #[serde(default)]
    pub nodes: Nodes,
    /// Where ipam is.
    #[serde(default)]
    pub ipam: Ipam,
    /// How it uninstalls.
    #[serde(default)]
    pub uninstall: Uninstall,
    /// Bounds of the gRPC server.
    #[serde(default)]
    pub server: mesh::server::Params,
    /// Telemetry, health, admin, drain.
    #[serde(default)]
    pub service: Params,
}

/// What the process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Serves until it is ended.
    #[default]
    Serve,
    /// Says that nodes are to leave, waits until they have, and ends.
    Uninstall,
}

/// The gRPC port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// gRPC with mTLS; who has no certificate reaches the one method that issues.
    pub grpc: SocketAddr,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            grpc: SocketAddr::from(([0, 0, 0, 0], 7501)),
        }
    }
}

/// A namespace and a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                })
            }
            Some(_) | None => Err("is not namespace/name"),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|why| serde::de::Error::custom(format!("{text:?} {why}")))
    }
}

/// Which cluster, and where in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Id of the cluster; it stands in the certificates of nodes.
    pub id: String,
    /// Who the installation is to the cloud. Not used here yet.
    #[serde(default)]
    pub authority: String,
    /// Whether this is a registered (hybrid) cluster. Not used here yet.
    #[serde(default)]
    pub registered: bool,
    /// Namespace of the release.
    pub namespace: String,
    /// Name of the release: its pods are found by the label `app.kubernetes.io/instance`.
    pub release: String,
    /// ConfigMap of the phase.
    pub phase: Place,
    /// Instead of the pod's service account.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
}

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Leader {
    /// Name of the Lease in the namespace; it must be there.
    pub lease: String,
    /// Who we are in it.
    pub name: String,
    /// How long a lead outlives its last renewal.
    pub lease_ms: u64,
    /// Between two renewals.
    pub renew_ms: u64,
}

impl Default for Leader {
    fn default() -> Self {
        Self {
            lease: String::new(),
            name: String::new(),
            lease_ms: 15_000,
            renew_ms: 4_000,
        }
    }
}

/// Who keeps the authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Authority {
    /// We make and renew it.
    #[default]
    #[serde(rename = "self")]
    Own,
    /// Somebody else does; it is read.
    Secret,
}

/// What is issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Certificates {
    /// Whether anything is.
    pub issue: bool,
    /// Who keeps the authority.
    pub authority: Authority,
    /// Secret of the authority, in the namespace.
    pub secret: String,
    /// ConfigMap that gets the trust bundle, in the namespace.
    pub trust: String,
    /// Audience of the tokens that are taken.
    pub audience: String,
    /// Life of a certificate.
    pub lifetime_ms: u64,
    /// Life of an authority that we make.
    pub authority_lifetime_ms: u64,
    /// Who gets which name.
    pub accounts: Accounts,
}

impl Default for Certificates {
    fn default() -> Self {
        Self {
            issue: false,
            authority: Authority::Own,
            secret: String::new(),
            trust: String::new(),
            audience: String::new(),
            lifetime_ms: 24 * HOUR_MS,
            authority_lifetime_ms: 365 * 24 * HOUR_MS,
            accounts: Accounts::default(),
        }
    }
}

impl Certificates {
    /// Life of a certificate.
    pub const fn lifetime(&self) -> Duration {
        Duration::from_millis(self.lifetime_ms)
    }

    /// Life of an authority.
    pub const fn authority_lifetime(&self) -> Duration {
        Duration::from_millis(self.authority_lifetime_ms)
    }
}

/// Service accounts of the namespace, by the kind of name that their pods get.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Accounts {
    /// The instance of the pod's node.
    pub node: Option<String>,
    /// A gateway.
    pub gateway: Option<String>,
    /// An ipam replica.
    pub ipam: Option<String>,
    /// A relay of policy.
    pub relay: Option<String>,
    /// A member of the release's etcd.
    pub etcd: Option<String>,
}

impl Accounts {
    /// All that are set, with the last part of their key.
    fn all(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("node", &self.node),
            ("gateway", &self.gateway),
            ("ipam", &self.ipam),
            ("relay", &self.relay),
            ("etcd", &self.etcd),
        ];
        all.into_iter()
            .filter_map(|(key, name)| Some((key, name.as_deref()?)))
    }
}

/// A taint: `key[=value]:effect`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    /// The key.
    pub key: String,
    /// The value; empty when there is none.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

impl FromStr for Taint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (left, effect) = text.rsplit_once(':').ok_or("is not key[=value]:effect")?;
        let (key, value) = left.split_once('=').unwrap_or((left, ""));
        if key.is_empty() {
            return Err("has no key");
        }
        if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
            return Err("has an effect that is not NoSchedule, PreferNoSchedule or NoExecute");
        }
        Ok(Self {
            key: key.to_owned(),
            value: value.to_owned(),
            effect: effect.to_owned(),
        })
    }
}

impl std::fmt::Display for Taint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let between = if self.value.is_empty() { "" } else { "=" };
        write!(f, "{}{between}{}:{}", self.key, self.value, self.effect)
    }
}

impl Serialize for Taint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Taint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|why| serde::de::Error::custom(format!("{text:?} {why}")))
    }
}

/// What is done about nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nodes {
    /// Whether nodes offer `aliyun/eni`. The device plug-in of each node does that; here it is only known.
    pub whole_enis: bool,
    /// The taint that is removed when a node can serve.
    pub startup_taint: Option<Taint>,
    /// ConfigMap in the namespace in which instances are remembered that had a Node object. Empty: nobody is declared
    /// gone.
    pub instances: String,
    /// How long a Node object must be gone before its instance is declared gone to ipam.
    pub gone_after_ms: u64,
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            whole_enis: true,
            startup_taint: None,
            instances: String::new(),
            gone_after_ms: 60_000,
        }
    }
}

/// Where ipam is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ipam {
    /// `host:port`. The pods of the release are asked at their own addresses, with the first one's port; these here are
    /// asked where there are no such pods.
    pub replicas: Vec<String>,
}

/// How uninstallation goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Uninstall {
    /// Whether nodes are not waited for that only wait for pods.
    pub force: bool,
    /// How long it may take.
    pub timeout_ms: u64,
}

impl Default for Uninstall {
    fn default() -> Self {
        Self {
            force: false,
            timeout_ms: 600_000,
        }
    }
}

impl Settings for Config {
    fn service(&self) -> &Params {
        &self.service
    }

    fn check(&self) -> Result<(), Invalid> {
        if Identity::controller(self.cluster.id.as_str())
            .to_string()
            .parse::<Identity>()
            .is_err()
        {
            return Err(Invalid::new("cluster.id", "can not stand in a certificate"));
        }
        for (key, text) in [
            ("cluster.namespace", &self.cluster.namespace),
            ("cluster.release", &self.cluster.release),
        ] {
            if text.is_empty() {
                return Err(Invalid::new(key, "is empty"));
            }
        }
        if self.uninstall.timeout_ms == 0 || self.uninstall.timeout_ms > 24 * HOUR_MS {
            return Err(Invalid::new(
                "uninstall.timeout_ms",
                "is not from 1 ms to a day",
            ));
        }
        match self.mode {
            Mode::Serve => self.check_serving(),
            Mode::Uninstall => Ok(()),
        }
    }
}

impl Config {
    fn check_serving(&self) -> Result<(), Invalid> {
        let Leader {
            lease,
            name,
            lease_ms,
            renew_ms,
        } = &self.leader;
        if lease.is_empty() {
            return Err(Invalid::new("leader.lease", "is empty"));
        }
        if name.is_empty() {
            return Err(Invalid::new("leader.name", "is empty"));
        }
        if *lease_ms < 1_000 || *lease_ms > HOUR_MS {
            return Err(Invalid::new(
                "leader.lease_ms",
                "is not from 1 s to an hour",
            ));
        }
        if *renew_ms == 0 || renew_ms.saturating_mul(3) > *lease_ms {
            return Err(Invalid::new(
                "leader.renew_ms",
                "is not from 1 ms to a third of leader.lease_ms",
            ));
        }
        if !self.nodes.instances.is_empty() && self.ipam.replicas.is_empty() {
            return Err(Invalid::new("ipam.replicas", "names no replica"));
        }
        for replica in &self.ipam.replicas {
            let good = replica
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
            if !good {
                let why = format!("{replica:?} is not host:port");
                return Err(Invalid::new("ipam.replicas", why));
            }
        }
        if self.certificates.issue {
            self.check_issuing()?;
        }
        Ok(())
    }

    fn check_issuing(&self) -> Result<(), Invalid> {
        let certificates = &self.certificates;
        for (key, text) in [
            ("certificates.secret", &certificates.secret),
            ("certificates.trust", &certificates.trust),
            ("certificates.audience", &certificates.audience),
        ] {
            if text.is_empty() {
                return Err(Invalid::new(key, "is empty"));
            }
        }
        if certificates.lifetime_ms < 60_000 || certificates.lifetime_ms > LIFE_MAX_MS {
            let why = "is not from a minute to ten years";
            return Err(Invalid::new("certificates.lifetime_ms", why));
        }
        if certificates.authority_lifetime_ms < certificates.lifetime_ms.saturating_mul(8)
            || certificates.authority_lifetime_ms > LIFE_MAX_MS
        {
            let why = "is not from eight times certificates.lifetime_ms to ten years";
            return Err(Invalid::new("certificates.authority_lifetime_ms", why));
        }
        let accounts: Vec<_> = certificates.accounts.all().collect();
        for (at, (key, name)) in accounts.iter().enumerate() {
            let twice = accounts.iter().take(at).any(|(_, other)| other == name);
            if name.is_empty() || twice {
                let key = format!("certificates.accounts.{key}");
                let why = if twice {
                    "is another kind's too"
                } else {
                    "is empty"
                };
                return Err(Invalid::new(key, why));
            }
        }
        if accounts.is_empty() {
            return Err(Invalid::new("certificates.accounts", "names nobody"));
        }
        if certificates.authority == Authority::Own && self.tls_dir().is_none() {
            let why =
                "must be ca.crt, tls.crt and tls.key of one folder, since they are written here";
            return Err(Invalid::new("tls", why));
        }
        Ok(())
    }

    /// The folder of our own certificate, if its files are named as we write them.
    pub fn tls_dir(&self) -> Option<&Path> {
        let dir = self.tls.cert.parent()?;
        (self.tls == TlsConfig::in_dir(dir)).then_some(dir)
    }

    /// Selects pods of a component of the release.
    pub fn pods_of(&self, component: &str) -> String {
        format!(
            "app.kubernetes.io/name=terway,app.kubernetes.io/instance={},app.kubernetes.io/component={component}",
            self.cluster.release
        )
    }
}

#[cfg(test)]
mod tests;
