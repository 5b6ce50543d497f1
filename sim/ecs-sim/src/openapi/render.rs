//! The account in the shapes of the replies.
//!
//! Source: ECS and VPC API references, response parameters.

use std::collections::BTreeMap;

use ecs_api::model::eni::EniKind;
use ecs_api::sign::encode::timestamp;
use serde_json::{Value, json};
use types::cloud::InstanceType;
use types::quota::EniQuota;

use crate::account::eni::Eni;
use crate::account::instance::Instance;
use crate::account::{Account, VSwitch};
use crate::openapi::command::{Command, EniFilter};
use crate::openapi::page::Cut;
use crate::spec::{SecurityGroupKind, SecurityGroupSpec};

/// Tags as ECS writes them.
fn tags(tags: &BTreeMap<String, String>) -> Value {
    let rows: Vec<_> = tags
        .iter()
        .map(|(key, value)| json!({"TagKey": key, "TagValue": value}))
        .collect();
    json!({"Tag": rows})
}

fn private_ips(eni: &Eni) -> Value {
    let rows: Vec<_> = eni
        .all_ipv4()
        .map(|ip| json!({"PrivateIpAddress": ip, "Primary": ip == eni.primary}))
        .collect();
    json!({"PrivateIpSet": rows})
}

fn ipv6s(eni: &Eni) -> Value {
    let rows: Vec<_> = eni
        .ipv6
        .iter()
        .map(|ip| json!({"Ipv6Address": ip, "Primary": false}))
        .collect();
    json!({"Ipv6Set": rows})
}

/// The reply to Create: no attachment, no creation time, no type of a secondary ENI.
pub fn created(eni: &Eni) -> Value {
    let kind = match eni.kind {
        EniKind::Trunk => "Trunk",
        EniKind::Primary | EniKind::Secondary | EniKind::Member => "",
    };
    json!({
        "NetworkInterfaceId": eni.id,
        "MacAddress": eni.mac,
        "Status": eni.status.name(),
        "Type": kind,
        "VSwitchId": eni.vswitch,
        "VpcId": eni.vpc,
        "ZoneId": eni.zone,
        "PrivateIpAddress": eni.primary,
        "PrivateIpSets": private_ips(eni),
        "Ipv6Sets": ipv6s(eni),
        "SecurityGroupIds": {"SecurityGroupId": eni.security_groups},
        "Tags": tags(&eni.tags),
        "NetworkInterfaceName": eni.name,
        "Description": eni.description,
    })
}

/// A row of `DescribeNetworkInterfaces`.
fn eni_row(eni: &Eni) -> Value {
    let attachment = match &eni.instance {
        Some(instance) => json!({
            "InstanceId": instance,
            "DeviceIndex": eni.device_index,
            "TrunkNetworkInterfaceId": eni.trunk.as_ref().map_or("", |trunk| trunk.as_str()),
        }),
        None => json!({}),
    };
    let mut row = created(eni);
    if let Some(fields) = row.as_object_mut() {
        let more = [
            ("Type", json!(eni.kind.name())),
            (
                "InstanceId",
                json!(eni.instance.as_ref().map_or("", |id| id.as_str())),
            ),
            ("Attachment", attachment),
            ("CreationTime", json!(timestamp(eni.created_at))),
            ("DeleteOnRelease", json!(eni.delete_on_release)),
            ("ServiceManaged", json!(false)),
        ];
        fields.extend(more.map(|(name, value)| (name.to_owned(), value)));
    }
    row
}

fn matches(eni: &Eni, filter: &EniFilter) -> bool {
    let any_v4 = filter.ipv4.is_empty() || eni.all_ipv4().any(|ip| filter.ipv4.contains(&ip));
    let any_v6 = filter.ipv6.is_empty() || eni.ipv6.iter().any(|ip| filter.ipv6.contains(ip));
    let has_tag = |(key, value): (&String, &String)| {
        eni.tags
            .get(key)
            .is_some_and(|have| value.is_empty() || have == value)
    };
    !eni.foreign
        && (filter.ids.is_empty() || filter.ids.iter().any(|id| id == eni.id.as_str()))
        && any_v4
        && any_v6
        && filter.tags.iter().all(has_tag)
        && filter.others.iter().all(|(name, wanted)| match *name {
            "InstanceId" => eni
                .instance
                .as_ref()
                .is_some_and(|id| id.as_str() == wanted),
            "VSwitchId" => eni.vswitch.as_str() == wanted,
            "VpcId" => eni.vpc.as_str() == wanted,
            "Status" => eni.status.name() == wanted,
            "Type" => eni.kind.name() == wanted,
            "PrimaryIpAddress" => eni.primary.to_string() == *wanted,
            "SecurityGroupId" => eni.security_groups.iter().any(|id| id.as_str() == wanted),
            "NetworkInterfaceName" => eni.name == *wanted,
            _ => false,
        })
}

/// The reply to `DescribeNetworkInterfaces` over the ENIs a reader sees.
pub fn enis<'a>(seen: impl Iterator<Item = &'a Eni>, filter: &EniFilter) -> Value {
    let rows = seen
        .filter(|eni| matches(eni, filter))
        .map(|eni| (eni.id.to_string(), eni_row(eni)))
        .collect();
    paged(
        &filter.page.cut(rows),
        "NetworkInterfaceSets",
        "NetworkInterfaceSet",
    )
}

fn paged(cut: &Cut<Value>, outer: &str, inner: &str) -> Value {
    json!({
        outer: {inner: cut.rows},
        "NextToken": cut.next,
        "TotalCount": cut.total,
    })
}

/// The replies to the other Describe actions; `None` for commands that are none of these.
pub fn inventory(account: &Account, command: &Command) -> Option<Value> {
    match command {
        Command::DescribeInstances { ids, filters, page } => {
            let rows = account
                .instances
                .values()
                .filter(|instance| listed(ids.as_deref(), instance.id.as_str()))
                .filter(|instance| instance_matches(instance, filters))
                .map(|instance| (instance.id.to_string(), instance_row(account, instance)))
                .collect();
            Some(paged(&page.cut(rows), "Instances", "Instance"))
        }
        Command::DescribeInstanceTypes { ids, page } => {
            let rows = account
                .types
                .iter()
                .filter(|(id, _)| ids.is_empty() || listed(Some(ids), id.as_str()))
                .map(|(id, quota)| (id.to_string(), type_row(id, quota)))
                .collect();
            Some(paged(&page.cut(rows), "InstanceTypes", "InstanceType"))
        }
        Command::DescribeVSwitches { ids, filters, page } => {
            let rows = account
                .vswitches
                .values()
                .filter(|vswitch| ids.is_empty() || listed(Some(ids), vswitch.spec.id.as_str()))
                .filter(|vswitch| vswitch_matches(vswitch, filters))
                .map(|vswitch| (vswitch.spec.id.to_string(), vswitch_row(vswitch)))
                .collect();
            Some(paged(&page.cut(rows), "VSwitches", "VSwitch"))
        }
        Command::DescribeSecurityGroups { ids, vpc, page } => {
            let rows = account
                .groups
                .values()
                .filter(|group| listed(ids.as_deref(), group.id.as_str()))
                .filter(|group| vpc.as_ref().is_none_or(|vpc| group.vpc.as_str() == vpc))
                .map(|group| (group.id.to_string(), group_row(group)))
                .collect();
            Some(paged(&page.cut(rows), "SecurityGroups", "SecurityGroup"))
        }
        Command::DescribeEnis(_)
        | Command::CreateEni(_)
        | Command::AttachEni(_)
        | Command::DetachEni(_)
        | Command::DeleteEni(_)
        | Command::AssignV4(..)
        | Command::UnassignV4(..)
        | Command::AssignV6(..)
        | Command::UnassignV6(..) => None,
    }
}

fn listed(ids: Option<&[String]>, id: &str) -> bool {
    ids.is_none_or(|ids| ids.iter().any(|wanted| wanted == id))
}

fn instance_matches(instance: &Instance, filters: &[(&'static str, String)]) -> bool {
    filters.iter().all(|(name, wanted)| {
        let have = match *name {
            "InstanceName" => instance.name.as_str(),
            "InstanceType" => instance.instance_type.as_str(),
            "Status" => instance.status.name(),
            "VSwitchId" => instance.vswitch.as_str(),
            "VpcId" => instance.vpc.as_str(),
            "ZoneId" => instance.zone.as_str(),
            _ => return false,
        };
        have == wanted
    })
}

fn vswitch_matches(vswitch: &VSwitch, filters: &[(&'static str, String)]) -> bool {
    filters.iter().all(|(name, wanted)| match *name {
        "VpcId" => vswitch.spec.vpc.as_str() == wanted,
        "ZoneId" => vswitch.spec.zone.as_str() == wanted,
        _ => false,
    })
}

fn instance_row(account: &Account, instance: &Instance) -> Value {
    let mut enis: Vec<_> = account.on_instance(&instance.id).collect();
    enis.sort_by_key(|eni| (eni.kind != EniKind::Primary, &eni.id));
    let rows: Vec<_> = enis
        .iter()
        .map(|eni| {
            json!({
                "NetworkInterfaceId": eni.id,
                "MacAddress": eni.mac,
                "PrimaryIpAddress": eni.primary,
                "Type": eni.kind.name(),
                "PrivateIpSets": private_ips(eni),
                "Ipv6Sets": ipv6s(eni),
            })
        })
        .collect();
    let primary: Vec<_> = enis.iter().take(1).map(|eni| eni.primary).collect();
    // Times of instances have minutes only.
    let created_at = timestamp(instance.created_at);
    let minutes = created_at.get(..16).unwrap_or_default();
    json!({
        "InstanceId": instance.id,
        "InstanceName": instance.name,
        "HostName": instance.name,
        "InstanceType": instance.instance_type,
        "RegionId": account.region,
        "ZoneId": instance.zone,
        "Status": instance.status.name(),
        "CreationTime": format!("{minutes}Z"),
        "InstanceNetworkType": "vpc",
        "SecurityGroupIds": {"SecurityGroupId": instance.security_groups},
        "VpcAttributes": {
            "VpcId": instance.vpc,
            "VSwitchId": instance.vswitch,
            "PrivateIpAddress": {"IpAddress": primary},
            "NatIpAddress": "",
        },
        "NetworkInterfaces": {"NetworkInterface": rows},
    })
}

fn type_row(id: &InstanceType, quota: &EniQuota) -> Value {
    let family = id
        .as_str()
        .rsplit_once('.')
        .map_or("", |(family, _)| family);
    json!({
        "InstanceTypeId": id,
        "InstanceTypeFamily": family,
        "EniQuantity": quota.enis,
        "EniTotalQuantity": quota.enis_total,
        "EniPrivateIpAddressQuantity": quota.ipv4_per_eni,
        "EniIpv6AddressQuantity": quota.ipv6_per_eni,
        "EniTrunkSupported": quota.trunk,
    })
}

fn vswitch_row(vswitch: &VSwitch) -> Value {
    let ipv6 = vswitch
        .spec
        .ipv6_cidr
        .map_or(String::new(), |net| net.to_string());
    json!({
        "VSwitchId": vswitch.spec.id,
        "VpcId": vswitch.spec.vpc,
        "ZoneId": vswitch.spec.zone,
        "CidrBlock": vswitch.spec.ipv4_cidr,
        "Ipv6CidrBlock": ipv6,
        "EnabledIpv6": vswitch.spec.ipv6_cidr.is_some(),
        "AvailableIpAddressCount": vswitch.v4.available(),
        "Status": "Available",
    })
}

fn group_row(group: &SecurityGroupSpec) -> Value {
    let kind = match group.kind {
        SecurityGroupKind::Normal => "normal",
        SecurityGroupKind::Enterprise => "enterprise",
    };
    json!({
        "SecurityGroupId": group.id,
        "SecurityGroupName": group.id,
        "SecurityGroupType": kind,
        "VpcId": group.vpc,
    })
}
