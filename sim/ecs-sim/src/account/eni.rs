//! The life of an ENI: create, attach, detach, delete.
//!
//! ```text
//! create ─▶ Available ─attach─▶ Attaching ─▶ InUse ─detach─▶ Detaching ─▶ Available ─delete─▶ Deleting ─▶ gone
//!               ▲────────failed─────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ecs_api::model::Pick;
use ecs_api::model::eni::{EniKind, EniStatus};
use types::address::MacAddr;
use types::cloud::{EniId, InstanceId, SecurityGroupId, VSwitchId, VpcId, ZoneId};
use types::time::Tick;

use crate::account::Account;
use crate::account::instance::no_instance;
use crate::refusal::Refusal;
use crate::spec::SecurityGroupKind;

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

/// What to create.
#[derive(Debug, Clone)]
pub struct NewEni {
    /// Where.
    pub vswitch: VSwitchId,
    /// 1 to 5 groups.
    pub security_groups: Vec<SecurityGroupId>,
    /// The primary address, if chosen.
    pub primary: Option<Ipv4Addr>,
    /// Secondary addresses.
    pub ipv4: Pick<Ipv4Addr>,
    /// IPv6 addresses.
    pub ipv6: Pick<Ipv6Addr>,
    /// Primary (of an instance that starts), secondary or trunk.
    pub kind: EniKind,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Name.
    pub name: String,
    /// Description.
    pub description: String,
    /// Whether it goes with its instance.
    pub delete_on_release: bool,
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
    /// Makes an ENI.
    ///
    /// # Errors
    /// In the words of `CreateNetworkInterface`.
    pub fn create_eni(&mut self, new: NewEni, now: Tick) -> Result<&Eni, Refusal> {
        let vswitch = self.vswitch(&new.vswitch)?;
        let spec = vswitch.spec.clone();
        self.check_groups(&new.security_groups, &spec.vpc)?;
        let ours = self
            .enis
            .values()
            .filter(|eni| !eni.foreign && eni.kind != EniKind::Primary)
            .count();
        if new.kind != EniKind::Primary && ours >= self.limits.enis {
            return Err(Refusal::forbidden(
                "MaxEniCountExceeded",
                "The number of ENI exceeds the limit per region.",
            ));
        }
        let vswitch = self.vswitch(&new.vswitch)?;
        if let Some(ip) = new.primary {
            vswitch.v4.check(ip)?;
        }
        let named: Vec<_> = new.primary.into_iter().collect();
        let secondary = self.pick_v4(&new.vswitch, &new.ipv4, &named)?;
        let primary = match new.primary {
            Some(ip) => ip,
            None => first(self.vswitch(&new.vswitch)?.v4.choose(1, &secondary)?)?,
        };
        let ipv6 = self.pick_v6(&new.vswitch, &new.ipv6)?;
        self.check_group_room(&new.security_groups, 1 + secondary.len() + ipv6.len())?;

        let id: EniId = self
            .fresh_id("eni-")
            .parse()
            .map_err(|_| Refusal::internal())?;
        let mac = self.fresh_mac();
        let vswitch = self.vswitch_mut(&new.vswitch)?;
        vswitch.v4.take(&[primary], &id);
        vswitch.v4.take(&secondary, &id);
        if let Some(range) = &mut vswitch.v6 {
            range.take(&ipv6, &id);
        }
        let eni = Eni {
            id: id.clone(),
            mac,
            kind: new.kind,
            status: EniStatus::Available,
            change: 0,
            instance: None,
            trunk: None,
            device_index: 0,
            vswitch: new.vswitch,
            vpc: spec.vpc,
            zone: spec.zone,
            security_groups: new.security_groups,
            primary,
            secondary,
            ipv6,
            tags: new.tags,
            name: new.name,
            description: new.description,
            created_at: now,
            delete_on_release: new.delete_on_release,
            foreign: false,
        };
        self.enis.insert(id.clone(), eni);
        self.record(&id, now);
        self.eni(&id)
    }

    fn check_groups(&self, groups: &[SecurityGroupId], vpc: &VpcId) -> Result<(), Refusal> {
        if groups.is_empty() {
            return Err(Refusal::missing("SecurityGroupId"));
        }
        if groups.len() > self.limits.groups_per_eni {
            return Err(Refusal::bad(
                "JoinedGroupLimitExceed",
                "The ENI would be in more security groups than it may.",
            ));
        }
        if groups.iter().collect::<BTreeSet<_>>().len() < groups.len() {
            return Err(Refusal::invalid("SecurityGroupIds", "listed twice"));
        }
        for id in groups {
            let group = self.groups.get(id).ok_or_else(|| {
                Refusal::not_found(
                    "InvalidSecurityGroupId.NotFound",
                    "The specified SecurityGroupId is not found.",
                )
            })?;
            if group.vpc != *vpc {
                return Err(Refusal::forbidden(
                    "InvalidSecurityGroupId.NotVpc",
                    "The VPC of the specified ENI and security group are not in the same VPC.",
                ));
            }
        }
        Ok(())
    }

    /// Whether `more` addresses fit into each group.
    pub(crate) fn check_group_room(
        &self,
        groups: &[SecurityGroupId],
        more: usize,
    ) -> Result<(), Refusal> {
        for id in groups {
            let Some(group) = self.groups.get(id) else {
                continue;
            };
            let most = match group.kind {
                SecurityGroupKind::Normal => self.limits.normal_group,
                SecurityGroupKind::Enterprise => self.limits.enterprise_group,
            };
            let members: usize = self
                .enis
                .values()
                .filter(|eni| eni.security_groups.contains(id))
                .map(|eni| 1 + eni.secondary.len() + eni.ipv6.len())
                .sum();
            if members + more > most {
                return Err(Refusal::forbidden(
                    "SecurityGroupInstanceLimitExceed",
                    "The maximum number of instances in a security group is exceeded.",
                ));
            }
        }
        Ok(())
    }

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

    /// Another user of the vSwitch takes an address.
    ///
    /// # Errors
    /// As for a create with this primary address.
    pub fn take_foreign(
        &mut self,
        vswitch: &VSwitchId,
        ip: IpAddr,
        now: Tick,
    ) -> Result<EniId, Refusal> {
        let range = self.vswitch(vswitch)?;
        let spec = range.spec.clone();
        let (primary, ipv6) = match ip {
            IpAddr::V4(ip) => {
                range.v4.check(ip)?;
                (ip, Vec::new())
            }
            IpAddr::V6(ip) => {
                let ipv6 = self.pick_v6(vswitch, &Pick::Listed(vec![ip]))?;
                (first(self.vswitch(vswitch)?.v4.choose(1, &[])?)?, ipv6)
            }
        };
        let id: EniId = self
            .fresh_id("eni-")
            .parse()
            .map_err(|_| Refusal::internal())?;
        let mac = self.fresh_mac();
        let range = self.vswitch_mut(vswitch)?;
        range.v4.take(&[primary], &id);
        if let Some(v6) = &mut range.v6 {
            v6.take(&ipv6, &id);
        }
        let eni = Eni {
            id: id.clone(),
            mac,
            kind: EniKind::Secondary,
            status: EniStatus::InUse,
            change: 0,
            instance: None,
            trunk: None,
            device_index: 0,
            vswitch: vswitch.clone(),
            vpc: spec.vpc,
            zone: spec.zone,
            security_groups: Vec::new(),
            primary,
            secondary: Vec::new(),
            ipv6,
            tags: BTreeMap::new(),
            name: String::new(),
            description: String::new(),
            created_at: now,
            delete_on_release: true,
            foreign: true,
        };
        self.enis.insert(id.clone(), eni);
        Ok(id)
    }

    /// The other user gives it back.
    ///
    /// # Errors
    /// The ENI does not exist, or is no other user's.
    pub fn release_foreign(&mut self, id: &EniId, now: Tick) -> Result<(), Refusal> {
        if !self.enis.get(id).is_some_and(|eni| eni.foreign) {
            return Err(Refusal::no_eni());
        }
        self.remove_eni(id, now);
        Ok(())
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

fn first<A: Copy>(found: Vec<A>) -> Result<A, Refusal> {
    found.into_iter().next().ok_or_else(Refusal::internal)
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
