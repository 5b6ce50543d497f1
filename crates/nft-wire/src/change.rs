//! Changes: the messages that a transaction is made of, and that the kernel reports.

use crate::chain::Chain;
use crate::element::Elements;
use crate::name::{Name, TableRef};
use crate::rule::Rule;
use crate::set::Set;
use crate::table::Table;

/// One change. `Add` is content with what exists already, `Create` is refused (`EEXIST`) then.
///
/// What a dump or a notification reports is read as `Add` (and as `Create` when the message says
/// that it was exclusive).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Change {
    /// Makes a table, adopts an orphan whose flags say owner and persist, or changes flags.
    AddTable(Table),
    /// Makes a table.
    CreateTable(Table),
    /// Removes a table with all that is in it.
    DeleteTable(TableRef),
    /// Makes a chain; one that exists may change its policy.
    AddChain(Chain),
    /// Makes a chain.
    CreateChain(Chain),
    /// Removes a chain with its rules; refused (`EBUSY`) while something leads to it.
    DeleteChain {
        /// Its table.
        table: TableRef,
        /// Its name.
        name: Name,
    },
    /// Removes all rules of a chain.
    FlushChain {
        /// Its table.
        table: TableRef,
        /// Its name.
        name: Name,
    },
    /// Appends a rule to its chain.
    AddRule(Rule),
    /// Puts a rule before all others of its chain.
    InsertRule(Rule),
    /// Removes one rule.
    DeleteRule {
        /// Its table.
        table: TableRef,
        /// Its chain.
        chain: Name,
        /// The kernel's number for it.
        handle: u64,
    },
    /// Makes a set; one that exists must be alike.
    AddSet(Set),
    /// Makes a set.
    CreateSet(Set),
    /// Removes a set with its elements; refused (`EBUSY`) while a rule refers to it.
    DeleteSet {
        /// Its table.
        table: TableRef,
        /// Its name.
        name: Name,
    },
    /// Removes all elements of a set.
    FlushSet {
        /// Its table.
        table: TableRef,
        /// Its name.
        name: Name,
    },
    /// Adds elements; those that exist with the same verdict are fine, with another one it is
    /// refused (`EEXIST`).
    AddElements(Elements),
    /// Adds elements; any that exists is refused (`EEXIST`).
    CreateElements(Elements),
    /// Removes elements; one that is absent is refused (`ENOENT`).
    DeleteElements(Elements),
}

impl Change {
    /// The table that it is about, by name.
    pub const fn table(&self) -> &TableRef {
        match self {
            Self::AddTable(table) | Self::CreateTable(table) => &table.at,
            Self::AddChain(chain) | Self::CreateChain(chain) => &chain.table,
            Self::AddRule(rule) | Self::InsertRule(rule) => &rule.table,
            Self::AddSet(set) | Self::CreateSet(set) => &set.table,
            Self::AddElements(elements)
            | Self::CreateElements(elements)
            | Self::DeleteElements(elements) => &elements.table,
            Self::DeleteTable(table)
            | Self::DeleteChain { table, .. }
            | Self::FlushChain { table, .. }
            | Self::DeleteRule { table, .. }
            | Self::DeleteSet { table, .. }
            | Self::FlushSet { table, .. } => table,
        }
    }

    /// What it does and to what, for logs and errors.
    pub fn label(&self) -> String {
        let (verb, name) = match self {
            Self::AddTable(_) => ("add table", None),
            Self::CreateTable(_) => ("create table", None),
            Self::DeleteTable(_) => ("delete table", None),
            Self::AddChain(chain) => ("add chain", Some(&chain.name)),
            Self::CreateChain(chain) => ("create chain", Some(&chain.name)),
            Self::DeleteChain { name, .. } => ("delete chain", Some(name)),
            Self::FlushChain { name, .. } => ("flush chain", Some(name)),
            Self::AddRule(rule) => ("add rule to", Some(&rule.chain)),
            Self::InsertRule(rule) => ("insert rule into", Some(&rule.chain)),
            Self::DeleteRule { chain, .. } => ("delete rule from", Some(chain)),
            Self::AddSet(set) => ("add set", Some(&set.name)),
            Self::CreateSet(set) => ("create set", Some(&set.name)),
            Self::DeleteSet { name, .. } => ("delete set", Some(name)),
            Self::FlushSet { name, .. } => ("flush set", Some(name)),
            Self::AddElements(e) => ("add elements to", Some(&e.set)),
            Self::CreateElements(e) => ("create elements in", Some(&e.set)),
            Self::DeleteElements(e) => ("delete elements from", Some(&e.set)),
        };
        let table = self.table();
        name.map_or_else(
            || format!("{verb} {table}"),
            |name| format!("{verb} {table} {name}"),
        )
    }
}
