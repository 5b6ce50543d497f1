//! Instance types the simulator knows without being told.

use std::collections::BTreeMap;

use types::cloud::InstanceType;
use types::quota::EniQuota;

/// Type, ENIs, IPv4 per ENI, IPv6 per ENI, ENIs with members, trunk.
///
/// Source: replies of DescribeInstanceTypes quoted in public places. Only rows whose every number is known; a world
/// file adds others.
const TABLE: [(&str, u32, u32, u32, u32, bool); 9] = [
    ("ecs.t1.xsmall", 1, 1, 0, 1, false),
    ("ecs.g6.large", 2, 6, 1, 2, false),
    ("ecs.g6.8xlarge", 8, 20, 1, 8, false),
    ("ecs.g6.16xlarge", 8, 20, 1, 60, true),
    ("ecs.g7.xlarge", 4, 15, 15, 20, true),
    ("ecs.g8a.xlarge", 4, 15, 15, 5, true),
    ("ecs.u1-c1m4.xlarge", 3, 10, 1, 6, true),
    ("ecs.ebmg5.24xlarge", 32, 10, 0, 32, false),
    ("ecs.ebmre7p.32xlarge", 32, 15, 1, 110, true),
];

/// The table.
pub fn built_in() -> BTreeMap<InstanceType, EniQuota> {
    TABLE
        .iter()
        .filter_map(|(id, enis, ipv4, ipv6, total, trunk)| {
            let quota = EniQuota {
                enis: *enis,
                enis_total: *total,
                ipv4_per_eni: *ipv4,
                ipv6_per_eni: *ipv6,
                trunk: *trunk,
            };
            Some((id.parse().ok()?, quota))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_parses_whole() {
        assert_eq!(built_in().len(), TABLE.len());
    }
}
