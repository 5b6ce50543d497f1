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

/// ENIs of a node that pods can have for themselves (`aliyun/eni`): what its type allows beside the primary
/// one, less those that serve pods with shared ENIs. One is always kept for these.
///
/// `secondary_enis` is [`EniQuota::secondary_enis`]; `shared_enis` counts the shared ENIs that the node has
/// or is about to get. The number falls when pods with shared ENIs need another one, and rises when that is
/// given back: nothing lies idle for pods that never come. It counts those in use by pods too, as a device
/// plug-in does.
pub fn whole_eni_capacity(secondary_enis: u32, shared_enis: u32) -> u32 {
    secondary_enis.saturating_sub(shared_enis.max(1))
}

/// Pods with shared ENIs that a node can have while `whole_enis` pods have, or are about to get, one for
/// themselves; `pods_per_eni` is what one ENI serves. The counterpart of [`whole_eni_capacity`].
pub fn shared_pod_capacity(secondary_enis: u32, whole_enis: u32, pods_per_eni: u32) -> u32 {
    secondary_enis
        .saturating_sub(whole_enis)
        .saturating_mul(pods_per_eni)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_eni_is_always_kept_for_pods_that_share() {
        assert_eq!(whole_eni_capacity(3, 0), 2);
        assert_eq!(whole_eni_capacity(3, 1), 2);
        assert_eq!(whole_eni_capacity(1, 0), 0);
        assert_eq!(whole_eni_capacity(0, 0), 0);
    }

    // I10: both kinds together stay within what the type allows.
    #[test]
    fn what_one_kind_takes_the_other_kind_can_not_have() {
        for secondary in 0..8 {
            for shared in 0..=secondary {
                let whole = whole_eni_capacity(secondary, shared);

                assert!(whole + shared <= secondary.max(shared));
                assert!(shared_pod_capacity(secondary, whole, 10) >= 10 * shared);
            }
        }
    }
}
