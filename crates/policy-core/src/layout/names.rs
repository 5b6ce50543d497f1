//! Names of the objects that stand in every table of ours.

use nft_wire::key::Field;
use nft_wire::name::{Family, TableRef};
use nft_wire::set::Set;

use super::settings::{Place, Settings};

/// Forwarded packets: revoked flows.
pub const FWD: &str = "fwd";
/// Packets to this host.
pub const INP: &str = "inp";
/// Packets of this host.
pub const OUT: &str = "out";
/// Egress policies, behind routing.
pub const EG: &str = "eg";
/// Ingress policies, behind the egress ones.
pub const ING: &str = "ing";
/// The end of a denied ingress.
pub const DENY_IN: &str = "deny_in";
/// The end of a denied egress.
pub const DENY_EG: &str = "deny_eg";
/// The end of a revoked flow.
pub const REVOKED: &str = "revoked";

/// Denied IPv4 flows.
pub const DENIED4: &str = "denied4";
/// Denied IPv6 flows.
pub const DENIED6: &str = "denied6";

/// The sets and maps of fixed name whose elements follow local pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Egress by the pod's link.
    FromPod,
    /// Ingress by the pod's link.
    ToPod,
    /// Egress by the pod's IPv4 address, where the link is not known.
    FromIp4,
    /// The same for IPv6.
    FromIp6,
    /// Pairs of links that are the same pod's.
    Hair,
    /// IPv4 addresses of local pods.
    Pods4,
    /// IPv6 addresses of local pods.
    Pods6,
    /// IPv4 addresses of the node, in a pod's namespace.
    Node4,
    /// IPv6 addresses of the node, in a pod's namespace.
    Node6,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::FromPod,
        Self::ToPod,
        Self::FromIp4,
        Self::FromIp6,
        Self::Hair,
        Self::Pods4,
        Self::Pods6,
        Self::Node4,
        Self::Node6,
    ];

    /// Its name in the kernel.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromIp4 => "from_ip4",
            Self::FromIp6 => "from_ip6",
            Self::Hair => "hair",
            Self::Pods4 => "pods4",
            Self::Pods6 => "pods6",
            Self::Node4 => "node4",
            Self::Node6 => "node6",
        }
    }

    /// The one of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// What its keys are made of.
    pub const fn fields(self) -> &'static [Field] {
        match self {
            Self::FromPod | Self::ToPod => &[Field::Ifname],
            Self::FromIp4 | Self::Pods4 | Self::Node4 => &[Field::Ipv4],
            Self::FromIp6 | Self::Pods6 | Self::Node6 => &[Field::Ipv6],
            Self::Hair => &[Field::Ifname, Field::Ifname],
        }
    }

    /// Whether its elements lead to a verdict.
    pub const fn leads(self) -> bool {
        matches!(
            self,
            Self::FromPod | Self::ToPod | Self::FromIp4 | Self::FromIp6
        )
    }

    /// The set as the kernel should have it.
    pub fn set(self, table: &TableRef) -> Set {
        if self.leads() {
            Set::verdicts(table, self.name(), self.fields())
        } else {
            Set::plain(table, self.name(), self.fields())
        }
    }
}

/// The sets of denied flows: IPv4 and IPv6.
pub fn denied_sets(settings: &Settings) -> [Set; 2] {
    [(DENIED4, Field::Ipv4), (DENIED6, Field::Ipv6)].map(|(name, address)| {
        let key = [
            Field::Ifname,
            address,
            address,
            Field::Proto,
            Field::Service,
        ];
        let mut set = Set::plain(&inet(settings), name, &key);
        set.flags.dynamic = true;
        set.timeout = Some(std::time::Duration::from_millis(settings.denied_timeout_ms));
        set.size = Some(settings.denied_size);
        set.counter = true;
        set
    })
}

/// The table with policies.
pub fn inet(settings: &Settings) -> TableRef {
    TableRef::new(Family::Inet, &settings.table)
}

/// The table with anti-spoof chains.
pub fn netdev(settings: &Settings) -> TableRef {
    TableRef::new(Family::Netdev, &settings.spoof_table)
}

/// Base chains of a place.
pub const fn base_chains(place: Place) -> &'static [&'static str] {
    match place {
        Place::Host => &[FWD, INP, OUT, EG, ING],
        Place::PodNamespace => &[INP, OUT],
    }
}
