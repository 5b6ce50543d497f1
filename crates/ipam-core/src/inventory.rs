//! A node's own list of what it holds, compared with the shard; and its answers to revokes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use types::cloud::{EniId, InstanceId};
use types::op::{Generation, Seq};

use crate::eni::{EniKey, EniState};
use crate::record::Record;
use crate::shard::{Granted, Shard};
use crate::slot::{SlotSet, SlotState};

/// An ENI in a node's own list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldEni {
    /// The cloud's id.
    pub id: EniId,
    /// What the node may use on it by its own store, with the generations.
    pub addresses: Vec<(IpAddr, Generation)>,
}

/// A request to give addresses back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokeRequest {
    /// Number of the `Revoke` record; 0 for what the shard knows nothing of, and whose answer
    /// [`acknowledge`] takes for nothing.
    pub revoke: Seq,
    /// On which ENI.
    pub eni: EniId,
    /// Each with the generation that is meant.
    pub addresses: Vec<(IpAddr, Generation)>,
}

/// What the node must be told so that it knows what the shard knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use = "a node that is not told keeps a wrong list"]
pub struct Difference {
    /// ENIs that are attached and that the node does not know.
    pub attached: Vec<EniKey>,
    /// Grants that the node does not have, or has under an older generation, on ENIs it knows.
    pub grants: BTreeMap<EniKey, Vec<Granted>>,
    /// Revokes that wait for an answer, and what is not the node's.
    pub revokes: Vec<RevokeRequest>,
    /// ENIs that are not, or no longer, the node's.
    pub removed: Vec<EniId>,
}

/// Compares what the node of `instance` holds with the shard.
pub fn compare(shard: &Shard, instance: &InstanceId, held: &[HeldEni]) -> Difference {
    let mut difference = Difference::default();
    for (key, eni) in shard.enis_of(instance) {
        let Some(id) = &eni.id else { continue };
        if eni.state != EniState::Attached {
            continue;
        }
        difference.revokes.extend(pending_revokes(shard, key));
        let Some(own) = held.iter().find(|own| own.id == *id) else {
            difference.attached.push(key);
            continue;
        };
        let missing: Vec<Granted> = shard
            .grants_on(key)
            .into_iter()
            .filter(|grant| {
                // What is asked back already need not be granted again.
                matches!(shard.slot(grant.slot), Some(SlotState::Held { .. }))
                    && !own.addresses.iter().any(|(ip, generation)| {
                        *ip == grant.address && *generation >= grant.generation
                    })
            })
            .collect();
        if !missing.is_empty() {
            difference.grants.insert(key, missing);
        }
    }
    for own in held {
        let key = shard
            .eni_by_id(&own.id)
            .filter(|(_, eni)| eni.instance == *instance && eni.state == EniState::Attached)
            .map(|(key, _)| key);
        let stray = strays(shard, key, own);
        if !stray.is_empty() {
            difference.revokes.push(RevokeRequest {
                revoke: Seq(0),
                eni: own.id.clone(),
                addresses: stray,
            });
        }
        if key.is_none() {
            difference.removed.push(own.id.clone());
        }
    }
    difference
}

/// What the node holds on one ENI and must not.
fn strays(shard: &Shard, key: Option<EniKey>, own: &HeldEni) -> Vec<(IpAddr, Generation)> {
    own.addresses
        .iter()
        .filter(|(ip, _)| {
            let state = shard.spec().slot(*ip).and_then(|slot| shard.slot(slot));
            !state.is_some_and(|state| state.generation().is_some() && state.eni() == key)
        })
        .copied()
        .collect()
}

/// The revokes of an ENI that its node has not answered, to be sent (again).
pub fn pending_revokes(shard: &Shard, key: EniKey) -> Vec<RevokeRequest> {
    let Some((eni, id)) = shard.eni(key).and_then(|eni| Some((eni, eni.id.clone()?))) else {
        return Vec::new();
    };
    let mut by_revoke: BTreeMap<Seq, Vec<(IpAddr, Generation)>> = BTreeMap::new();
    for slot in eni.slots.iter() {
        let Some(SlotState::Revoking {
            generation, revoke, ..
        }) = shard.slot(slot)
        else {
            continue;
        };
        if let Some(address) = shard.spec().address(slot) {
            by_revoke
                .entry(*revoke)
                .or_default()
                .push((address, *generation));
        }
    }
    by_revoke
        .into_iter()
        .map(|(revoke, addresses)| RevokeRequest {
            revoke,
            eni: id.clone(),
            addresses,
        })
        .collect()
}

/// The record for a node's answer to revoke number `revoke`; `None` if the answer changes nothing, as a
/// repeated, late or foreign one.
///
/// An address that the node gives up after it was thought to be kept counts too, as long as it was
/// granted before the revoke: the node has promised not to use it, whatever was answered first.
pub fn acknowledge(
    shard: &Shard,
    instance: &InstanceId,
    revoke: Seq,
    accepted: &[IpAddr],
    refused: &[IpAddr],
) -> Option<Record> {
    if revoke > shard.last_seq() {
        return None;
    }
    let own = |state: &SlotState| {
        let eni = state.eni().and_then(|eni| shard.eni(eni));
        eni.is_some_and(|eni| eni.instance == *instance)
    };
    let pick = |addresses: &[IpAddr], wanted: &dyn Fn(&SlotState) -> bool| -> SlotSet {
        shard
            .slots_at(addresses)
            .iter()
            .filter(|slot| {
                shard
                    .slot(*slot)
                    .is_some_and(|state| own(state) && wanted(state))
            })
            .collect()
    };
    let refused = pick(
        refused,
        &|state| matches!(state, SlotState::Revoking { revoke: of, .. } if *of == revoke),
    );
    let accepted = pick(accepted, &|state| {
        state.generation().is_some_and(|held| held < revoke)
    })
    .without(&refused);
    if accepted.is_empty() && refused.is_empty() {
        return None;
    }
    Some(Record::RevokeAcked {
        revoke,
        accepted,
        refused,
    })
}
