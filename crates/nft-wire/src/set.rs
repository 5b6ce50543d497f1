//! Sets and maps.

use std::time::Duration;

use crate::attribute::{self, Attributes, Writer, required};
use crate::duration::milliseconds;
use crate::error::DecodeError;
use crate::expr;
use crate::key::{Field, fields_of, key_len, type_number};
use crate::name::{Family, Name, TableRef};

const TABLE: u16 = 1;
const NAME: u16 = 2;
const FLAGS: u16 = 3;
const KEY_TYPE: u16 = 4;
const KEY_LEN: u16 = 5;
const DATA_TYPE: u16 = 6;
const DATA_LEN: u16 = 7;
const DESC: u16 = 9;
const ID: u16 = 10;
const TIMEOUT: u16 = 11;
const USERDATA: u16 = 13;
const EXPR: u16 = 17;
const EXPRESSIONS: u16 = 18;

const DESC_SIZE: u16 = 1;
const DESC_CONCAT: u16 = 2;
const FIELD_LEN: u16 = 1;
const LIST_ELEMENT: u16 = 1;

const FLAG_ANONYMOUS: u32 = 0x1;
const FLAG_CONSTANT: u32 = 0x2;
const FLAG_INTERVAL: u32 = 0x4;
const FLAG_MAP: u32 = 0x8;
const FLAG_TIMEOUT: u32 = 0x10;
const FLAG_EVAL: u32 = 0x20;
const FLAG_OBJECT: u32 = 0x40;
const FLAG_CONCAT: u32 = 0x80;

const DATA_VERDICT: u32 = 0xffff_ff00;

const USERDATA_KEY_ORDER: u8 = 0;
const USERDATA_DATA_ORDER: u8 = 1;
const ORDER_HOST: u32 = 1;
const ORDER_BIG: u32 = 2;

/// What an element leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Nothing: it is a member or not.
    Plain,
    /// A verdict.
    Verdicts,
}

/// Flags of a set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SetFlags {
    /// Elements are ranges. With several fields, each field is a range of its own.
    pub interval: bool,
    /// Rules may add elements.
    pub dynamic: bool,
    /// Elements never change once a rule refers to it.
    pub constant: bool,
}

/// A set, or a verdict map.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Set {
    /// Its table.
    pub table: TableRef,
    /// Its name.
    pub name: Name,
    /// What its keys are made of: at least one field, at most 64 bytes with padding.
    pub key: Vec<Field>,
    /// What elements lead to.
    pub kind: Kind,
    /// How it behaves.
    pub flags: SetFlags,
    /// Elements may vanish by themselves, after this time unless they say otherwise (milliseconds
    /// count, less is cut); zero: only those that say so.
    pub timeout: Option<Duration>,
    /// The most elements that it takes; beyond that adding fails.
    pub size: Option<u32>,
    /// Each element counts packets and bytes.
    pub counter: bool,
}

impl Set {
    /// A set of exact keys.
    pub fn plain(table: &TableRef, name: &str, key: &[Field]) -> Self {
        Self {
            table: table.clone(),
            name: name.into(),
            key: key.to_vec(),
            kind: Kind::Plain,
            flags: SetFlags::default(),
            timeout: None,
            size: None,
            counter: false,
        }
    }

    /// A set of ranges.
    pub fn intervals(table: &TableRef, name: &str, key: &[Field]) -> Self {
        let mut set = Self::plain(table, name, key);
        set.flags.interval = true;
        set
    }

    /// A map of exact keys to verdicts.
    pub fn verdicts(table: &TableRef, name: &str, key: &[Field]) -> Self {
        let mut set = Self::plain(table, name, key);
        set.kind = Kind::Verdicts;
        set
    }

    /// `id` tells sets of one transaction apart; the kernel insists on it.
    pub(crate) fn write(&self, id: u32, w: &mut Writer) {
        write_name(&self.table, &self.name, w);
        w.u32(FLAGS, self.flag_bits());
        w.u32(KEY_TYPE, type_number(&self.key));
        w.u32(
            KEY_LEN,
            u32::try_from(key_len(&self.key)).unwrap_or(u32::MAX),
        );
        if self.kind == Kind::Verdicts {
            w.u32(DATA_TYPE, DATA_VERDICT);
            w.u32(DATA_LEN, 0);
        }
        w.u32(ID, id);
        if let Some(timeout) = self.timeout.filter(|t| !t.is_zero()) {
            w.u64(TIMEOUT, milliseconds(timeout));
        }
        // Only ranges need to know where a field ends.
        let fields = self.flags.interval && self.key.len() > 1;
        if self.size.is_some() || fields {
            w.nest(DESC, |w| {
                if let Some(size) = self.size {
                    w.u32(DESC_SIZE, size);
                }
                if fields {
                    w.nest(DESC_CONCAT, |w| self.write_fields(w));
                }
            });
        }
        w.bytes(USERDATA, &self.userdata());
        if self.counter {
            w.nest(EXPR, expr::write_counter);
        }
    }

    fn write_fields(&self, w: &mut Writer) {
        for field in &self.key {
            let len = u32::try_from(field.len()).unwrap_or(u32::MAX);
            w.nest(LIST_ELEMENT, |w| w.u32(FIELD_LEN, len));
        }
    }

    fn flag_bits(&self) -> u32 {
        let SetFlags {
            interval,
            dynamic,
            constant,
        } = self.flags;
        [
            (constant, FLAG_CONSTANT),
            (interval, FLAG_INTERVAL),
            (self.kind == Kind::Verdicts, FLAG_MAP),
            (self.timeout.is_some(), FLAG_TIMEOUT),
            (dynamic, FLAG_EVAL),
            (interval && self.key.len() > 1, FLAG_CONCAT),
        ]
        .iter()
        .filter(|f| f.0)
        .fold(0, |all, f| all | f.1)
    }

    /// What `nft` needs to print keys in the right byte order.
    fn userdata(&self) -> Vec<u8> {
        let key = match self.key.as_slice() {
            [single] if single.host_order() => ORDER_HOST,
            [_] => ORDER_BIG,
            _ => 0,
        };
        let mut out = Vec::new();
        let mut put = |kind: u8, value: u32| {
            out.extend_from_slice(&[kind, 4]);
            out.extend_from_slice(&value.to_ne_bytes());
        };
        put(USERDATA_KEY_ORDER, key);
        if self.kind == Kind::Verdicts {
            put(USERDATA_DATA_ORDER, 0);
        }
        out
    }

    /// [`DecodeError::Value`] for what is not ours: a set that only one rule uses (anonymous), that
    /// leads to objects or values, or whose key has parts without a [`Field`].
    pub(crate) fn read(family: Family, bytes: &[u8]) -> Result<Self, DecodeError> {
        const UNKNOWN: DecodeError = DecodeError::Value { what: "set kind" };
        let mut table = None;
        let mut name = None;
        let mut flags = 0;
        let mut key_type = None;
        let mut len = None;
        let mut data_type = None;
        let mut timeout = None;
        let mut size = None;
        let mut counter = false;
        for attribute in Attributes::new(bytes) {
            let attribute = attribute?;
            let value = attribute.value;
            match attribute.kind {
                TABLE => table = Some(attribute::name(value, "set table")?),
                NAME => name = Some(attribute::name(value, "set name")?),
                FLAGS => flags = attribute::u32(value, "set flags")?,
                KEY_TYPE => key_type = Some(attribute::u32(value, "key type")?),
                KEY_LEN => len = Some(attribute::u32(value, "key length")?),
                DATA_TYPE => data_type = Some(attribute::u32(value, "data type")?),
                TIMEOUT => timeout = Some(attribute::u64(value, "set timeout")?),
                DESC => size = read_size(value)?,
                EXPR => counter |= expr::is_counter(value)?,
                EXPRESSIONS => {
                    for entry in Attributes::new(value) {
                        counter |= expr::is_counter(entry?.value)?;
                    }
                }
                _ => {}
            }
        }
        let kind = match (flags & FLAG_MAP != 0, data_type) {
            (false, _) if flags & FLAG_OBJECT == 0 => Kind::Plain,
            (true, Some(DATA_VERDICT)) => Kind::Verdicts,
            _ => return Err(UNKNOWN),
        };
        if flags & FLAG_ANONYMOUS != 0 {
            return Err(UNKNOWN);
        }
        let key = fields_of(required(key_type, "key type")?)?;
        if key.is_empty() || u32::try_from(key_len(&key)).ok() != len {
            return Err(DecodeError::Value { what: "key length" });
        }
        let timeout =
            (flags & FLAG_TIMEOUT != 0).then(|| Duration::from_millis(timeout.unwrap_or_default()));
        Ok(Self {
            table: TableRef {
                family,
                name: required(table, "set table")?,
            },
            name: required(name, "set name")?,
            key,
            kind,
            flags: SetFlags {
                interval: flags & FLAG_INTERVAL != 0,
                dynamic: flags & FLAG_EVAL != 0,
                constant: flags & FLAG_CONSTANT != 0,
            },
            timeout,
            size,
            counter,
        })
    }
}

/// Writes the table only: for dumps.
pub(crate) fn write_table(table: &TableRef, w: &mut Writer) {
    w.text(TABLE, &table.name);
}

/// Writes table and name: for deletions.
pub(crate) fn write_name(table: &TableRef, name: &str, w: &mut Writer) {
    w.text(TABLE, &table.name);
    w.text(NAME, name);
}

/// Reads table and name only, of any set at all.
pub(crate) fn read_name(family: Family, bytes: &[u8]) -> Result<(TableRef, Name), DecodeError> {
    let mut table = None;
    let mut name = None;
    for attribute in Attributes::new(bytes) {
        let attribute = attribute?;
        match attribute.kind {
            TABLE => table = Some(attribute::name(attribute.value, "set table")?),
            NAME => name = Some(attribute::name(attribute.value, "set name")?),
            _ => {}
        }
    }
    let table = TableRef {
        family,
        name: required(table, "set table")?,
    };
    Ok((table, required(name, "set name")?))
}

fn read_size(bytes: &[u8]) -> Result<Option<u32>, DecodeError> {
    let mut size = None;
    for attribute in Attributes::new(bytes) {
        let attribute = attribute?;
        if attribute.kind == DESC_SIZE {
            size = Some(attribute::u32(attribute.value, "set size")?);
        }
    }
    Ok(size)
}
