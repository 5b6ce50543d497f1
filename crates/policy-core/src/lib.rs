//! NetworkPolicy and its relatives, from objects to kernel transactions, without I/O.
//!
//! `parse` reads documents, `index` keeps who is a member of what, `compile` makes profiles of the
//! policies of a local pod, `layout` writes them as nf_tables objects, `plan` orders the changes so
//! that no packet sees half of them, and `judge` answers for one flow what the kernel would.

pub mod adopt;
pub mod calico;
pub mod compile;
pub mod engine;
pub mod flow;
pub mod hash;
pub mod index;
pub mod judge;
pub mod labels;
pub mod layout;
pub mod object;
pub mod parse;
pub mod plan;
pub mod policy;
pub mod profile;
pub mod selector;
