//! One watcher per cluster for many agents.
//!
//! [`source::Source`] holds the trimmed state of the cluster once, and a short log of the newest changes, both as
//! encoded frames that all streams share. [`server::Server`] lets agents read them; [`client`] is the agents' side.
//! [`wire`] says what a frame means. [`service`] is the process that has all of it.

pub mod client;
pub mod server;
pub mod service;
pub mod source;
pub mod wire;
