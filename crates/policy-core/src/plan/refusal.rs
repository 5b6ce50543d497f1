//! Objects that the kernel refuses, and what its errors mean.

use std::fmt;

use nft_wire::name::Name;

use crate::adopt::Slot;

/// What can be refused by itself, so that everything else goes on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Object {
    /// A chain or set by content.
    Unit(Name),
    /// Members of a set.
    Members(Name),
    /// An element of a set of fixed name.
    Slot(Slot),
    /// The anti-spoof chain of a link.
    Spoof(Name),
    /// The removal of something.
    Removal(Name),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unit(name) => write!(f, "{name}"),
            Self::Members(name) => write!(f, "members of {name}"),
            Self::Slot(slot) => write!(f, "element of {}", slot.table.name()),
            Self::Spoof(link) => write!(f, "anti-spoof chain of {link}"),
            Self::Removal(name) => write!(f, "removal of {name}"),
        }
    }
}

/// How often, and whether it is left out from now on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refusal {
    /// The last error number.
    pub errno: i32,
    /// How often in a row.
    pub strikes: u32,
    /// It is not tried any more.
    pub stuck: bool,
}

/// What an error says about the object that got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Nothing: the same may work a moment later.
    Passing,
    /// Nothing at first: memory is short, or something is in use. It is the object's own fault when it stays so.
    Scarce,
    /// What we think the kernel has is not what it has.
    Mismatch,
    /// The kernel does not take the object.
    Definite,
}

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EINTR: i32 = 4;
const EAGAIN: i32 = 11;
const ENOMEM: i32 = 12;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const ENFILE: i32 = 23;
const ENOBUFS: i32 = 105;

/// Refusals of one object in a row before it is left out, where one alone says nothing.
pub(super) const PATIENCE: u32 = 4;

pub(super) const fn meaning(errno: i32) -> Meaning {
    match errno {
        EPERM | EINTR | EAGAIN | ENOBUFS => Meaning::Passing,
        ENOMEM | EBUSY | ENFILE => Meaning::Scarce,
        ENOENT | EEXIST => Meaning::Mismatch,
        _ => Meaning::Definite,
    }
}

/// Whether a removal failed because there was nothing to remove.
pub(super) const fn is_absent(errno: i32) -> bool {
    errno == ENOENT
}
