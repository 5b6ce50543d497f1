//! What an operator can choose about the tables.

use ipnet::IpNet;
use types::pod::PodKey;

/// Choices about the tables; the same on every node of a cluster.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the `inet` table.
    pub table: String,
    /// Name of the `netdev` table with the anti-spoof chains.
    pub spoof_table: String,
    /// Prefixes of host-side links of pods, 1 to 14 bytes each. A link with such a name that is in no map passes nothing.
    pub veth_prefixes: Vec<String>,
    /// The host-side link that a pod will get, where it follows from its name: its rules then stand before its link.
    pub link_name: Option<fn(&PodKey) -> String>,
    /// The bit of conntrack marks that means "revoked"; one bit, or the tables revoke nothing when 0.
    pub revoke_bit: u32,
    /// Most elements of a set of denied flows.
    pub denied_size: u32,
    /// How long a denied flow is remembered, milliseconds.
    pub denied_timeout_ms: u64,
    /// Destinations that egress policies never judge: addresses that the host's own stack answers.
    pub always_allowed: Vec<IpNet>,
    /// Whether pods may only send from their own addresses.
    pub anti_spoof: bool,
    /// Whether the tables have the flag `owner`: foreign processes cannot change them while the socket lives.
    pub owner: bool,
    /// Whether the tables have the flag `persist`: they outlive the owner's socket.
    pub persist: bool,
    /// A profile with more policies than this looks at the port first.
    pub switch_above: usize,
    /// Most bytes of messages in one transaction, roughly.
    pub batch_bytes: usize,
}

impl Settings {
    /// Bit 27 of the conntrack mark.
    pub const REVOKE_BIT: u32 = 0x0800_0000;
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            table: "terway_policy".to_owned(),
            spoof_table: "terway_spoof".to_owned(),
            veth_prefixes: vec!["cali".to_owned()],
            link_name: None,
            revoke_bit: Self::REVOKE_BIT,
            denied_size: 8192,
            denied_timeout_ms: 60_000,
            always_allowed: Vec::new(),
            anti_spoof: true,
            owner: false,
            persist: false,
            switch_above: 16,
            batch_bytes: 14 << 20,
        }
    }
}

/// Where a pod's rules stand, which decides the hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// In the node's namespace, by host-side link: forward, input, output and postrouting.
    Host,
    /// In the pod's own namespace, by the pod's interface: input and output. Traffic of the node is told by the
    /// node's addresses; traffic to a Service is judged where it has been translated.
    PodNamespace,
}
