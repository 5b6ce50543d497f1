//! The cloud with its gateway, as far as the core sees it: one answer per call, idempotent by key.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipam_core::step::{Call, MAX_ASSIGN_V4, MAX_EXPLICIT, Outcome, Step};
use types::address::MacAddr;
use types::cloud::{EniId, InstanceId};
use types::op::Seq;
use types::quota::EniQuota;

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The call never arrived.
    LostBefore,
    /// The call worked and its answer was lost.
    LostAfter,
    /// Somebody takes one of the addresses first.
    Conflict,
    Exhausted,
    Limit,
    /// The read-back still shows an address that is off.
    StaleRead,
    /// Somebody deletes the ENI first.
    Vanish,
}

#[derive(Debug, Default)]
pub(crate) struct CloudEni {
    pub(crate) instance: Option<InstanceId>,
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Its instance went away.
    pub(crate) orphaned: bool,
}

#[derive(Debug)]
pub(crate) struct Cloud {
    quota: EniQuota,
    pub(crate) enis: BTreeMap<EniId, CloudEni>,
    pub(crate) foreign: BTreeSet<IpAddr>,
    pub(crate) vanished: BTreeSet<EniId>,
    pub(crate) gone: BTreeSet<InstanceId>,
    /// Creates that worked, by key.
    created: BTreeMap<Seq, EniId>,
    /// Calls that worked, by key.
    done: BTreeSet<Seq>,
    /// Addresses that left an ENI of ours by a call since the last look.
    pub(crate) left: Vec<(IpAddr, EniId)>,
    /// Addresses that came to an ENI since the last look.
    pub(crate) came: Vec<(IpAddr, EniId)>,
}

impl Cloud {
    pub(crate) fn new(quota: EniQuota) -> Self {
        Self {
            quota,
            enis: BTreeMap::new(),
            foreign: BTreeSet::new(),
            vanished: BTreeSet::new(),
            gone: BTreeSet::new(),
            created: BTreeMap::new(),
            done: BTreeSet::new(),
            left: Vec::new(),
            came: Vec::new(),
        }
    }

    pub(crate) fn has(&self, eni: &EniId, instance: &InstanceId, ip: &IpAddr) -> bool {
        self.enis.get(eni).is_some_and(|eni| {
            eni.instance.as_ref() == Some(instance) && eni.addresses.contains(ip)
        })
    }

    /// Somebody takes an ENI off its instance.
    pub(crate) fn detach_by_hand(&mut self, id: &EniId) {
        if let Some(eni) = self.enis.get_mut(id) {
            eni.instance = None;
        }
    }

    pub(crate) fn call(&mut self, step: &Step, fault: Fault) -> Outcome {
        let repeated = self.done.contains(&step.key);
        match fault {
            Fault::LostBefore => return Outcome::Retry,
            Fault::Exhausted if !repeated => match step.call {
                Call::Create { .. } | Call::Assign { .. } => return Outcome::Exhausted,
                Call::Attach { .. }
                | Call::Unassign { .. }
                | Call::Detach { .. }
                | Call::Delete { .. } => {}
            },
            Fault::Limit if !repeated => match step.call {
                Call::Create { .. } | Call::Attach { .. } => return Outcome::EniLimit,
                Call::Assign { .. } => return Outcome::AddressLimit,
                Call::Unassign { .. } | Call::Detach { .. } | Call::Delete { .. } => {}
            },
            Fault::Conflict if !repeated => self.steal(step),
            Fault::Vanish => self.vanish(step),
            Fault::None
            | Fault::LostAfter
            | Fault::StaleRead
            | Fault::Exhausted
            | Fault::Limit
            | Fault::Conflict => {}
        }
        let outcome = self.perform(step);
        match (fault, outcome) {
            (Fault::LostAfter, _) => Outcome::Retry,
            (Fault::StaleRead, Outcome::Unassigned { mut addresses }) => {
                if let Call::Unassign { ipv4, .. } = &step.call {
                    addresses.extend(ipv4.first());
                }
                Outcome::Unassigned { addresses }
            }
            (_, outcome) => outcome,
        }
    }

    /// Somebody else takes the first address that the call asks for.
    fn steal(&mut self, step: &Step) {
        let wanted = match &step.call {
            Call::Create { primary, .. } => vec![*primary],
            Call::Assign { ipv4, ipv6, .. } => [ipv4.clone(), ipv6.clone()].concat(),
            Call::Attach { .. }
            | Call::Unassign { .. }
            | Call::Detach { .. }
            | Call::Delete { .. } => return,
        };
        if let Some(ip) = wanted.into_iter().find(|ip| self.owner(ip).is_none()) {
            self.foreign.insert(ip);
        }
    }

    fn vanish(&mut self, step: &Step) {
        let id = match &step.call {
            Call::Create { .. } => return,
            Call::Assign { eni, .. }
            | Call::Attach { eni, .. }
            | Call::Unassign { eni, .. }
            | Call::Detach { eni, .. }
            | Call::Delete { eni } => eni,
        };
        if self.enis.remove(id).is_some() {
            self.vanished.insert(id.clone());
        }
    }

    pub(crate) fn owner(&self, ip: &IpAddr) -> Option<&EniId> {
        self.enis
            .iter()
            .find(|(_, eni)| eni.addresses.contains(ip))
            .map(|(id, _)| id)
    }

    fn perform(&mut self, step: &Step) -> Outcome {
        let outcome = match &step.call {
            Call::Create {
                primary,
                ipv4,
                ipv6,
                ..
            } => self.create(step.key, *primary, ipv4, ipv6),
            Call::Assign { eni, ipv4, ipv6 } => self.assign(eni, ipv4, ipv6),
            Call::Attach { eni, instance } => self.attach(eni, instance),
            Call::Unassign { eni, ipv4, ipv6 } => {
                let off: Vec<IpAddr> = ipv4.iter().chain(ipv6).copied().collect();
                self.unassign(eni, &off)
            }
            Call::Detach { eni, .. } => match self.enis.get_mut(eni) {
                None => Outcome::NotFound,
                Some(found) => {
                    found.instance = None;
                    Outcome::Detached
                }
            },
            Call::Delete { eni } => match self.enis.remove(eni) {
                None => Outcome::NotFound,
                Some(found) => {
                    assert_eq!(found.instance, None, "an attached eni can not be deleted");
                    let left = found.addresses.into_iter().map(|ip| (ip, eni.clone()));
                    self.left.extend(left);
                    Outcome::Deleted
                }
            },
        };
        match outcome {
            Outcome::AddressInUse { .. } | Outcome::NotFound | Outcome::EniLimit => {}
            Outcome::Created { .. }
            | Outcome::Attached { .. }
            | Outcome::Assigned { .. }
            | Outcome::Unassigned { .. }
            | Outcome::Detached
            | Outcome::Deleted
            | Outcome::Exhausted
            | Outcome::AddressLimit
            | Outcome::Refused
            | Outcome::Retry => {
                self.done.insert(step.key);
            }
        }
        outcome
    }

    fn create(&mut self, key: Seq, primary: IpAddr, v4: &[IpAddr], v6: &[IpAddr]) -> Outcome {
        assert!(v4.len() <= usize::try_from(MAX_EXPLICIT).unwrap());
        assert!(v6.len() <= usize::try_from(MAX_EXPLICIT).unwrap());
        let id: EniId = format!("eni-{key}").parse().unwrap();
        if !self.created.contains_key(&key) {
            let addresses: BTreeSet<IpAddr> =
                [primary].iter().chain(v4).chain(v6).copied().collect();
            if let Some(outcome) = self.conflict(&addresses, None) {
                return outcome;
            }
            self.came
                .extend(addresses.iter().map(|ip| (*ip, id.clone())));
            self.created.insert(key, id.clone());
            let eni = CloudEni {
                instance: None,
                addresses,
                orphaned: false,
            };
            self.enis.insert(id.clone(), eni);
        }
        let addresses = self.enis.get(&id).map(|eni| eni.addresses.clone());
        Outcome::Created {
            id,
            mac: MacAddr([0, 0x16, 0x3e, 0, 0, u8::try_from(key.0 % 256).unwrap()]),
            addresses: addresses.into_iter().flatten().collect(),
        }
    }

    fn assign(&mut self, id: &EniId, v4: &[IpAddr], v6: &[IpAddr]) -> Outcome {
        assert!(v4.len() <= usize::try_from(MAX_ASSIGN_V4).unwrap());
        assert!(v6.len() <= usize::try_from(MAX_EXPLICIT).unwrap());
        assert!(v4.len() + v6.len() > 0, "a call for nothing");
        let wanted: BTreeSet<IpAddr> = v4.iter().chain(v6).copied().collect();
        if !self.enis.contains_key(id) {
            return Outcome::NotFound;
        }
        if let Some(outcome) = self.conflict(&wanted, Some(id)) {
            return outcome;
        }
        let eni = self.enis.get_mut(id).unwrap();
        if eni.orphaned {
            return Outcome::AddressLimit;
        }
        for ip in wanted {
            if eni.addresses.insert(ip) {
                self.came.push((ip, id.clone()));
            }
        }
        let v6 = eni.addresses.iter().filter(|ip| ip.is_ipv6()).count();
        let v4 = eni.addresses.len() - v6;
        let limit = if eni.instance.is_some() {
            self.quota.ipv6_per_eni
        } else {
            MAX_EXPLICIT
        };
        // I10: the cloud would refuse; we must not even ask.
        assert!(v4 <= usize::try_from(self.quota.ipv4_per_eni).unwrap());
        assert!(v6 <= usize::try_from(limit).unwrap());
        Outcome::Assigned {
            addresses: eni.addresses.iter().copied().collect(),
        }
    }

    fn attach(&mut self, id: &EniId, instance: &InstanceId) -> Outcome {
        let attached = self
            .enis
            .iter()
            .filter(|(other, eni)| *other != id && eni.instance.as_ref() == Some(instance))
            .count();
        if self.gone.contains(instance) {
            return Outcome::NotFound;
        }
        let Some(eni) = self.enis.get_mut(id) else {
            return Outcome::NotFound;
        };
        // I10: the quota index keeps us from asking for one too many.
        assert!(attached < usize::try_from(self.quota.secondary_enis()).unwrap());
        eni.instance = Some(instance.clone());
        Outcome::Attached {
            addresses: eni.addresses.iter().copied().collect(),
        }
    }

    fn unassign(&mut self, id: &EniId, off: &[IpAddr]) -> Outcome {
        let Some(eni) = self.enis.get_mut(id) else {
            return Outcome::NotFound;
        };
        for ip in off {
            if eni.addresses.remove(ip) {
                self.left.push((*ip, id.clone()));
            }
        }
        Outcome::Unassigned {
            addresses: eni.addresses.iter().copied().collect(),
        }
    }

    /// The cloud puts no address on two ENIs.
    fn conflict(&self, wanted: &BTreeSet<IpAddr>, but: Option<&EniId>) -> Option<Outcome> {
        let taken = wanted.iter().find(|ip| {
            self.foreign.contains(ip) || self.owner(ip).is_some_and(|owner| Some(owner) != but)
        })?;
        Some(Outcome::AddressInUse {
            address: Some(*taken),
        })
    }
}
