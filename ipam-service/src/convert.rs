//! Between the wire and our types: text is parsed here and nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipam_core::eni::EniKey;
use ipam_core::inventory::RevokeRequest;
use ipam_core::shard::{Granted, Shard};
use ipam_core::slot::{Slot, SlotState};
use ipnet::IpNet;
use mesh::identity::Identity;
use mesh::status::Refusal;
use proto::ipam::v1 as wire;
use proto::types::v1::{GrantedAddress, Reason};
use tonic::{Code, Status};
use types::address::{Family, vswitch_gateway};
use types::cloud::{ClusterId, EniId, InstanceId};
use types::op::{Epoch, Generation, Seq, ShardId};

use crate::demand::Shortfall;

/// The refusal of a caller that is somebody else.
pub fn identity_mismatch(why: impl Into<String>) -> Status {
    Refusal::new(
        Code::PermissionDenied,
        Reason::IdentityMismatch.as_str_name(),
        why,
    )
    .into_status()
}

/// The refusal when the store is out of reach.
pub fn unavailable(why: impl Into<String>) -> Status {
    Refusal::new(
        Code::Unavailable,
        Reason::StoreUnavailable.as_str_name(),
        why,
    )
    .into_status()
}

/// The caller's instance, if its certificate and its message name the same node of our cluster (I12).
///
/// # Errors
/// A status with `REASON_IDENTITY_MISMATCH`, or `REASON_BAD_FIELD` for an id that is none.
pub fn own_instance(
    identity: &Identity,
    cluster: &str,
    instance: &str,
    ours: &ClusterId,
) -> Result<InstanceId, Status> {
    let Identity::Node {
        cluster: of,
        instance: is,
    } = identity
    else {
        return Err(identity_mismatch(
            "the caller's certificate is not a node's",
        ));
    };
    if **of != *ours.as_str() {
        return Err(identity_mismatch(format!(
            "the certificate is of cluster {of}, not of {ours}"
        )));
    }
    if *cluster != **of {
        return Err(identity_mismatch(format!(
            "the certificate is of cluster {of}, the request names {cluster:?}"
        )));
    }
    if *instance != **is {
        return Err(identity_mismatch(format!(
            "the certificate is of instance {is}, the request names {instance:?}"
        )));
    }
    Ok(instance
        .parse()
        .map_err(|e| Refusal::bad_field("instance_id", e))?)
}

/// The instance that a controller of our cluster names (I12).
///
/// # Errors
/// A status with `REASON_IDENTITY_MISMATCH`, or `REASON_BAD_FIELD` for an id that is none.
pub fn of_controller(
    identity: &Identity,
    cluster: &str,
    instance: &str,
    ours: &ClusterId,
) -> Result<InstanceId, Status> {
    let Identity::Controller { cluster: of } = identity else {
        return Err(identity_mismatch(
            "the caller's certificate is not a controller's",
        ));
    };
    if **of != *ours.as_str() || *cluster != **of {
        return Err(identity_mismatch(format!(
            "the certificate is of cluster {of}, the request names {cluster:?}, and {ours} is served here"
        )));
    }
    Ok(instance
        .parse()
        .map_err(|e| Refusal::bad_field("instance_id", e))?)
}

fn address(field: &str, text: &str) -> Result<IpAddr, Refusal> {
    text.parse()
        .map_err(|_| Refusal::bad_field(field, format!("{text:?} is not an address")))
}

/// Addresses of a field.
///
/// # Errors
/// A status naming the field and the text.
pub fn addresses(field: &str, texts: &[String]) -> Result<Vec<IpAddr>, Status> {
    texts
        .iter()
        .map(|text| address(field, text))
        .collect::<Result<_, _>>()
        .map_err(Status::from)
}

/// What a node holds, by ENI.
///
/// # Errors
/// A status naming the field.
pub fn held_enis(
    inventory: &wire::Inventory,
) -> Result<BTreeMap<EniId, BTreeMap<IpAddr, Generation>>, Status> {
    let mut held = BTreeMap::new();
    for eni in &inventory.enis {
        let id: EniId = eni
            .eni_id
            .parse()
            .map_err(|e| Refusal::bad_field("eni_id", e))?;
        let mut known = BTreeMap::new();
        for granted in &eni.addresses {
            let ip = address("addresses", &granted.ip)?;
            known.insert(ip, Seq(granted.generation));
        }
        held.insert(id, known);
    }
    Ok(held)
}

/// What a node uses, by ENI.
///
/// # Errors
/// A status naming the field.
pub fn usage(target: &wire::Target) -> Result<BTreeMap<EniId, BTreeSet<IpAddr>>, Status> {
    let mut usage = BTreeMap::new();
    for eni in &target.usage {
        let id: EniId = eni
            .eni_id
            .parse()
            .map_err(|e| Refusal::bad_field("eni_id", e))?;
        usage.insert(id, addresses("bound", &eni.bound)?.into_iter().collect());
    }
    Ok(usage)
}

fn granted(grants: &[Granted]) -> Vec<GrantedAddress> {
    grants
        .iter()
        .map(|grant| GrantedAddress {
            ip: grant.address.to_string(),
            generation: grant.generation.0,
        })
        .collect()
}

/// The message about an attached ENI with all its grants.
pub fn eni_attached(shard: &Shard, key: EniKey) -> Option<wire::EniAttached> {
    let eni = shard.eni(key)?;
    let vswitch = shard.spec().vswitch();
    let v4 = IpNet::V4(vswitch.v4.trunc());
    let v6 = vswitch.v6.map(|v6| IpNet::V6(v6.trunc()));
    let primary = shard.spec().address(Slot {
        family: Family::V4,
        index: eni.primary,
    })?;
    Some(wire::EniAttached {
        shard: shard.spec().id().to_string(),
        eni_id: eni.id.as_ref()?.to_string(),
        mac: eni.mac?.to_string(),
        vswitch_id: vswitch.id.to_string(),
        ipv4_cidr: v4.to_string(),
        ipv4_gateway: vswitch_gateway(v4).to_string(),
        ipv6_cidr: v6.map(|v6| v6.to_string()).unwrap_or_default(),
        ipv6_gateway: v6
            .map(|v6| vswitch_gateway(v6).to_string())
            .unwrap_or_default(),
        primary_ip: primary.to_string(),
        addresses: granted(&shard.grants_on(key)),
        whole: shard.is_whole(key),
    })
}

/// The message about further grants.
pub fn grant(shard: &Shard, key: EniKey, grants: &[Granted]) -> Option<wire::Grant> {
    Some(wire::Grant {
        shard: shard.spec().id().to_string(),
        eni_id: shard.eni(key)?.id.as_ref()?.to_string(),
        addresses: granted(grants),
    })
}

/// The message that asks for addresses back.
pub fn revoke(shard: &ShardId, revoke: &RevokeRequest) -> wire::Revoke {
    wire::Revoke {
        shard: shard.to_string(),
        revoke_id: revoke.revoke.0,
        eni_id: revoke.eni.to_string(),
        addresses: revoke
            .addresses
            .iter()
            .map(|(ip, generation)| GrantedAddress {
                ip: ip.to_string(),
                generation: generation.0,
            })
            .collect(),
    }
}

/// The message about what a shard can not give.
pub fn shard_state(shard: &ShardId, shortfall: Option<&Shortfall>) -> wire::ShardState {
    match shortfall {
        None => wire::ShardState {
            shard: shard.to_string(),
            reason: Reason::Unspecified.into(),
            message: String::new(),
            retry_after_ms: 0,
            begun: false,
        },
        Some(shortfall) => wire::ShardState {
            shard: shard.to_string(),
            reason: shortfall.reason.into(),
            message: shortfall.message.clone(),
            retry_after_ms: shortfall.retry_after_ms,
            begun: shortfall.begun,
        },
    }
}

/// The whole state of a shard.
pub fn shard_dump(shard: &Shard, epoch: Epoch) -> wire::ShardDump {
    let spec = shard.spec();
    let id_of = |key: EniKey| {
        let id = shard.eni(key).and_then(|eni| eni.id.as_ref());
        id.map(ToString::to_string).unwrap_or_default()
    };
    let slots = shard
        .slots()
        .filter(|(_, state)| **state != SlotState::Free)
        .filter_map(|(slot, state)| {
            Some(wire::SlotDump {
                ip: spec.address(slot)?.to_string(),
                state: state.name().to_owned(),
                eni_id: state.eni().map(id_of).unwrap_or_default(),
                generation: state.generation().unwrap_or_default().0,
                until_ms: state.until().unwrap_or_default().0,
            })
        })
        .collect();
    let enis = shard
        .enis()
        .map(|(key, eni)| wire::EniDump {
            op: key.0,
            eni_id: id_of(key),
            state: eni.state.name().to_owned(),
            instance_id: eni.instance.to_string(),
            mac: eni.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            primary_ip: spec
                .address(Slot {
                    family: Family::V4,
                    index: eni.primary,
                })
                .map(|ip| ip.to_string())
                .unwrap_or_default(),
            quota_index: eni.quota_index,
            whole: shard.is_whole(key),
        })
        .collect();
    let open_ops = shard
        .open_ops()
        .map(|(seq, op)| wire::OpDump {
            seq: seq.0,
            kind: op.name().to_owned(),
            eni_id: id_of(op.eni()),
            slots: u32::try_from(shard.op_slots(seq).len()).unwrap_or(u32::MAX),
        })
        .collect();
    wire::ShardDump {
        shard: spec.id().to_string(),
        vswitch_id: spec.vswitch().id.to_string(),
        zone_id: spec.vswitch().zone.to_string(),
        ipv4_block: spec.v4_block().to_string(),
        ipv6_block: spec.v6_block().map(|v6| v6.to_string()).unwrap_or_default(),
        epoch: epoch.0,
        head_seq: shard.last_seq().0,
        slots,
        enis,
        open_ops,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterId {
        "c1".parse().unwrap()
    }

    // I12.
    #[test]
    fn node_that_names_another_node_is_refused() {
        let peer = Identity::node("c1", "i-a");

        let status = own_instance(&peer, "c1", "i-b", &cluster()).unwrap_err();

        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(
            mesh::status::reason(&status).as_deref(),
            Some("REASON_IDENTITY_MISMATCH")
        );
        assert!(own_instance(&peer, "c1", "i-a", &cluster()).is_ok());
    }

    // I12.
    #[test]
    fn node_of_another_cluster_is_refused() {
        let peer = Identity::node("c2", "i-a");

        for named in ["c1", "c2"] {
            let status = own_instance(&peer, named, "i-a", &cluster()).unwrap_err();
            assert_eq!(status.code(), Code::PermissionDenied);
        }
    }

    // I12.
    #[test]
    fn caller_that_is_no_node_is_refused() {
        let peer = Identity::admin("jane");

        assert!(own_instance(&peer, "c1", "i-a", &cluster()).is_err());
    }

    // I12.
    #[test]
    fn controller_of_another_cluster_is_refused() {
        let ours = Identity::controller("c1");

        assert!(of_controller(&ours, "c1", "i-a", &cluster()).is_ok());
        for (identity, named) in [
            (Identity::controller("c2"), "c2"),
            (Identity::controller("c2"), "c1"),
            (ours, "c2"),
            (Identity::node("c1", "i-a"), "c1"),
            (Identity::admin("jane"), "c1"),
        ] {
            let status = of_controller(&identity, named, "i-a", &cluster()).unwrap_err();
            assert_eq!(status.code(), Code::PermissionDenied, "{identity}");
        }
    }

    #[test]
    fn bad_address_names_its_field() {
        let status = addresses("bound", &["10.0.0".to_owned()]).unwrap_err();

        assert_eq!(
            mesh::status::metadata(&status, "field").as_deref(),
            Some("bound")
        );
        assert!(status.message().contains("10.0.0"));
    }
}
