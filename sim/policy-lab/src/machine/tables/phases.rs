//! What packets can see while a transaction commits.

use std::sync::Arc;

use nft_wire::change::Change;
use nft_wire::set::Kind;

use super::{ChainState, Laws, SetState, Tables};
use crate::machine::refusal::Refusal;

impl Tables {
    /// What packets can see while the transaction commits: first new base chains are hooked, still empty; then the
    /// lists of rules of the next generation are in place; then the generation has changed, and with it the elements
    /// of sets; then what was removed is gone.
    ///
    /// # Errors
    /// As [`Self::after`].
    pub fn phases(&self, changes: &[Change]) -> Result<Vec<Self>, Refusal> {
        let mut next = self.after(changes)?;
        let empty = Arc::new(Laws {
            version: 0,
            list: Vec::new(),
        });
        let mut registered = self.clone();
        for (id, state) in &next.chains {
            if !self.chains.contains_key(id) {
                let mut state = ChainState::clone(state);
                state.slots = [Arc::clone(&empty), Arc::clone(&empty)];
                registered.chains.insert(*id, Arc::new(state));
            }
        }
        // Tables decide by their flags whether chains see packets.
        for (at, table) in &next.by_name {
            registered
                .by_name
                .entry(at.clone())
                .or_insert_with(|| table.clone());
        }
        let mut published = registered.clone();
        for (id, state) in &mut published.chains {
            let state = Arc::make_mut(state);
            let list = match next.chains.get(id) {
                Some(after) => Arc::clone(&after.slots[next.parity]),
                None => Arc::clone(&state.slots[self.parity]),
            };
            state.slots[next.parity] = list;
        }
        let mut flipped = published.clone();
        flipped.parity = next.parity;
        flipped.generation = next.generation;
        // Packets that hold a removed chain go on in it, and look into removed sets; elements of removed maps are
        // taken out at once.
        for (id, state) in &published.chains {
            if !next.chains.contains_key(id) {
                next.buried_chains.insert(*id, Arc::clone(state));
            }
        }
        for (id, state) in &self.sets {
            if !next.sets.contains_key(id) {
                let mut state = SetState::clone(state);
                if state.set.kind == Kind::Verdicts {
                    state.members.clear();
                }
                next.buried_sets.insert(*id, Arc::new(state));
            }
        }
        flipped.sets.clone_from(&next.sets);
        flipped.buried_sets.clone_from(&next.buried_sets);
        Ok(vec![registered, published, flipped, next])
    }
}
