//! Why bytes could not be written or read.

/// A message that can not be read. The reader's view of the kernel is stale from here: dump again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A message or an attribute runs past the end of what holds it.
    #[error("{what} is cut short")]
    Truncated {
        /// Which part.
        what: &'static str,
    },
    /// An attribute that the kernel always sends is absent.
    #[error("{what} is missing")]
    Missing {
        /// Which attribute.
        what: &'static str,
    },
    /// A value has the wrong length, or a number that this crate does not know.
    #[error("{what} has a value that is not understood")]
    Value {
        /// Which attribute.
        what: &'static str,
    },
}

/// A change that no message can carry: the caller built it wrong, and a repeat fails alike.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("change {index} does not fit into a netlink attribute of 65,535 bytes")]
pub struct EncodeError {
    /// Index of the change in the list that was given.
    pub index: usize,
}
