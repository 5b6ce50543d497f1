//! What an operator can set, and what it may be.
//!
//! Durations are milliseconds. Every value is checked before a port opens; an error names its key.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use mesh::config::Invalid;
use mesh::run::{Params, Settings};
use mesh::tls::TlsConfig;
use serde::{Deserialize, Serialize};
use types::cloud::{ClusterId, VSwitchId, ZoneId};

/// The file of a replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The gRPC port.
    #[serde(default)]
    pub listen: Listen,
    /// Certificate, key and trust roots; read again when they change.
    pub tls: TlsConfig,
    /// Where decisions are kept.
    pub store: Store,
    /// Where the cloud is.
    pub cloud: Cloud,
    /// Whose addresses, and of which vSwitches.
    pub cluster: Cluster,
    /// This replica among others.
    #[serde(default)]
    pub replica: Replica,
    /// vSwitches that differ from the default.
    #[serde(default)]
    pub vswitch: BTreeMap<VSwitchId, VSwitch>,
    /// Times.
    #[serde(default)]
    pub timing: Timing,
    /// Bounds of queues and of work at once.
    #[serde(default)]
    pub limits: Limits,
    /// Bounds of the gRPC server.
    #[serde(default)]
    pub server: mesh::server::Params,
    /// Telemetry, health, admin, drain.
    #[serde(default)]
    pub service: Params,
}

/// The gRPC port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// gRPC with mTLS.
    pub grpc: SocketAddr,
    /// `host:port` that other machines reach `grpc` at; empty: the bound address.
    pub advertise: String,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            grpc: SocketAddr::from(([0, 0, 0, 0], 7301)),
            advertise: String::new(),
        }
    }
}

/// Which store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// In this process; gone with it.
    Memory,
    /// One file; one replica.
    Redb,
    /// An etcd cluster; any number of replicas.
    Etcd,
}

/// Where decisions are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// Which.
    pub kind: StoreKind,
    /// File of `redb`.
    #[serde(default = "Store::default_path")]
    pub path: PathBuf,
    /// Members of `etcd`, such as `https://etcd-0:2379`.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Speak to etcd without TLS, at `http://` endpoints. For a machine that nobody else reaches.
    #[serde(default)]
    pub insecure: bool,
    /// What all keys begin with.
    #[serde(default = "Store::default_prefix")]
    pub prefix: String,
}

impl Store {
    fn default_path() -> PathBuf {
        PathBuf::from("/var/lib/terway/ipam.redb")
    }

    fn default_prefix() -> String {
        "/ipam/v1/".to_owned()
    }
}

/// Where the cloud is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cloud {
    /// cloud-gateway replicas, `host:port`; the first that answers is used.
    pub gateways: Vec<String>,
}

/// Whose addresses, and of which vSwitches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// The cluster whose nodes are served.
    pub id: ClusterId,
    /// Who this installation is to the cloud: part of every op id and a tag of every ENI. Empty: the cluster's id.
    #[serde(default)]
    pub authority: String,
    /// Terway's `eni_conf` file.
    pub eni_conf: PathBuf,
    /// Prefix length of a shard's IPv4 block, 16 to 28.
    #[serde(default = "Cluster::default_prefix_len")]
    pub shard_prefix_len: u8,
}

impl Cluster {
    fn default_prefix_len() -> u8 {
        20
    }

    /// The authority, given or derived.
    pub fn authority(&self) -> &str {
        if self.authority.is_empty() {
            self.id.as_str()
        } else {
            &self.authority
        }
    }
}

/// This replica among others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Replica {
    /// The zone it runs in, if known.
    pub zone: Option<ZoneId>,
    /// Share of the shards relative to others; 0 counts as 1.
    pub capacity: u32,
}

/// Who takes addresses of a vSwitch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VSwitchMode {
    /// Others too; their addresses are learnt.
    #[default]
    Shared,
    /// This installation alone; a foreign address is reported.
    Exclusive,
}

/// A vSwitch that differs from the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VSwitch {
    /// Who takes addresses of it.
    pub mode: VSwitchMode,
}

/// Times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// How long an address rests before another node gets it.
    pub cooldown: u64,
    /// How long an address that somebody else used is left alone.
    pub foreign: u64,
    /// How long a node's surplus must last before addresses are asked back.
    pub shrink_after: u64,
    /// Time between two looks at the clock for deadlines.
    pub tick: u64,
    /// Time between two full plans of a shard; changes are planned at once.
    pub plan_every: u64,
    /// First pause before a failed operation is repeated.
    pub retry_min: u64,
    /// Longest pause.
    pub retry_max: u64,
    /// How long one call to the gateway may take.
    pub cloud_call: u64,
    /// How long the cloud is left alone after it said that there is no room.
    pub blocked: u64,
    /// How long one write to the store may take.
    pub store_call: u64,
    /// Time between two comparisons of a shard with the cloud.
    pub reconcile_every: u64,
    /// How old a difference must be, seen twice, before it is acted on.
    pub reconcile_age: u64,
    /// How long facts of an instance are believed.
    pub facts: u64,
    /// Session with the store: how long it outlives its last renewal; whole seconds.
    pub session_ttl: u64,
    /// Time between two reads of members and owners.
    pub membership_poll: u64,
    /// How long another replica must be the better owner before a shard is handed over.
    pub rebalance_after: u64,
}

impl Default for Timing {
    /// Reasons: 60 s of cooldown outlive late duplicates of cloud calls (10 s, three tries); half an hour between
    /// reconciles costs a call or two a shard.
    fn default() -> Self {
        Self {
            cooldown: 60_000,
            foreign: 3_600_000,
            shrink_after: 60_000,
            tick: 1_000,
            plan_every: 10_000,
            retry_min: 200,
            retry_max: 15_000,
            cloud_call: 90_000,
            blocked: 30_000,
            store_call: 3_000,
            reconcile_every: 1_800_000,
            reconcile_age: 600_000,
            facts: 300_000,
            session_ttl: 8_000,
            membership_poll: 500,
            rebalance_after: 30_000,
        }
    }
}

impl Timing {
    /// Milliseconds as a duration.
    pub fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }
}

/// Bounds of queues and of work at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Requests that wait for one shard's next append.
    pub shard_queue: usize,
    /// Cloud operations of one shard at once.
    pub operations: usize,
    /// Sessions of one replica.
    pub sessions: usize,
    /// Commands that wait for one node to take them.
    pub session_queue: usize,
    /// Log records after which a snapshot is written.
    pub snapshot_every: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            shard_queue: 4_096,
            operations: 32,
            sessions: 10_000,
            session_queue: 256,
            snapshot_every: 4_096,
        }
    }
}

impl Settings for Config {
    fn service(&self) -> &Params {
        &self.service
    }

    fn check(&self) -> Result<(), Invalid> {
        let fail = |key: &str, why: String| Err(Invalid::new(key, why));
        if self.listen.grpc.ip().is_unspecified() && self.listen.advertise.is_empty() {
            let why = format!(
                "nodes can not reach {}: say host:port that they can",
                self.listen.grpc
            );
            return fail("listen.advertise", why);
        }
        if self.cloud.gateways.is_empty() {
            return fail("cloud.gateways", "no address is given".to_owned());
        }
        for gateway in &self.cloud.gateways {
            if !gateway
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
            {
                return fail("cloud.gateways", format!("{gateway:?} is not host:port"));
            }
        }
        if self.store.kind == StoreKind::Etcd && self.store.endpoints.is_empty() {
            return fail("store.endpoints", "etcd needs at least one".to_owned());
        }
        if !self.store.prefix.starts_with('/') || !self.store.prefix.ends_with('/') {
            return fail("store.prefix", "it must begin and end with '/'".to_owned());
        }
        if !(16..=28).contains(&self.cluster.shard_prefix_len) {
            return fail(
                "cluster.shard_prefix_len",
                format!("{} is not in 16..=28", self.cluster.shard_prefix_len),
            );
        }
        let text_ok = |text: &str| {
            !text.is_empty()
                && text.len() <= 64
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        if !text_ok(self.cluster.authority()) {
            return fail(
                "cluster.authority",
                "1 to 64 of letters, digits, '-', '_', '.' are wanted".to_owned(),
            );
        }
        self.check_numbers()
    }
}

impl Config {
    fn check_numbers(&self) -> Result<(), Invalid> {
        let (t, l) = (&self.timing, &self.limits);
        let positive = [
            ("timing.tick", t.tick),
            ("timing.plan_every", t.plan_every),
            ("timing.retry_min", t.retry_min),
            ("timing.cloud_call", t.cloud_call),
            ("timing.store_call", t.store_call),
            ("timing.reconcile_every", t.reconcile_every),
            ("timing.facts", t.facts),
            ("timing.membership_poll", t.membership_poll),
            ("timing.blocked", t.blocked),
            ("timing.rebalance_after", t.rebalance_after),
            (
                "limits.shard_queue",
                u64::try_from(l.shard_queue).unwrap_or(u64::MAX),
            ),
            (
                "limits.operations",
                u64::try_from(l.operations).unwrap_or(u64::MAX),
            ),
            (
                "limits.sessions",
                u64::try_from(l.sessions).unwrap_or(u64::MAX),
            ),
            (
                "limits.session_queue",
                u64::try_from(l.session_queue).unwrap_or(u64::MAX),
            ),
            ("limits.snapshot_every", l.snapshot_every),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err(Invalid::new(key, "must be 1 or more"));
            }
        }
        if t.retry_max < t.retry_min {
            return Err(Invalid::new(
                "timing.retry_max",
                "is below timing.retry_min",
            ));
        }
        if t.session_ttl < 2_000 || !t.session_ttl.is_multiple_of(1_000) {
            let why = format!("{} is not whole seconds from 2000 up", t.session_ttl);
            return Err(Invalid::new("timing.session_ttl", why));
        }
        Ok(())
    }

    /// Who takes addresses of `vswitch`.
    pub fn mode(&self, vswitch: &VSwitchId) -> VSwitchMode {
        self.vswitch
            .get(vswitch)
            .map(|v| v.mode)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mesh::config::Sources;

    use super::*;

    const DOCUMENT: &str = include_str!("../../docs/configuration.md");

    const GOOD: &str = r#"
        listen.advertise = "10.0.0.1:7301"
        tls.ca = "/tls/ca.crt"
        tls.cert = "/tls/tls.crt"
        tls.key = "/tls/tls.key"
        store.kind = "memory"
        cloud.gateways = ["10.0.0.2:7201"]
        cluster.id = "c1"
        cluster.eni_conf = "/etc/eni"
    "#;

    fn read(sets: &[&str]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ipam.toml");
        std::fs::write(&file, GOOD).unwrap();
        let sources = Sources {
            file: Some(file),
            variables: Vec::new(),
            sets: sets.iter().map(|set| (*set).to_owned()).collect(),
        };
        mesh::run::configure(&sources).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn smallest_file_has_defaults_for_the_rest() {
        let config = read(&[]).unwrap();

        assert_eq!(config.cluster.authority(), "c1");
        assert_eq!(config.cluster.shard_prefix_len, 20);
        let vswitch = "vsw-a".parse().unwrap();
        assert_eq!(config.mode(&vswitch), VSwitchMode::Shared);
    }

    #[test]
    fn bad_value_names_its_key() {
        for (set, key) in [
            ("listen.advertise=", "listen.advertise"),
            ("cloud.gateways=[]", "cloud.gateways"),
            ("cloud.gateways=[\"nowhere\"]", "cloud.gateways"),
            ("store.kind=etcd", "store.endpoints"),
            ("store.kind=mysql", "store.kind"),
            ("store.prefix=ipam", "store.prefix"),
            ("cluster.shard_prefix_len=29", "cluster.shard_prefix_len"),
            ("cluster.authority=a/b", "cluster.authority"),
            ("cluster.idd=c", "cluster.idd"),
            ("timing.retry_min=0", "timing.retry_min"),
            ("timing.retry_max=1", "timing.retry_max"),
            ("timing.session_ttl=1500", "timing.session_ttl"),
            ("limits.operations=0", "limits.operations"),
            ("service.admin.listen=0.0.0.0:1", "service.admin.listen"),
            ("service.drain.grace=1", "service.drain.grace"),
            ("tls.dir=/tls", "tls.dir"),
        ] {
            let error = read(&[set]).unwrap_err();
            assert!(error.contains(&format!("{key:?}")), "{set}: {error}");
        }
    }

    /// Every key, down to values; an empty table counts as a value.
    fn keys(prefix: &str, value: &serde_json::Value, found: &mut BTreeSet<String>) {
        match value.as_object().filter(|table| !table.is_empty()) {
            Some(table) => {
                for (name, inner) in table {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    keys(&format!("{prefix}{dot}{name}"), inner, found);
                }
            }
            None => {
                found.insert(prefix.replace("vsw-a", "<id>"));
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
        let config = read(&["vswitch.vsw-a.mode=exclusive"]).unwrap();
        let mut found = BTreeSet::new();
        keys("", &serde_json::to_value(&config).unwrap(), &mut found);
        let (own, shared) = (documented("ipam-service"), documented("Every service"));

        let missing: Vec<_> = found
            .iter()
            .filter(|key| !own.contains(*key) && !shared.contains(*key))
            .collect();
        let gone: Vec<_> = own.difference(&found).collect();

        assert!(missing.is_empty(), "not in the document: {missing:?}");
        assert!(gone.is_empty(), "documented, but no key: {gone:?}");
    }
}
