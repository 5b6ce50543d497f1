//! Parameters that the simulator understands, of those that each action documents.
//!
//! Any other name is refused, so that a misspelt one is found at once, and so that nobody believes in a filter or a
//! setting that does nothing here.
//!
//! Source: the published API metadata of ECS and VPC.

use ecs_api::action::Action;

use crate::openapi::parameters::Parameters;
use crate::refusal::Refusal;

/// Accepted with every action.
const EVERYWHERE: [&str; 5] = [
    "RegionId",
    "OwnerId",
    "OwnerAccount",
    "ResourceOwnerId",
    "ResourceOwnerAccount",
];

/// What the simulator does not do, although the real service does.
const UNSUPPORTED: [&str; 4] = [
    "Ipv4Prefix",
    "Ipv4PrefixCount",
    "Ipv6Prefix",
    "Ipv6PrefixCount",
];

/// Refuses parameters that the action does not know, and those the simulator does not support.
///
/// # Errors
/// `UnsupportedParameter` with the name.
pub fn check(action: Action, parameters: &Parameters) -> Result<(), Refusal> {
    for name in parameters.names() {
        let stem = stem(name);
        let known = EVERYWHERE.contains(&name) || names(action).contains(&stem.as_str());
        if !known || UNSUPPORTED.contains(&stem.as_str()) {
            return Err(Refusal::bad(
                "UnsupportedParameter",
                format!("The parameter {name} is not supported."),
            ));
        }
    }
    Ok(())
}

/// The name without its numbers: `Tag.3.Key` is `Tag.N.Key`, `PrivateIpAddress.2` is `PrivateIpAddress`.
fn stem(name: &str) -> String {
    let is_number = |part: &&str| part.parse::<u32>().is_ok_and(|n| n > 0);
    let mut parts: Vec<_> = name.split('.').collect();
    if parts.len() > 1 && parts.last().is_some_and(is_number) {
        parts.pop();
    }
    for part in &mut parts {
        if is_number(part) {
            *part = "N";
        }
    }
    parts.join(".")
}

fn names(action: Action) -> &'static [&'static str] {
    match action {
        Action::DescribeInstances => &DESCRIBE_INSTANCES,
        Action::DescribeInstanceTypes => &["InstanceTypes", "MaxResults", "NextToken"],
        Action::DescribeVSwitches => &["VSwitchId", "VpcId", "ZoneId", "PageNumber", "PageSize"],
        Action::DescribeSecurityGroups => &DESCRIBE_SECURITY_GROUPS,
        Action::CreateNetworkInterface => &CREATE_ENI,
        Action::AttachNetworkInterface => &ATTACH_ENI,
        Action::DetachNetworkInterface => {
            &["InstanceId", "NetworkInterfaceId", "TrunkNetworkInstanceId"]
        }
        Action::DeleteNetworkInterface => &["NetworkInterfaceId"],
        Action::DescribeNetworkInterfaces => &DESCRIBE_ENIS,
        Action::AssignPrivateIpAddresses => &ASSIGN_V4,
        Action::UnassignPrivateIpAddresses => {
            &["NetworkInterfaceId", "PrivateIpAddress", "Ipv4Prefix"]
        }
        Action::AssignIpv6Addresses => &ASSIGN_V6,
        Action::UnassignIpv6Addresses => &["NetworkInterfaceId", "Ipv6Address", "Ipv6Prefix"],
    }
}

const DESCRIBE_INSTANCES: [&str; 12] = [
    "InstanceIds",
    "InstanceName",
    "InstanceType",
    "Status",
    "VSwitchId",
    "VpcId",
    "ZoneId",
    "MaxResults",
    "NextToken",
    "PageNumber",
    "PageSize",
    // Asks for the secondary addresses of the primary ENI, which are always in the reply here.
    "AdditionalAttributes",
];

const DESCRIBE_SECURITY_GROUPS: [&str; 7] = [
    "SecurityGroupId",
    "SecurityGroupIds",
    "VpcId",
    "MaxResults",
    "NextToken",
    "PageNumber",
    "PageSize",
];

const CREATE_ENI: [&str; 19] = [
    "VSwitchId",
    "SecurityGroupId",
    "SecurityGroupIds",
    "PrimaryIpAddress",
    "PrivateIpAddress",
    "SecondaryPrivateIpAddressCount",
    "Ipv6Address",
    "Ipv6AddressCount",
    "Ipv4Prefix",
    "Ipv4PrefixCount",
    "Ipv6Prefix",
    "Ipv6PrefixCount",
    "InstanceType",
    "NetworkInterfaceName",
    "Description",
    "Tag.N.Key",
    "Tag.N.Value",
    "DeleteOnRelease",
    // The data plane always checks sources, as the default of the real service does.
    "SourceDestCheck",
];

const ATTACH_ENI: [&str; 4] = [
    "InstanceId",
    "NetworkInterfaceId",
    "TrunkNetworkInstanceId",
    // The types of the table have one card.
    "NetworkCardIndex",
];

const DESCRIBE_ENIS: [&str; 17] = [
    "NetworkInterfaceId",
    "InstanceId",
    "VSwitchId",
    "VpcId",
    "Status",
    "Type",
    "PrimaryIpAddress",
    "PrivateIpAddress",
    "Ipv6Address",
    "SecurityGroupId",
    "NetworkInterfaceName",
    "Tag.N.Key",
    "Tag.N.Value",
    "MaxResults",
    "NextToken",
    "PageNumber",
    "PageSize",
];

const ASSIGN_V4: [&str; 5] = [
    "NetworkInterfaceId",
    "PrivateIpAddress",
    "SecondaryPrivateIpAddressCount",
    "Ipv4Prefix",
    "Ipv4PrefixCount",
];

const ASSIGN_V6: [&str; 5] = [
    "NetworkInterfaceId",
    "Ipv6Address",
    "Ipv6AddressCount",
    "Ipv6Prefix",
    "Ipv6PrefixCount",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stem_of_numbered_names_drops_the_numbers() {
        assert_eq!(stem("Tag.12.Key"), "Tag.N.Key");
        assert_eq!(stem("PrivateIpAddress.2"), "PrivateIpAddress");
        assert_eq!(stem("RegionId"), "RegionId");
        assert_eq!(stem("PrivateIpAddress.0"), "PrivateIpAddress.0");
    }
}
