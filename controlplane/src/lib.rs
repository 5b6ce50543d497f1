//! The control plane: certificates for those who have none yet, what nodes want written into the API server, and the
//! return of what vanished nodes held.
//!
//! Every replica issues certificates and takes reports; the one that leads keeps the authority, writes the trust
//! bundle, judges whether all nodes have left, and declares nodes gone. Nothing is kept but in the API server.

pub mod app;
pub mod authority;
pub mod certificates;
pub mod config;
pub mod gone;
pub mod kubernetes;
pub mod lead;
pub mod metrics;
pub mod nodes;
pub mod phase;
pub mod reports;
pub mod uninstall;
