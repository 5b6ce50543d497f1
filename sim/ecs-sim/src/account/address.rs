//! Addresses of ENIs: assign and unassign.

use std::collections::BTreeSet;
use std::hash::Hash;
use std::net::{Ipv4Addr, Ipv6Addr};

use ecs_api::action::{MAX_AVAILABLE_IPV6, MAX_AVAILABLE_SECONDARY_IPV4};
use ecs_api::model::Pick;
use ecs_api::model::eni::{EniKind, EniStatus};
use types::cloud::{EniId, VSwitchId};
use types::time::Tick;

use crate::account::Account;
use crate::account::eni::{Eni, size};
use crate::account::instance::Instance;
use crate::refusal::Refusal;

impl Account {
    /// Adds secondary IPv4 addresses.
    ///
    /// # Errors
    /// In the words of `AssignPrivateIpAddresses`.
    pub fn assign_v4(
        &mut self,
        id: &EniId,
        pick: &Pick<Ipv4Addr>,
        now: Tick,
    ) -> Result<Vec<Ipv4Addr>, Refusal> {
        let eni = self.eni(id)?;
        self.check_can_change(eni)?;
        let more = count(pick);
        let after = 1 + eni.secondary.len() + more;
        match &eni.instance {
            None if after > 1 + MAX_AVAILABLE_SECONDARY_IPV4 => {
                return Err(Refusal::forbidden(
                    "MaxEniPrivateIpsCountExceeded",
                    "The number of private IPv4 addresses exceeds the limit of the ENI.",
                ));
            }
            Some(instance) if after > size(self.quota_of(instance)?.ipv4_per_eni) => {
                return Err(Refusal::forbidden(
                    "InvalidOperation.Ipv4CountExceeded",
                    "The number of IPv4 addresses exceeds the limit of the instance type.",
                ));
            }
            None | Some(_) => {}
        }
        self.check_group_room(&eni.security_groups, more)?;
        let vswitch = eni.vswitch.clone();
        let chosen = self.pick_v4(&vswitch, pick, &[])?;

        self.vswitch_mut(&vswitch)?.v4.take(&chosen, id);
        self.eni_mut(id)?.secondary.extend(&chosen);
        self.record(id, now);
        Ok(chosen)
    }

    /// Adds IPv6 addresses.
    ///
    /// # Errors
    /// In the words of `AssignIpv6Addresses`.
    pub fn assign_v6(
        &mut self,
        id: &EniId,
        pick: &Pick<Ipv6Addr>,
        now: Tick,
    ) -> Result<Vec<Ipv6Addr>, Refusal> {
        let eni = self.eni(id)?;
        self.check_can_change(eni)?;
        let more = count(pick);
        let after = eni.ipv6.len() + more;
        let quota = match &eni.instance {
            Some(instance) => Some(self.quota_of(instance)?.ipv6_per_eni),
            None => None,
        };
        match quota {
            None if after > MAX_AVAILABLE_IPV6 => {
                return Err(Refusal::forbidden(
                    "MaxEniIpv6IpsCountExceeded",
                    "The number of IPv6 addresses exceeds the limit of the ENI.",
                ));
            }
            Some(0) => {
                return Err(Refusal::forbidden(
                    "InvalidOperation.Ipv6NotSupport",
                    "The type of the instance does not support IPv6.",
                ));
            }
            Some(most) if after > size(most) => {
                return Err(Refusal::forbidden(
                    "InvalidOperation.Ipv6CountExceeded",
                    "The number of IPv6 addresses exceeds the limit of the instance type.",
                ));
            }
            None | Some(_) => {}
        }
        self.check_group_room(&eni.security_groups, more)?;
        let vswitch = eni.vswitch.clone();
        let chosen = self.pick_v6(&vswitch, pick)?;

        if let Some(range) = &mut self.vswitch_mut(&vswitch)?.v6 {
            range.take(&chosen, id);
        }
        self.eni_mut(id)?.ipv6.extend(&chosen);
        self.record(id, now);
        Ok(chosen)
    }

    /// Whether all of these can be taken from the ENI.
    ///
    /// # Errors
    /// In the words of `UnassignPrivateIpAddresses`.
    pub fn check_unassign_v4(&self, id: &EniId, ips: &[Ipv4Addr]) -> Result<(), Refusal> {
        let eni = self.eni(id)?;
        self.check_can_change(eni)?;
        check_listed_once(ips)?;
        if ips.iter().all(|ip| eni.secondary.contains(ip)) {
            Ok(())
        } else {
            Err(unassigned())
        }
    }

    /// Whether all of these can be taken from the ENI.
    ///
    /// # Errors
    /// In the words of `UnassignIpv6Addresses`.
    pub fn check_unassign_v6(&self, id: &EniId, ips: &[Ipv6Addr]) -> Result<(), Refusal> {
        let eni = self.eni(id)?;
        self.check_can_change(eni)?;
        check_listed_once(ips)?;
        if ips.iter().all(|ip| eni.ipv6.contains(ip)) {
            Ok(())
        } else {
            Err(unassigned())
        }
    }

    /// Takes the addresses away, all or nothing.
    ///
    /// # Errors
    /// As the checks of the two families.
    pub fn unassign(
        &mut self,
        id: &EniId,
        v4: &[Ipv4Addr],
        v6: &[Ipv6Addr],
        now: Tick,
    ) -> Result<(), Refusal> {
        self.check_unassign_v4(id, v4)?;
        self.check_unassign_v6(id, v6)?;
        let eni = self.eni_mut(id)?;
        eni.secondary.retain(|ip| !v4.contains(ip));
        eni.ipv6.retain(|ip| !v6.contains(ip));
        let vswitch = eni.vswitch.clone();
        let range = self.vswitch_mut(&vswitch)?;
        range.v4.release(v4);
        if let Some(range) = &mut range.v6 {
            range.release(v6);
        }
        self.record(id, now);
        Ok(())
    }

    fn check_can_change(&self, eni: &Eni) -> Result<(), Refusal> {
        if !matches!(eni.status, EniStatus::Available | EniStatus::InUse) {
            return Err(Refusal::eni_state(eni.status.name()));
        }
        let settled = eni
            .instance
            .as_ref()
            .and_then(|id| self.instances.get(id))
            .is_none_or(Instance::is_settled);
        if eni.kind == EniKind::Primary && !settled {
            return Err(Refusal::ecs_state());
        }
        Ok(())
    }

    /// The addresses of the pick, free all of them, none of them in `besides`.
    pub(crate) fn pick_v4(
        &self,
        vswitch: &VSwitchId,
        pick: &Pick<Ipv4Addr>,
        besides: &[Ipv4Addr],
    ) -> Result<Vec<Ipv4Addr>, Refusal> {
        let range = &self.vswitch(vswitch)?.v4;
        match pick {
            Pick::Nothing => Ok(Vec::new()),
            Pick::Count(n) => range.choose(size(*n), besides),
            Pick::Listed(ips) => {
                check_listed_once(ips)?;
                if ips.iter().any(|ip| besides.contains(ip)) {
                    return Err(repeated());
                }
                for ip in ips {
                    range.check(*ip)?;
                }
                Ok(ips.clone())
            }
        }
    }

    /// The same for IPv6.
    pub(crate) fn pick_v6(
        &self,
        vswitch: &VSwitchId,
        pick: &Pick<Ipv6Addr>,
    ) -> Result<Vec<Ipv6Addr>, Refusal> {
        let range = self.vswitch(vswitch)?.v6.as_ref();
        let needed = || {
            range.ok_or_else(|| {
                Refusal::forbidden(
                    "InvalidVSwitch.Ipv6NotTurnOn",
                    "IPv6 is not turned on for the specified VSwitch.",
                )
            })
        };
        match pick {
            Pick::Nothing => Ok(Vec::new()),
            Pick::Count(n) => needed()?.choose(size(*n), &[]),
            Pick::Listed(ips) => {
                let range = needed()?;
                check_listed_once(ips)?;
                for ip in ips {
                    range.check(*ip)?;
                }
                Ok(ips.clone())
            }
        }
    }
}

fn count<A>(pick: &Pick<A>) -> usize {
    match pick {
        Pick::Nothing => 0,
        Pick::Listed(ips) => ips.len(),
        Pick::Count(n) => size(*n),
    }
}

fn check_listed_once<A: Ord + Hash>(ips: &[A]) -> Result<(), Refusal> {
    if ips.iter().collect::<BTreeSet<_>>().len() < ips.len() {
        return Err(repeated());
    }
    Ok(())
}

fn repeated() -> Refusal {
    Refusal::forbidden(
        "InvalidIp.IpRepeated",
        "The specified IP address is repeated.",
    )
}

fn unassigned() -> Refusal {
    Refusal::forbidden(
        "InvalidIp.IpUnassigned",
        "The specified IP is not assigned on this ENI.",
    )
}
