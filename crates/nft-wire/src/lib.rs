//! Messages of nf_tables and of ctnetlink: typed, encoded and decoded, without sockets.
//!
//! What a table is made of: [`table`], [`chain`], [`set`], [`rule`] with its [`expr`]essions, and
//! [`element`]s with their [`key`]s and [`verdict`]s. A [`change`] is one message of a transaction,
//! a [`batch`] is a whole transaction, a [`request`] asks the kernel for what it holds, and
//! [`message`] reads whatever it sends. [`snapshot`] puts the answers of a dump together.
//! [`build`] has the few idioms that our rules are made of. [`conntrack`] is the other subsystem:
//! flows and their marks.
//!
//! Numbers in messages are big-endian; keys and register contents are in the order that the kernel
//! compares, which is network order for addresses, ports and protocols, and the order of the host
//! for marks, interface indexes and conntrack states.

mod attribute;
pub mod batch;
pub mod build;
pub mod chain;
pub mod change;
pub mod conntrack;
mod duration;
pub mod element;
pub mod error;
pub mod expr;
pub mod frame;
pub mod key;
pub mod message;
pub mod name;
pub mod request;
pub mod rule;
pub mod set;
pub mod snapshot;
pub mod table;
pub mod trace;
pub mod verdict;
