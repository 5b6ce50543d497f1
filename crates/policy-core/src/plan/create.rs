//! The part of a change that nothing leads to yet.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use nft_wire::change::Change;
use nft_wire::name::Name;

use super::draft::Draft;
use super::flight::Item;
use super::writer::{Writer, elements, member_bytes};
use super::{Object, Plan};
use crate::adopt::{AppliedUnit, FrameObject};
use crate::compile::{Content, Unit};
use crate::index::{Index, Member};
use crate::layout::frame::{ChainSpec, Exprs};
use crate::layout::names::inet;
use crate::layout::rules::peer_set;

/// Members that a set is given before it is another one's turn.
const IN_TURN: usize = 4_000;
/// A set with more members than this is made with a few of them, and filled in turn with others.
const LARGE: usize = 16_000;

impl Plan {
    pub(super) fn draft_create(&self, index: &Index) -> Draft {
        let mut draft = Draft::new(self.limit, self.settings.batch_bytes);
        let at = inet(&self.settings);
        if self.applied.orphan {
            self.frame.write(&FrameObject::Table, &mut draft.writer);
            draft.put(0, Item::Claim);
        }
        for object in &self.frame.objects {
            let base = matches!(object, FrameObject::Base(_));
            if base || self.applied.frame.contains(object) || draft.is_full() {
                continue;
            }
            let start = draft.writer.at();
            self.frame.write(object, &mut draft.writer);
            draft.put(start, Item::Frame(object.clone()));
        }
        // Units that are whole once this transaction took effect.
        let mut whole: HashSet<Name> = HashSet::new();
        self.draft_fills(&mut draft, &mut whole);
        for (_, name) in &self.dirty_units {
            if draft.is_full() {
                break;
            }
            let Some(wanted) = self.wanted.get(name) else {
                continue;
            };
            if self.blocked.contains(name) || !self.needs_are_met(&wanted.unit, &whole) {
                continue;
            }
            if self.draft_unit(&wanted.unit, index, &mut draft) {
                whole.insert(Arc::clone(name));
            }
        }
        for name in &self.applied.damaged {
            if draft.is_full() {
                break;
            }
            let start = draft.writer.at();
            if let Some(spec) = self.frame.chain(name) {
                draft.writer.chain_anew(spec);
            } else if let Some(wanted) = self.wanted.get(name) {
                if !self.needs_are_met(&wanted.unit, &whole) {
                    continue;
                }
                self.write_anew(&wanted.unit, &mut draft.writer);
            } else if let Some(spec) = self.frame.set(name) {
                draft.writer.push(Change::FlushSet {
                    table: at.clone(),
                    name: Arc::clone(name),
                });
                draft.writer.add(&at, name, spec.elements.clone());
            } else {
                continue;
            }
            draft.put(start, Item::Repair(Arc::clone(name)));
        }
        for link in &self.dirty_spoof {
            if draft.is_full() {
                break;
            }
            let Some((_, spec)) = self.spoof.get(link) else {
                continue;
            };
            if !self.frame.spoof || self.is_stuck(&Object::Spoof(Arc::clone(link))) {
                continue;
            }
            let start = draft.writer.at();
            draft.writer.chain_anew(spec);
            draft.put(start, Item::Spoof(Arc::clone(link), spec.rules.clone()));
        }
        draft
    }

    /// First members of sets that did not come with the transaction that made them: of all such sets in turn, since
    /// the kernel makes a set's table larger beside, and is slow to put members into one that is too small.
    fn draft_fills(&self, draft: &mut Draft, whole: &mut HashSet<Name>) {
        let at = inet(&self.settings);
        let mut left: Vec<(&Name, &[Member])> = self
            .dirty_sets
            .iter()
            .filter(|name| {
                !self.applied.damaged.contains(*name)
                    && !self.is_stuck(&Object::Members(Arc::clone(name)))
            })
            .filter_map(|name| Some((name, self.applied.units.get(name)?.fill.as_slice())))
            .filter(|(_, fill)| !fill.is_empty())
            .collect();
        while !left.is_empty() {
            for (name, fill) in &mut left {
                if draft.is_full() {
                    return;
                }
                let start = draft.writer.at();
                let each = fill.last().map_or(1, member_bytes);
                let take = draft.room_for(each).min(fill.len()).min(IN_TURN);
                let (rest, chunk) = fill.split_at(fill.len() - take);
                draft.writer.add(&at, name, elements(chunk));
                draft.put(start, Item::Fill(Arc::clone(name), take));
                if rest.is_empty() {
                    whole.insert(Arc::clone(name));
                }
                *fill = rest;
            }
            left.retain(|(_, fill)| !fill.is_empty());
        }
    }

    fn needs_are_met(&self, unit: &Unit, whole: &HashSet<Name>) -> bool {
        unit.needs.iter().all(|need| {
            whole.contains(&need.name)
                || self
                    .applied
                    .units
                    .get(&need.name)
                    .is_some_and(|u| u.complete)
        })
    }

    /// Writes a unit; whether it is whole then.
    fn draft_unit(&self, unit: &Unit, index: &Index, draft: &mut Draft) -> bool {
        let at = inet(&self.settings);
        let start = draft.writer.at();
        match &unit.content {
            Content::Rules { rules, .. } => {
                draft.writer.chain(&self.unit_chain(unit, rules));
                draft.put(start, Item::Make(Arc::clone(&unit.name)));
                true
            }
            Content::Fixed(spec) => {
                draft.writer.push(Change::AddSet(spec.set.clone()));
                draft.writer.add(&at, &unit.name, spec.elements.clone());
                draft.put(start, Item::Make(Arc::clone(&unit.name)));
                true
            }
            Content::Peers { key, v4, .. } => {
                let set = peer_set(&self.settings, key, *v4, &unit.name);
                draft.writer.push(Change::AddSet(set));
                let mut fill = self.members(unit, index);
                let each = fill.last().map_or(1, member_bytes);
                let most = if fill.len() > LARGE {
                    IN_TURN
                } else {
                    fill.len()
                };
                let from = fill.len() - draft.room_for(each).min(most);
                let first = fill.split_off(from);
                draft.writer.add(&at, &unit.name, elements(&first));
                draft.put(start, Item::Make(Arc::clone(&unit.name)));
                let whole = fill.is_empty();
                draft.making.insert(
                    Arc::clone(&unit.name),
                    AppliedUnit {
                        rank: unit.rank,
                        chain: false,
                        ours: true,
                        complete: whole,
                        fill,
                        pending: BTreeMap::new(),
                    },
                );
                whole
            }
        }
    }

    fn unit_chain(&self, unit: &Unit, rules: &[Exprs]) -> ChainSpec {
        ChainSpec {
            chain: nft_wire::chain::Chain::regular(&inet(&self.settings), &unit.name),
            rules: rules.to_vec(),
        }
    }

    fn write_anew(&self, unit: &Unit, writer: &mut Writer) {
        let at = inet(&self.settings);
        match &unit.content {
            Content::Rules { rules, .. } => writer.chain_anew(&self.unit_chain(unit, rules)),
            Content::Fixed(spec) => {
                writer.push(Change::FlushSet {
                    table: at.clone(),
                    name: Arc::clone(&unit.name),
                });
                writer.add(&at, &unit.name, spec.elements.clone());
            }
            // Its members come with the next transaction, as those of a new one do that did not fit.
            Content::Peers { .. } => writer.push(Change::FlushSet {
                table: at,
                name: Arc::clone(&unit.name),
            }),
        }
    }
}
