//! Strings by number.
//!
//! Nothing counts the users of a string: now and then all that are in use are marked and the others go, so that there
//! are never more than twice as many as were in use at the last time, and [`SLACK`] more.

use std::hash::BuildHasher;

use foldhash::quality::RandomState;
use hashbrown::HashTable;

use super::slab::{Slab, at};

/// Strings that may be kept without use.
pub(super) const SLACK: usize = 4096;

/// Strings by number.
#[derive(Debug, Default)]
pub(super) struct Strings {
    items: Slab<Box<str>>,
    table: HashTable<u32>,
    hasher: RandomState,
    used: usize,
}

impl Strings {
    /// The number of a string, a new one if need be.
    pub(super) fn intern(&mut self, text: &str) -> u32 {
        if let Some(id) = self.get(text) {
            return id;
        }
        let id = self.items.insert(Box::from(text));
        let hash = self.hasher.hash_one(text);
        let (items, hasher) = (&self.items, &self.hasher);
        self.table.insert_unique(hash, id, |id| {
            hasher.hash_one(items.get(*id).map_or("", AsRef::as_ref))
        });
        id
    }

    /// The number of a string that is kept.
    pub(super) fn get(&self, text: &str) -> Option<u32> {
        self.table
            .find(self.hasher.hash_one(text), |id| self.text(*id) == text)
            .copied()
    }

    /// The string of a number; empty for one that is not kept.
    pub(super) fn text(&self, id: u32) -> &str {
        self.items.get(id).map_or("", AsRef::as_ref)
    }

    /// How many are kept.
    pub(super) const fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether it is time to let those go that are not in use.
    pub(super) const fn is_due(&self) -> bool {
        self.len() > self.used.saturating_mul(2).saturating_add(SLACK)
    }

    /// Lets all go that are not marked.
    pub(super) fn retain(&mut self, marks: &Marks) {
        let items = &mut self.items;
        self.table.retain(|id| {
            let stays = marks.has(*id);
            if !stays {
                items.remove(*id);
            }
            stays
        });
        self.used = self.len();
    }

    /// Memory held, bytes.
    pub(super) fn bytes(&self) -> usize {
        let texts: usize = self
            .items
            .iter()
            .map(|(_, text)| super::block(text.len()))
            .sum();
        texts
            .saturating_add(self.items.bytes())
            .saturating_add(self.table.capacity().saturating_mul(6))
    }
}

/// Which strings are in use.
#[derive(Debug, Default)]
pub(super) struct Marks(Vec<bool>);

impl Marks {
    /// Marks a string.
    pub(super) fn set(&mut self, id: u32) {
        if self.0.len() <= at(id) {
            self.0.resize(at(id).saturating_add(1), false);
        }
        if let Some(mark) = self.0.get_mut(at(id)) {
            *mark = true;
        }
    }

    fn has(&self, id: u32) -> bool {
        self.0.get(at(id)).copied().unwrap_or(false)
    }
}
