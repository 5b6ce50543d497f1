//! Chains, and where base chains hook in.

use crate::attribute::{self, Attributes, Writer, required};
use crate::error::DecodeError;
use crate::name::{Family, Name, TableRef};

const TABLE: u16 = 1;
const NAME: u16 = 3;
const HOOK: u16 = 4;
const POLICY: u16 = 5;
const TYPE: u16 = 7;

const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_DEVICE: u16 = 3;
const HOOK_DEVICES: u16 = 4;
const DEVICE_NAME: u16 = 1;

const POLICY_DROP: u32 = 0;
const POLICY_ACCEPT: u32 = 1;

/// What a base chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Accept and drop.
    Filter,
    /// Address translation; sees only the first packet of a flow.
    Nat,
    /// Reroutes local packets whose mark changed.
    Route,
}

impl Kind {
    const fn text(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

/// Where packets enter a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After routing.
    Postrouting,
    /// On arrival at a device.
    Ingress,
    /// On departure from a device.
    Egress,
}

impl Hook {
    const fn number(self, family: Family) -> u32 {
        match (self, family) {
            (Self::Prerouting, _) | (Self::Ingress, Family::Netdev) => 0,
            (Self::Input | Self::Egress, _) => 1,
            (Self::Forward, _) => 2,
            (Self::Output, _) => 3,
            (Self::Postrouting, _) => 4,
            (Self::Ingress, _) => 5,
        }
    }

    const fn from_number(number: u32, family: Family) -> Result<Self, DecodeError> {
        Ok(match (number, family) {
            (0, Family::Netdev) | (5, _) => Self::Ingress,
            (1, Family::Netdev) => Self::Egress,
            (0, _) => Self::Prerouting,
            (1, _) => Self::Input,
            (2, _) => Self::Forward,
            (3, _) => Self::Output,
            (4, _) => Self::Postrouting,
            _ => return Err(DecodeError::Value { what: "hook" }),
        })
    }
}

/// What becomes of a packet that reaches the end of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Policy {
    /// It goes on.
    Accept,
    /// It is gone.
    Drop,
}

/// What makes a chain a base chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Base {
    /// What it may do.
    pub kind: Kind,
    /// Where it hooks in.
    pub hook: Hook,
    /// Order among the chains of a hook: lower sees packets first.
    pub priority: i32,
    /// What happens at its end.
    pub policy: Policy,
    /// The device of an ingress or egress chain; it must exist.
    pub device: Option<Name>,
}

/// A chain. Without a base it is reached by jump and goto only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Chain {
    /// Its table.
    pub table: TableRef,
    /// Its name.
    pub name: Name,
    /// Where it hooks in, if it does.
    pub base: Option<Base>,
}

impl Chain {
    /// A chain for jumps and gotos.
    pub fn regular(table: &TableRef, name: &str) -> Self {
        Self {
            table: table.clone(),
            name: name.into(),
            base: None,
        }
    }

    /// A filter chain at a hook, policy accept.
    pub fn filter(table: &TableRef, name: &str, hook: Hook, priority: i32) -> Self {
        Self {
            table: table.clone(),
            name: name.into(),
            base: Some(Base {
                kind: Kind::Filter,
                hook,
                priority,
                policy: Policy::Accept,
                device: None,
            }),
        }
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        write_name(&self.table, &self.name, w);
        let Some(base) = &self.base else { return };
        w.nest(HOOK, |w| {
            w.u32(HOOK_NUMBER, base.hook.number(self.table.family));
            w.bytes(HOOK_PRIORITY, &base.priority.to_be_bytes());
            if let Some(device) = &base.device {
                w.text(HOOK_DEVICE, device);
            }
        });
        let policy = match base.policy {
            Policy::Accept => POLICY_ACCEPT,
            Policy::Drop => POLICY_DROP,
        };
        w.u32(POLICY, policy);
        w.text(TYPE, base.kind.text());
    }

    pub(crate) fn read(family: Family, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut table = None;
        let mut name = None;
        let mut hook = None;
        let mut policy = Policy::Accept;
        let mut kind = Kind::Filter;
        for attribute in Attributes::new(bytes) {
            let attribute = attribute?;
            match attribute.kind {
                TABLE => table = Some(attribute::name(attribute.value, "chain table")?),
                NAME => name = Some(attribute::name(attribute.value, "chain name")?),
                HOOK => hook = Some(read_hook(family, attribute.value)?),
                POLICY => policy = read_policy(attribute.value)?,
                TYPE => kind = read_kind(attribute.value)?,
                _ => {}
            }
        }
        Ok(Self {
            table: TableRef {
                family,
                name: required(table, "chain table")?,
            },
            name: required(name, "chain name")?,
            base: hook.map(|(hook, priority, device)| Base {
                kind,
                hook,
                priority,
                policy,
                device,
            }),
        })
    }
}

/// Writes table and name: for deletions.
pub(crate) fn write_name(table: &TableRef, name: &str, w: &mut Writer) {
    w.text(TABLE, &table.name);
    w.text(NAME, name);
}

pub(crate) fn read_policy(value: &[u8]) -> Result<Policy, DecodeError> {
    match attribute::u32(value, "chain policy")? {
        POLICY_ACCEPT => Ok(Policy::Accept),
        POLICY_DROP => Ok(Policy::Drop),
        _ => Err(DecodeError::Value {
            what: "chain policy",
        }),
    }
}

fn read_kind(value: &[u8]) -> Result<Kind, DecodeError> {
    let text = attribute::text(value, "chain type")?;
    [Kind::Filter, Kind::Nat, Kind::Route]
        .into_iter()
        .find(|kind| kind.text() == text)
        .ok_or(DecodeError::Value { what: "chain type" })
}

fn read_hook(family: Family, bytes: &[u8]) -> Result<(Hook, i32, Option<Name>), DecodeError> {
    let mut number = None;
    let mut priority = 0;
    let mut device = None;
    for attribute in Attributes::new(bytes) {
        let attribute = attribute?;
        match attribute.kind {
            HOOK_NUMBER => number = Some(attribute::u32(attribute.value, "hook")?),
            HOOK_PRIORITY => {
                priority = attribute::u32(attribute.value, "hook priority")?.cast_signed();
            }
            HOOK_DEVICE => device = Some(attribute::name(attribute.value, "hook device")?),
            HOOK_DEVICES => {
                for entry in Attributes::new(attribute.value) {
                    let entry = entry?;
                    if entry.kind == DEVICE_NAME && device.is_none() {
                        device = Some(attribute::name(entry.value, "hook device")?);
                    }
                }
            }
            _ => {}
        }
    }
    let hook = Hook::from_number(required(number, "hook")?, family)?;
    Ok((hook, priority, device))
}
