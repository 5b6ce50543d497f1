//! An evaluator of nf_tables: a kernel's tables, made by transactions in their real encoding, and what they do with a
//! packet.
//!
//! It knows the expressions, sets and rules of reference that our layout uses, and it refuses what the kernel refuses,
//! so that a plan which is accepted here and by the kernel is the rule. Besides judging packets it shows what packets
//! can see *while* a transaction commits ([`Machine::phases`], [`Machine::fates`]).

pub mod conntrack;
pub mod members;
pub mod packet;
pub mod refusal;
pub mod tables;
pub mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use nft_wire::batch::encode_batch;
use nft_wire::change::Change;
use nft_wire::element::{Element, Elements};
use nft_wire::expr::DynsetOp;
use nft_wire::key::Key;
use nft_wire::message::decode_changes;
use nft_wire::name::TableRef;
use nft_wire::snapshot::Snapshot;

use crate::machine::conntrack::Conntrack;
use crate::machine::members::Member;
use crate::machine::packet::{Packet, Path};
use crate::machine::refusal::Refusal;
use crate::machine::tables::Tables;
use crate::machine::walk::{Effect, Fate, Position, Surroundings, Walk};

/// The packet filter of one network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// What transactions made.
    pub tables: Tables,
    /// Flows.
    pub conntrack: Conntrack,
    /// Packets that counters counted, by rule number and place in the rule.
    pub counters: BTreeMap<(u64, usize), u64>,
}

impl Machine {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a transaction: encodes it, reads the bytes back, and applies what was read.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed then.
    pub fn transact(&mut self, changes: &[Change]) -> Result<(), Refusal> {
        let (sent, owners) = through_bytes(changes)?;
        self.tables = self.tables.after(&sent).map_err(|r| by_owner(r, &owners))?;
        Ok(())
    }

    /// What packets can see while the transaction commits, in order; the last is the end.
    ///
    /// # Errors
    /// As [`Self::transact`].
    pub fn phases(&self, changes: &[Change]) -> Result<Vec<Self>, Refusal> {
        let (sent, owners) = through_bytes(changes)?;
        let phases = self
            .tables
            .phases(&sent)
            .map_err(|r| by_owner(r, &owners))?;
        Ok(phases
            .into_iter()
            .map(|tables| Self {
                tables,
                ..self.clone()
            })
            .collect())
    }

    /// Sends a packet on its way; flows, counters and dynamic sets take notice.
    pub fn send(&mut self, packet: &Packet, path: &Path) -> Fate {
        self.send_translated(packet, path, None)
    }

    /// As [`Self::send`], with the destination translated where the kernel does that.
    pub fn send_translated(
        &mut self,
        packet: &Packet,
        path: &Path,
        translated: Option<(IpAddr, u16)>,
    ) -> Fate {
        let mut walk = Walk::new(packet, path);
        let around = Surroundings {
            conntrack: &self.conntrack,
            translated,
        };
        let sight = self.conntrack.look(packet);
        let fate = walk.run(&self.tables, around);
        for effect in std::mem::take(&mut walk.effects) {
            self.apply(effect, sight.flow);
        }
        if fate.passed() {
            self.conntrack.pass(packet, translated);
        }
        fate
    }

    /// What would become of a packet that belongs to no known flow; nothing takes notice.
    pub fn judge(&self, packet: &Packet, path: &Path) -> (Fate, Walk) {
        let mut walk = Walk::new(packet, path);
        let empty = Conntrack::default();
        let around = Surroundings {
            conntrack: &empty,
            translated: None,
        };
        let fate = walk.run(&self.tables, around);
        (fate, walk)
    }

    fn apply(&mut self, effect: Effect, flow: Option<usize>) {
        match effect {
            Effect::Count(rule, place) => *self.counters.entry((rule, place)).or_default() += 1,
            Effect::Mark(mark) => {
                if let Some(flow) = flow {
                    self.conntrack.set_mark(flow, mark);
                }
            }
            Effect::Element(set, key, op) => {
                let Some(state) = self.tables.set_mut(set) else {
                    return;
                };
                let element = Element::member(Key::new(&key));
                if op == DynsetOp::Delete {
                    state.members.forget(&element.key);
                    return;
                }
                let member = Member {
                    verdict: None,
                    target: None,
                    dynamic: true,
                };
                if state
                    .members
                    .insert(&state.set, &element, member, false)
                    .is_ok()
                {
                    state.members.counts.entry(element.key).or_default().packets += 1;
                }
            }
        }
    }

    /// What a dump of the table says; `None` when there is no such table. The messages of the dump pass through
    /// their encoding as well.
    ///
    /// # Errors
    /// [`Refusal::Bytes`] when they do not survive that.
    pub fn dump(&self, at: &TableRef) -> Result<Option<Snapshot>, Refusal> {
        let Some(table) = self.tables.tables().find(|table| table.at == *at) else {
            return Ok(None);
        };
        let mut changes = Vec::new();
        let mut handles = Vec::new();
        for (chain, laws) in self.tables.chains().filter(|(chain, _)| chain.table == *at) {
            changes.push(Change::AddChain(chain.clone()));
            for law in &laws.list {
                changes.push(Change::AddRule(law.rule.clone()));
                handles.push(law.handle);
            }
        }
        for state in self.tables.sets().filter(|state| state.set.table == *at) {
            changes.push(Change::AddSet(state.set.clone()));
            changes.push(Change::AddElements(Elements {
                table: at.clone(),
                set: Arc::clone(&state.set.name),
                elements: state.members.elements(),
            }));
        }
        let mut snapshot = Snapshot::new(table.clone(), self.tables.generation);
        let mut handles = handles.into_iter();
        for mut change in through_bytes(&changes)?.0 {
            if let Change::AddRule(rule) = &mut change {
                rule.handle = handles.next();
            }
            snapshot.take(change);
        }
        Ok(Some(snapshot))
    }

    /// Every fate that a packet can have which starts at any moment while the kernel goes through these phases, and
    /// meets them at any of its own steps.
    pub fn fates(packet: &Packet, path: &Path, phases: &[Self]) -> BTreeSet<bool> {
        let mut fates = BTreeSet::new();
        let mut seen: BTreeSet<(usize, Position)> = BTreeSet::new();
        let start = Walk::new(packet, path);
        let mut open: Vec<(usize, Walk)> = vec![(0, start)];
        while let Some((phase, walk)) = open.pop() {
            if !seen.insert((phase, walk.position())) {
                continue;
            }
            let Some(machine) = phases.get(phase) else {
                continue;
            };
            if phase + 1 < phases.len() {
                open.push((phase + 1, walk.clone()));
            }
            let mut walk = walk;
            let around = Surroundings {
                conntrack: &machine.conntrack,
                translated: None,
            };
            match walk.step(&machine.tables, around) {
                Some(fate) => {
                    fates.insert(fate.passed());
                }
                None => open.push((phase, walk)),
            }
        }
        fates
    }
}

/// The changes as the kernel reads them, and for each the index of the change it came from.
fn through_bytes(changes: &[Change]) -> Result<(Vec<Change>, Vec<u32>), Refusal> {
    let batch = encode_batch(changes, 1).map_err(|e| Refusal::Bytes(e.to_string()))?;
    let read = decode_changes(&batch.bytes).map_err(|e| Refusal::Bytes(e.to_string()))?;
    if read.len() != batch.changes.len() {
        return Err(Refusal::Bytes(format!(
            "{} messages written, {} read",
            batch.changes.len(),
            read.len()
        )));
    }
    Ok((read, batch.changes))
}

fn by_owner(refusal: Refusal, owners: &[u32]) -> Refusal {
    match refusal {
        Refusal::Change { index, errno, what } => Refusal::Change {
            index: owners
                .get(index)
                .and_then(|owner| usize::try_from(*owner).ok())
                .unwrap_or(index),
            errno,
            what,
        },
        Refusal::Whole { .. } | Refusal::Bytes(_) => refusal,
    }
}

#[cfg(test)]
mod tests;
