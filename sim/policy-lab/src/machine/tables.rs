//! Tables, chains, sets and their references: what a transaction changes.
//!
//! Objects have numbers that are never used again, so that a packet which still holds a removed chain does not find
//! its successor of the same name. Each chain has two lists of rules, as in the kernel: one for each parity of the
//! generation; see [`Tables::phases`].

mod check;
mod phases;

use std::collections::BTreeMap;
use std::sync::Arc;

use nft_wire::chain::{Base, Chain, Hook};
use nft_wire::change::Change;
use nft_wire::element::Elements;
use nft_wire::expr::Expr;
use nft_wire::name::{Name, TableRef};
use nft_wire::rule::Rule;
use nft_wire::set::{Kind, Set};
use nft_wire::table::Table;
use nft_wire::verdict::Verdict;

use crate::machine::members::{Member, Members};
use crate::machine::refusal::{Errno, Refusal};

/// A rule with what its names meant when it was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Law {
    /// As it was written.
    pub rule: Rule,
    /// The kernel's number for it.
    pub handle: u64,
    /// For each expression the set or chain that it names.
    pub refers: Vec<Option<u64>>,
}

/// The rules of a chain at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Laws {
    /// Tells one content from another.
    pub version: u64,
    /// In order.
    pub list: Vec<Arc<Law>>,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainState {
    /// Its definition.
    pub chain: Chain,
    /// Rules by parity of the generation.
    pub slots: [Arc<Laws>; 2],
    pending: Option<Laws>,
}

/// A set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetState {
    /// Its definition.
    pub set: Set,
    /// Its elements.
    pub members: Members,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct TableState {
    table: Table,
    chains: BTreeMap<Name, u64>,
    sets: BTreeMap<Name, u64>,
}

/// Everything that transactions change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// Parity of the generation, 0 or 1.
    pub parity: usize,
    /// Counts transactions.
    pub generation: u32,
    by_name: BTreeMap<TableRef, TableState>,
    chains: BTreeMap<u64, Arc<ChainState>>,
    sets: BTreeMap<u64, Arc<SetState>>,
    // Removed while packets may still hold them; only in phases.
    buried_chains: BTreeMap<u64, Arc<ChainState>>,
    buried_sets: BTreeMap<u64, Arc<SetState>>,
    uses: BTreeMap<u64, usize>,
    next: u64,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            parity: 0,
            generation: 1,
            by_name: BTreeMap::new(),
            chains: BTreeMap::new(),
            sets: BTreeMap::new(),
            buried_chains: BTreeMap::new(),
            buried_sets: BTreeMap::new(),
            uses: BTreeMap::new(),
            next: 1,
        }
    }
}

type Fault = (Errno, String);

fn fault<T>(errno: Errno, what: impl Into<String>) -> Result<T, Fault> {
    Err((errno, what.into()))
}

impl Tables {
    /// A chain by its number.
    pub fn chain(&self, id: u64) -> Option<&Arc<ChainState>> {
        self.chains.get(&id).or_else(|| self.buried_chains.get(&id))
    }

    /// A set by its number.
    pub fn set(&self, id: u64) -> Option<&Arc<SetState>> {
        self.sets.get(&id).or_else(|| self.buried_sets.get(&id))
    }

    /// A set's members, to be changed by a packet.
    pub fn set_mut(&mut self, id: u64) -> Option<&mut SetState> {
        self.sets.get_mut(&id).map(Arc::make_mut)
    }

    /// The base chains of a hook by priority; of ingress, those of the device.
    pub fn hooked(&self, hook: Hook, device: Option<&str>) -> Vec<u64> {
        let mut found: Vec<(i32, u64)> = self
            .chains
            .iter()
            .filter_map(|(id, state)| {
                let base = state.chain.base.as_ref()?;
                let dormant = self
                    .by_name
                    .get(&state.chain.table)
                    .is_some_and(|table| table.table.flags.dormant);
                let here = base.hook == hook && base.device.as_deref() == device && !dormant;
                here.then_some((base.priority, *id))
            })
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, id)| id).collect()
    }

    /// All tables.
    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        self.by_name.values().map(|state| &state.table)
    }

    /// All chains with their rules now.
    pub fn chains(&self) -> impl Iterator<Item = (&Chain, &Laws)> {
        self.chains
            .values()
            .map(|state| (&state.chain, &*state.slots[self.parity]))
    }

    /// All sets with their elements.
    pub fn sets(&self) -> impl Iterator<Item = &SetState> {
        self.sets.values().map(|set| &**set)
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn count(&mut self, id: Option<u64>) {
        if let Some(id) = id {
            *self.uses.entry(id).or_default() += 1;
        }
    }

    fn release(&mut self, id: Option<u64>) {
        if let Some(id) = id
            && let Some(count) = self.uses.get_mut(&id)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.uses.remove(&id);
            }
        }
    }

    fn table_mut(&mut self, at: &TableRef) -> Result<&mut TableState, Fault> {
        self.by_name
            .get_mut(at)
            .ok_or_else(|| (Errno::NoEntry, format!("no table {at}")))
    }

    fn chain_id(&self, at: &TableRef, name: &str) -> Result<u64, Fault> {
        self.by_name
            .get(at)
            .and_then(|table| table.chains.get(name).copied())
            .ok_or_else(|| (Errno::NoEntry, format!("no chain {name} in {at}")))
    }

    fn set_id(&self, at: &TableRef, name: &str) -> Result<u64, Fault> {
        self.by_name
            .get(at)
            .and_then(|table| table.sets.get(name).copied())
            .ok_or_else(|| (Errno::NoEntry, format!("no set {name} in {at}")))
    }

    /// The tables after all of the changes, or why there is no such thing.
    ///
    /// # Errors
    /// [`Refusal`], by the kernel's rules; nothing has changed then.
    pub fn after(&self, changes: &[Change]) -> Result<Self, Refusal> {
        let mut next = self.clone();
        for (index, change) in changes.iter().enumerate() {
            next.change(change)
                .map_err(|(errno, what)| Refusal::Change {
                    index,
                    errno,
                    what: format!("{}: {what}", change.label()),
                })?;
        }
        next.check()
            .map_err(|(errno, what)| Refusal::Whole { errno, what })?;
        next.commit();
        Ok(next)
    }

    fn change(&mut self, change: &Change) -> Result<(), Fault> {
        match change {
            Change::AddTable(table) => self.add_table(table, false),
            Change::CreateTable(table) => self.add_table(table, true),
            Change::DeleteTable(at) => self.delete_table(at),
            Change::AddChain(chain) => self.add_chain(chain, false),
            Change::CreateChain(chain) => self.add_chain(chain, true),
            Change::DeleteChain { table, name } => self.delete_chain(table, name),
            Change::FlushChain { table, name } => {
                let id = self.chain_id(table, name)?;
                self.replace(id, Vec::new())
            }
            Change::AddRule(rule) => self.add_rule(rule, false),
            Change::InsertRule(rule) => self.add_rule(rule, true),
            Change::DeleteRule {
                table,
                chain,
                handle,
            } => {
                let id = self.chain_id(table, chain)?;
                let list = self.rules(id);
                let rest: Vec<_> = list
                    .iter()
                    .filter(|l| l.handle != *handle)
                    .cloned()
                    .collect();
                if rest.len() == list.len() {
                    return fault(Errno::NoEntry, format!("no rule {handle}"));
                }
                self.replace(id, rest)
            }
            Change::AddSet(set) => self.add_set(set, false),
            Change::CreateSet(set) => self.add_set(set, true),
            Change::DeleteSet { table, name } => self.delete_set(table, name),
            Change::FlushSet { table, name } => {
                let id = self.set_id(table, name)?;
                let targets = self
                    .set_mut(id)
                    .map(|s| s.members.clear())
                    .unwrap_or_default();
                for target in targets {
                    self.release(Some(target));
                }
                Ok(())
            }
            Change::AddElements(elements) => self.add_elements(elements, false),
            Change::CreateElements(elements) => self.add_elements(elements, true),
            Change::DeleteElements(elements) => self.delete_elements(elements),
        }
    }

    fn add_table(&mut self, table: &Table, exclusive: bool) -> Result<(), Fault> {
        if let Some(there) = self.by_name.get_mut(&table.at) {
            if exclusive {
                return fault(Errno::Exists, "the table exists");
            }
            there.table.flags = table.flags;
            return Ok(());
        }
        let state = TableState {
            table: table.clone(),
            chains: BTreeMap::new(),
            sets: BTreeMap::new(),
        };
        self.by_name.insert(table.at.clone(), state);
        Ok(())
    }

    fn delete_table(&mut self, at: &TableRef) -> Result<(), Fault> {
        let Some(table) = self.by_name.remove(at) else {
            return fault(Errno::NoEntry, "no such table");
        };
        for id in table.chains.values().chain(table.sets.values()) {
            self.chains.remove(id);
            self.sets.remove(id);
            self.uses.remove(id);
        }
        Ok(())
    }

    fn add_chain(&mut self, chain: &Chain, exclusive: bool) -> Result<(), Fault> {
        let id = self.id();
        let table = self.table_mut(&chain.table)?;
        if let Some(there) = table.chains.get(&chain.name).copied() {
            if exclusive {
                return fault(Errno::Exists, "the chain exists");
            }
            let Some(state) = self.chains.get_mut(&there).map(Arc::make_mut) else {
                return fault(Errno::Invalid, "lost chain");
            };
            return match (&mut state.chain.base, &chain.base) {
                (_, None) => Ok(()),
                (Some(is), Some(wanted)) => {
                    let alike = Base {
                        policy: is.policy,
                        ..wanted.clone()
                    };
                    if *is != alike {
                        return fault(Errno::Exists, "the chain has another hook");
                    }
                    is.policy = wanted.policy;
                    Ok(())
                }
                (None, Some(_)) => fault(Errno::Exists, "the chain has no hook"),
            };
        }
        table.chains.insert(Name::clone(&chain.name), id);
        let empty = Arc::new(Laws {
            version: 0,
            list: Vec::new(),
        });
        let state = ChainState {
            chain: chain.clone(),
            slots: [Arc::clone(&empty), empty],
            pending: None,
        };
        self.chains.insert(id, Arc::new(state));
        Ok(())
    }

    fn delete_chain(&mut self, at: &TableRef, name: &str) -> Result<(), Fault> {
        let id = self.chain_id(at, name)?;
        self.replace(id, Vec::new())?;
        if self.uses.contains_key(&id) {
            return fault(Errno::Busy, "something leads to the chain");
        }
        self.table_mut(at)?.chains.remove(name);
        self.chains.remove(&id);
        Ok(())
    }

    fn rules(&self, id: u64) -> Vec<Arc<Law>> {
        let Some(state) = self.chains.get(&id) else {
            return Vec::new();
        };
        match &state.pending {
            Some(laws) => laws.list.clone(),
            None => state.slots[self.parity].list.clone(),
        }
    }

    /// Gives a chain other rules, and counts the references of those that went.
    fn replace(&mut self, id: u64, list: Vec<Arc<Law>>) -> Result<(), Fault> {
        for law in self.rules(id) {
            if !list.iter().any(|kept| kept.handle == law.handle) {
                for refers in &law.refers {
                    self.release(*refers);
                }
            }
        }
        let version = self.id();
        match self.chains.get_mut(&id).map(Arc::make_mut) {
            Some(state) => {
                state.pending = Some(Laws { version, list });
                Ok(())
            }
            None => fault(Errno::Invalid, "lost chain"),
        }
    }

    fn add_rule(&mut self, rule: &Rule, front: bool) -> Result<(), Fault> {
        let id = self.chain_id(&rule.table, &rule.chain)?;
        let mut refers = Vec::with_capacity(rule.exprs.len());
        for expr in &rule.exprs {
            refers.push(self.resolve(&rule.table, expr)?);
        }
        for id in &refers {
            self.count(*id);
        }
        let handle = self.id();
        let law = Arc::new(Law {
            rule: rule.clone(),
            handle,
            refers,
        });
        // Rules are appended by the hundred: no copy of the list for each.
        let current = Arc::clone(match self.chains.get(&id) {
            Some(state) => &state.slots[self.parity],
            None => return fault(Errno::Invalid, "lost chain"),
        });
        let version = self.id();
        if let Some(state) = self.chains.get_mut(&id).map(Arc::make_mut) {
            let laws = state.pending.get_or_insert_with(|| Laws::clone(&current));
            laws.version = version;
            let at = if front { 0 } else { laws.list.len() };
            laws.list.insert(at, law);
        }
        Ok(())
    }

    /// The set or chain that an expression names.
    fn resolve(&self, at: &TableRef, expr: &Expr) -> Result<Option<u64>, Fault> {
        match expr {
            Expr::Lookup { set, .. } => {
                let id = self.set_id(at, set)?;
                self.expect_kind(id, Kind::Plain)?;
                Ok(Some(id))
            }
            Expr::Vmap { map, .. } => {
                let id = self.set_id(at, map)?;
                self.expect_kind(id, Kind::Verdicts)?;
                Ok(Some(id))
            }
            Expr::Dynset { set, .. } => {
                let id = self.set_id(at, set)?;
                let dynamic = self.sets.get(&id).is_some_and(|s| s.set.flags.dynamic);
                if !dynamic {
                    return fault(Errno::Unsupported, format!("{set} is not dynamic"));
                }
                Ok(Some(id))
            }
            Expr::Verdict(verdict) => self.target(at, verdict),
            Expr::CounterRef { name } | Expr::CounterMap { map: name, .. } => {
                fault(Errno::NoEntry, format!("no object {name}"))
            }
            Expr::Other { name, .. } => fault(Errno::NoEntry, format!("no expression {name} here")),
            Expr::Meta { .. }
            | Expr::MetaSet { .. }
            | Expr::Ct { .. }
            | Expr::CtSet { .. }
            | Expr::Payload { .. }
            | Expr::Cmp { .. }
            | Expr::Range { .. }
            | Expr::Bitwise { .. }
            | Expr::Byteorder { .. }
            | Expr::Immediate { .. }
            | Expr::Counter { .. }
            | Expr::Reject(_)
            | Expr::Limit { .. } => Ok(None),
        }
    }

    fn expect_kind(&self, id: u64, kind: Kind) -> Result<(), Fault> {
        if self.sets.get(&id).is_some_and(|s| s.set.kind == kind) {
            Ok(())
        } else {
            fault(Errno::Invalid, "the set is of the other kind")
        }
    }

    fn target(&self, at: &TableRef, verdict: &Verdict) -> Result<Option<u64>, Fault> {
        let Some(name) = verdict.chain() else {
            return Ok(None);
        };
        let id = self.chain_id(at, name)?;
        let based = self.chains.get(&id).is_some_and(|c| c.chain.base.is_some());
        if based {
            return fault(Errno::Unsupported, format!("{name} is a base chain"));
        }
        Ok(Some(id))
    }

    fn add_set(&mut self, set: &Set, exclusive: bool) -> Result<(), Fault> {
        let id = self.id();
        let table = self.table_mut(&set.table)?;
        if let Some(there) = table.sets.get(&set.name).copied() {
            let alike = self.sets.get(&there).is_some_and(|s| {
                s.set.key == set.key && s.set.kind == set.kind && s.set.flags == set.flags
            });
            return if exclusive || !alike {
                fault(Errno::Exists, "the set exists")
            } else {
                Ok(())
            };
        }
        if set.key.is_empty() || nft_wire::key::key_len(&set.key) > nft_wire::key::KEY_MAX {
            return fault(Errno::Invalid, "no such key");
        }
        table.sets.insert(Name::clone(&set.name), id);
        let state = SetState {
            set: set.clone(),
            members: Members::default(),
        };
        self.sets.insert(id, Arc::new(state));
        Ok(())
    }

    fn delete_set(&mut self, at: &TableRef, name: &str) -> Result<(), Fault> {
        let id = self.set_id(at, name)?;
        if self.uses.contains_key(&id) {
            return fault(Errno::Busy, "a rule refers to the set");
        }
        let targets = self
            .set_mut(id)
            .map(|s| s.members.clear())
            .unwrap_or_default();
        for target in targets {
            self.release(Some(target));
        }
        self.table_mut(at)?.sets.remove(name);
        self.sets.remove(&id);
        Ok(())
    }

    fn add_elements(&mut self, elements: &Elements, exclusive: bool) -> Result<(), Fault> {
        let id = self.set_id(&elements.table, &elements.set)?;
        let bound = self.uses.contains_key(&id);
        for element in &elements.elements {
            let target = match &element.verdict {
                Some(verdict) => self.target(&elements.table, verdict)?,
                None => None,
            };
            let Some(state) = self.set_mut(id) else {
                return fault(Errno::Invalid, "lost set");
            };
            let SetState { set, members } = state;
            if set.flags.constant && bound {
                return fault(Errno::Busy, "the set is constant and in use");
            }
            if (set.kind == Kind::Verdicts) != element.verdict.is_some() && !element.interval_end {
                return fault(Errno::Invalid, "an element of the other kind");
            }
            if element.key.as_bytes().len() != nft_wire::key::key_len(&set.key) {
                return fault(Errno::Invalid, "a key of another length");
            }
            let member = Member {
                verdict: element.verdict.clone(),
                target,
                dynamic: false,
            };
            let before = members.len();
            members
                .insert(set, element, member, exclusive)
                .map_err(|errno| (errno, format!("element {:?}", element.key)))?;
            let added = members.len() > before;
            if added
                && set
                    .size
                    .is_some_and(|most| usize::try_from(most).is_ok_and(|m| members.len() > m))
            {
                return fault(Errno::TooMany, "the set is full");
            }
            if added {
                self.count(target);
            }
        }
        Ok(())
    }

    fn delete_elements(&mut self, elements: &Elements) -> Result<(), Fault> {
        let id = self.set_id(&elements.table, &elements.set)?;
        for element in &elements.elements {
            let Some(SetState { set, members }) = self.set_mut(id) else {
                return fault(Errno::Invalid, "lost set");
            };
            let target = members
                .remove(set, element)
                .map_err(|errno| (errno, format!("element {:?}", element.key)))?;
            self.release(target);
        }
        Ok(())
    }

    fn commit(&mut self) {
        let next = 1 - self.parity;
        for state in self.chains.values_mut() {
            let now = Arc::clone(&state.slots[self.parity]);
            if state.pending.is_none() && Arc::ptr_eq(&now, &state.slots[next]) {
                continue;
            }
            let state = Arc::make_mut(state);
            state.slots[next] = match state.pending.take() {
                Some(laws) => Arc::new(laws),
                None => now,
            };
        }
        self.parity = next;
        self.generation = self.generation.wrapping_add(1);
    }
}
