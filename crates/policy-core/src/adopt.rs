//! What the kernel has, as far as we know, and how to know it from a dump.
//!
//! A warm restart compares the dump with what should be there and writes the difference alone. Content-addressed objects
//! whose content is not that of their name are put right in place, in one transaction: a chain's rules change for a
//! packet all at once. What nobody wants is garbage, whoever made it.

mod alike;
mod survey;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use nft_wire::key::Key;
use nft_wire::name::Name;
use nft_wire::verdict::Verdict;

pub use alike::{exprs_alike, rules_alike, set_alike};
pub use survey::{Wants, survey};

use crate::compile::Rank;
use crate::index::Member;
use crate::layout::frame::Exprs;
use crate::layout::names::Table;

/// One element of a set or map of fixed name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// The set.
    pub table: Table,
    /// The key.
    pub key: Key,
}

/// What an element says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carry {
    /// It is a member.
    Member,
    /// It leads to a verdict.
    Leads(Verdict),
}

impl Carry {
    /// Of an element as listed.
    pub fn of(verdict: Option<&Verdict>) -> Self {
        verdict.map_or(Self::Member, |v| Self::Leads(v.clone()))
    }

    /// The verdict, in a map.
    pub const fn verdict(&self) -> Option<&Verdict> {
        match self {
            Self::Member => None,
            Self::Leads(verdict) => Some(verdict),
        }
    }
}

/// A change of membership that the kernel does not have yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// In, or out.
    pub add: bool,
    /// When it came, in transactions that shrink.
    pub epoch: u64,
}

/// A chain or set by content that the kernel has.
#[derive(Debug, Clone)]
pub struct AppliedUnit {
    /// Its rank; for what nobody wants, a guess from its name.
    pub rank: Rank,
    /// A chain, or else a set.
    pub chain: bool,
    /// Its content is known to be that of its name.
    pub ours: bool,
    /// All of its first members are in: chains may refer to it.
    pub complete: bool,
    /// First members still to come; taken from the end.
    pub fill: Vec<Member>,
    /// Members that came or went since.
    pub pending: BTreeMap<Member, Pending>,
}

/// An object of fixed name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrameObject {
    /// The table with policies.
    Table,
    /// The table with anti-spoof chains.
    SpoofTable,
    /// A set or a map.
    Set(Name),
    /// A chain that is no base chain.
    Chain(Name),
    /// A base chain.
    Base(Name),
}

/// The state of one namespace's tables.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// Objects of fixed name that are there.
    pub frame: BTreeSet<FrameObject>,
    /// Units by name.
    pub units: HashMap<Name, AppliedUnit>,
    /// Elements of sets of fixed name.
    pub slots: BTreeMap<Slot, Carry>,
    /// Anti-spoof chains and their rules.
    pub spoof: BTreeMap<Name, Vec<Exprs>>,
    /// Chains and sets that are there but hold something else than they should.
    pub damaged: BTreeSet<Name>,
    /// A fixed object has another type: the tables have to be made anew.
    pub hopeless: Option<String>,
    /// Whether the table waits for an owner.
    pub orphan: bool,
}
