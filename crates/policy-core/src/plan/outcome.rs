//! What a committed transaction did to flows that are known already.

use std::collections::BTreeSet;
use std::net::IpAddr;

use types::pod::PodKey;

/// Whom a committed transaction concerns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Local pods whose elements lead elsewhere now.
    pub moved: BTreeSet<PodKey>,
    /// Addresses that left a set.
    pub lost: BTreeSet<IpAddr>,
    /// Addresses that joined a set.
    pub gained: BTreeSet<IpAddr>,
    /// What stands is not what stood: every local pod counts as moved.
    pub everything: bool,
}
