//! Netlink messages: header, payload, alignment; and the header that netfilter puts behind it.

use crate::attribute::{Writer, padding};
use crate::error::DecodeError;
use crate::name::Family;

const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;

/// Message types below this one are netlink's own.
const CONTROL_MAX: u16 = 0x10;
const TYPE_ERROR: u16 = 2;
const TYPE_DONE: u16 = 3;
const TYPE_OVERRUN: u16 = 4;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM_CONNTRACK: u8 = 1;
const SUBSYSTEM_NFTABLES: u8 = 10;
const BATCH_GENID: u16 = 1;

/// This is a request.
pub const REQUEST: u16 = 0x1;
/// Part of an answer of several messages.
pub const MULTI: u16 = 0x2;
/// Wants an acknowledgement.
pub const ACK: u16 = 0x4;
/// The dump was disturbed by a change: what came is not one state.
pub const DUMP_INTERRUPTED: u16 = 0x10;
/// A dump.
pub const DUMP: u16 = 0x300;
pub(crate) const EXCLUSIVE: u16 = 0x200;
pub(crate) const ADD: u16 = 0x400;
pub(crate) const CREATE: u16 = ADD | EXCLUSIVE;
pub(crate) const APPEND: u16 = ADD | 0x800;
pub(crate) const APPEND_BIT: u16 = 0x800;

macro_rules! ops {
    ($($(#[$doc:meta])* $variant:ident = $number:literal,)*) => {
        /// Message types of nf_tables.
        ///
        /// Source: `enum nf_tables_msg_types`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Op {
            $($(#[$doc])* $variant,)*
        }

        impl Op {
            pub(crate) const fn number(self) -> u8 {
                match self { $(Self::$variant => $number,)* }
            }

            const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

ops! {
    /// A table is there.
    NewTable = 0,
    /// Asks for tables.
    GetTable = 1,
    /// A table is gone.
    DelTable = 2,
    /// A chain is there.
    NewChain = 3,
    /// Asks for chains.
    GetChain = 4,
    /// A chain is gone.
    DelChain = 5,
    /// A rule is there.
    NewRule = 6,
    /// Asks for rules.
    GetRule = 7,
    /// A rule is gone.
    DelRule = 8,
    /// A set is there.
    NewSet = 9,
    /// Asks for sets.
    GetSet = 10,
    /// A set is gone.
    DelSet = 11,
    /// Elements are there.
    NewElements = 12,
    /// Asks for elements.
    GetElements = 13,
    /// Elements are gone.
    DelElements = 14,
    /// A generation begins.
    NewGeneration = 15,
    /// Asks for the generation.
    GetGeneration = 16,
    /// A step of a traced packet.
    Trace = 17,
}

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// An error or an acknowledgement.
    Error,
    /// The end of a dump.
    Done,
    /// Messages were lost.
    Overrun,
    /// The opening of a transaction.
    BatchBegin,
    /// The closing of a transaction.
    BatchEnd,
    /// A message of nf_tables.
    Nft(Op),
    /// A message of the connection tracker, by its number.
    Conntrack(u8),
    /// Another one.
    Other(u16),
}

/// The header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header {
    /// What it is about.
    pub topic: Topic,
    /// Flag bits, [`REQUEST`] and its like.
    pub flags: u16,
    /// Number of the request that it answers; 0 in notifications.
    pub seq: u32,
    /// Netlink port of the receiver, or of the one who caused a notification.
    pub port: u32,
}

impl Header {
    /// Adds flags to the message that starts at `start`.
    pub(crate) fn set_flags(out: &mut [u8], start: usize, flags: u16) {
        if let Some(field) = out.get_mut(start + 6..start + 8)
            && let Some(old) = field.first_chunk::<2>()
        {
            let new = u16::from_ne_bytes(*old) | flags;
            field.copy_from_slice(&new.to_ne_bytes());
        }
    }
}

/// One message of a datagram.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// Its header.
    pub header: Header,
    /// What follows.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Family and attributes behind the header of netfilter.
    pub(crate) fn generic(&self) -> Result<(Family, &'a [u8]), DecodeError> {
        let Some((header, attributes)) = self.payload.split_first_chunk::<GENERIC_HEADER>() else {
            return Err(DecodeError::Truncated { what: "message" });
        };
        let [family, ..] = *header;
        Ok((Family::from_number(family)?, attributes))
    }
}

/// Walks over the messages of a datagram; ends at the first one that is malformed.
#[derive(Debug, Clone)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    /// The messages in `datagram`.
    pub const fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        const CUT: DecodeError = DecodeError::Truncated { what: "message" };
        let rest = std::mem::take(&mut self.rest);
        if rest.is_empty() {
            return None;
        }
        let Some((header, _)) = rest.split_first_chunk::<HEADER>() else {
            return Some(Err(CUT));
        };
        let [
            l0,
            l1,
            l2,
            l3,
            t0,
            t1,
            f0,
            f1,
            s0,
            s1,
            s2,
            s3,
            p0,
            p1,
            p2,
            p3,
        ] = *header;
        let len = u32::from_ne_bytes([l0, l1, l2, l3]);
        let Some((len, payload)) = usize::try_from(len)
            .ok()
            .and_then(|len| Some((len, rest.get(HEADER..len)?)))
        else {
            return Some(Err(CUT));
        };
        self.rest = rest.get(len + padding(len)..).unwrap_or_default();
        Some(Ok(Frame {
            header: Header {
                topic: topic(u16::from_ne_bytes([t0, t1])),
                flags: u16::from_ne_bytes([f0, f1]),
                seq: u32::from_ne_bytes([s0, s1, s2, s3]),
                port: u32::from_ne_bytes([p0, p1, p2, p3]),
            },
            payload,
        }))
    }
}

fn topic(number: u16) -> Topic {
    let [subsystem, message] = number.to_be_bytes();
    match number {
        TYPE_ERROR => Topic::Error,
        TYPE_DONE => Topic::Done,
        TYPE_OVERRUN => Topic::Overrun,
        BATCH_BEGIN => Topic::BatchBegin,
        BATCH_END => Topic::BatchEnd,
        0..CONTROL_MAX => Topic::Other(number),
        _ => match (subsystem, Op::from_number(message)) {
            (SUBSYSTEM_NFTABLES, Some(op)) => Topic::Nft(op),
            (SUBSYSTEM_CONNTRACK, _) => Topic::Conntrack(message),
            _ => Topic::Other(number),
        },
    }
}

/// Writes a message of nf_tables.
pub(crate) fn write_nft(
    op: Op,
    flags: u16,
    seq: u32,
    family: Family,
    w: &mut Writer,
    fill: impl FnOnce(&mut Writer),
) {
    let kind = u16::from_be_bytes([SUBSYSTEM_NFTABLES, op.number()]);
    write(kind, flags | REQUEST, seq, (family.number(), 0), w, fill);
}

/// Writes a message of the connection tracker.
pub(crate) fn write_conntrack(
    message: u8,
    flags: u16,
    seq: u32,
    family: Family,
    w: &mut Writer,
    fill: impl FnOnce(&mut Writer),
) {
    let kind = u16::from_be_bytes([SUBSYSTEM_CONNTRACK, message]);
    write(kind, flags | REQUEST, seq, (family.number(), 0), w, fill);
}

pub(crate) fn write_batch_begin(seq: u32, generation: Option<u32>, w: &mut Writer) {
    let resource = u16::from(SUBSYSTEM_NFTABLES);
    write(BATCH_BEGIN, REQUEST, seq, (0, resource), w, |w| {
        if let Some(generation) = generation {
            w.u32(BATCH_GENID, generation);
        }
    });
}

pub(crate) fn write_batch_end(seq: u32, w: &mut Writer) {
    let resource = u16::from(SUBSYSTEM_NFTABLES);
    write(BATCH_END, REQUEST, seq, (0, resource), w, |_| {});
}

pub(crate) fn read_batch_generation(attributes: &[u8]) -> Result<Option<u32>, DecodeError> {
    let mut generation = None;
    for attribute in crate::attribute::Attributes::new(attributes) {
        let attribute = attribute?;
        if attribute.kind == BATCH_GENID {
            generation = Some(crate::attribute::u32(attribute.value, "batch generation")?);
        }
    }
    Ok(generation)
}

fn write(
    kind: u16,
    flags: u16,
    seq: u32,
    (family, resource): (u8, u16),
    w: &mut Writer,
    fill: impl FnOnce(&mut Writer),
) {
    let start = w.out.len();
    w.out.extend_from_slice(&[0; 4]);
    w.out.extend_from_slice(&kind.to_ne_bytes());
    w.out.extend_from_slice(&flags.to_ne_bytes());
    w.out.extend_from_slice(&seq.to_ne_bytes());
    w.out.extend_from_slice(&[0; 4]);
    w.out.extend_from_slice(&[family, 0]);
    w.out.extend_from_slice(&resource.to_be_bytes());
    fill(w);
    let len = w.out.len() - start;
    match (u32::try_from(len), w.out.get_mut(start..start + 4)) {
        (Ok(len), Some(field)) => field.copy_from_slice(&len.to_ne_bytes()),
        _ => w.overflow = true,
    }
}
