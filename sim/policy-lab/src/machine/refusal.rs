//! Why a transaction was refused.

/// An error number as the kernel gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Errno {
    /// Not the owner of the table.
    Perm,
    /// What is named is not there.
    NoEntry,
    /// Still referred to, or there with another content.
    Busy,
    /// Already there, or overlaps with what is there.
    Exists,
    /// Makes no sense.
    Invalid,
    /// The set is full.
    TooMany,
    /// Jumps in a circle.
    Loop,
    /// Jumps too deep.
    Deep,
    /// Not possible here, such as a reject in postrouting.
    Unsupported,
    /// The key is longer than the set's.
    Range,
}

impl Errno {
    /// Its number, positive.
    pub const fn number(self) -> i32 {
        match self {
            Self::Perm => 1,
            Self::NoEntry => 2,
            Self::Busy => 16,
            Self::Exists => 17,
            Self::Invalid => 22,
            Self::TooMany => 23,
            Self::Deep => 31,
            Self::Range => 34,
            Self::Loop => 40,
            Self::Unsupported => 95,
        }
    }
}

/// A transaction that took no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// One change is at fault.
    #[error("change {index}: {errno:?}: {what}")]
    Change {
        /// Which one, counted from 0.
        index: usize,
        /// Why.
        errno: Errno,
        /// In words.
        what: String,
    },
    /// The whole is at fault.
    #[error("transaction: {errno:?}: {what}")]
    Whole {
        /// Why.
        errno: Errno,
        /// In words.
        what: String,
    },
    /// The bytes are no transaction.
    #[error("bytes: {0}")]
    Bytes(String),
}
