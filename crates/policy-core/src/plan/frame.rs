//! The objects of fixed name that a namespace should have, worked out once.

use nft_wire::change::Change;
use nft_wire::name::Name;
use nft_wire::table::{Table as WireTable, TableFlags};

use super::Target;
use super::writer::Writer;
use crate::adopt::FrameObject;
use crate::layout::Settings;
use crate::layout::frame::{ChainSpec, SetSpec, allowed_sets, bases, ends};
use crate::layout::names::{Table, denied_sets, inet, netdev};

/// Tables, sets and chains.
#[derive(Debug)]
pub(super) struct Frame {
    /// In the order in which they can be made.
    pub(super) objects: Vec<FrameObject>,
    tables: Vec<Change>,
    sets: Vec<SetSpec>,
    chains: Vec<ChainSpec>,
    /// Whether there are anti-spoof chains.
    pub(super) spoof: bool,
}

impl Frame {
    pub(super) fn of(target: &Target, settings: &Settings) -> Self {
        let place = target.place();
        let spoof = settings.anti_spoof && *target == Target::Host;
        let table = |at| {
            let mut table = WireTable::new(at);
            table.flags = TableFlags {
                owner: settings.owner,
                persist: settings.owner && settings.persist,
                dormant: false,
            };
            Change::AddTable(table)
        };
        let mut objects = vec![FrameObject::Table];
        let mut tables = vec![table(inet(settings))];
        if spoof {
            objects.push(FrameObject::SpoofTable);
            tables.push(table(netdev(settings)));
        }
        let at = inet(settings);
        let followed = Table::ALL.iter().map(|t| t.set(&at));
        let plain = followed.chain(denied_sets(settings)).map(|set| SetSpec {
            set,
            elements: Vec::new(),
        });
        let sets: Vec<SetSpec> = plain.chain(allowed_sets(settings)).collect();
        objects.extend(
            sets.iter()
                .map(|s| FrameObject::Set(Name::clone(&s.set.name))),
        );
        let chains: Vec<ChainSpec> = ends(settings, place)
            .into_iter()
            .chain(bases(settings, place))
            .collect();
        objects.extend(chains.iter().map(|spec| {
            let name = Name::clone(&spec.chain.name);
            if spec.chain.base.is_some() {
                FrameObject::Base(name)
            } else {
                FrameObject::Chain(name)
            }
        }));
        Self {
            objects,
            tables,
            sets,
            chains,
            spoof,
        }
    }

    /// Objects of which nothing is dropped before all that leads there stands.
    pub(super) fn bases(&self) -> impl Iterator<Item = &FrameObject> {
        self.objects
            .iter()
            .filter(|o| matches!(o, FrameObject::Base(_)))
    }

    /// The chain of this name.
    pub(super) fn chain(&self, name: &str) -> Option<&ChainSpec> {
        self.chains.iter().find(|spec| *spec.chain.name == *name)
    }

    /// The set of this name.
    pub(super) fn set(&self, name: &str) -> Option<&SetSpec> {
        self.sets.iter().find(|spec| *spec.set.name == *name)
    }

    pub(super) fn write(&self, object: &FrameObject, writer: &mut Writer) {
        match object {
            FrameObject::Table => self
                .tables
                .first()
                .into_iter()
                .for_each(|t| writer.push(t.clone())),
            FrameObject::SpoofTable => self
                .tables
                .get(1)
                .into_iter()
                .for_each(|t| writer.push(t.clone())),
            FrameObject::Set(name) => {
                if let Some(spec) = self.set(name) {
                    writer.push(Change::AddSet(spec.set.clone()));
                    writer.add(&spec.set.table, name, spec.elements.clone());
                }
            }
            FrameObject::Chain(name) | FrameObject::Base(name) => {
                if let Some(spec) = self.chain(name) {
                    writer.chain(spec);
                }
            }
        }
    }
}
