//! Elements of sets.

use std::time::Duration;

use crate::attribute::{self, Attributes, Writer, required};
use crate::duration::milliseconds;
use crate::error::DecodeError;
use crate::expr;
use crate::key::{Key, Part};
use crate::name::{Family, Name, TableRef};
use crate::verdict::Verdict;

const KEY: u16 = 1;
const DATA: u16 = 2;
const FLAGS: u16 = 3;
const TIMEOUT: u16 = 4;
const EXPIRATION: u16 = 5;
const EXPR: u16 = 7;
const KEY_END: u16 = 10;
const EXPRESSIONS: u16 = 11;

const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;

const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

const FLAG_INTERVAL_END: u32 = 1;
const FLAG_CATCHALL: u32 = 2;

/// Packets and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What elements of sets with timeouts or counters carry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Life {
    /// Lives this long, instead of the set's default.
    pub timeout: Option<Duration>,
    /// Time left.
    pub expiration: Option<Duration>,
    /// What it counted.
    pub counter: Option<Count>,
}

/// One element.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Element {
    /// Its key; in a set of ranges over one field, where a range begins or ends.
    pub key: Key,
    /// In a set of ranges over several fields: the upper ends, inclusive.
    pub end: Option<Key>,
    /// In a set of ranges over one field: this key is the first one behind a range.
    pub interval_end: bool,
    /// Where it leads, in a verdict map.
    pub verdict: Option<Verdict>,
    /// Timeouts and counters, where the set has them.
    pub life: Option<Box<Life>>,
}

impl Element {
    /// A member.
    pub const fn member(key: Key) -> Self {
        Self {
            key,
            end: None,
            interval_end: false,
            verdict: None,
            life: None,
        }
    }

    /// An entry of a verdict map.
    pub fn leading(key: Key, verdict: Verdict) -> Self {
        let mut element = Self::member(key);
        element.verdict = Some(verdict);
        element
    }

    /// A member of a set of ranges over several fields; both ends inclusive.
    pub fn box_of(first: Key, last: Key) -> Self {
        let mut element = Self::member(first);
        element.end = Some(last);
        element
    }

    /// The elements of one range over one field: its start, and the key behind its end unless it
    /// reaches to the very last key. Keys are counted in network order.
    pub fn range(first: &Key, last: &Key) -> Vec<Self> {
        let mut elements = vec![Self::member(first.clone())];
        if let Some(behind) = successor(last) {
            let mut end = Self::member(behind);
            end.interval_end = true;
            elements.push(end);
        }
        elements
    }

    /// [`Self::range`] of addresses of one family.
    pub fn addresses(first: std::net::IpAddr, last: std::net::IpAddr) -> Vec<Self> {
        Self::range(
            &Key::of(&[Part::from(first)]),
            &Key::of(&[Part::from(last)]),
        )
    }

    /// What it counted, in sets with counters.
    pub fn count(&self) -> Option<Count> {
        self.life.as_deref().and_then(|life| life.counter)
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        if self.interval_end {
            w.u32(FLAGS, FLAG_INTERVAL_END);
        }
        w.nest(KEY, |w| w.bytes(DATA_VALUE, self.key.as_bytes()));
        if let Some(end) = &self.end {
            w.nest(KEY_END, |w| w.bytes(DATA_VALUE, end.as_bytes()));
        }
        if let Some(verdict) = &self.verdict {
            w.nest(DATA, |w| w.nest(DATA_VERDICT, |w| verdict.write(w)));
        }
        let Some(life) = self.life.as_deref() else {
            return;
        };
        if let Some(timeout) = life.timeout {
            w.u64(TIMEOUT, milliseconds(timeout));
        }
        if let Some(left) = life.expiration {
            w.u64(EXPIRATION, milliseconds(left));
        }
        if let Some(count) = life.counter {
            w.nest(EXPR, |w| expr::write_count(count.packets, count.bytes, w));
        }
    }

    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut key = None;
        let mut element = Self::member(Key::new(&[]));
        let mut life = Life::default();
        for attribute in Attributes::new(bytes) {
            let attribute = attribute?;
            let value = attribute.value;
            match attribute.kind {
                KEY => key = Some(read_key(value)?),
                KEY_END => element.end = Some(read_key(value)?),
                DATA => element.verdict = Some(read_verdict(value)?),
                FLAGS => {
                    let flags = attribute::u32(value, "element flags")?;
                    if flags & FLAG_CATCHALL != 0 {
                        return Err(DecodeError::Value {
                            what: "element flags",
                        });
                    }
                    element.interval_end = flags & FLAG_INTERVAL_END != 0;
                }
                TIMEOUT => life.timeout = Some(read_time(value, "element timeout")?),
                EXPIRATION => life.expiration = Some(read_time(value, "element expiration")?),
                EXPR => life.counter = read_count(value)?.or(life.counter),
                EXPRESSIONS => {
                    for entry in Attributes::new(value) {
                        life.counter = read_count(entry?.value)?.or(life.counter);
                    }
                }
                _ => {}
            }
        }
        element.key = required(key, "element key")?;
        if life != Life::default() {
            element.life = Some(Box::new(life));
        }
        Ok(element)
    }
}

/// Elements of one set: one message, or what becomes several.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Elements {
    /// The set's table.
    pub table: TableRef,
    /// The set.
    pub set: Name,
    /// The elements.
    pub elements: Vec<Element>,
}

impl Elements {
    pub(crate) fn read(family: Family, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut table = None;
        let mut set = None;
        let mut elements = Vec::new();
        for attribute in Attributes::new(bytes) {
            let attribute = attribute?;
            match attribute.kind {
                LIST_TABLE => table = Some(attribute::name(attribute.value, "element table")?),
                LIST_SET => set = Some(attribute::name(attribute.value, "element set")?),
                LIST_ELEMENTS => {
                    for entry in Attributes::new(attribute.value) {
                        elements.push(Element::read(entry?.value)?);
                    }
                }
                _ => {}
            }
        }
        Ok(Self {
            table: TableRef {
                family,
                name: required(table, "element table")?,
            },
            set: required(set, "element set")?,
            elements,
        })
    }
}

/// Writes table and set: for requests, and to delete all elements.
pub(crate) fn write_name(table: &TableRef, set: &str, w: &mut Writer) {
    w.text(LIST_TABLE, &table.name);
    w.text(LIST_SET, set);
}

/// Writes as many elements as fit into `max_bytes` and `max_count`, at least one; gives the rest.
pub(crate) fn write_some<'a>(
    elements: &'a [Element],
    max_count: usize,
    max_bytes: usize,
    w: &mut Writer,
) -> &'a [Element] {
    let mut rest = elements;
    w.nest(LIST_ELEMENTS, |w| {
        let start = w.out.len();
        while let Some((element, after)) = rest.split_first() {
            let before = w.out.len();
            w.nest(LIST_ELEMENT, |w| element.write(w));
            if w.out.len() - start > max_bytes && before > start {
                w.out.truncate(before);
                break;
            }
            rest = after;
            if elements.len() - rest.len() >= max_count {
                break;
            }
        }
    });
    rest
}

/// The next key in network order; `None` behind the last one.
fn successor(key: &Key) -> Option<Key> {
    let mut bytes = key.as_bytes().to_vec();
    for byte in bytes.iter_mut().rev() {
        let (next, wrapped) = byte.overflowing_add(1);
        *byte = next;
        if !wrapped {
            return Some(Key::new(&bytes));
        }
    }
    None
}

fn read_key(bytes: &[u8]) -> Result<Key, DecodeError> {
    for attribute in Attributes::new(bytes) {
        let attribute = attribute?;
        if attribute.kind == DATA_VALUE {
            return Ok(Key::new(attribute.value));
        }
    }
    Err(DecodeError::Missing {
        what: "element key",
    })
}

fn read_verdict(bytes: &[u8]) -> Result<Verdict, DecodeError> {
    for attribute in Attributes::new(bytes) {
        let attribute = attribute?;
        if attribute.kind == DATA_VERDICT {
            return Verdict::read(attribute.value);
        }
    }
    Err(DecodeError::Value {
        what: "element data",
    })
}

fn read_time(value: &[u8], what: &'static str) -> Result<Duration, DecodeError> {
    attribute::u64(value, what).map(Duration::from_millis)
}

fn read_count(value: &[u8]) -> Result<Option<Count>, DecodeError> {
    let count = expr::read_count(value)?;
    Ok(count.map(|(packets, bytes)| Count { packets, bytes }))
}
