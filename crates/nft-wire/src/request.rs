//! Questions to the kernel.

use crate::attribute::Writer;
use crate::frame::{self, Op};
use crate::name::{Family, Name, TableRef};
use crate::{element, rule, set, table};

/// A question. All but [`Request::Table`] and [`Request::Generation`] are dumps: many messages,
/// then [`crate::message::Message::Done`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Request {
    /// The number of the current generation; answered by one message.
    Generation,
    /// All tables of a family, or of all families.
    Tables(Family),
    /// One table; answered by one message, or by `ENOENT`.
    Table(TableRef),
    /// All chains of a family: kernels do not filter by table here, the reader must.
    Chains(Family),
    /// The rules of a table, chain by chain in their order; of one chain, if one is named.
    Rules {
        /// Which table.
        table: TableRef,
        /// Which chain.
        chain: Option<Name>,
    },
    /// The sets of a table.
    Sets(TableRef),
    /// The elements of a set.
    Elements {
        /// Which table.
        table: TableRef,
        /// Which set.
        set: Name,
    },
}

impl Request {
    /// The message.
    pub fn encode(&self, seq: u32) -> Vec<u8> {
        let mut w = Writer::default();
        match self {
            Self::Generation => {
                put(
                    Op::GetGeneration,
                    0,
                    seq,
                    Family::Unspecified,
                    &mut w,
                    |_| {},
                );
            }
            Self::Tables(family) => put(Op::GetTable, frame::DUMP, seq, *family, &mut w, |_| {}),
            Self::Table(at) => {
                put(Op::GetTable, 0, seq, at.family, &mut w, |w| {
                    table::write_name(at, w);
                });
            }
            Self::Chains(family) => put(Op::GetChain, frame::DUMP, seq, *family, &mut w, |_| {}),
            Self::Rules { table, chain } => {
                put(Op::GetRule, frame::DUMP, seq, table.family, &mut w, |w| {
                    rule::write_name(table, chain.as_deref(), None, w);
                });
            }
            Self::Sets(table) => {
                put(Op::GetSet, frame::DUMP, seq, table.family, &mut w, |w| {
                    set::write_table(table, w);
                });
            }
            Self::Elements { table, set } => {
                put(
                    Op::GetElements,
                    frame::DUMP,
                    seq,
                    table.family,
                    &mut w,
                    |w| {
                        element::write_name(table, set, w);
                    },
                );
            }
        }
        w.out
    }

    /// Whether the answer ends with `Done`.
    pub const fn is_dump(&self) -> bool {
        match self {
            Self::Generation | Self::Table(_) => false,
            Self::Tables(_)
            | Self::Chains(_)
            | Self::Rules { .. }
            | Self::Sets(_)
            | Self::Elements { .. } => true,
        }
    }
}

fn put(
    op: Op,
    flags: u16,
    seq: u32,
    family: Family,
    w: &mut Writer,
    fill: impl FnOnce(&mut Writer),
) {
    frame::write_nft(op, flags, seq, family, w, fill);
}
