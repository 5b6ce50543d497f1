//! Names, versions, default quotas and documented limits of the actions.

use std::fmt;
use std::str::FromStr;

/// Which API an action belongs to. Each has an endpoint and a version of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Product {
    /// Elastic Compute Service.
    Ecs,
    /// Virtual Private Cloud.
    Vpc,
}

impl Product {
    /// The `Version` every request of the product carries.
    ///
    /// Source: ECS and VPC API references, common parameters.
    pub fn version(self) -> &'static str {
        match self {
            Self::Ecs => "2014-05-26",
            Self::Vpc => "2016-04-28",
        }
    }
}

/// One call of the OpenAPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Facts of instances.
    DescribeInstances,
    /// Limits of instance types.
    DescribeInstanceTypes,
    /// vSwitches with their ranges and free counts.
    DescribeVSwitches,
    /// Security groups.
    DescribeSecurityGroups,
    /// Makes an ENI.
    CreateNetworkInterface,
    /// Starts attaching an ENI to an instance.
    AttachNetworkInterface,
    /// Starts detaching an ENI from its instance.
    DetachNetworkInterface,
    /// Starts deleting an ENI.
    DeleteNetworkInterface,
    /// ENIs with status and addresses.
    DescribeNetworkInterfaces,
    /// Adds secondary IPv4 addresses to an ENI.
    AssignPrivateIpAddresses,
    /// Takes secondary IPv4 addresses from an ENI.
    UnassignPrivateIpAddresses,
    /// Adds IPv6 addresses to an ENI.
    AssignIpv6Addresses,
    /// Takes IPv6 addresses from an ENI.
    UnassignIpv6Addresses,
}

impl Action {
    /// Every action, in the order of the API reference.
    pub const ALL: [Self; 13] = [
        Self::DescribeInstances,
        Self::DescribeInstanceTypes,
        Self::DescribeVSwitches,
        Self::DescribeSecurityGroups,
        Self::CreateNetworkInterface,
        Self::AttachNetworkInterface,
        Self::DetachNetworkInterface,
        Self::DeleteNetworkInterface,
        Self::DescribeNetworkInterfaces,
        Self::AssignPrivateIpAddresses,
        Self::UnassignPrivateIpAddresses,
        Self::AssignIpv6Addresses,
        Self::UnassignIpv6Addresses,
    ];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::DescribeInstances => "DescribeInstances",
            Self::DescribeInstanceTypes => "DescribeInstanceTypes",
            Self::DescribeVSwitches => "DescribeVSwitches",
            Self::DescribeSecurityGroups => "DescribeSecurityGroups",
            Self::CreateNetworkInterface => "CreateNetworkInterface",
            Self::AttachNetworkInterface => "AttachNetworkInterface",
            Self::DetachNetworkInterface => "DetachNetworkInterface",
            Self::DeleteNetworkInterface => "DeleteNetworkInterface",
            Self::DescribeNetworkInterfaces => "DescribeNetworkInterfaces",
            Self::AssignPrivateIpAddresses => "AssignPrivateIpAddresses",
            Self::UnassignPrivateIpAddresses => "UnassignPrivateIpAddresses",
            Self::AssignIpv6Addresses => "AssignIpv6Addresses",
            Self::UnassignIpv6Addresses => "UnassignIpv6Addresses",
        }
    }

    /// The API it belongs to.
    pub fn product(self) -> Product {
        match self {
            Self::DescribeVSwitches => Product::Vpc,
            Self::DescribeInstances
            | Self::DescribeInstanceTypes
            | Self::DescribeSecurityGroups
            | Self::CreateNetworkInterface
            | Self::AttachNetworkInterface
            | Self::DetachNetworkInterface
            | Self::DeleteNetworkInterface
            | Self::DescribeNetworkInterfaces
            | Self::AssignPrivateIpAddresses
            | Self::UnassignPrivateIpAddresses
            | Self::AssignIpv6Addresses
            | Self::UnassignIpv6Addresses => Product::Ecs,
        }
    }

    /// The `Version` its requests carry.
    pub fn version(self) -> &'static str {
        self.product().version()
    }

    /// Calls per minute, account and region when nobody knows better.
    ///
    /// Source: the limits Terway ships with; the account's Quota Center is authoritative.
    pub fn default_quota_per_minute(self) -> u32 {
        match self {
            Self::DescribeNetworkInterfaces => 800,
            Self::CreateNetworkInterface
            | Self::AttachNetworkInterface
            | Self::DeleteNetworkInterface
            | Self::DescribeInstances
            | Self::DescribeSecurityGroups => 500,
            Self::DetachNetworkInterface
            | Self::AssignPrivateIpAddresses
            | Self::UnassignPrivateIpAddresses
            | Self::AssignIpv6Addresses
            | Self::UnassignIpv6Addresses
            | Self::DescribeInstanceTypes => 400,
            Self::DescribeVSwitches => 300,
        }
    }

    /// Whether it changes something.
    pub fn is_write(self) -> bool {
        match self {
            Self::DescribeInstances
            | Self::DescribeInstanceTypes
            | Self::DescribeVSwitches
            | Self::DescribeSecurityGroups
            | Self::DescribeNetworkInterfaces => false,
            Self::CreateNetworkInterface
            | Self::AttachNetworkInterface
            | Self::DetachNetworkInterface
            | Self::DeleteNetworkInterface
            | Self::AssignPrivateIpAddresses
            | Self::UnassignPrivateIpAddresses
            | Self::AssignIpv6Addresses
            | Self::UnassignIpv6Addresses => true,
        }
    }

    /// Whether a `ClientToken` makes a repeat return the first result. Other writes must be read back before a
    /// repeat.
    ///
    /// Source: ECS API reference, idempotence.
    pub fn takes_client_token(self) -> bool {
        matches!(
            self,
            Self::CreateNetworkInterface
                | Self::AssignPrivateIpAddresses
                | Self::AssignIpv6Addresses
        )
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Text that names no action of this crate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a known action")]
pub struct UnknownAction {
    /// What was given, cut to 80 characters.
    pub text: String,
}

impl FromStr for Action {
    type Err = UnknownAction;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|action| action.name() == text)
            .ok_or_else(|| UnknownAction {
                text: text.chars().take(80).collect(),
            })
    }
}

/// Explicit IPv4 addresses in one `CreateNetworkInterface`, beside the primary one.
///
/// Source: CreateNetworkInterface, `PrivateIpAddress.N`.
pub const MAX_CREATE_IPV4: usize = 10;
/// Explicit IPv6 addresses in one `CreateNetworkInterface`.
///
/// Source: CreateNetworkInterface, `Ipv6Address.N`.
pub const MAX_CREATE_IPV6: usize = 10;
/// Largest `SecondaryPrivateIpAddressCount`, and secondary IPv4 addresses of an ENI that is `Available`.
///
/// Source: CreateNetworkInterface and AssignPrivateIpAddresses.
pub const MAX_AVAILABLE_SECONDARY_IPV4: usize = 49;
/// IPv6 addresses of an ENI that is `Available`.
///
/// Source: AssignIpv6Addresses.
pub const MAX_AVAILABLE_IPV6: usize = 10;
/// Explicit IPv4 addresses in one `AssignPrivateIpAddresses`.
///
/// Source: AssignPrivateIpAddresses, `PrivateIpAddress.N` (the API's metadata; the newest SDK text says 32).
pub const MAX_ASSIGN_IPV4: usize = 50;
/// IPv6 addresses in one `AssignIpv6Addresses` or `UnassignIpv6Addresses`.
///
/// Source: the two actions' pages.
pub const MAX_ASSIGN_IPV6: usize = 10;
/// Addresses in one `UnassignPrivateIpAddresses`.
///
/// Reason: not published; the length of the assign list is the natural bound.
pub const MAX_UNASSIGN_IPV4: usize = 50;
/// ENI ids, or addresses, in one `DescribeNetworkInterfaces`.
///
/// Source: DescribeNetworkInterfaces.
pub const MAX_DESCRIBE_IDS: usize = 100;
/// Largest `MaxResults` of `DescribeNetworkInterfaces`.
///
/// Source: DescribeNetworkInterfaces.
pub const MAX_DESCRIBE_ENIS_PAGE: u32 = 500;
/// Largest `MaxResults` of `DescribeInstances`, `DescribeInstanceTypes` and `DescribeSecurityGroups`.
///
/// Source: the three actions' pages.
pub const MAX_DESCRIBE_PAGE: u32 = 100;
/// Largest `PageSize` of `DescribeVSwitches`.
///
/// Source: DescribeVSwitches.
pub const MAX_VSWITCH_PAGE: u32 = 50;
/// vSwitch ids, separated by commas, in one `DescribeVSwitches`.
///
/// Reason: not published for this action; other actions of the VPC API take 20.
pub const MAX_VSWITCH_IDS: usize = 20;
/// Attach operations that may run on one instance at a time.
///
/// Source: Terway's limit for its own calls.
pub const MAX_CONCURRENT_ATTACHES: usize = 5;
/// Characters of a `ClientToken`.
///
/// Source: ECS API reference, idempotence.
pub const MAX_CLIENT_TOKEN_LEN: usize = 64;
/// Security groups of one ENI.
///
/// Source: ECS limits.
pub const MAX_SECURITY_GROUPS: usize = 5;
/// Tags of one ENI.
///
/// Source: CreateNetworkInterface, `Tag.N`.
pub const MAX_TAGS: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn action_name_round_trips() {
        for action in Action::ALL {
            assert_eq!(action.name().parse(), Ok(action));
        }
    }

    #[test]
    fn action_of_the_vpc_api_has_its_version() {
        assert_eq!(Action::DescribeVSwitches.version(), "2016-04-28");
        assert_eq!(Action::CreateNetworkInterface.version(), "2014-05-26");
    }

    #[test]
    fn action_in_other_case_is_unknown() {
        assert!("describeinstances".parse::<Action>().is_err());
    }
}
