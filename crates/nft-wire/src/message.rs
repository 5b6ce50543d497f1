//! Messages as they are received: changes, answers, generations, traces.

use std::sync::Arc;

use crate::attribute::{self, Attributes, required};
use crate::chain::Chain;
use crate::change::Change;
use crate::element::Elements;
use crate::error::DecodeError;
use crate::frame::{self, Frame, Frames, Header, Op, Topic};
use crate::name::TableRef;
use crate::rule::{Place, Rule};
use crate::set::{self, Set};
use crate::table::Table;
use crate::trace::Trace;

const GENERATION_ID: u16 = 1;
const GENERATION_PID: u16 = 2;
const GENERATION_NAME: u16 = 3;

const ERROR_TEXT: u16 = 1;
const ERROR_CAPPED: u16 = 0x100;
const ERROR_HAS_TEXT: u16 = 0x200;
/// The header of the request, repeated in the answer.
const ECHO: usize = 16;

/// The kernel's answer to one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// 0: done. Otherwise a positive errno.
    pub errno: i32,
    /// Why, where the kernel says it in words.
    pub text: Option<Arc<str>>,
}

/// A state of the whole ruleset of a network namespace. Each transaction makes a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Its number.
    pub id: u32,
    /// The process whose transaction made it, when the kernel says so.
    pub pid: Option<u32>,
    /// That process's name.
    pub process: Option<Arc<str>>,
}

/// A message.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// An error or an acknowledgement.
    Answer(Answer),
    /// The end of a dump; a positive errno when it failed.
    Done(i32),
    /// The kernel dropped messages: what was received is not everything.
    Overrun,
    /// The opening of a transaction, with the generation that it insists on.
    BatchBegin(Option<u32>),
    /// The closing of a transaction.
    BatchEnd,
    /// Something that is there, or gone; in a batch: what is to be done.
    Change(Change),
    /// A generation begins, or is told.
    Generation(Generation),
    /// A step of a traced packet.
    Trace(Trace),
    /// Something in a table that this crate does not describe: a set of other kinds, another tool's
    /// expression. The name is that of the table, if it could be read.
    Foreign(Option<TableRef>),
    /// A message of another subsystem, or a request.
    Other,
}

/// Reads one message.
///
/// # Errors
/// [`DecodeError`] when the message is cut short or says what can not be.
pub fn decode(frame: &Frame<'_>) -> Result<Message, DecodeError> {
    Ok(match frame.header.topic {
        Topic::Error => Message::Answer(read_answer(frame)?),
        Topic::Done => Message::Done(read_errno(frame.payload).unwrap_or(0)),
        Topic::Overrun => Message::Overrun,
        Topic::BatchBegin => {
            let (_, attributes) = frame.generic()?;
            Message::BatchBegin(frame::read_batch_generation(attributes)?)
        }
        Topic::BatchEnd => Message::BatchEnd,
        Topic::Nft(op) => return decode_nft(op, frame),
        Topic::Conntrack(_) | Topic::Other(_) => Message::Other,
    })
}

/// Reads all messages of a datagram.
///
/// # Errors
/// [`DecodeError`] of the first message that can not be read.
pub fn decode_all(datagram: &[u8]) -> Result<Vec<(Header, Message)>, DecodeError> {
    Frames::new(datagram)
        .map(|frame| {
            let frame = frame?;
            Ok((frame.header, decode(&frame)?))
        })
        .collect()
}

/// The changes of a transaction that [`crate::batch::encode_batch`] wrote, in order, one per message.
///
/// # Errors
/// [`DecodeError`] of the first message that can not be read.
pub fn decode_changes(batch: &[u8]) -> Result<Vec<Change>, DecodeError> {
    let mut changes = Vec::new();
    for (_, message) in decode_all(batch)? {
        if let Message::Change(change) = message {
            changes.push(change);
        }
    }
    Ok(changes)
}

fn decode_nft(op: Op, frame: &Frame<'_>) -> Result<Message, DecodeError> {
    let (family, bytes) = frame.generic()?;
    let flags = frame.header.flags;
    // In a dump the same bits mean something else.
    let exclusive = flags & frame::MULTI == 0 && flags & frame::EXCLUSIVE != 0;
    let change = match op {
        Op::NewTable => {
            let make = if exclusive {
                Change::CreateTable
            } else {
                Change::AddTable
            };
            make(Table::read(family, bytes)?)
        }
        Op::DelTable => Change::DeleteTable(Table::read(family, bytes)?.at),
        Op::NewChain => {
            let make = if exclusive {
                Change::CreateChain
            } else {
                Change::AddChain
            };
            make(Chain::read(family, bytes)?)
        }
        Op::DelChain => {
            let Chain { table, name, .. } = Chain::read(family, bytes)?;
            Change::DeleteChain { table, name }
        }
        Op::NewRule => {
            // A dump has no such flags; a request without them puts the rule first.
            let append = flags & frame::MULTI != 0 || flags & frame::APPEND_BIT != 0;
            let make = if append {
                Change::AddRule
            } else {
                Change::InsertRule
            };
            make(Rule::read(family, bytes)?)
        }
        Op::DelRule => return Ok(read_rule_deletion(Place::read(family, bytes)?)),
        Op::NewSet => match Set::read(family, bytes) {
            Ok(set) => {
                let make = if exclusive {
                    Change::CreateSet
                } else {
                    Change::AddSet
                };
                make(set)
            }
            Err(DecodeError::Value { .. }) => {
                return Ok(Message::Foreign(Some(set::read_name(family, bytes)?.0)));
            }
            Err(error) => return Err(error),
        },
        Op::DelSet => {
            let (table, name) = set::read_name(family, bytes)?;
            Change::DeleteSet { table, name }
        }
        Op::NewElements => {
            let make = if exclusive {
                Change::CreateElements
            } else {
                Change::AddElements
            };
            make(Elements::read(family, bytes)?)
        }
        Op::DelElements => {
            let elements = Elements::read(family, bytes)?;
            if elements.elements.is_empty() {
                let Elements { table, set, .. } = elements;
                Change::FlushSet { table, name: set }
            } else {
                Change::DeleteElements(elements)
            }
        }
        Op::NewGeneration => return read_generation(bytes).map(Message::Generation),
        Op::Trace => return Trace::read(family, bytes).map(Message::Trace),
        Op::GetTable
        | Op::GetChain
        | Op::GetRule
        | Op::GetSet
        | Op::GetElements
        | Op::GetGeneration => return Ok(Message::Other),
    };
    Ok(Message::Change(change))
}

fn read_rule_deletion(place: Place) -> Message {
    let Place {
        table,
        chain,
        handle,
    } = place;
    match (chain, handle) {
        (Some(chain), Some(handle)) => Message::Change(Change::DeleteRule {
            table,
            chain,
            handle,
        }),
        (Some(name), None) => Message::Change(Change::FlushChain { table, name }),
        (None, _) => Message::Foreign(Some(table)),
    }
}

fn read_generation(bytes: &[u8]) -> Result<Generation, DecodeError> {
    let mut id = None;
    let mut pid = None;
    let mut process = None;
    for attribute in Attributes::new(bytes) {
        let attribute = attribute?;
        match attribute.kind {
            GENERATION_ID => id = Some(attribute::u32(attribute.value, "generation")?),
            GENERATION_PID => pid = Some(attribute::u32(attribute.value, "generation pid")?),
            GENERATION_NAME => {
                process = Some(attribute::name(attribute.value, "generation process")?);
            }
            _ => {}
        }
    }
    Ok(Generation {
        id: required(id, "generation")?,
        pid,
        process,
    })
}

/// The errno in front of an answer; the kernel writes it negative.
fn read_errno(payload: &[u8]) -> Option<i32> {
    let bytes = payload.first_chunk::<4>()?;
    Some(i32::from_ne_bytes(*bytes).saturating_neg())
}

fn read_answer(frame: &Frame<'_>) -> Result<Answer, DecodeError> {
    const CUT: DecodeError = DecodeError::Truncated { what: "answer" };
    let errno = read_errno(frame.payload).ok_or(CUT)?;
    let flags = frame.header.flags;
    if flags & ERROR_HAS_TEXT == 0 {
        return Ok(Answer { errno, text: None });
    }
    let echo = frame.payload.get(4..).ok_or(CUT)?;
    // An error repeats the whole request unless the socket asked for its header only.
    let skip = if flags & ERROR_CAPPED != 0 || errno == 0 {
        ECHO
    } else {
        let len = echo.first_chunk::<4>().ok_or(CUT)?;
        let len = usize::try_from(u32::from_ne_bytes(*len)).map_err(|_| CUT)?;
        len.checked_add(attribute::padding(len)).ok_or(CUT)?
    };
    let mut text = None;
    for attribute in Attributes::new(echo.get(skip..).unwrap_or_default()) {
        let attribute = attribute?;
        if attribute.kind == ERROR_TEXT {
            text = Some(attribute::name(attribute.value, "error text")?);
        }
    }
    Ok(Answer { errno, text })
}
