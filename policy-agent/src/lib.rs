//! The policy agent: NetworkPolicy in the kernel of one node.

pub mod app;
pub mod attachments;
pub mod config;
pub mod denied;
pub mod departure;
pub mod doors;
pub mod enforcer;
pub mod facts;
pub mod feed;
pub mod gate;
pub mod kernel;
pub mod lock;
pub mod metrics;
pub mod notices;
pub mod probes;
pub mod relay;
pub mod revoker;
pub mod rules;
pub mod scope;
pub mod switches;
pub mod trace;
