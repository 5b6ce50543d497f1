//! Everything that can be set. Only `app` imports this.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use cluster::source::Place;
use ipnet::IpNet;
use mesh::config::Invalid;
use mesh::run::{Params, Settings};
use mesh::{client, server, tls};
use serde::{Deserialize, Serialize};
use types::cloud::ClusterId;

/// The file, with environment and `--set` on top.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What this process is.
    #[serde(default)]
    pub mode: Mode,
    /// Who we are and where things lie.
    pub node: Node,
    /// What is watched: a folder of manifests, or the API server.
    #[serde(default)]
    pub cluster: cluster::source::Settings,
    /// Who watches: we, or relays.
    #[serde(default)]
    pub feed: Feed,
    /// Whether and how policy is enforced.
    #[serde(default)]
    pub policy: Policy,
    /// Flows that were allowed once.
    #[serde(default)]
    pub revoke: Revoke,
    /// How long a pod waits for its policy.
    #[serde(default)]
    pub gate: Gate,
    /// Where it is said that a policy is malformed.
    #[serde(default)]
    pub notices: Notices,
    /// The port that probes made for Felix look at.
    #[serde(default)]
    pub felix_health: FelixHealth,
    /// The relay's port, in that mode.
    #[serde(default)]
    pub relay: Relay,
    /// The control plane, and what it says to nodes; for agents.
    #[serde(default)]
    pub control: cluster::control::Settings,
    /// Certificates; needed to serve a relay, and to speak to one or to the control plane.
    #[serde(default)]
    pub tls: Option<tls::TlsConfig>,
    /// Bounds of channels to the relay.
    #[serde(default)]
    pub client: client::Params,
    /// Telemetry, health, admin, drain.
    #[serde(default)]
    pub service: Params,
}

/// What this process is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Enforces policy on this node.
    #[default]
    Agent,
    /// Watches once for the agents of a cluster.
    Relay,
    /// Removes from the kernel what an agent made, and ends.
    Remove,
}

/// Who we are and where things lie.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Kubernetes name of the node.
    pub name: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// Where the list of attachments lies.
    #[serde(default = "state_dir")]
    pub state_dir: PathBuf,
    /// The door of node-agent and of people.
    #[serde(default = "socket")]
    pub socket: PathBuf,
}

fn state_dir() -> PathBuf {
    PathBuf::from("/var/lib/terway")
}

fn socket() -> PathBuf {
    PathBuf::from("/run/terway/policy.sock")
}

/// Who watches: relays, or we what `cluster` names, or relays and we while none answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Feed {
    /// Older name of `cluster.folder`.
    pub manifests: Option<PathBuf>,
    /// `host:port` of relays.
    pub relays: Vec<String>,
    /// How long relays are tried before we watch ourselves, in milliseconds.
    pub fallback_ms: u64,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            manifests: None,
            relays: Vec::new(),
            fallback_ms: 30_000,
        }
    }
}

/// Whether and how policy is enforced.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// On or off; when not set, `eni_config` decides, and without it policy is on unless `registered`.
    pub enabled: Option<bool>,
    /// The node belongs to a registered (hybrid) cluster: off unless `enabled` is true.
    pub registered: bool,
    /// Folder of Terway's `eni-config`: `disable_network_policy`, `10-terway.conflist`, `10-terway.conf`.
    pub eni_config: Option<PathBuf>,
    /// What the names of host-side links of pods begin with.
    pub veth_prefixes: Vec<String>,
    /// Whether a pod may send with its own addresses only.
    pub anti_spoof: bool,
    /// Destinations that egress policies do not judge: networks that the node's own stack serves to every pod.
    pub host_stack_cidrs: Vec<IpNet>,
    /// The bit of the conntrack mark that says "revoked"; exactly one.
    pub revoke_bit: u32,
    /// Whether the table is made with the flags owner and persist where the kernel has them.
    pub owned: bool,
    /// Where the holder of the owner socket (node-agent) and this agent meet.
    pub owner_socket: PathBuf,
    /// How long an owned table is waited for at the start, in milliseconds.
    pub owner_wait_ms: u64,
    /// First pause after the kernel refused a change, in milliseconds.
    pub retry_first_ms: u64,
    /// Longest pause after the kernel refused a change, in milliseconds.
    pub retry_max_ms: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            enabled: None,
            registered: false,
            eni_config: None,
            veth_prefixes: vec!["cali".to_owned()],
            anti_spoof: true,
            host_stack_cidrs: Vec::new(),
            revoke_bit: 0x0800_0000,
            owned: true,
            owner_socket: PathBuf::from("/run/terway/policy-owner.sock"),
            owner_wait_ms: 10_000,
            retry_first_ms: 50,
            retry_max_ms: 5_000,
        }
    }
}

/// What happens to a flow that policy allowed when it began and denies now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Established {
    /// It is cut.
    #[default]
    Reevaluate,
    /// It lives on.
    Keep,
}

/// Flows that were allowed once.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Revoke {
    /// What happens to them.
    pub established: Established,
    /// Least time between the beginnings of two looks at conntrack, in milliseconds.
    pub pause_ms: u64,
    /// When a change is looked at a second time, in milliseconds.
    pub again_ms: u64,
}

impl Default for Revoke {
    fn default() -> Self {
        Self {
            established: Established::Reevaluate,
            pause_ms: 100,
            again_ms: 1_000,
        }
    }
}

/// How long a pod waits for its policy.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gate {
    /// Longest wait of a call without a deadline of its own, in milliseconds.
    pub wait_ms: u64,
    /// How long an unknown pod is waited for, in milliseconds.
    pub unknown_ms: u64,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            wait_ms: 5_000,
            unknown_ms: 2_000,
        }
    }
}

/// Where it is said that a policy is malformed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Notices {
    /// File that gets one Kubernetes Event, as a line of JSON, per malformed policy; the log has it in any case.
    pub file: Option<PathBuf>,
}

/// The port that probes made for Felix look at.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FelixHealth {
    /// Whether there is such a port.
    pub enabled: bool,
    /// Loopback address and port.
    pub listen: SocketAddr,
}

impl Default for FelixHealth {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: SocketAddr::from(([127, 0, 0, 1], 9099)),
        }
    }
}

/// The relay's port.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Relay {
    /// Address and port of gRPC with mTLS.
    pub listen: SocketAddr,
    /// Agents at a time; more are refused.
    pub agents_max: usize,
    /// Bounds of the server.
    pub server: server::Params,
}

impl Default for Relay {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 7401)),
            agents_max: 2_000,
            server: server::Params::default(),
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
        let nothing = self.source()?.is_none();
        match self.mode {
            Mode::Agent if nothing && self.feed.relays.is_empty() => {
                return fail("cluster", "names nothing to watch, and feed no relays");
            }
            Mode::Relay if nothing => {
                return fail("cluster", "names nothing to watch, as a relay must");
            }
            Mode::Relay if self.tls.is_none() => return fail("tls", "is needed by a relay"),
            Mode::Agent | Mode::Relay | Mode::Remove => {}
        }
        if !self.feed.relays.is_empty() && self.tls.is_none() {
            return fail("tls", "is needed to speak to a relay");
        }
        let control = self.control.check();
        control.map_err(|wrong| Invalid::new(wrong.key, wrong.why))?;
        if self.control.endpoint.is_some() && self.tls.is_none() {
            return fail("tls", "is needed to speak to the control plane");
        }
        if self.policy.revoke_bit.count_ones() != 1 {
            return fail("policy.revoke_bit", "is not one bit");
        }
        let prefixes = &self.policy.veth_prefixes;
        if prefixes.is_empty() {
            return fail("policy.veth_prefixes", "is empty");
        }
        // A name has at most 15 bytes, and the prefix is followed by something.
        if !prefixes.iter().all(|p| (1..=14).contains(&p.len())) {
            return fail(
                "policy.veth_prefixes",
                "holds one that is not of 1 to 14 bytes",
            );
        }
        let (first, max) = (self.policy.retry_first_ms, self.policy.retry_max_ms);
        if first == 0 || max < first || max > 3_600_000 {
            return fail(
                "policy.retry_max_ms",
                "is below policy.retry_first_ms, or above an hour",
            );
        }
        if !(10..=60_000).contains(&self.revoke.pause_ms) {
            return fail("revoke.pause_ms", "is not within 10 and 60000");
        }
        if !(10..=60_000).contains(&self.revoke.again_ms) {
            return fail("revoke.again_ms", "is not within 10 and 60000");
        }
        if !(1..=120_000).contains(&self.gate.wait_ms) {
            return fail("gate.wait_ms", "is not within 1 and 120000");
        }
        if self.felix_health.enabled && !self.felix_health.listen.ip().is_loopback() {
            return fail("felix_health.listen", "is not on loopback");
        }
        Ok(())
    }
}

impl Config {
    /// What is watched; nothing when only relays are named.
    ///
    /// # Errors
    /// [`Invalid`] when more than one thing is named, or one by half.
    pub fn source(&self) -> Result<Option<Place>, Invalid> {
        let place = self.cluster.place(self.feed.manifests.as_deref());
        place.map_err(|wrong| Invalid::new(wrong.key, wrong.why))
    }

    /// Where the phase of the installation is read.
    ///
    /// # Errors
    /// As [`Config::source`].
    pub fn place_of_phase(&self) -> Result<Place, Invalid> {
        let kubeconfig = self.cluster.kubeconfig.as_deref();
        Ok(cluster::control::place_of_phase(self.source()?, kubeconfig))
    }

    /// How long an owned table is waited for.
    pub const fn owner_wait(&self) -> Duration {
        Duration::from_millis(self.policy.owner_wait_ms)
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
        feed.manifests = "/manifests"
        tls.ca = "/tls/ca.crt"
        tls.cert = "/tls/tls.crt"
        tls.key = "/tls/tls.key"
    "#;

    fn read(more: &[&str]) -> anyhow::Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.toml");
        std::fs::write(&file, GOOD).unwrap();
        mesh::run::configure(&Sources {
            file: Some(file),
            variables: Vec::new(),
            sets: more.iter().map(|set| (*set).to_owned()).collect(),
        })
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
        let config = read(&[]).unwrap();
        let mut found = BTreeSet::new();
        keys("", &serde_json::to_value(&config).unwrap(), &mut found);
        let (own, shared) = (documented("policy-agent"), documented("Every service"));

        let missing: Vec<_> = found
            .iter()
            .filter(|key| !own.contains(*key) && !shared.contains(*key))
            .collect();
        let gone: Vec<_> = own.difference(&found).collect();

        assert!(missing.is_empty(), "not in the document: {missing:?}");
        assert!(gone.is_empty(), "documented, but no key: {gone:?}");
    }

    #[test]
    fn configuration_that_makes_no_sense_names_its_key() {
        for (set, key) in [
            ("node.name=", "node.name"),
            ("policy.revoke_bit=3", "policy.revoke_bit"),
            ("policy.revoke_bit=0", "policy.revoke_bit"),
            ("policy.veth_prefixes=[]", "policy.veth_prefixes"),
            ("policy.retry_max_ms=1", "policy.retry_max_ms"),
            (
                "policy.host_stack_cidrs=[\"169.254.20.10\"]",
                "policy.host_stack_cidrs",
            ),
            ("revoke.pause_ms=1", "revoke.pause_ms"),
            ("revoke.established=sometimes", "revoke.established"),
            ("gate.wait_ms=0", "gate.wait_ms"),
            ("felix_health.listen=0.0.0.0:9099", "felix_health.listen"),
            ("mode=felix", "mode"),
            ("cluster.source=kubernetes", "cluster.source"),
            ("cluster.folder=/other", "cluster.folder"),
            ("cluster.kubeconfig=/k", "cluster.kubeconfig"),
        ] {
            let text = format!("{:#}", read(&[set]).unwrap_err());
            assert!(text.contains(key), "{set}: {text}");
        }
    }

    #[test]
    fn relay_needs_a_certificate_and_a_source() {
        let without = |key: &str| {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("policy.toml");
            let text: Vec<&str> = GOOD.lines().filter(|l| !l.contains(key)).collect();
            std::fs::write(&file, text.join("\n")).unwrap();
            let sources = Sources {
                file: Some(file),
                variables: Vec::new(),
                sets: vec!["mode=relay".to_owned()],
            };
            format!(
                "{:#}",
                mesh::run::configure::<Config>(&sources).unwrap_err()
            )
        };

        assert!(without("tls.").contains("tls"));
        assert!(without("manifests").contains("cluster"));
    }
}
