//! What a table holds, put together from a dump.

use std::collections::BTreeMap;

use crate::chain::Chain;
use crate::change::Change;
use crate::element::Element;
use crate::name::{Name, TableRef};
use crate::rule::Rule;
use crate::set::Set;
use crate::table::Table;

/// A chain with its rules, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainState {
    /// The chain.
    pub chain: Chain,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// A set with its elements, in the kernel's order, which means nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetState {
    /// The set.
    pub set: Set,
    /// Its elements.
    pub elements: Vec<Element>,
}

/// A table with all that is in it, as of one generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The table.
    pub table: Table,
    /// The generation that was dumped.
    pub generation: u32,
    /// Its chains by name.
    pub chains: BTreeMap<Name, ChainState>,
    /// Its sets by name.
    pub sets: BTreeMap<Name, SetState>,
    /// Whether the table holds things that this crate does not describe: somebody else wrote into it.
    pub foreign: bool,
}

impl Snapshot {
    /// An empty table.
    pub const fn new(table: Table, generation: u32) -> Self {
        Self {
            table,
            generation,
            chains: BTreeMap::new(),
            sets: BTreeMap::new(),
            foreign: false,
        }
    }

    /// Takes in what a dump reports. Things of other tables are left out, and so are rules and
    /// elements of chains and sets that were not reported before.
    pub fn take(&mut self, change: Change) {
        if *change.table() != self.table.at {
            return;
        }
        match change {
            Change::AddTable(table) | Change::CreateTable(table) => self.table = table,
            Change::AddChain(chain) | Change::CreateChain(chain) => {
                let name = Name::clone(&chain.name);
                let rules = Vec::new();
                self.chains.insert(name, ChainState { chain, rules });
            }
            Change::AddRule(rule) | Change::InsertRule(rule) => {
                if let Some(state) = self.chains.get_mut(&rule.chain) {
                    state.rules.push(rule);
                }
            }
            Change::AddSet(set) | Change::CreateSet(set) => {
                let name = Name::clone(&set.name);
                let elements = Vec::new();
                self.sets.insert(name, SetState { set, elements });
            }
            Change::AddElements(more) | Change::CreateElements(more) => {
                if let Some(state) = self.sets.get_mut(&more.set) {
                    state.elements.extend(more.elements);
                }
            }
            Change::DeleteTable(_)
            | Change::DeleteChain { .. }
            | Change::FlushChain { .. }
            | Change::DeleteRule { .. }
            | Change::DeleteSet { .. }
            | Change::FlushSet { .. }
            | Change::DeleteElements(_) => {}
        }
    }

    /// Which table it is.
    pub const fn at(&self) -> &TableRef {
        &self.table.at
    }
}
