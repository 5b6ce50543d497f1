//! Expressions: what a rule is made of.
//!
//! A rule runs its expressions in order. Those that load put bytes into registers; those that
//! compare end the rule when they fail; a verdict ends it too.

mod number;
mod read;
mod write;

use std::time::Duration;

pub use number::{CmpOp, CtKey, MetaKey, PayloadBase};

use crate::name::Name;
use crate::verdict::Verdict;

pub(crate) use read::{is_counter, read_count, read_list};
pub(crate) use write::{write_count, write_counter, write_list};

/// A register: one of 16 words of four bytes. What is longer than a word fills the words behind it.
///
/// The kernel has two numberings (four of 16 bytes, 16 of four); this is the finer one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Register(u8);

impl Register {
    /// The first word, which `nft` calls register 1.
    pub const FIRST: Self = Self(0);
    /// How many words there are.
    pub const COUNT: u8 = 16;

    /// The word of that number, 0 to 15.
    pub const fn new(word: u8) -> Option<Self> {
        if word < Self::COUNT {
            Some(Self(word))
        } else {
            None
        }
    }

    /// Its word, 0 to 15.
    pub const fn word(self) -> u8 {
        self.0
    }
}

/// The direction of a packet within its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FlowDirection {
    /// As the first packet.
    Original,
    /// As its answer.
    Reply,
}

/// How a refused packet is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reject {
    /// A TCP reset.
    TcpReset,
    /// An ICMP or ICMPv6 error by the kernel's own table of codes that both families have:
    /// 0 no route, 1 port unreachable, 2 host unreachable, 3 administratively prohibited.
    IcmpX(u8),
    /// An ICMP (or ICMPv6) "unreachable" with that code of its family.
    Icmp(u8),
}

/// What a rule does to a dynamic set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DynsetOp {
    /// Adds the element; one that is there keeps its time.
    Add,
    /// Adds the element or starts its time anew.
    Update,
    /// Removes the element.
    Delete,
}

/// Order of bytes to convert to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ByteorderOp {
    /// Network to host.
    ToHost,
    /// Host to network.
    ToNetwork,
}

/// One expression.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Expr {
    /// Loads what the kernel knows about the packet. A packet that has no such thing (an `iifname`
    /// in output) loads zeros.
    Meta {
        /// What.
        key: MetaKey,
        /// To where.
        to: Register,
    },
    /// Sets something about the packet, such as `nftrace`.
    MetaSet {
        /// What.
        key: MetaKey,
        /// From where.
        from: Register,
    },
    /// Loads something about the packet's flow.
    Ct {
        /// What.
        key: CtKey,
        /// Of which direction, for keys that have one.
        direction: Option<FlowDirection>,
        /// To where.
        to: Register,
    },
    /// Sets something about the packet's flow, such as its mark.
    CtSet {
        /// What.
        key: CtKey,
        /// From where.
        from: Register,
    },
    /// Loads bytes of the packet; one that is too short ends the rule.
    Payload {
        /// Counted from where.
        base: PayloadBase,
        /// First byte.
        offset: u32,
        /// How many bytes.
        len: u32,
        /// To where.
        to: Register,
    },
    /// Ends the rule unless the register compares.
    Cmp {
        /// How.
        op: CmpOp,
        /// Left side.
        from: Register,
        /// Right side; as many bytes of the register take part.
        data: Vec<u8>,
    },
    /// Ends the rule unless the register is in the range, or out of it.
    Range {
        /// Must be out of it.
        inverted: bool,
        /// What is compared.
        from: Register,
        /// Lowest, inclusive.
        low: Vec<u8>,
        /// Highest, inclusive.
        high: Vec<u8>,
    },
    /// `to = (from & mask) ^ xor`.
    Bitwise {
        /// Left side.
        from: Register,
        /// Result.
        to: Register,
        /// Bits to keep.
        mask: Vec<u8>,
        /// Bits to flip; as long as the mask.
        xor: Vec<u8>,
    },
    /// Turns numbers around.
    Byteorder {
        /// Input.
        from: Register,
        /// Output.
        to: Register,
        /// Which way.
        op: ByteorderOp,
        /// Bytes in total.
        len: u32,
        /// Bytes of each number: 2, 4 or 8.
        size: u32,
    },
    /// Ends the rule unless the set has the key, or lacks it.
    Lookup {
        /// The set.
        set: Name,
        /// First word of the key.
        from: Register,
        /// Must lack it.
        inverted: bool,
    },
    /// Takes the verdict that a map has for the key; without an entry, the rule ends.
    Vmap {
        /// The map.
        map: Name,
        /// First word of the key.
        from: Register,
    },
    /// Loads a constant.
    Immediate {
        /// What.
        data: Vec<u8>,
        /// To where.
        to: Register,
    },
    /// Decides.
    Verdict(Verdict),
    /// Counts.
    Counter {
        /// Packets so far.
        packets: u64,
        /// Bytes so far.
        bytes: u64,
    },
    /// Counts in a counter object of the table.
    CounterRef {
        /// The object.
        name: Name,
    },
    /// Counts in the counter object that a map has for the key.
    CounterMap {
        /// The map.
        map: Name,
        /// First word of the key.
        from: Register,
    },
    /// Changes a dynamic set. When the set is full, or had the element, the rule ends here
    /// for some operations and not for others: never put the drop behind it.
    Dynset {
        /// The set.
        set: Name,
        /// How.
        op: DynsetOp,
        /// First word of the key.
        key: Register,
        /// Instead of the set's timeout.
        timeout: Option<Duration>,
        /// What each new element carries. Empty where the set itself says it (`Set::counter`): the
        /// kernel does not repeat it in dumps.
        exprs: Vec<Expr>,
        /// Ends the rule when the element was added, instead of when it was not.
        inverted: bool,
    },
    /// Drops the packet and answers it.
    Reject(Reject),
    /// Ends the rule above a rate.
    Limit {
        /// Packets per `unit`.
        rate: u64,
        /// Length of the unit.
        unit: Duration,
        /// Packets above the rate that may pass at once.
        burst: u32,
        /// Ends the rule below the rate instead.
        inverted: bool,
    },
    /// An expression that this crate has no form for, kept as it was read.
    Other {
        /// Its name.
        name: Name,
        /// Its attributes.
        data: Vec<u8>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn register_beyond_the_last_word_does_not_exist() {
        assert_eq!(Register::new(15).map(Register::word), Some(15));
        assert_eq!(Register::new(16), None);
        assert_eq!(Register::default(), Register::FIRST);
    }
}
