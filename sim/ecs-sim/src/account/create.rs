//! New ENIs: ours, and those of other users of a vSwitch.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ecs_api::model::Pick;
use ecs_api::model::eni::{EniKind, EniStatus};
use types::cloud::{EniId, SecurityGroupId, VSwitchId, VpcId};
use types::time::Tick;

use crate::account::Account;
use crate::account::eni::Eni;
use crate::refusal::Refusal;
use crate::spec::SecurityGroupKind;

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

fn first<A: Copy>(found: Vec<A>) -> Result<A, Refusal> {
    found.into_iter().next().ok_or_else(Refusal::internal)
}
