//! What an instance type allows.

use serde::{Deserialize, Serialize};

/// Limits of an instance type.
///
/// Source: ECS DescribeInstanceTypes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EniQuota {
    /// ENIs with the primary one (`EniQuantity`).
    pub enis: u32,
    /// ENIs and members together (`EniTotalQuantity`).
    pub enis_total: u32,
    /// IPv4 addresses of one ENI with its primary address (`EniPrivateIpAddressQuantity`).
    pub ipv4_per_eni: u32,
    /// IPv6 addresses of one ENI (`EniIpv6AddressQuantity`).
    pub ipv6_per_eni: u32,
    /// Whether trunk ENIs are possible (`EniTrunkSupported`).
    pub trunk: bool,
}

impl EniQuota {
    /// ENIs that can be attached beside the primary one.
    pub fn secondary_enis(&self) -> u32 {
        self.enis.saturating_sub(1)
    }

    /// Pods with shared ENIs: each secondary ENI serves as many as it has IPv4 addresses.
    pub fn max_pods(&self) -> u32 {
        self.secondary_enis().saturating_mul(self.ipv4_per_eni)
    }

    /// Whether dual stack is possible: each pod needs an address of both families on one ENI.
    pub fn supports_dual_stack(&self) -> bool {
        self.ipv4_per_eni > 0 && self.ipv6_per_eni == self.ipv4_per_eni
    }
}
