//! The only service with cloud credentials: turns the ENI verbs of ipam replicas into signed OpenAPI calls.
//!
//! It signs, keeps to the account's budgets, merges reads, repeats what may be repeated, and reads back what it
//! did before it answers.

pub mod api;
pub mod app;
pub mod call;
pub mod config;
pub mod credentials;
pub mod describe;
pub mod eni;
pub mod facts;
pub mod failure;
pub mod fence;
pub mod limits;
pub mod metrics;
pub mod op;
pub mod place;
pub mod transport;
