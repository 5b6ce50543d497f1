//! Between the wire and the domain. Decoding names the field that is wrong; encoding can not fail.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ecs_api::action::{MAX_CREATE_IPV4, MAX_CREATE_IPV6, MAX_SECURITY_GROUPS, MAX_TAGS};
use ecs_api::model::eni::Eni;
use ecs_api::model::inventory::VSwitch;
use proto::cloud::v1 as wire;
use types::cloud::{EniId, InstanceId, VSwitchId};

use crate::eni::{Addresses, NewEni, Outcome, Verb};
use crate::facts::InstanceFacts;
use crate::failure::Failure;
use crate::limits::Class;
use crate::op::{OpKey, ShardKey};

/// Ids in one read. Reason: ten merged calls; a caller with more asks again.
const MAX_IDS: usize = 1_000;
/// Addresses of one family in one assign or unassign. Reason: more than any instance type allows on an ENI.
const MAX_ADDRESSES: usize = 256;
/// Bytes of an authority or a shard. Reason: bounds the memory that a key takes.
const MAX_KEY_LEN: usize = 256;

/// An operation to perform.
#[derive(Debug, Clone)]
pub struct Work {
    /// Its key.
    pub op: OpKey,
    /// Its place among others.
    pub class: Class,
    /// What it shall reach.
    pub verb: Verb,
}

/// Which ENIs to read. Filters are joined by AND.
#[derive(Debug, Clone)]
pub struct DescribeEnis {
    /// By id; empty means all.
    pub ids: Vec<EniId>,
    /// Attached to this instance.
    pub instance: Option<InstanceId>,
    /// In this vSwitch.
    pub vswitch: Option<VSwitchId>,
    /// With all these tags.
    pub tags: BTreeMap<String, String>,
    /// Its place among others.
    pub class: Class,
}

impl DescribeEnis {
    /// Whether the ENI passes the filters beside the ids.
    pub fn matches(&self, eni: &Eni) -> bool {
        let instance = self.instance.as_ref();
        let vswitch = self.vswitch.as_ref();
        instance.is_none_or(|id| eni.instance.as_ref() == Some(id))
            && vswitch.is_none_or(|id| eni.vswitch == *id)
            && self
                .tags
                .iter()
                .all(|(key, value)| eni.tags.get(key) == Some(value))
    }
}

fn bad(field: &'static str, what: impl Into<String>) -> Failure {
    Failure::BadField {
        field,
        what: what.into(),
    }
}

fn parsed<T>(field: &'static str, text: &str) -> Result<T, Failure>
where
    T: FromStr,
    T::Err: ToString,
{
    text.parse()
        .map_err(|error: T::Err| bad(field, error.to_string()))
}

fn optional<T>(field: &'static str, text: &str) -> Result<Option<T>, Failure>
where
    T: FromStr,
    T::Err: ToString,
{
    if text.is_empty() {
        return Ok(None);
    }
    parsed(field, text).map(Some)
}

/// Each value once, in the caller's order.
fn all<T>(field: &'static str, texts: &[String], max: usize) -> Result<Vec<T>, Failure>
where
    T: FromStr + PartialEq,
    T::Err: ToString,
{
    if texts.len() > max {
        return Err(bad(
            field,
            format!("{} values, {max} are allowed", texts.len()),
        ));
    }
    let mut values = Vec::with_capacity(texts.len());
    for text in texts {
        let value = parsed(field, text)?;
        if !values.contains(&value) {
            values.push(value);
        }
    }
    Ok(values)
}

fn to_shard(authority: String, shard: String) -> Result<ShardKey, Failure> {
    for (field, text) in [("authority", &authority), ("shard", &shard)] {
        if text.is_empty() {
            return Err(bad(field, "is empty"));
        }
        if text.len() > MAX_KEY_LEN {
            return Err(bad(field, format!("is longer than {MAX_KEY_LEN} bytes")));
        }
    }
    Ok(ShardKey { authority, shard })
}

fn to_op(op: Option<wire::OpKey>) -> Result<OpKey, Failure> {
    let op = op.ok_or_else(|| bad("op", "is missing"))?;
    if op.sequence == 0 {
        return Err(bad("op.sequence", "is 0"));
    }
    Ok(OpKey {
        shard: to_shard(op.authority, op.shard)?,
        sequence: op.sequence,
        epoch: op.epoch,
    })
}

fn to_class(priority: i32) -> Result<Class, Failure> {
    let priority = wire::Priority::try_from(priority)
        .map_err(|_| bad("priority", format!("{priority} is not known")))?;
    Ok(match priority {
        wire::Priority::Fixed => Class::Fixed,
        wire::Priority::PodWaiting => Class::PodWaiting,
        wire::Priority::Unspecified | wire::Priority::Refill => Class::Refill,
        wire::Priority::Release => Class::Release,
        wire::Priority::Reconcile => Class::Reconcile,
    })
}

fn to_tags(tags: HashMap<String, String>) -> Result<BTreeMap<String, String>, Failure> {
    if tags.len() > MAX_TAGS {
        return Err(bad(
            "tags",
            format!("{} tags, {MAX_TAGS} are allowed", tags.len()),
        ));
    }
    Ok(tags.into_iter().collect())
}

fn to_addresses(ipv4: &[String], ipv6: &[String]) -> Result<Addresses, Failure> {
    let addresses = Addresses {
        ipv4: all("ipv4", ipv4, MAX_ADDRESSES)?,
        ipv6: all("ipv6", ipv6, MAX_ADDRESSES)?,
    };
    if addresses.is_empty() {
        return Err(bad("ipv4", "no address of either family is given"));
    }
    Ok(addresses)
}

/// Decodes CreateEni.
pub fn to_create(request: wire::CreateEniRequest) -> Result<Work, Failure> {
    let security_groups = all(
        "security_group_ids",
        &request.security_group_ids,
        MAX_SECURITY_GROUPS,
    )?;
    if security_groups.is_empty() {
        return Err(bad("security_group_ids", "is empty"));
    }
    let primary_ip: Option<Ipv4Addr> = optional("primary_ip", &request.primary_ip)?;
    let mut ipv4: Vec<Ipv4Addr> = all("ipv4", &request.ipv4, MAX_CREATE_IPV4)?;
    ipv4.retain(|ip| Some(*ip) != primary_ip);
    Ok(Work {
        op: to_op(request.op)?,
        class: to_class(request.priority)?,
        verb: Verb::Create(NewEni {
            vswitch: parsed("vswitch_id", &request.vswitch_id)?,
            security_groups,
            primary_ip,
            ipv4,
            ipv6: all::<Ipv6Addr>("ipv6", &request.ipv6, MAX_CREATE_IPV6)?,
            tags: to_tags(request.tags)?,
            description: request.description,
        }),
    })
}

/// Decodes AttachEni.
pub fn to_attach(request: wire::AttachEniRequest) -> Result<Work, Failure> {
    Ok(Work {
        op: to_op(request.op)?,
        class: to_class(request.priority)?,
        verb: Verb::Attach {
            eni: parsed("eni_id", &request.eni_id)?,
            instance: parsed("instance_id", &request.instance_id)?,
        },
    })
}

/// Decodes DetachEni.
pub fn to_detach(request: wire::DetachEniRequest) -> Result<Work, Failure> {
    Ok(Work {
        op: to_op(request.op)?,
        class: to_class(request.priority)?,
        verb: Verb::Detach {
            eni: parsed("eni_id", &request.eni_id)?,
            instance: parsed("instance_id", &request.instance_id)?,
        },
    })
}

/// Decodes DeleteEni.
pub fn to_delete(request: wire::DeleteEniRequest) -> Result<Work, Failure> {
    Ok(Work {
        op: to_op(request.op)?,
        class: to_class(request.priority)?,
        verb: Verb::Delete {
            eni: parsed("eni_id", &request.eni_id)?,
        },
    })
}

/// Decodes AssignAddresses.
pub fn to_assign(request: wire::AssignAddressesRequest) -> Result<Work, Failure> {
    Ok(Work {
        op: to_op(request.op)?,
        class: to_class(request.priority)?,
        verb: Verb::Assign {
            eni: parsed("eni_id", &request.eni_id)?,
            addresses: to_addresses(&request.ipv4, &request.ipv6)?,
        },
    })
}

/// Decodes UnassignAddresses.
pub fn to_unassign(request: wire::UnassignAddressesRequest) -> Result<Work, Failure> {
    Ok(Work {
        op: to_op(request.op)?,
        class: to_class(request.priority)?,
        verb: Verb::Unassign {
            eni: parsed("eni_id", &request.eni_id)?,
            addresses: to_addresses(&request.ipv4, &request.ipv6)?,
        },
    })
}

/// Decodes DescribeEnis. Without any filter it would list the whole region; that is refused.
pub fn to_describe(request: wire::DescribeEnisRequest) -> Result<DescribeEnis, Failure> {
    let wanted = DescribeEnis {
        ids: all("eni_ids", &request.eni_ids, MAX_IDS)?,
        instance: optional("instance_id", &request.instance_id)?,
        vswitch: optional("vswitch_id", &request.vswitch_id)?,
        tags: to_tags(request.tags)?,
        class: to_class(request.priority)?,
    };
    let filtered = !wanted.ids.is_empty()
        || wanted.instance.is_some()
        || wanted.vswitch.is_some()
        || !wanted.tags.is_empty();
    if filtered {
        Ok(wanted)
    } else {
        Err(bad("eni_ids", "no filter is given"))
    }
}

/// Decodes the ids of DescribeInstances.
pub fn to_instance_ids(ids: &[String]) -> Result<Vec<InstanceId>, Failure> {
    all("instance_ids", ids, MAX_IDS)
}

/// Decodes the ids of DescribeVSwitches.
pub fn to_vswitch_ids(ids: &[String]) -> Result<Vec<VSwitchId>, Failure> {
    all("vswitch_ids", ids, MAX_IDS)
}

/// Decodes Fence.
pub fn to_fence(request: wire::FenceRequest) -> Result<(ShardKey, u64), Failure> {
    Ok((to_shard(request.authority, request.shard)?, request.epoch))
}

/// Encodes an ENI.
pub fn from_eni(eni: &Eni) -> wire::Eni {
    wire::Eni {
        id: eni.id.to_string(),
        mac: eni.mac.to_string(),
        status: eni.status.to_string(),
        kind: eni.kind.to_string(),
        instance_id: eni
            .instance
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        vswitch_id: eni.vswitch.to_string(),
        zone_id: eni
            .zone
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        security_group_ids: eni
            .security_groups
            .iter()
            .map(ToString::to_string)
            .collect(),
        primary_ip: eni.primary_ip.to_string(),
        ipv4: eni.ipv4.iter().map(ToString::to_string).collect(),
        ipv6: eni.ipv6.iter().map(ToString::to_string).collect(),
        tags: eni.tags.clone().into_iter().collect(),
        created_at: eni
            .created_at
            .and_then(|at| i64::try_from(at.0 / 1_000).ok())
            .unwrap_or_default(),
    }
}

/// Encodes an instance.
pub fn from_instance(facts: &InstanceFacts) -> wire::Instance {
    let InstanceFacts { instance, quota } = facts;
    wire::Instance {
        id: instance.id.to_string(),
        instance_type: instance.instance_type.to_string(),
        zone_id: instance.zone.to_string(),
        region_id: instance.region.to_string(),
        vpc_id: instance.vpc.to_string(),
        vswitch_id: instance.vswitch.to_string(),
        status: instance.status.clone(),
        security_group_ids: instance
            .security_groups
            .iter()
            .map(ToString::to_string)
            .collect(),
        primary_eni_id: instance
            .primary_eni
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        primary_ip: instance
            .primary_ip
            .map(|ip| ip.to_string())
            .unwrap_or_default(),
        quota: Some(wire::EniQuota {
            enis: quota.enis,
            enis_total: quota.enis_total,
            ipv4_per_eni: quota.ipv4_per_eni,
            ipv6_per_eni: quota.ipv6_per_eni,
            trunk: quota.trunk,
        }),
    }
}

/// Encodes a vSwitch.
pub fn from_vswitch(vswitch: &VSwitch) -> wire::VSwitch {
    wire::VSwitch {
        id: vswitch.id.to_string(),
        zone_id: vswitch.zone.to_string(),
        vpc_id: vswitch.vpc.to_string(),
        ipv4_cidr: vswitch.ipv4_cidr.to_string(),
        ipv6_cidr: vswitch
            .ipv6_cidr
            .map(|net| net.to_string())
            .unwrap_or_default(),
        available_ipv4: vswitch.available_ipv4,
    }
}

/// The id of the call that did it; empty if an earlier, unanswered one did.
pub fn first_id(outcome: &Outcome) -> String {
    outcome.request_ids.last().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op() -> wire::OpKey {
        wire::OpKey {
            authority: "cluster-a".to_owned(),
            shard: "vsw-1.0".to_owned(),
            epoch: 3,
            sequence: 9,
        }
    }

    fn field_of<T: std::fmt::Debug>(result: Result<T, Failure>) -> &'static str {
        match result {
            Err(Failure::BadField { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn request_without_its_key_names_the_field() {
        let request = wire::DeleteEniRequest {
            eni_id: "eni-1".to_owned(),
            ..wire::DeleteEniRequest::default()
        };

        assert_eq!(field_of(to_delete(request)), "op");
    }

    #[test]
    fn malformed_fields_are_named() {
        let attach = |eni_id: &str, instance_id: &str| {
            to_attach(wire::AttachEniRequest {
                op: Some(op()),
                eni_id: eni_id.to_owned(),
                instance_id: instance_id.to_owned(),
                ..wire::AttachEniRequest::default()
            })
        };

        assert_eq!(field_of(attach("x", "i-1")), "eni_id");
        assert_eq!(field_of(attach("eni-1", "")), "instance_id");
        assert!(attach("eni-1", "i-1").is_ok());
    }

    #[test]
    fn more_addresses_than_a_create_takes_are_refused() {
        let request = wire::CreateEniRequest {
            op: Some(op()),
            vswitch_id: "vsw-1".to_owned(),
            security_group_ids: vec!["sg-1".to_owned()],
            ipv4: (1..=11).map(|n| format!("10.0.0.{n}")).collect(),
            ..wire::CreateEniRequest::default()
        };

        assert_eq!(field_of(to_create(request)), "ipv4");
    }

    #[test]
    fn assign_of_nothing_is_refused() {
        let request = wire::AssignAddressesRequest {
            op: Some(op()),
            eni_id: "eni-1".to_owned(),
            ..wire::AssignAddressesRequest::default()
        };

        assert_eq!(field_of(to_assign(request)), "ipv4");
    }

    #[test]
    fn address_given_twice_counts_once() {
        let request = wire::AssignAddressesRequest {
            op: Some(op()),
            eni_id: "eni-1".to_owned(),
            ipv4: vec!["10.0.0.1".to_owned(), "10.0.0.1".to_owned()],
            ..wire::AssignAddressesRequest::default()
        };

        let Verb::Assign { addresses, .. } = to_assign(request).unwrap().verb else {
            panic!("another verb");
        };
        assert_eq!(addresses.ipv4.len(), 1);
    }

    #[test]
    fn describe_without_a_filter_is_refused() {
        assert_eq!(
            field_of(to_describe(wire::DescribeEnisRequest::default())),
            "eni_ids"
        );
    }
}
