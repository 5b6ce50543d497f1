//! The command line for people: certificates now; looking at a cluster stands beside it.

pub mod audit;
pub mod ca;
pub mod command;
pub mod policy;
