//! Owns addresses: which node may use which address of which vSwitch.
//!
//! A replica owns shards. Each shard is a deterministic state machine (`ipam-core`) whose decisions stand in a
//! fenced log ([`log`]) before anybody hears of them. One task per shard writes ([`owner`]), one carries out what was
//! written ([`drive`]), one decides what to write next ([`plan`]); node sessions ([`session`]) only say what they
//! want and hear what they have.

pub mod admin;
pub mod api;
pub mod app;
pub mod cloud;
pub mod config;
pub mod convert;
pub mod crash;
pub mod demand;
pub mod door;
pub mod drive;
pub mod facts;
pub mod fault;
pub mod gone;
pub mod log;
pub mod membership;
pub mod metrics;
pub mod owned;
pub mod owner;
pub mod plan;
pub mod quota;
pub mod reconcile;
pub mod replica;
pub mod routing;
pub mod session;
mod sighting;
pub mod space;
pub mod traces;
pub mod vacated;
