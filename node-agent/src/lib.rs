//! The agent of one node: a pool of granted addresses, the sandboxes that use them, and the kernel.
//!
//! A warm ADD touches nothing but this node: the ledger picks a pair of addresses and syncs, the datapath programs
//! the kernel, the plug-in is answered. The agent never talks to the cloud and holds no credentials of it.

pub mod announcer;
pub mod api;
pub mod app;
pub mod capacity;
pub mod config;
pub mod conflist;
pub mod demand;
pub mod device_plugin;
pub mod dial;
pub mod gate;
pub mod identity;
pub mod journal;
pub mod ledger;
pub mod metadata;
pub mod metrics;
pub mod notice;
pub mod overseer;
pub mod owner;
pub mod pods;
pub mod pool;
pub mod reconcile;
pub mod routes;
pub mod session;
pub mod standing;
pub mod store;
pub mod target;
pub mod uplinks;
pub mod wholes;
