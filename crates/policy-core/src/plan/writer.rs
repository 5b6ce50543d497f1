//! Items of work as messages.

use std::ops::Range;
use std::sync::Arc;

use nft_wire::batch::encoded_len;
use nft_wire::change::Change;
use nft_wire::element::{Element, Elements};
use nft_wire::name::{Name, TableRef};
use nft_wire::rule::Rule;
use nft_wire::verdict::Verdict;

use crate::adopt::Slot;
use crate::index::Member;
use crate::layout::frame::{ChainSpec, Exprs};
use crate::layout::rules::member_key;

/// Messages of one transaction, and how many bytes they come to.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) changes: Vec<Change>,
    pub(super) bytes: usize,
}

impl Writer {
    pub(super) fn push(&mut self, change: Change) {
        self.bytes = self.bytes.saturating_add(encoded_len(&change));
        self.changes.push(change);
    }

    /// Where the next message will stand.
    pub(super) const fn at(&self) -> usize {
        self.changes.len()
    }

    /// The messages since a place.
    pub(super) const fn since(&self, start: usize) -> Range<usize> {
        start..self.changes.len()
    }

    pub(super) fn chain(&mut self, spec: &ChainSpec) {
        self.push(Change::AddChain(spec.chain.clone()));
        self.rules(&spec.chain.table, &spec.chain.name, &spec.rules);
    }

    /// Empties a chain and fills it again: a packet sees the one or the other.
    pub(super) fn chain_anew(&mut self, spec: &ChainSpec) {
        self.push(Change::AddChain(spec.chain.clone()));
        self.push(Change::FlushChain {
            table: spec.chain.table.clone(),
            name: Arc::clone(&spec.chain.name),
        });
        self.rules(&spec.chain.table, &spec.chain.name, &spec.rules);
    }

    fn rules(&mut self, table: &TableRef, chain: &Name, rules: &[Exprs]) {
        for exprs in rules {
            self.push(Change::AddRule(Rule::new(table, chain, exprs.clone())));
        }
    }

    pub(super) fn add(&mut self, table: &TableRef, set: &Name, elements: Vec<Element>) {
        if !elements.is_empty() {
            self.push(Change::AddElements(Elements {
                table: table.clone(),
                set: Arc::clone(set),
                elements,
            }));
        }
    }

    pub(super) fn delete(&mut self, table: &TableRef, set: &Name, elements: Vec<Element>) {
        if !elements.is_empty() {
            self.push(Change::DeleteElements(Elements {
                table: table.clone(),
                set: Arc::clone(set),
                elements,
            }));
        }
    }
}

/// Members as elements.
pub(super) fn elements<'a>(members: impl IntoIterator<Item = &'a Member>) -> Vec<Element> {
    members
        .into_iter()
        .map(|m| Element::member(member_key(m)))
        .collect()
}

/// An element of a set of fixed name.
pub(super) fn slot_element(slot: &Slot, verdict: Option<&Verdict>) -> Element {
    let mut element = Element::member(slot.key.clone());
    element.verdict = verdict.cloned();
    element
}

/// Bytes of one member in a message, roughly.
pub(super) const fn member_bytes(member: &Member) -> usize {
    let address = if member.ip.is_ipv4() { 4 } else { 16 };
    let port = if member.port.is_some() { 8 } else { 0 };
    12 + address + port
}
