//! What an operator can set, and what it may be.
//!
//! Durations are milliseconds. Every value is checked before a port opens; an error names its key. Whether there *are*
//! credentials is no matter of the configuration: they may come later, and readiness says what is missing.

pub mod credentials;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ecs_api::action::{Action, Product};
use ecs_api::request::Endpoint;
use ecs_api::sign::Scheme;
use http::Uri;
use mesh::backoff::{Backoff, Params as BackoffParams};
use mesh::config::Invalid;
use mesh::run::{Params, Settings};
use mesh::tls::{TlsConfig, TlsMaterial};
use serde::{Deserialize, Serialize};
use types::cloud::RegionId;

pub use crate::config::credentials::{Chosen, Credentials};
use crate::limits::Quotas;
use crate::limits::bucket::MIN_QUOTA;
use crate::{api, call, describe, eni, facts};

/// Longest duration that any key takes: a day.
const MAX_MS: u64 = 24 * 3_600 * 1_000;

/// The file of a gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The gRPC port.
    #[serde(default)]
    pub listen: Listen,
    /// Certificate, key and trust roots; read again when they change.
    pub tls: TlsConfig,
    /// Where the cloud is, and how it is called.
    pub cloud: Cloud,
    /// With what calls are signed.
    pub credentials: Credentials,
    /// Budgets.
    #[serde(default)]
    pub rate_limits: RateLimits,
    /// Reading ENIs back.
    #[serde(default)]
    pub readback: Readback,
    /// How long facts are kept.
    #[serde(default)]
    pub facts: Facts,
    /// Operations.
    #[serde(default)]
    pub ops: Ops,
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
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            grpc: SocketAddr::from(([0, 0, 0, 0], 7201)),
        }
    }
}

/// How requests are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signature {
    /// RPC signature 1.0.
    V1,
    /// ACS3-HMAC-SHA256.
    #[default]
    V3,
}

/// Where the cloud is, and how it is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cloud {
    /// The region, such as `cn-hangzhou`.
    pub region: RegionId,
    /// `http(s)://host[:port]` of the ECS API; empty: the region's endpoint inside the VPC.
    #[serde(default)]
    pub endpoint: String,
    /// The same of the VPC API.
    #[serde(default)]
    pub vpc_endpoint: String,
    /// `v3` or `v1`.
    #[serde(default)]
    pub signature: Signature,
    /// Longest wait for one answer.
    #[serde(default = "default_timeout")]
    pub timeout_ms: u64,
    /// How often one call is sent at most, 1 or more.
    #[serde(default = "default_attempts")]
    pub attempts: u32,
    /// Waits between tries of one call.
    #[serde(default = "default_backoff")]
    pub backoff: BackoffParams,
}

/// Source: the vendor's own client waits 20 s for an answer.
fn default_timeout() -> u64 {
    20_000
}

fn default_attempts() -> u32 {
    10
}

fn default_backoff() -> BackoffParams {
    BackoffParams {
        first_ms: 200,
        max_ms: 5_000,
    }
}

/// Budgets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimits {
    /// Thousandths of each quota that this gateway may use, 1 to 1000.
    pub share_permille: u32,
    /// Calls of one action that may wait for its budget.
    pub max_waiting: usize,
    /// Quota by action name, in calls per minute of the whole account; others have their documented default.
    pub per_minute: BTreeMap<String, u32>,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            share_permille: 1_000,
            max_waiting: 2_000,
            per_minute: BTreeMap::new(),
        }
    }
}

/// Reading ENIs back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Readback {
    /// How long a read waits for others to join.
    pub window_ms: u64,
    /// Common ticks of all who wait for a state: at most one merged read per tick and 100 ENIs.
    pub tick_ms: u64,
    /// Wait before the first look after attach, detach and delete; later waits grow by half.
    pub first_ms: u64,
    /// Longest wait between two looks.
    pub max_ms: u64,
    /// Longest time for one merged read.
    pub timeout_ms: u64,
    /// After a successful answer: when a state that does not begin makes the call be sent again.
    pub reissue_ms: u64,
    /// How old a read may be: a state that only reads speak for must be read for this long.
    pub settle_ms: u64,
}

impl Default for Readback {
    fn default() -> Self {
        Self {
            window_ms: 3,
            tick_ms: 200,
            first_ms: 200,
            max_ms: 2_000,
            timeout_ms: 15_000,
            reissue_ms: 10_000,
            settle_ms: 3_000,
        }
    }
}

/// How long facts are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Facts {
    /// Instances.
    pub instances_ms: u64,
    /// Instance types.
    pub types_ms: u64,
    /// vSwitches.
    pub vswitches_ms: u64,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            instances_ms: 5_000,
            types_ms: 6 * 3_600 * 1_000,
            vswitches_ms: 5_000,
        }
    }
}

/// Operations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ops {
    /// Longest time for one operation, and the time for callers that name no deadline.
    pub timeout_ms: u64,
    /// The same for reads.
    pub read_timeout_ms: u64,
    /// Operations at a time; more are refused as overload.
    pub max_running: usize,
    /// Finished operations that are remembered.
    pub max_remembered: usize,
}

impl Default for Ops {
    fn default() -> Self {
        Self {
            timeout_ms: 60_000,
            read_timeout_ms: 20_000,
            max_running: 1_000,
            max_remembered: 10_000,
        }
    }
}

impl Settings for Config {
    fn service(&self) -> &Params {
        &self.service
    }

    fn check(&self) -> Result<(), Invalid> {
        self.check_durations()?;
        self.endpoints()?;
        self.quotas()?;
        let positive = [
            ("cloud.attempts", u64::from(self.cloud.attempts)),
            (
                "rate_limits.max_waiting",
                count(self.rate_limits.max_waiting),
            ),
            ("ops.max_running", count(self.ops.max_running)),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err(Invalid::new(key, "must be 1 or more"));
            }
        }
        Backoff::try_new(self.cloud.backoff)
            .map_err(|error| Invalid::new("cloud.backoff", error.to_string()))?;
        self.source()?;
        TlsMaterial::load(&self.tls).map_err(|error| Invalid::new("tls", chain(&error)))?;
        Ok(())
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

impl Config {
    fn check_durations(&self) -> Result<(), Invalid> {
        let durations = [
            ("cloud.timeout_ms", self.cloud.timeout_ms),
            ("credentials.reread_ms", self.credentials.reread_ms),
            ("readback.tick_ms", self.readback.tick_ms),
            ("readback.first_ms", self.readback.first_ms),
            ("readback.max_ms", self.readback.max_ms),
            ("readback.timeout_ms", self.readback.timeout_ms),
            ("readback.reissue_ms", self.readback.reissue_ms),
            ("readback.settle_ms", self.readback.settle_ms),
            ("ops.timeout_ms", self.ops.timeout_ms),
            ("ops.read_timeout_ms", self.ops.read_timeout_ms),
        ];
        for (key, ms) in durations {
            if ms == 0 || ms > MAX_MS {
                return Err(Invalid::new(
                    key,
                    format!("{ms} is not from 1 to {MAX_MS} milliseconds"),
                ));
            }
        }
        if self.readback.window_ms > 1_000 {
            return Err(Invalid::new(
                "readback.window_ms",
                format!("{} is more than 1000", self.readback.window_ms),
            ));
        }
        Ok(())
    }

    /// Where credentials come from, with what the environment adds.
    pub fn source(&self) -> Result<Chosen, Invalid> {
        let variable = |name: &str| std::env::var(name).ok();
        self.credentials.chosen(&self.cloud.region, variable)
    }

    /// Where each API lives.
    pub fn endpoints(&self) -> Result<BTreeMap<Product, Endpoint>, Invalid> {
        let region = &self.cloud.region;
        let of = |key: &str, given: &str, product: &str| {
            let text = if given.is_empty() {
                // Source: ECS and VPC endpoint lists, access from inside a VPC.
                format!("https://{product}-vpc.{region}.aliyuncs.com")
            } else {
                given.to_owned()
            };
            endpoint(&text, region).ok_or_else(|| {
                Invalid::new(
                    key,
                    format!("{text:?} is not http://host[:port] or https://host[:port]"),
                )
            })
        };
        let ecs = of("cloud.endpoint", &self.cloud.endpoint, "ecs")?;
        let vpc = of("cloud.vpc_endpoint", &self.cloud.vpc_endpoint, "vpc")?;
        Ok(BTreeMap::from([(Product::Ecs, ecs), (Product::Vpc, vpc)]))
    }

    /// The budgets. Names of actions may be written in any case, since variables of the environment have none.
    pub fn quotas(&self) -> Result<Quotas, Invalid> {
        let share = self.rate_limits.share_permille;
        if !(1..=1_000).contains(&share) {
            return Err(Invalid::new(
                "rate_limits.share_permille",
                format!("{share} is not from 1 to 1000"),
            ));
        }
        let mut quotas = Quotas {
            per_minute: BTreeMap::new(),
            share_permille: share,
        };
        for (name, quota) in &self.rate_limits.per_minute {
            let key = format!("rate_limits.per_minute.{name}");
            let action = Action::ALL
                .into_iter()
                .find(|action| action.name().eq_ignore_ascii_case(name))
                .ok_or_else(|| Invalid::new(key.clone(), "no such action is called"))?;
            quotas.per_minute.insert(action, *quota);
        }
        for action in Action::ALL {
            let ours = quotas.of(action);
            if ours < MIN_QUOTA {
                return Err(Invalid::new(
                    format!("rate_limits.per_minute.{action}"),
                    format!(
                        "leaves {ours} calls per minute to this gateway, {MIN_QUOTA} are the least"
                    ),
                ));
            }
        }
        Ok(quotas)
    }

    /// How calls are made.
    pub fn calls(&self) -> Result<call::Settings, Invalid> {
        Ok(call::Settings {
            endpoints: self.endpoints()?,
            scheme: match self.cloud.signature {
                Signature::V1 => Scheme::V1,
                Signature::V3 => Scheme::V3,
            },
            timeout: Duration::from_millis(self.cloud.timeout_ms),
            attempts: self.cloud.attempts,
            backoff: self.cloud.backoff,
        })
    }

    /// How ENIs are read.
    pub fn reads(&self) -> describe::Settings {
        let readback = &self.readback;
        describe::Settings {
            window: Duration::from_millis(readback.window_ms),
            tick: Duration::from_millis(readback.tick_ms),
            first: Duration::from_millis(readback.first_ms),
            max: Duration::from_millis(readback.max_ms),
            timeout: Duration::from_millis(readback.timeout_ms),
        }
    }

    /// Times of the verbs.
    pub fn times(&self) -> eni::Times {
        eni::Times {
            reissue: Duration::from_millis(self.readback.reissue_ms),
            settle: Duration::from_millis(self.readback.settle_ms),
        }
    }

    /// How long facts are kept.
    pub fn facts(&self) -> facts::Settings {
        facts::Settings {
            instances: Duration::from_millis(self.facts.instances_ms),
            types: Duration::from_millis(self.facts.types_ms),
            vswitches: Duration::from_millis(self.facts.vswitches_ms),
        }
    }

    /// How long operations may take.
    pub fn api(&self) -> api::Settings {
        api::Settings {
            op_timeout: Duration::from_millis(self.ops.timeout_ms),
            read_timeout: Duration::from_millis(self.ops.read_timeout_ms),
        }
    }
}

fn endpoint(text: &str, region: &RegionId) -> Option<Endpoint> {
    base(text).map(|(scheme, authority)| Endpoint {
        scheme,
        authority,
        region: region.clone(),
    })
}

/// Scheme and authority of `http(s)://host[:port]`, with nothing behind it and nobody in it.
fn base(text: &str) -> Option<(String, String)> {
    let uri: Uri = text.parse().ok()?;
    let scheme = uri
        .scheme_str()
        .filter(|s| matches!(*s, "http" | "https"))?;
    let authority = uri.authority()?;
    let plain = matches!(uri.path(), "" | "/") && uri.query().is_none();
    let host_only = !authority.as_str().contains('@') && !authority.host().is_empty();
    (plain && host_only).then(|| (scheme.to_owned(), authority.to_string()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use mesh::ca::{Authority, Leaf};
    use mesh::config::Sources;
    use mesh::identity::Identity;
    use mesh::run::configure;

    use super::*;
    use crate::credentials::{FILE_ID, FILE_SECRET};

    const DAY: Duration = Duration::from_hours(24);
    const DOCUMENT: &str = include_str!("../../docs/configuration.md");

    /// A folder with good credentials and certificates, and the file that names them.
    fn good(dir: &Path) -> Sources {
        mesh::tls::install_provider();
        std::fs::write(dir.join(FILE_ID), "id").unwrap();
        std::fs::write(dir.join(FILE_SECRET), "secret").unwrap();
        let ca = Authority::new(DAY).unwrap();
        let leaf = Leaf::new(&Identity::gateway("gw-1"), DAY);
        ca.issue(&leaf).unwrap().write(&dir.join("tls")).unwrap();
        let file = dir.join("gateway.toml");
        let TlsConfig { ca, cert, key } = TlsConfig::in_dir(&dir.join("tls"));
        let text = format!(
            "[tls]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n\
             [cloud]\nregion = \"cn-hangzhou\"\n[credentials]\ndir = {dir:?}\n",
        );
        std::fs::write(&file, text).unwrap();
        Sources {
            file: Some(file),
            ..Sources::default()
        }
    }

    fn refusal(dir: &Path, set: &str) -> String {
        let sources = Sources {
            sets: vec![set.to_owned()],
            ..good(dir)
        };
        format!("{:#}", configure::<Config>(&sources).unwrap_err())
    }

    #[test]
    fn shortest_file_has_the_endpoints_of_its_region() {
        let dir = tempfile::tempdir().unwrap();

        let config: Config = configure(&good(dir.path())).unwrap();

        let endpoints = config.endpoints().unwrap();
        assert_eq!(
            endpoints[&Product::Ecs].authority,
            "ecs-vpc.cn-hangzhou.aliyuncs.com"
        );
        assert_eq!(
            endpoints[&Product::Vpc].authority,
            "vpc-vpc.cn-hangzhou.aliyuncs.com"
        );
        assert_eq!(endpoints[&Product::Vpc].scheme, "https");
    }

    #[test]
    fn quota_of_an_action_can_be_set() {
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources {
            sets: vec!["rate_limits.per_minute.describevswitches=30".to_owned()],
            ..good(dir.path())
        };

        let config: Config = configure(&sources).unwrap();

        let quotas = config.quotas().unwrap();
        assert_eq!(quotas.per_minute[&Action::DescribeVSwitches], 30);
    }

    // Issue: bad input. Each mistake is named by its key.
    #[test]
    fn mistakes_are_named_by_their_keys() {
        let dir = tempfile::tempdir().unwrap();
        for (set, key) in [
            ("credentials.ram_role=auto", "credentials.ram_role"),
            ("credentials.reread_ms=0", "credentials.reread_ms"),
            ("credentials.folder=/nowhere", "credentials.folder"),
            ("tls.cert=/nowhere", "tls"),
            ("tls.dir=/nowhere", "tls.dir"),
            ("cloud.endpoint=ecs.aliyuncs.com", "cloud.endpoint"),
            ("cloud.endpoint=ftp://here", "cloud.endpoint"),
            ("cloud.vpc_endpoint=http://u:p@here", "cloud.vpc_endpoint"),
            ("cloud.endpoint=http://here/path", "cloud.endpoint"),
            ("cloud.attempts=0", "cloud.attempts"),
            ("cloud.signature=v2", "cloud.signature"),
            (
                "rate_limits.per_minute.Fly=10",
                "rate_limits.per_minute.Fly",
            ),
            (
                "rate_limits.per_minute.AttachNetworkInterface=1",
                "rate_limits.per_minute.AttachNetworkInterface",
            ),
            ("rate_limits.share_permille=0", "rate_limits.share_permille"),
            ("readback.tick_ms=0", "readback.tick_ms"),
            ("ops.timeout_ms=0", "ops.timeout_ms"),
            ("ops.max_runing=1", "ops.max_runing"),
            ("service.admin.listen=1", "service.admin.listen"),
        ] {
            let text = refusal(dir.path(), set);

            assert!(text.contains(&format!("{key:?}")), "{set}: {text}");
        }
    }

    #[test]
    fn admin_port_beyond_loopback_is_refused() {
        let dir = tempfile::tempdir().unwrap();

        let text = refusal(dir.path(), "service.admin.listen=0.0.0.0:1");

        assert!(text.contains("service.admin.listen"), "{text}");
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
                found.insert(prefix.replace("DescribeVSwitches", "<Action>"));
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
        let sources = Sources {
            sets: vec!["rate_limits.per_minute.DescribeVSwitches=300".to_owned()],
            ..good(dir.path())
        };
        let mut config: Config = configure(&sources).unwrap();
        config.credentials.oidc = Some(credentials::Oidc::default());
        let mut found = BTreeSet::new();
        keys("", &serde_json::to_value(&config).unwrap(), &mut found);
        let (own, shared) = (documented("cloud-gateway"), documented("Every service"));

        let missing: Vec<_> = found
            .iter()
            .filter(|key| !own.contains(*key) && !shared.contains(*key))
            .collect();
        let gone: Vec<_> = own.difference(&found).collect();

        assert!(missing.is_empty(), "not in the document: {missing:?}");
        assert!(gone.is_empty(), "documented, but no key: {gone:?}");
    }
}
