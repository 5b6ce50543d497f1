//! Reads a dump against what should be there.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use nft_wire::element::Element;
use nft_wire::expr::Expr;
use nft_wire::name::{Name, TableRef};
use nft_wire::snapshot::{SetState, Snapshot};

use super::alike::{rules_alike, set_alike};
use super::{Applied, AppliedUnit, Carry, FrameObject, Pending, Slot};
use crate::compile::{Content, Rank, Unit};
use crate::index::Member;
use crate::layout::frame::{allowed_sets, bases, ends};
use crate::layout::names::{Table, denied_sets, inet, netdev};
use crate::layout::rules::{member_of, peer_set};
use crate::layout::{Place, Settings};

/// What a survey needs to know of the desired state.
pub struct Wants<'a> {
    /// Choices about the tables.
    pub settings: &'a Settings,
    /// Which variant of the layout.
    pub place: Place,
    /// Units by name.
    pub units: &'a dyn Fn(&str) -> Option<Arc<Unit>>,
    /// Members of a set of a family.
    pub members: &'a dyn Fn(&Unit) -> Vec<Member>,
    /// The epoch that differences get.
    pub epoch: u64,
}

impl std::fmt::Debug for Wants<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wants")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// The state that dumped tables show; those that are not ours do not count.
pub fn survey(dump: &[Snapshot], wants: &Wants<'_>) -> Applied {
    let mut applied = Applied::default();
    let table = |at: TableRef| dump.iter().find(|s| *s.at() == at);
    // An empty table that nobody made shows nothing.
    if let Some(policy) = table(inet(wants.settings)).filter(|s| s.generation != 0 || !is_empty(s))
    {
        applied.frame.insert(FrameObject::Table);
        applied.orphan = wants.settings.owner && policy.table.owner.is_none();
        frame(policy, wants, &mut applied);
        units(policy, wants, &mut applied);
    }
    if let Some(spoof) = table(netdev(wants.settings)) {
        applied.frame.insert(FrameObject::SpoofTable);
        for (chain, state) in &spoof.chains {
            let rules = state.rules.iter().map(|r| plain(&r.exprs)).collect();
            applied.spoof.insert(Arc::clone(chain), rules);
        }
    }
    applied
}

fn is_empty(snapshot: &Snapshot) -> bool {
    snapshot.chains.is_empty() && snapshot.sets.is_empty()
}

/// Rules as they were sent: counters at zero.
fn plain(exprs: &[Expr]) -> Vec<Expr> {
    let mut exprs = exprs.to_vec();
    for expr in &mut exprs {
        if matches!(expr, Expr::Counter { .. }) {
            *expr = Expr::Counter {
                packets: 0,
                bytes: 0,
            };
        }
    }
    exprs
}

fn frame(policy: &Snapshot, wants: &Wants<'_>, applied: &mut Applied) {
    let settings = wants.settings;
    for spec in ends(settings, wants.place)
        .into_iter()
        .chain(bases(settings, wants.place))
    {
        let Some(state) = policy.chains.get(&spec.chain.name) else {
            continue;
        };
        if state.chain.base != spec.chain.base {
            let what = format!("chain {} hooks in elsewhere", spec.chain.name);
            applied.hopeless.get_or_insert(what);
            continue;
        }
        let name = Arc::clone(&spec.chain.name);
        if !rules_alike(&state.rules, &spec.rules) {
            applied.damaged.insert(Arc::clone(&name));
        }
        applied.frame.insert(if spec.chain.base.is_some() {
            FrameObject::Base(name)
        } else {
            FrameObject::Chain(name)
        });
    }
    let at = inet(settings);
    let followed = Table::ALL.iter().map(|t| t.set(&at));
    for set in followed.chain(denied_sets(settings)) {
        let Some(state) = policy.sets.get(&set.name) else {
            continue;
        };
        if !set_alike(&state.set, &set) {
            let what = format!("set {} has another type", set.name);
            applied.hopeless.get_or_insert(what);
            continue;
        }
        applied
            .frame
            .insert(FrameObject::Set(Arc::clone(&set.name)));
        if let Some(table) = Table::by_name(&set.name) {
            for element in &state.elements {
                let slot = Slot {
                    table,
                    key: element.key.clone(),
                };
                applied
                    .slots
                    .insert(slot, Carry::of(element.verdict.as_ref()));
            }
        }
    }
    for spec in allowed_sets(settings) {
        let Some(state) = policy.sets.get(&spec.set.name) else {
            continue;
        };
        applied
            .frame
            .insert(FrameObject::Set(Arc::clone(&spec.set.name)));
        if !same_elements(&state.elements, &spec.elements) {
            applied.damaged.insert(Arc::clone(&spec.set.name));
        }
    }
}

fn units(policy: &Snapshot, wants: &Wants<'_>, applied: &mut Applied) {
    let referred: HashSet<&Name> = policy
        .chains
        .values()
        .flat_map(|c| &c.rules)
        .flat_map(|r| &r.exprs)
        .filter_map(|e| {
            if let Expr::Lookup { set, .. } = e {
                Some(set)
            } else {
                None
            }
        })
        .collect();
    for (name, state) in &policy.chains {
        let fixed = [
            FrameObject::Chain(Arc::clone(name)),
            FrameObject::Base(Arc::clone(name)),
        ];
        if fixed.iter().any(|f| applied.frame.contains(f)) {
            continue;
        }
        let wanted = (wants.units)(name);
        if let Some(unit) = &wanted {
            match &unit.content {
                Content::Rules { rules, .. } if state.chain.base.is_none() => {
                    if !rules_alike(&state.rules, rules) {
                        applied.damaged.insert(Arc::clone(name));
                    }
                }
                Content::Rules { .. } | Content::Peers { .. } | Content::Fixed(_) => {
                    applied
                        .hopeless
                        .get_or_insert(format!("chain {name} stands for a set or a hook"));
                    continue;
                }
            }
        }
        let ours = wanted.is_some();
        let rank = wanted.map_or_else(|| rank_by_name(name, true), |u| u.rank);
        applied
            .units
            .insert(Arc::clone(name), whole(rank, true, ours));
    }
    for (name, state) in &policy.sets {
        if applied.frame.contains(&FrameObject::Set(Arc::clone(name))) {
            continue;
        }
        let Some(unit) = (wants.units)(name) else {
            applied.units.insert(
                Arc::clone(name),
                whole(rank_by_name(name, false), false, false),
            );
            continue;
        };
        match set_unit(state, &unit, wants, referred.contains(name)) {
            Ok((entry, damaged)) => {
                applied.units.insert(Arc::clone(name), entry);
                if damaged {
                    applied.damaged.insert(Arc::clone(name));
                }
            }
            Err(what) => {
                applied.hopeless.get_or_insert(what);
            }
        }
    }
}

fn set_unit(
    state: &SetState,
    unit: &Unit,
    wants: &Wants<'_>,
    referred: bool,
) -> Result<(AppliedUnit, bool), String> {
    let mut entry = whole(unit.rank, false, true);
    match &unit.content {
        Content::Rules { .. } => Err(format!("set {} stands for a chain", unit.name)),
        Content::Fixed(spec) => {
            if !set_alike(&state.set, &spec.set) {
                return Err(format!("set {} has another type", unit.name));
            }
            let damaged = !same_elements(&state.elements, &spec.elements);
            Ok((entry, damaged))
        }
        Content::Peers { key, v4, .. } => {
            let set = peer_set(wants.settings, key, *v4, &unit.name);
            if !set_alike(&state.set, &set) {
                return Err(format!("set {} has another type", unit.name));
            }
            let mut listed: HashSet<Member> = HashSet::with_capacity(state.elements.len());
            for element in &state.elements {
                if let Some(member) = member_of(&element.key, &set.key) {
                    listed.insert(member);
                }
            }
            let mut missing = Vec::new();
            for member in (wants.members)(unit) {
                if !listed.remove(&member) {
                    missing.push(member);
                }
            }
            let epoch = wants.epoch;
            for member in listed {
                entry.pending.insert(member, Pending { add: false, epoch });
            }
            if referred {
                let adds = missing
                    .into_iter()
                    .map(|m| (m, Pending { add: true, epoch }));
                entry.pending.extend(adds);
            } else if !missing.is_empty() {
                // Nothing leads to it yet: it was being filled when the last process ended.
                entry.complete = false;
                entry.fill = missing;
            }
            Ok((entry, false))
        }
    }
}

const fn whole(rank: Rank, chain: bool, ours: bool) -> AppliedUnit {
    AppliedUnit {
        rank,
        chain,
        ours,
        complete: true,
        fill: Vec::new(),
        pending: BTreeMap::new(),
    }
}

fn same_elements(listed: &[Element], wanted: &[Element]) -> bool {
    let plain = |elements: &[Element]| -> BTreeSet<Element> {
        let elements = elements.iter().cloned().map(|mut e| {
            e.life = None;
            e
        });
        // Some kernels list the gap before the first range of a set as well.
        elements
            .filter(|e| !(e.interval_end && e.key.as_bytes().iter().all(|b| *b == 0)))
            .collect()
    };
    listed.len() >= wanted.len() && plain(listed) == plain(wanted)
}

/// What an object of nobody's probably is, so that what refers goes before what is referred to.
fn rank_by_name(name: &str, chain: bool) -> Rank {
    match name.split('_').next() {
        Some("r") => Rank::Rules,
        Some("s") => Rank::Subset,
        Some("pm") => Rank::Switch,
        _ if chain => Rank::Profile,
        _ => Rank::Set,
    }
}
