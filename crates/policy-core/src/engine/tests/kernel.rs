//! A kernel that takes transactions as nf_tables does: all or nothing, refusing what is absent, in use or different.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nft_wire::change::Change;
use nft_wire::element::Elements;
use nft_wire::expr::Expr;
use nft_wire::name::{Name, TableRef};
use nft_wire::snapshot::Snapshot;
use nft_wire::verdict::Verdict;

#[derive(Debug, Clone, Default)]
pub(super) struct Kernel {
    pub(super) tables: BTreeMap<TableRef, Snapshot>,
    /// Set and chain names that are refused when made, with an error number.
    pub(super) refuses: BTreeMap<String, i32>,
    pub(super) links: Option<BTreeSet<String>>,
    generation: u32,
}

/// Index of the change and error number.
pub(super) type Refused = (usize, i32);

const ENOENT: i32 = 2;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;

impl Kernel {
    pub(super) fn dump(&self) -> Vec<Snapshot> {
        self.tables.values().cloned().collect()
    }

    pub(super) fn policy(&self) -> &Snapshot {
        self.tables
            .values()
            .find(|t| &*t.at().name == "terway_policy")
            .unwrap()
    }

    pub(super) fn transact(&mut self, changes: &[Change]) -> Result<(), Refused> {
        let mut next = self.clone();
        next.generation += 1;
        for (index, change) in changes.iter().enumerate() {
            next.change(change).map_err(|errno| (index, errno))?;
        }
        *self = next;
        Ok(())
    }

    fn change(&mut self, change: &Change) -> Result<(), i32> {
        let generation = self.generation;
        if let Change::AddTable(table) = change {
            self.tables
                .entry(table.at.clone())
                .or_insert_with(|| Snapshot::new(table.clone(), generation));
            return Ok(());
        }
        if let Change::DeleteTable(at) = change {
            return self.tables.remove(at).map(|_| ()).ok_or(ENOENT);
        }
        let refuses = self.refuses.clone();
        let links = self.links.clone();
        let table = self.tables.get_mut(change.table()).ok_or(ENOENT)?;
        table.generation = generation;
        match change {
            Change::AddChain(chain) => {
                if let Some(errno) = refuses.get(&*chain.name) {
                    return Err(*errno);
                }
                let device = chain.base.as_ref().and_then(|b| b.device.as_ref());
                if let (Some(links), Some(device)) = (links, device)
                    && !links.contains(&**device)
                {
                    return Err(ENOENT);
                }
                if let Some(known) = table.chains.get(&chain.name) {
                    return if known.chain == *chain {
                        Ok(())
                    } else {
                        Err(EEXIST)
                    };
                }
                table.take(change.clone());
            }
            Change::AddRule(rule) => {
                if !table.chains.contains_key(&rule.chain) {
                    return Err(ENOENT);
                }
                for expr in &rule.exprs {
                    check_expr(table, expr)?;
                }
                table.take(change.clone());
            }
            Change::AddSet(set) => {
                if let Some(errno) = refuses.get(&*set.name) {
                    return Err(*errno);
                }
                if let Some(known) = table.sets.get(&set.name) {
                    return if known.set == *set {
                        Ok(())
                    } else {
                        Err(EEXIST)
                    };
                }
                table.take(change.clone());
            }
            Change::AddElements(elements) => add(table, elements)?,
            Change::DeleteElements(elements) => {
                let set = table.sets.get_mut(&elements.set).ok_or(ENOENT)?;
                for element in &elements.elements {
                    let place = set.elements.iter().position(|e| e.key == element.key);
                    set.elements.remove(place.ok_or(ENOENT)?);
                }
            }
            Change::FlushChain { name, .. } => {
                table.chains.get_mut(name).ok_or(ENOENT)?.rules.clear();
            }
            Change::FlushSet { name, .. } => {
                table.sets.get_mut(name).ok_or(ENOENT)?.elements.clear();
            }
            Change::DeleteChain { name, .. } => {
                let state = table.chains.remove(name).ok_or(ENOENT)?;
                if used(table).contains(name) {
                    table.chains.insert(Arc::clone(name), state);
                    return Err(EBUSY);
                }
            }
            Change::DeleteSet { name, .. } => {
                let state = table.sets.remove(name).ok_or(ENOENT)?;
                if used(table).contains(name) {
                    table.sets.insert(Arc::clone(name), state);
                    return Err(EBUSY);
                }
            }
            Change::AddTable(_)
            | Change::CreateTable(_)
            | Change::DeleteTable(_)
            | Change::CreateChain(_)
            | Change::InsertRule(_)
            | Change::DeleteRule { .. }
            | Change::CreateSet(_)
            | Change::CreateElements(_) => panic!("the layout has no such change: {change:?}"),
        }
        Ok(())
    }
}

fn add(table: &mut Snapshot, elements: &Elements) -> Result<(), i32> {
    let chains: BTreeSet<Name> = table.chains.keys().cloned().collect();
    let set = table.sets.get_mut(&elements.set).ok_or(ENOENT)?;
    for element in &elements.elements {
        let target = element.verdict.as_ref().and_then(Verdict::chain);
        if target.is_some_and(|chain| !chains.contains(chain)) {
            return Err(ENOENT);
        }
        let known = set
            .elements
            .iter()
            .find(|e| e.key == element.key && e.interval_end == element.interval_end);
        match known {
            Some(known) if known.verdict != element.verdict => return Err(EEXIST),
            Some(_) => {}
            None => set.elements.push(element.clone()),
        }
    }
    Ok(())
}

fn check_expr(table: &Snapshot, expr: &Expr) -> Result<(), i32> {
    let there = |name: &Name| table.chains.contains_key(name) || table.sets.contains_key(name);
    if refers(expr).is_none_or(there) {
        Ok(())
    } else {
        Err(ENOENT)
    }
}

/// What an expression refers to.
fn refers(expr: &Expr) -> Option<&Name> {
    if let Expr::Lookup { set, .. } | Expr::Dynset { set, .. } = expr {
        Some(set)
    } else if let Expr::Vmap { map, .. } = expr {
        Some(map)
    } else if let Expr::Verdict(verdict) = expr {
        verdict.chain()
    } else {
        None
    }
}

/// What rules and elements refer to.
pub(super) fn used(table: &Snapshot) -> BTreeSet<Name> {
    let mut out = BTreeSet::new();
    for rule in table.chains.values().flat_map(|c| &c.rules) {
        out.extend(rule.exprs.iter().filter_map(refers).cloned());
    }
    for element in table.sets.values().flat_map(|s| &s.elements) {
        out.extend(element.verdict.as_ref().and_then(Verdict::chain).cloned());
    }
    out
}
