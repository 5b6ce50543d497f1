//! Tables.

use crate::attribute::{self, Attributes, Writer, required};
use crate::error::DecodeError;
use crate::name::{Family, TableRef};

const NAME: u16 = 1;
const FLAGS: u16 = 2;
const OWNER: u16 = 7;

const FLAG_DORMANT: u32 = 1;
const FLAG_OWNER: u32 = 2;
const FLAG_PERSIST: u32 = 4;

/// Flags of a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct TableFlags {
    /// Only the socket that made it may change it; it goes away with that socket (kernel 5.12).
    pub owner: bool,
    /// With `owner`: it outlives the socket and may then be adopted (kernel 6.9).
    pub persist: bool,
    /// Its base chains see no packets.
    pub dormant: bool,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Table {
    /// Which.
    pub at: TableRef,
    /// How it behaves.
    pub flags: TableFlags,
    /// Netlink port of the owning socket, as the kernel reports it; `None` for an orphan and in
    /// what we send.
    pub owner: Option<u32>,
}

impl Table {
    /// A table without flags.
    pub const fn new(at: TableRef) -> Self {
        Self {
            at,
            flags: TableFlags {
                owner: false,
                persist: false,
                dormant: false,
            },
            owner: None,
        }
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.text(NAME, &self.at.name);
        let TableFlags {
            owner,
            persist,
            dormant,
        } = self.flags;
        let flags = [
            (dormant, FLAG_DORMANT),
            (owner, FLAG_OWNER),
            (persist, FLAG_PERSIST),
        ];
        let flags = flags.iter().filter(|f| f.0).fold(0, |all, f| all | f.1);
        w.u32(FLAGS, flags);
    }

    pub(crate) fn read(family: Family, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut name = None;
        let mut flags = 0;
        let mut owner = None;
        for attribute in Attributes::new(bytes) {
            let attribute = attribute?;
            match attribute.kind {
                NAME => name = Some(attribute::name(attribute.value, "table name")?),
                FLAGS => flags = attribute::u32(attribute.value, "table flags")?,
                OWNER => owner = Some(attribute::u32(attribute.value, "table owner")?),
                _ => {}
            }
        }
        Ok(Self {
            at: TableRef {
                family,
                name: required(name, "table name")?,
            },
            flags: TableFlags {
                owner: flags & FLAG_OWNER != 0,
                persist: flags & FLAG_PERSIST != 0,
                dormant: flags & FLAG_DORMANT != 0,
            },
            owner,
        })
    }
}

/// Writes only the name: for requests and deletions.
pub(crate) fn write_name(at: &TableRef, w: &mut Writer) {
    w.text(NAME, &at.name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_as_the_kernel_dumps_it_is_read_with_owner_and_without_its_use_count() {
        let mut w = Writer::default();
        w.text(NAME, "t");
        w.u32(FLAGS, FLAG_OWNER | FLAG_PERSIST);
        w.u32(3, 7);
        w.u32(OWNER, 4711);
        let table = Table::read(Family::Inet, &w.out).unwrap();
        assert_eq!(table.at, TableRef::new(Family::Inet, "t"));
        assert!(table.flags.owner && table.flags.persist && !table.flags.dormant);
        assert_eq!(table.owner, Some(4711));
    }
}
