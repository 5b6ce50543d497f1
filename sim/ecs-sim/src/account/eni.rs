//! The life of an ENI: attach, detach, delete.
//!
//! ```text
//! create ─▶ Available ─attach─▶ Attaching ─▶ InUse ─detach─▶ Detaching ─▶ Available ─delete─▶ Deleting ─▶ gone
//!               ▲────────failed─────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ecs_api::model::eni::{EniKind, EniStatus};
use types::address::MacAddr;
use types::cloud::{EniId, InstanceId, SecurityGroupId, VSwitchId, VpcId, ZoneId};
use types::time::Tick;

use crate::account::Account;
use crate::account::instance::no_instance;
use crate::refusal::Refusal;

/// An ENI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eni {
    /// Its id.
    pub id: EniId,
    /// Its hardware address.
    pub mac: MacAddr,
    /// What it is to its instance.
    pub kind: EniKind,
    /// Where it is in its life.
    pub status: EniStatus,
    /// Number of the change that runs, so that an overtaken one does not finish.
    pub change: u64,
    /// Where it is attached, or being attached or detached.
    pub instance: Option<InstanceId>,
    /// The trunk that carries it.
    pub trunk: Option<EniId>,
    /// Index on the instance, or VLAN on the trunk.
    pub device_index: u32,
    /// Its vSwitch.
    pub vswitch: VSwitchId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its zone.
    pub zone: ZoneId,
    /// Its security groups.
    pub security_groups: Vec<SecurityGroupId>,
    /// Its primary address.
    pub primary: Ipv4Addr,
    /// Its other IPv4 addresses.
    pub secondary: Vec<Ipv4Addr>,
    /// Its IPv6 addresses.
    pub ipv6: Vec<Ipv6Addr>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Its name.
    pub name: String,
    /// Its description.
    pub description: String,
    /// When it was made.
    pub created_at: Tick,
    /// Whether it goes with its instance.
    pub delete_on_release: bool,
    /// Whether it belongs to another user of the vSwitch.
    pub foreign: bool,
}

impl Eni {
    /// All addresses, the primary one first, IPv4 before IPv6.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.all_ipv4()
            .map(IpAddr::V4)
            .chain(self.ipv6.iter().copied().map(IpAddr::V6))
            .collect()
    }

    /// All IPv4 addresses, the primary one first.
    pub fn all_ipv4(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        std::iter::once(self.primary).chain(self.secondary.iter().copied())
    }
}

/// A change that was started and has to be finished later.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a change that nobody finishes leaves the ENI stuck"]
pub struct Started {
    /// Which ENI.
    pub eni: EniId,
    /// Number of the change.
    pub change: u64,
    /// Whether the ENI is a member of a trunk, which goes faster.
    pub member: bool,
}

impl Account {
    /// Starts an attach.
    ///
    /// # Errors
    /// In the words of `AttachNetworkInterface`.
    pub fn attach_eni(
        &mut self,
        id: &EniId,
        instance_id: &InstanceId,
        trunk: Option<&EniId>,
        now: Tick,
    ) -> Result<Started, Refusal> {
        let eni = self.eni(id)?;
        let instance = self.instances.get(instance_id).ok_or_else(no_instance)?;
        if eni.kind == EniKind::Primary {
            return Err(eni_type());
        }
        if eni.status != EniStatus::Available {
            return Err(Refusal::eni_state(eni.status.name()));
        }
        if !instance.is_settled() {
            return Err(Refusal::ecs_state());
        }
        if instance.vpc != eni.vpc {
            return Err(Refusal::forbidden(
                "InvalidOperation.VpcMismatch",
                "The specified ENI and ECS instance are not in the same VPC.",
            ));
        }
        if instance.zone != eni.zone {
            return Err(Refusal::forbidden(
                "InvalidOperation.AvailabilityZoneMismatch",
                "The VPC VSwitch of the specified ENI and ECS instance are not in the same availability zone.",
            ));
        }
        self.check_attach_room(eni, instance_id, trunk)?;
        let device_index = self.free_device_index(instance_id, trunk);

        let eni = self.eni_mut(id)?;
        eni.status = EniStatus::Attaching;
        eni.instance = Some(instance_id.clone());
        eni.trunk = trunk.cloned();
        eni.device_index = device_index;
        if trunk.is_some() {
            eni.kind = EniKind::Member;
        }
        eni.change = eni.change.saturating_add(1);
        let started = Started {
            eni: id.clone(),
            change: eni.change,
            member: trunk.is_some(),
        };
        self.record(id, now);
        Ok(started)
    }

    fn check_attach_room(
        &self,
        eni: &Eni,
        instance: &InstanceId,
        trunk: Option<&EniId>,
    ) -> Result<(), Refusal> {
        let quota = self.quota_of(instance)?;
        let there: Vec<_> = self.on_instance(instance).collect();
        if eni.kind == EniKind::Trunk && !quota.trunk {
            return Err(Refusal::forbidden(
                "InvalidOperation.InstanceTypeNotSupportEniTrunking",
                "The type of the instance does not support trunk ENIs.",
            ));
        }
        let (count, most) = if let Some(trunk) = trunk {
            self.check_carrier(eni, instance, trunk)?;
            let members = there.iter().filter(|eni| eni.trunk.is_some()).count();
            (members, quota.enis_total.saturating_sub(quota.enis))
        } else {
            let own = there.iter().filter(|eni| eni.trunk.is_none()).count();
            (own, quota.enis)
        };
        if count >= size(most) {
            return Err(Refusal::forbidden(
                "EniPerInstanceLimitExceeded",
                "The number of ENI exceeds the limit for the type of instance you are trying to launch.",
            ));
        }
        if 1 + eni.secondary.len() > size(quota.ipv4_per_eni) {
            return Err(Refusal::forbidden(
                "InvalidOperation.Ipv4CountExceeded",
                "The ENI has more IPv4 addresses than the type of the instance allows.",
            ));
        }
        if eni.ipv6.len() > size(quota.ipv6_per_eni) {
            return Err(Refusal::forbidden(
                "InvalidOperation.Ipv6CountExceeded",
                "The ENI has more IPv6 addresses than the type of the instance allows.",
            ));
        }
        let running = there
            .iter()
            .filter(|eni| eni.status == EniStatus::Attaching)
            .count();
        if running >= self.limits.concurrent_attaches {
            return Err(Refusal::forbidden(
                "Operation.Conflict",
                "ecs task is conflicted.",
            ));
        }
        Ok(())
    }

    /// Whether `trunk` can carry the ENI on the instance.
    fn check_carrier(
        &self,
        eni: &Eni,
        instance: &InstanceId,
        trunk: &EniId,
    ) -> Result<(), Refusal> {
        let carrier = self.eni(trunk)?;
        if eni.kind == EniKind::Trunk || carrier.kind != EniKind::Trunk {
            return Err(Refusal::forbidden(
                "InvalidOperation.EniTypeNotSupportTrunking",
                "The type of the ENI does not support trunking.",
            ));
        }
        if carrier.status != EniStatus::InUse || carrier.instance.as_ref() != Some(instance) {
            return Err(Refusal::forbidden(
                "InvalidOperation.InvalidTrunkEniStatus",
                "The trunk ENI is not in use on the instance.",
            ));
        }
        Ok(())
    }

    /// ENIs of the instance, also those that come and go.
    pub(crate) fn on_instance(&self, instance: &InstanceId) -> impl Iterator<Item = &Eni> {
        self.enis
            .values()
            .filter(move |eni| eni.instance.as_ref() == Some(instance))
    }

    fn free_device_index(&self, instance: &InstanceId, trunk: Option<&EniId>) -> u32 {
        let used: BTreeSet<_> = self
            .on_instance(instance)
            .filter(|eni| eni.trunk.as_ref() == trunk)
            .map(|eni| eni.device_index)
            .collect();
        (1..=u32::MAX)
            .find(|index| !used.contains(index))
            .unwrap_or(u32::MAX)
    }

    /// The instance the ENI is on.
    ///
    /// # Errors
    /// `InvalidEniId.NotFound`, or `InvalidOperation.InvalidEniState` when it is on none.
    pub fn instance_of(&self, id: &EniId) -> Result<InstanceId, Refusal> {
        let eni = self.eni(id)?;
        let instance = eni.instance.clone();
        instance.ok_or_else(|| Refusal::eni_state(eni.status.name()))
    }

    /// Whether this change of the ENI still runs.
    pub fn is_running(&self, started: &Started) -> bool {
        self.enis
            .get(&started.eni)
            .is_some_and(|eni| eni.change == started.change)
    }

    /// The attach is done.
    pub fn finish_attach(&mut self, started: &Started, now: Tick) {
        self.settle(started, EniStatus::Attaching, now, |eni| {
            eni.status = EniStatus::InUse;
        });
    }

    /// The attach failed: the ENI is free again.
    pub fn fail_attach(&mut self, started: &Started, now: Tick) {
        self.settle(started, EniStatus::Attaching, now, free);
    }

    /// Starts a detach. `None` when one runs already.
    ///
    /// # Errors
    /// In the words of `DetachNetworkInterface`.
    pub fn detach_eni(
        &mut self,
        id: &EniId,
        instance_id: &InstanceId,
        trunk: Option<&EniId>,
        now: Tick,
    ) -> Result<Option<Started>, Refusal> {
        let eni = self.eni(id)?;
        let Some(instance) = self.instances.get(instance_id) else {
            return Err(Refusal {
                status: http::StatusCode::FORBIDDEN,
                ..no_instance()
            });
        };
        if eni.kind == EniKind::Primary {
            return Err(Refusal::bad(
                "InvalidOperation.DetachPrimaryEniNotAllowed",
                "Detaching primary ENI from ECS instance is not allowed.",
            ));
        }
        if !matches!(eni.status, EniStatus::InUse | EniStatus::Detaching) {
            return Err(Refusal::eni_state(eni.status.name()));
        }
        if eni.instance.as_ref() != Some(instance_id) {
            return Err(Refusal::bad(
                "InvalidParameter.EniNotBelongEcs",
                "The specified ENI does not belong to the specified ECS instance.",
            ));
        }
        if trunk.is_some() && eni.trunk.as_ref() != trunk {
            return Err(Refusal::forbidden(
                "InvalidParameter.EniNotBelongTrunk",
                "The specified ENI does not belong to the specified trunk ENI.",
            ));
        }
        if !instance.is_settled() {
            return Err(Refusal::ecs_state());
        }
        if self
            .enis
            .values()
            .any(|other| other.trunk.as_ref() == Some(id))
        {
            return Err(Refusal::forbidden(
                "InvalidOperation.HasMemberEniAttached",
                "The trunk ENI still carries member ENIs.",
            ));
        }
        if eni.status == EniStatus::Detaching {
            return Ok(None);
        }
        Ok(Some(self.start(id, EniStatus::Detaching, now)?))
    }

    /// The detach is done.
    pub fn finish_detach(&mut self, started: &Started, now: Tick) {
        self.settle(started, EniStatus::Detaching, now, free);
    }

    /// Starts a delete. `None` when one runs already.
    ///
    /// # Errors
    /// In the words of `DeleteNetworkInterface`.
    pub fn delete_eni(&mut self, id: &EniId, now: Tick) -> Result<Option<Started>, Refusal> {
        let eni = self.eni(id)?;
        if eni.kind == EniKind::Primary {
            return Err(eni_type());
        }
        match eni.status {
            EniStatus::Deleting => Ok(None),
            EniStatus::Available => Ok(Some(self.start(id, EniStatus::Deleting, now)?)),
            EniStatus::Attaching | EniStatus::InUse | EniStatus::Detaching | EniStatus::Other => {
                Err(Refusal::eni_state(eni.status.name()))
            }
        }
    }

    /// The delete is done: the ENI and its addresses are gone.
    pub fn finish_delete(&mut self, started: &Started, now: Tick) {
        if self.is_running(started) {
            self.remove_eni(&started.eni, now);
        }
    }

    pub(crate) fn remove_eni(&mut self, id: &EniId, now: Tick) {
        let Some(eni) = self.enis.remove(id) else {
            return;
        };
        if let Some(vswitch) = self.vswitches.get_mut(&eni.vswitch) {
            vswitch.v4.release(&[eni.primary]);
            vswitch.v4.release(&eni.secondary);
            if let Some(range) = &mut vswitch.v6 {
                range.release(&eni.ipv6);
            }
        }
        self.forget_mac(eni.mac);
        self.record(id, now);
    }

    fn start(&mut self, id: &EniId, status: EniStatus, now: Tick) -> Result<Started, Refusal> {
        let eni = self.eni_mut(id)?;
        eni.status = status;
        eni.change = eni.change.saturating_add(1);
        let started = Started {
            eni: id.clone(),
            change: eni.change,
            member: eni.trunk.is_some(),
        };
        self.record(id, now);
        Ok(started)
    }

    fn settle(
        &mut self,
        started: &Started,
        from: EniStatus,
        now: Tick,
        change: impl FnOnce(&mut Eni),
    ) {
        let eni = self.enis.get_mut(&started.eni);
        let Some(eni) = eni.filter(|eni| eni.change == started.change && eni.status == from) else {
            return;
        };
        change(eni);
        self.record(&started.eni, now);
    }
}

fn free(eni: &mut Eni) {
    eni.status = EniStatus::Available;
    eni.instance = None;
    eni.trunk = None;
    eni.device_index = 0;
    if eni.kind == EniKind::Member {
        eni.kind = EniKind::Secondary;
    }
}

pub(crate) fn size(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn eni_type() -> Refusal {
    Refusal::forbidden(
        "InvalidOperation.InvalidEniType",
        "The operation is not allowed in the current ENI type.",
    )
}
