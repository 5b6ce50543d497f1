//! What became of the members of sets, coalesced.

use std::collections::HashMap;

use super::vocabulary::{Member, SetDelta, SetId};

/// Changes not taken yet.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// By set and member: whether it came.
    sets: HashMap<u32, HashMap<Member, bool>>,
}

impl Tally {
    /// A member came that was not there.
    pub(super) fn came(&mut self, set: u32, member: Member) {
        self.note(set, member, true);
    }

    /// A member went that was there.
    pub(super) fn went(&mut self, set: u32, member: Member) {
        self.note(set, member, false);
    }

    fn note(&mut self, set: u32, member: Member, came: bool) {
        let members = self.sets.entry(set).or_default();
        // Coming and going take turns, so that a second one of the other kind undoes the first.
        if members.get(&member) == Some(&!came) {
            members.remove(&member);
        } else {
            members.insert(member, came);
        }
    }

    /// Forgets a set.
    pub(super) fn forget(&mut self, set: u32) {
        self.sets.remove(&set);
    }

    /// Takes everything, sorted.
    pub(super) fn take(&mut self) -> Vec<SetDelta> {
        let mut deltas: Vec<SetDelta> = std::mem::take(&mut self.sets)
            .into_iter()
            .filter(|(_, members)| !members.is_empty())
            .map(|(set, members)| {
                let mut delta = SetDelta {
                    id: SetId(set),
                    added: Vec::new(),
                    removed: Vec::new(),
                };
                for (member, came) in members {
                    if came {
                        delta.added.push(member);
                    } else {
                        delta.removed.push(member);
                    }
                }
                delta.added.sort();
                delta.removed.sort();
                delta
            })
            .collect();
        deltas.sort_by_key(|delta| delta.id);
        deltas
    }
}
