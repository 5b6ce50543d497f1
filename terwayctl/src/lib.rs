//! The command line for people: certificates, and looking at a cluster.

pub mod audit;
pub mod ca;
pub mod command;
pub mod policy;
pub mod status;
