//! The tables in the kernel: which chains, sets and maps stand where, and what is in them.
//!
//! Base chains are made once and never replaced: a packet that is between two base chains while they are replaced
//! finds both of them empty. Everything that depends on policies is content-addressed and immutable; a change makes new
//! chains, and then moves the elements of the verdict maps that lead to them.
//!
//! Node-local DNS (169.254.20.10), the metadata service (100.100.100.200) and addresses that the host's own stack
//! answers are ordinary destinations: egress policies judge them like any other, unless [`Settings::always_allowed`]
//! names them.

pub mod frame;
pub mod names;
pub mod rules;
mod settings;
pub mod spoof;

pub use settings::{Place, Settings};
