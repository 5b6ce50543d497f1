//! Transactions: all of their changes happen, or none.

use crate::attribute::Writer;
use crate::change::Change;
use crate::element::{self, Elements};
use crate::error::EncodeError;
use crate::frame::{self, Header, Op};
use crate::name::TableRef;
use crate::{chain, rule, set, table};

/// The most elements in one message: the kernel's attribute that holds them has a 16-bit length.
pub const ELEMENTS_MAX: usize = 4_000;
/// The most bytes of elements in one message.
const ELEMENT_BYTES_MAX: usize = 65_000;

/// A transaction as bytes for one send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The messages.
    pub bytes: Vec<u8>,
    /// Sequence number of the opening message. The kernel names it when it refuses the whole
    /// transaction and no single change.
    pub first_seq: u32,
    /// For each message after the opening one, the index of its change.
    pub changes: Vec<u32>,
}

impl Batch {
    /// The index of the change whose message has that number; `None` for the opening and the
    /// closing message, and for numbers of other batches.
    pub fn change_of(&self, seq: u32) -> Option<usize> {
        let at = seq.wrapping_sub(self.first_seq).checked_sub(1)?;
        let index = self.changes.get(usize::try_from(at).ok()?)?;
        usize::try_from(*index).ok()
    }

    /// Number of the message that the kernel acknowledges: the one of the last change. An empty
    /// batch has none.
    pub fn ack_seq(&self) -> Option<u32> {
        let count = u32::try_from(self.changes.len()).ok()?;
        (count > 0).then(|| self.first_seq.wrapping_add(count))
    }

    /// The first number that a later batch may use.
    pub fn next_seq(&self) -> u32 {
        let count = u32::try_from(self.changes.len()).unwrap_or(u32::MAX);
        self.first_seq.wrapping_add(count).wrapping_add(2)
    }
}

/// Encodes a transaction. The last change asks for an acknowledgement; the kernel reports errors by
/// the number of the failing message in any case. Many elements become several messages.
///
/// # Errors
/// [`EncodeError`] when a change does not fit into a message: a rule or a name is too long.
pub fn encode_batch(changes: &[Change], first_seq: u32) -> Result<Batch, EncodeError> {
    encode(changes, first_seq, None)
}

/// As [`encode_batch`], refused by the kernel (`ERESTART`) unless the ruleset still is at that
/// generation.
///
/// # Errors
/// As [`encode_batch`].
pub fn encode_batch_at(
    changes: &[Change],
    first_seq: u32,
    generation: u32,
) -> Result<Batch, EncodeError> {
    encode(changes, first_seq, Some(generation))
}

/// Bytes that a change takes in a batch, for packing transactions: never less than the truth by
/// more than a few headers.
pub fn encoded_len(change: &Change) -> usize {
    let mut encoder = Encoder::new(0);
    encoder.change(0, change);
    encoder.w.out.len()
}

fn encode(
    changes: &[Change],
    first_seq: u32,
    generation: Option<u32>,
) -> Result<Batch, EncodeError> {
    let mut encoder = Encoder::new(first_seq);
    frame::write_batch_begin(first_seq, generation, &mut encoder.w);
    for (index, change) in changes.iter().enumerate() {
        encoder.change(index, change);
        if encoder.w.overflow {
            return Err(EncodeError { index });
        }
    }
    encoder.ask_for_ack();
    frame::write_batch_end(encoder.next_seq, &mut encoder.w);
    Ok(Batch {
        bytes: encoder.w.out,
        first_seq,
        changes: encoder.owners,
    })
}

struct Encoder {
    w: Writer,
    next_seq: u32,
    owners: Vec<u32>,
    last_start: Option<usize>,
    next_set_id: u32,
}

impl Encoder {
    fn new(first_seq: u32) -> Self {
        Self {
            w: Writer::default(),
            next_seq: first_seq.wrapping_add(1),
            owners: Vec::new(),
            last_start: None,
            next_set_id: 1,
        }
    }

    fn change(&mut self, index: usize, change: &Change) {
        match change {
            Change::AddTable(table) => {
                self.message(index, &table.at, Op::NewTable, frame::ADD, |w| {
                    table.write(w);
                });
            }
            Change::CreateTable(table) => {
                self.message(index, &table.at, Op::NewTable, frame::CREATE, |w| {
                    table.write(w);
                });
            }
            Change::DeleteTable(at) => {
                self.message(index, at, Op::DelTable, 0, |w| table::write_name(at, w));
            }
            Change::AddChain(chain) => {
                self.message(index, &chain.table, Op::NewChain, frame::ADD, |w| {
                    chain.write(w);
                });
            }
            Change::CreateChain(chain) => {
                self.message(index, &chain.table, Op::NewChain, frame::CREATE, |w| {
                    chain.write(w);
                });
            }
            Change::DeleteChain { table, name } => {
                let write = |w: &mut Writer| chain::write_name(table, name, w);
                self.message(index, table, Op::DelChain, 0, write);
            }
            Change::FlushChain { table, name } => {
                let write = |w: &mut Writer| rule::write_name(table, Some(name), None, w);
                self.message(index, table, Op::DelRule, 0, write);
            }
            Change::AddRule(rule) => {
                self.message(index, &rule.table, Op::NewRule, frame::APPEND, |w| {
                    rule.write(w);
                });
            }
            Change::InsertRule(rule) => {
                self.message(index, &rule.table, Op::NewRule, frame::ADD, |w| {
                    rule.write(w);
                });
            }
            Change::DeleteRule {
                table,
                chain,
                handle,
            } => {
                let write = |w: &mut Writer| rule::write_name(table, Some(chain), Some(*handle), w);
                self.message(index, table, Op::DelRule, 0, write);
            }
            Change::AddSet(set) => self.set(index, set, frame::ADD),
            Change::CreateSet(set) => self.set(index, set, frame::CREATE),
            Change::DeleteSet { table, name } => {
                let write = |w: &mut Writer| set::write_name(table, name, w);
                self.message(index, table, Op::DelSet, 0, write);
            }
            Change::FlushSet { table, name } => {
                let write = |w: &mut Writer| element::write_name(table, name, w);
                self.message(index, table, Op::DelElements, 0, write);
            }
            Change::AddElements(e) => self.elements(index, e, Op::NewElements, frame::ADD),
            Change::CreateElements(e) => self.elements(index, e, Op::NewElements, frame::CREATE),
            Change::DeleteElements(e) => self.elements(index, e, Op::DelElements, 0),
        }
    }

    fn set(&mut self, index: usize, set: &set::Set, flags: u16) {
        let id = self.next_set_id;
        self.next_set_id = id.wrapping_add(1);
        self.message(index, &set.table, Op::NewSet, flags, |w| set.write(id, w));
    }

    fn elements(&mut self, index: usize, elements: &Elements, op: Op, flags: u16) {
        // An empty list must not become a message: a deletion without elements means all of them.
        let mut rest = elements.elements.as_slice();
        while !rest.is_empty() {
            let now = rest;
            self.message(index, &elements.table, op, flags, |w| {
                element::write_name(&elements.table, &elements.set, w);
                rest = element::write_some(now, ELEMENTS_MAX, ELEMENT_BYTES_MAX, w);
            });
        }
    }

    fn message(
        &mut self,
        index: usize,
        table: &TableRef,
        op: Op,
        flags: u16,
        fill: impl FnOnce(&mut Writer),
    ) {
        self.last_start = Some(self.w.out.len());
        frame::write_nft(op, flags, self.next_seq, table.family, &mut self.w, fill);
        self.next_seq = self.next_seq.wrapping_add(1);
        self.owners.push(u32::try_from(index).unwrap_or(u32::MAX));
    }

    fn ask_for_ack(&mut self) {
        if let Some(start) = self.last_start {
            Header::set_flags(&mut self.w.out, start, frame::ACK);
        }
    }
}
