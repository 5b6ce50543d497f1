//! The state of the account: what exists, and the rules by which it changes.
//!
//! Pure: time comes as an argument, randomness from a seed, and nobody waits here. Each change is one method that
//! either does all of it or refuses in the words of the API.

pub mod address;
pub mod create;
pub mod eni;
pub mod fleet;
pub mod history;
pub mod instance;
pub mod instance_types;
pub mod range;
pub mod token;
pub mod view;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use types::address::MacAddr;
use types::cloud::{
    EniId, InstanceId, InstanceType, RegionId, SecurityGroupId, VSwitchId, VpcId, ZoneId,
};
use types::quota::EniQuota;
use types::time::Tick;

use crate::account::eni::Eni;
use crate::account::history::History;
use crate::account::instance::Instance;
use crate::account::range::{Range4, Range6};
use crate::account::token::Tokens;
use crate::config::Limits;
use crate::plane::Port;
use crate::refusal::Refusal;
use crate::spec::{InstanceTypeSpec, SecurityGroupSpec, VSwitchSpec, VpcSpec, WorldError};

/// A vSwitch with who has which address.
#[derive(Debug)]
pub struct VSwitch {
    /// What it was made from.
    pub spec: VSwitchSpec,
    /// Its IPv4 addresses.
    pub v4: Range4,
    /// Its IPv6 addresses, if it has a range.
    pub v6: Option<Range6>,
}

/// All resources of the account.
#[derive(Debug)]
pub struct Account {
    /// The region.
    pub region: RegionId,
    pub(crate) limits: Limits,
    pub(crate) zones: BTreeSet<ZoneId>,
    pub(crate) vpcs: BTreeMap<VpcId, VpcSpec>,
    pub(crate) vswitches: BTreeMap<VSwitchId, VSwitch>,
    pub(crate) groups: BTreeMap<SecurityGroupId, SecurityGroupSpec>,
    pub(crate) types: BTreeMap<InstanceType, EniQuota>,
    pub(crate) instances: BTreeMap<InstanceId, Instance>,
    pub(crate) enis: BTreeMap<EniId, Eni>,
    pub(crate) history: History,
    pub(crate) tokens: Tokens,
    rng: StdRng,
    macs: BTreeSet<MacAddr>,
}

impl Account {
    /// An empty account that knows the built-in instance types.
    pub fn new(region: RegionId, limits: Limits, seed: u64) -> Self {
        Self {
            region,
            limits,
            zones: BTreeSet::new(),
            vpcs: BTreeMap::new(),
            vswitches: BTreeMap::new(),
            groups: BTreeMap::new(),
            types: instance_types::built_in(),
            instances: BTreeMap::new(),
            enis: BTreeMap::new(),
            history: History::default(),
            tokens: Tokens::default(),
            rng: StdRng::seed_from_u64(seed),
            macs: BTreeSet::new(),
        }
    }

    /// Adds a zone.
    ///
    /// # Errors
    /// [`WorldError::Exists`].
    pub fn add_zone(&mut self, id: ZoneId) -> Result<(), WorldError> {
        if self.zones.contains(&id) {
            return Err(exists(&id));
        }
        self.zones.insert(id);
        Ok(())
    }

    /// Adds a VPC.
    ///
    /// # Errors
    /// [`WorldError::Exists`].
    pub fn add_vpc(&mut self, spec: VpcSpec) -> Result<(), WorldError> {
        if self.vpcs.contains_key(&spec.id) {
            return Err(exists(&spec.id));
        }
        self.vpcs.insert(spec.id.clone(), spec);
        Ok(())
    }

    /// Adds a vSwitch.
    ///
    /// # Errors
    /// [`WorldError`] when zone or VPC are missing, or a range breaks the rules: /16 to /29 for IPv4, /64 for IPv6,
    /// inside the VPC's ranges, apart from those of the VPC's other vSwitches.
    pub fn add_vswitch(&mut self, spec: VSwitchSpec) -> Result<(), WorldError> {
        if self.vswitches.contains_key(&spec.id) {
            return Err(exists(&spec.id));
        }
        if !self.zones.contains(&spec.zone) {
            return Err(missing(&spec.id, &spec.zone));
        }
        let Some(vpc) = self.vpcs.get(&spec.vpc) else {
            return Err(missing(&spec.id, &spec.vpc));
        };
        let bad = |why: &str| {
            Err(WorldError::BadRange {
                id: spec.id.to_string(),
                why: why.to_owned(),
            })
        };
        if !(16..=29).contains(&spec.ipv4_cidr.prefix_len()) {
            return bad("the IPv4 mask is not /16 to /29");
        }
        if !vpc.ipv4_cidr.contains(&spec.ipv4_cidr) {
            return bad("the IPv4 range is not inside the VPC's");
        }
        if let Some(v6) = spec.ipv6_cidr {
            if v6.prefix_len() != 64 {
                return bad("the IPv6 mask is not /64");
            }
            if !vpc.ipv6_cidr.is_some_and(|net| net.contains(&v6)) {
                return bad("the IPv6 range is not inside the VPC's");
            }
        }
        let overlaps = self.vswitches.values().any(|other| {
            other.spec.vpc == spec.vpc
                && (overlap(other.spec.ipv4_cidr.into(), spec.ipv4_cidr.into())
                    || other
                        .spec
                        .ipv6_cidr
                        .zip(spec.ipv6_cidr)
                        .is_some_and(|(a, b)| overlap(a.into(), b.into())))
        });
        if overlaps {
            return bad("a range overlaps one of another vSwitch");
        }
        let vswitch = VSwitch {
            v4: Range4::new(spec.ipv4_cidr),
            v6: spec.ipv6_cidr.map(Range6::new),
            spec,
        };
        self.vswitches.insert(vswitch.spec.id.clone(), vswitch);
        Ok(())
    }

    /// Adds a security group.
    ///
    /// # Errors
    /// [`WorldError`] when the id is taken or the VPC is missing.
    pub fn add_security_group(&mut self, spec: SecurityGroupSpec) -> Result<(), WorldError> {
        if self.groups.contains_key(&spec.id) {
            return Err(exists(&spec.id));
        }
        if !self.vpcs.contains_key(&spec.vpc) {
            return Err(missing(&spec.id, &spec.vpc));
        }
        self.groups.insert(spec.id.clone(), spec);
        Ok(())
    }

    /// Adds an instance type, or replaces one.
    pub fn set_instance_type(&mut self, spec: InstanceTypeSpec) {
        self.types.insert(spec.id, spec.quota);
    }

    /// One of our ENIs; those of other users are as if they did not exist.
    pub(crate) fn eni(&self, id: &EniId) -> Result<&Eni, Refusal> {
        self.enis
            .get(id)
            .filter(|eni| !eni.foreign)
            .ok_or_else(Refusal::no_eni)
    }

    pub(crate) fn eni_mut(&mut self, id: &EniId) -> Result<&mut Eni, Refusal> {
        self.enis
            .get_mut(id)
            .filter(|eni| !eni.foreign)
            .ok_or_else(Refusal::no_eni)
    }

    pub(crate) fn vswitch(&self, id: &VSwitchId) -> Result<&VSwitch, Refusal> {
        self.vswitches.get(id).ok_or_else(no_vswitch)
    }

    pub(crate) fn vswitch_mut(&mut self, id: &VSwitchId) -> Result<&mut VSwitch, Refusal> {
        self.vswitches.get_mut(id).ok_or_else(no_vswitch)
    }

    /// The limits of the instance's type. Types of running instances are always known.
    pub(crate) fn quota_of(&self, instance: &InstanceId) -> Result<EniQuota, Refusal> {
        self.instances
            .get(instance)
            .and_then(|instance| self.types.get(&instance.instance_type))
            .copied()
            .ok_or_else(instance::no_instance)
    }

    /// The ENI as the data plane sees it, if it belongs to an instance.
    pub fn port(&self, id: &EniId) -> Option<Port> {
        let eni = self.enis.get(id)?;
        let vswitch = self.vswitches.get(&eni.vswitch)?;
        Some(Port {
            eni: eni.id.clone(),
            mac: eni.mac,
            instance: eni.instance.clone()?,
            vswitch: eni.vswitch.clone(),
            vswitch_v4: vswitch.spec.ipv4_cidr,
            vswitch_v6: vswitch.spec.ipv6_cidr,
            addresses: eni.addresses(),
            primary: eni.kind == ecs_api::model::eni::EniKind::Primary,
        })
    }

    /// Writes down what the ENI looks like from now on, for readers that lag.
    pub(crate) fn record(&mut self, id: &EniId, now: Tick) {
        let eni = self.enis.get(id).cloned();
        self.history.record(id, eni, now);
    }

    /// A new id: prefix, region stem, 17 random letters and digits.
    pub(crate) fn fresh_id(&mut self, prefix: &str) -> String {
        const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let mut id = format!("{prefix}bp1");
        for _ in 0..17 {
            let index = self.rng.random_range(0..ALPHABET.len());
            id.extend(ALPHABET.get(index).copied().map(char::from));
        }
        id
    }

    pub(crate) fn fresh_mac(&mut self) -> MacAddr {
        loop {
            let [a, b, c]: [u8; 3] = self.rng.random();
            let mac = MacAddr([0x00, 0x16, 0x3e, a, b, c]);
            if self.macs.insert(mac) {
                return mac;
            }
        }
    }

    pub(crate) fn forget_mac(&mut self, mac: MacAddr) {
        self.macs.remove(&mac);
    }
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

fn no_vswitch() -> Refusal {
    Refusal::not_found(
        "InvalidVSwitchId.NotFound",
        "The specified VSwitchId is not found.",
    )
}

pub(crate) fn exists(id: &impl ToString) -> WorldError {
    WorldError::Exists { id: id.to_string() }
}

pub(crate) fn missing(id: &impl ToString, needs: &impl ToString) -> WorldError {
    WorldError::Missing {
        id: id.to_string(),
        needs: needs.to_string(),
    }
}
