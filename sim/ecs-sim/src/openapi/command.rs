//! Parameters to commands: everything that can be refused without looking at the account is refused here.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ecs_api::action::{
    Action, MAX_ASSIGN_IPV4, MAX_ASSIGN_IPV6, MAX_AVAILABLE_SECONDARY_IPV4, MAX_CREATE_IPV4,
    MAX_CREATE_IPV6, MAX_DESCRIBE_IDS, MAX_UNASSIGN_IPV4, MAX_VSWITCH_IDS, MAX_VSWITCH_PAGE,
};
use ecs_api::model::Pick;
use ecs_api::model::eni::EniKind;
use types::cloud::{EniId, InstanceId, RegionId};

use crate::account::create::NewEni;
use crate::account::eni::size;
use crate::account::instance::no_instance;
use crate::openapi::page::{Bounds, Page};
use crate::openapi::parameters::Parameters;
use crate::refusal::Refusal;

/// What a caller wants, parsed.
#[derive(Debug, Clone)]
pub enum Command {
    /// Instances.
    DescribeInstances {
        /// Which; `None` means all.
        ids: Option<Vec<String>>,
        /// Other filters, by parameter name.
        filters: Vec<(&'static str, String)>,
        /// Which rows.
        page: Page,
    },
    /// Instance types.
    DescribeInstanceTypes {
        /// Which; empty means all.
        ids: Vec<String>,
        /// Which rows.
        page: Page,
    },
    /// vSwitches.
    DescribeVSwitches {
        /// Which; empty means all.
        ids: Vec<String>,
        /// Other filters, by parameter name.
        filters: Vec<(&'static str, String)>,
        /// Which rows.
        page: Page,
    },
    /// Security groups.
    DescribeSecurityGroups {
        /// Which; `None` means all.
        ids: Option<Vec<String>>,
        /// In this VPC.
        vpc: Option<String>,
        /// Which rows.
        page: Page,
    },
    /// ENIs.
    DescribeEnis(Box<EniFilter>),
    /// Make an ENI.
    CreateEni(Box<NewEni>),
    /// Start an attach.
    AttachEni(Placement),
    /// Start a detach.
    DetachEni(Placement),
    /// Start a delete.
    DeleteEni(EniId),
    /// Add IPv4 addresses.
    AssignV4(EniId, Pick<Ipv4Addr>),
    /// Take IPv4 addresses.
    UnassignV4(EniId, Vec<Ipv4Addr>),
    /// Add IPv6 addresses.
    AssignV6(EniId, Pick<Ipv6Addr>),
    /// Take IPv6 addresses.
    UnassignV6(EniId, Vec<Ipv6Addr>),
}

/// An ENI and where it is or shall be.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Which ENI.
    pub eni: EniId,
    /// Which instance.
    pub instance: InstanceId,
    /// Which trunk carries it.
    pub trunk: Option<EniId>,
}

/// Filters of `DescribeNetworkInterfaces`, joined by AND.
#[derive(Debug, Clone)]
pub struct EniFilter {
    /// Ids; empty means all.
    pub ids: Vec<String>,
    /// Any of these IPv4 addresses.
    pub ipv4: Vec<Ipv4Addr>,
    /// Any of these IPv6 addresses.
    pub ipv6: Vec<Ipv6Addr>,
    /// All these tags; an empty value matches every value.
    pub tags: std::collections::BTreeMap<String, String>,
    /// Others, by parameter name.
    pub others: Vec<(&'static str, String)>,
    /// Which rows.
    pub page: Page,
}

impl Command {
    /// Reads the parameters of an action.
    ///
    /// # Errors
    /// What the real service says of parameters that are missing, malformed, or exclude each other.
    pub fn parse(action: Action, p: &Parameters, region: &RegionId) -> Result<Self, Refusal> {
        check_region(action, p, region)?;
        match action {
            Action::DescribeInstances => describe_instances(p),
            Action::DescribeInstanceTypes => Ok(Self::DescribeInstanceTypes {
                ids: texts(p, "InstanceTypes"),
                page: Page::read(p, bounds(1, 100, 100))?,
            }),
            Action::DescribeVSwitches => describe_vswitches(p),
            Action::DescribeSecurityGroups => Ok(Self::DescribeSecurityGroups {
                ids: group_ids(p)?,
                vpc: p.text("VpcId").map(str::to_owned),
                page: Page::read(p, bounds(1, 100, 10))?,
            }),
            Action::DescribeNetworkInterfaces => describe_enis(p),
            Action::CreateNetworkInterface => create_eni(p),
            Action::AttachNetworkInterface => Ok(Self::AttachEni(placement(p)?)),
            Action::DetachNetworkInterface => Ok(Self::DetachEni(placement(p)?)),
            Action::DeleteNetworkInterface => Ok(Self::DeleteEni(eni_id(p)?)),
            Action::AssignPrivateIpAddresses => {
                let (eni, pick) = (eni_id(p)?, pick_v4(p)?);
                if pick == Pick::Nothing {
                    return Err(Refusal::missing("PrivateIpAddress"));
                }
                check_length("PrivateIpAddress", &pick, MAX_ASSIGN_IPV4)?;
                Ok(Self::AssignV4(eni, pick))
            }
            Action::UnassignPrivateIpAddresses => {
                let (eni, ips) = (
                    eni_id(p)?,
                    addresses(p, "PrivateIpAddress", "InvalidParameter")?,
                );
                Ok(Self::UnassignV4(
                    eni,
                    some_of("PrivateIpAddress", ips, MAX_UNASSIGN_IPV4)?,
                ))
            }
            Action::AssignIpv6Addresses => {
                let (eni, pick) = (eni_id(p)?, pick_v6(p)?);
                if pick == Pick::Nothing {
                    return Err(Refusal::missing("Ipv6Address"));
                }
                check_length("Ipv6Address", &pick, MAX_ASSIGN_IPV6)?;
                Ok(Self::AssignV6(eni, pick))
            }
            Action::UnassignIpv6Addresses => {
                let (eni, ips) = (
                    eni_id(p)?,
                    addresses(p, "Ipv6Address", "InvalidIp.Address")?,
                );
                Ok(Self::UnassignV6(
                    eni,
                    some_of("Ipv6Address", ips, MAX_ASSIGN_IPV6)?,
                ))
            }
        }
    }
}

fn check_region(action: Action, p: &Parameters, region: &RegionId) -> Result<(), Refusal> {
    match p.text("RegionId") {
        Some(given) if given == region.as_str() => Ok(()),
        Some(_) => Err(Refusal::not_found(
            "InvalidRegionId.NotFound",
            "The specified RegionId does not exist.",
        )),
        None if matches!(
            action,
            Action::DescribeInstanceTypes | Action::DescribeVSwitches
        ) =>
        {
            Ok(())
        }
        None => Err(Refusal::missing("RegionId")),
    }
}

fn bounds(least: usize, most: usize, default: usize) -> Bounds {
    Bounds {
        least,
        most,
        default,
    }
}

fn texts(p: &Parameters, name: &str) -> Vec<String> {
    p.list(name).into_iter().map(str::to_owned).collect()
}

fn filters(p: &Parameters, names: &[&'static str]) -> Vec<(&'static str, String)> {
    names
        .iter()
        .filter_map(|name| Some((*name, p.text(name)?.to_owned())))
        .collect()
}

/// A JSON array of ids as text.
fn json_ids(p: &Parameters, name: &str) -> Result<Option<Vec<String>>, Refusal> {
    let Some(text) = p.text(name) else {
        return Ok(None);
    };
    let ids: Vec<String> =
        serde_json::from_str(text).map_err(|_| Refusal::invalid(name, "no JSON array of texts"))?;
    if ids.len() > MAX_DESCRIBE_IDS {
        return Err(Refusal::invalid(name, "more than 100 ids"));
    }
    Ok(Some(ids))
}

fn describe_instances(p: &Parameters) -> Result<Command, Refusal> {
    const FILTERS: [&str; 6] = [
        "InstanceName",
        "InstanceType",
        "Status",
        "VSwitchId",
        "VpcId",
        "ZoneId",
    ];
    Ok(Command::DescribeInstances {
        ids: json_ids(p, "InstanceIds")?,
        filters: filters(p, &FILTERS),
        page: Page::read(p, bounds(10, 100, 10))?,
    })
}

fn group_ids(p: &Parameters) -> Result<Option<Vec<String>>, Refusal> {
    match p.text("SecurityGroupId") {
        Some(id) => Ok(Some(vec![id.to_owned()])),
        None => json_ids(p, "SecurityGroupIds"),
    }
}

fn describe_vswitches(p: &Parameters) -> Result<Command, Refusal> {
    let ids: Vec<_> = p
        .text("VSwitchId")
        .into_iter()
        .flat_map(|ids| ids.split(','))
        .map(|id| id.trim().to_owned())
        .collect();
    if ids.len() > MAX_VSWITCH_IDS {
        return Err(Refusal::invalid("VSwitchId", "more than 20 ids"));
    }
    let page_size: Option<u32> = p.parsed("PageSize")?;
    if page_size.is_some_and(|size| size == 0 || size > MAX_VSWITCH_PAGE) {
        return Err(Refusal::invalid("PageSize", "not 1 to 50"));
    }
    let number: Option<usize> = p.parsed("PageNumber")?;
    Ok(Command::DescribeVSwitches {
        ids,
        filters: filters(p, &["VpcId", "ZoneId"]),
        page: Page::Number {
            size: size(page_size.unwrap_or(10)),
            number: number.unwrap_or(1).max(1),
        },
    })
}

fn describe_enis(p: &Parameters) -> Result<Command, Refusal> {
    const FILTERS: [&str; 8] = [
        "InstanceId",
        "VSwitchId",
        "VpcId",
        "Status",
        "Type",
        "PrimaryIpAddress",
        "SecurityGroupId",
        "NetworkInterfaceName",
    ];
    let ids = texts(p, "NetworkInterfaceId");
    let ipv4 = addresses(p, "PrivateIpAddress", "InvalidParameter")?;
    let ipv6 = addresses(p, "Ipv6Address", "InvalidIp.Address")?;
    for (name, count) in [
        ("NetworkInterfaceId", ids.len()),
        ("PrivateIpAddress", ipv4.len()),
        ("Ipv6Address", ipv6.len()),
    ] {
        if count > MAX_DESCRIBE_IDS {
            return Err(Refusal::invalid(name, "more than 100"));
        }
    }
    Ok(Command::DescribeEnis(Box::new(EniFilter {
        ids,
        ipv4,
        ipv6,
        tags: p.tags()?,
        others: filters(p, &FILTERS),
        page: Page::read(p, bounds(10, 500, 10))?,
    })))
}

fn create_eni(p: &Parameters) -> Result<Command, Refusal> {
    let vswitch = p.required("VSwitchId")?.parse().map_err(|_| {
        Refusal::not_found(
            "InvalidVSwitchId.NotFound",
            "The specified VSwitchId is not found.",
        )
    })?;
    let mut groups = texts(p, "SecurityGroupIds");
    if let Some(group) = p.text("SecurityGroupId") {
        if !groups.is_empty() {
            return Err(Refusal::conflict("SecurityGroupId and SecurityGroupIds"));
        }
        groups.push(group.to_owned());
    }
    let security_groups = groups
        .iter()
        .map(|id| {
            id.parse().map_err(|_| {
                Refusal::not_found(
                    "InvalidSecurityGroupId.NotFound",
                    "The specified SecurityGroupId is not found.",
                )
            })
        })
        .collect::<Result<_, _>>()?;
    let kind = match p.text("InstanceType") {
        None | Some("Secondary") => EniKind::Secondary,
        Some("Trunk") => EniKind::Trunk,
        Some(_) => {
            return Err(Refusal::invalid(
                "InstanceType",
                "neither Secondary nor Trunk",
            ));
        }
    };
    let (ipv4, ipv6) = (pick_v4(p)?, pick_v6(p)?);
    check_length("PrivateIpAddress", &ipv4, MAX_CREATE_IPV4)?;
    check_length("Ipv6Address", &ipv6, MAX_CREATE_IPV6)?;
    let name = p.text("NetworkInterfaceName").unwrap_or_default();
    if !name.is_empty() && !(2..=128).contains(&name.chars().count()) {
        return Err(Refusal::invalid(
            "NetworkInterfaceName",
            "not 2 to 128 characters",
        ));
    }
    let description = p.text("Description").unwrap_or_default();
    let is_link = description.starts_with("http://") || description.starts_with("https://");
    if !description.is_empty() && (is_link || !(2..=256).contains(&description.chars().count())) {
        return Err(Refusal::invalid(
            "Description",
            "not 2 to 256 characters, or the start of a link",
        ));
    }
    Ok(Command::CreateEni(Box::new(NewEni {
        vswitch,
        security_groups,
        primary: address(p, "PrimaryIpAddress")?,
        ipv4,
        ipv6,
        kind,
        tags: p.tags()?,
        name: name.to_owned(),
        description: description.to_owned(),
        delete_on_release: p.flag("DeleteOnRelease")?.unwrap_or(true),
    })))
}

fn eni_id(p: &Parameters) -> Result<EniId, Refusal> {
    p.required("NetworkInterfaceId")?
        .parse()
        .map_err(|_| Refusal::no_eni())
}

fn placement(p: &Parameters) -> Result<Placement, Refusal> {
    Ok(Placement {
        eni: eni_id(p)?,
        instance: p
            .required("InstanceId")?
            .parse()
            .map_err(|_| no_instance())?,
        trunk: p
            .text("TrunkNetworkInstanceId")
            .map(|id| id.parse().map_err(|_| Refusal::no_eni()))
            .transpose()?,
    })
}

fn address(p: &Parameters, name: &str) -> Result<Option<Ipv4Addr>, Refusal> {
    p.parsed(name)
}

fn addresses<A: FromStr>(p: &Parameters, name: &str, code: &str) -> Result<Vec<A>, Refusal> {
    p.parsed_list(name).map_err(|refusal| Refusal {
        code: code.to_owned(),
        status: if code == "InvalidIp.Address" {
            http::StatusCode::FORBIDDEN
        } else {
            refusal.status
        },
        ..refusal
    })
}

fn pick_v4(p: &Parameters) -> Result<Pick<Ipv4Addr>, Refusal> {
    const COUNT: &str = "SecondaryPrivateIpAddressCount";
    let listed = addresses(p, "PrivateIpAddress", "InvalidParameter")?;
    pick(
        "PrivateIpAddress",
        COUNT,
        listed,
        p.parsed(COUNT)?,
        MAX_AVAILABLE_SECONDARY_IPV4,
    )
}

fn pick_v6(p: &Parameters) -> Result<Pick<Ipv6Addr>, Refusal> {
    const COUNT: &str = "Ipv6AddressCount";
    let listed = addresses(p, "Ipv6Address", "InvalidIp.Address")?;
    pick(
        "Ipv6Address",
        COUNT,
        listed,
        p.parsed(COUNT)?,
        MAX_ASSIGN_IPV6,
    )
}

fn pick<A>(
    list: &str,
    count: &str,
    listed: Vec<A>,
    counted: Option<u32>,
    most: usize,
) -> Result<Pick<A>, Refusal> {
    match (listed.is_empty(), counted) {
        (true, None) => Ok(Pick::Nothing),
        (false, None) => Ok(Pick::Listed(listed)),
        (true, Some(n)) if (1..=most).contains(&size(n)) => Ok(Pick::Count(n)),
        (true, Some(_)) => Err(Refusal::invalid(count, "out of its range")),
        (false, Some(_)) => Err(Refusal::conflict(&format!("{list} and {count}"))),
    }
}

fn check_length<A>(name: &str, pick: &Pick<A>, most: usize) -> Result<(), Refusal> {
    match pick {
        Pick::Listed(ips) if ips.len() > most => {
            Err(Refusal::invalid(name, &format!("more than {most}")))
        }
        Pick::Listed(_) | Pick::Nothing | Pick::Count(_) => Ok(()),
    }
}

fn some_of<A>(name: &str, ips: Vec<A>, most: usize) -> Result<Vec<A>, Refusal> {
    if ips.is_empty() {
        return Err(Refusal::missing(name));
    }
    if ips.len() > most {
        return Err(Refusal::invalid(name, &format!("more than {most}")));
    }
    Ok(ips)
}
