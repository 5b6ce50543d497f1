//! The ECS and VPC OpenAPI and the metadata service, simulated.
//!
//! One pure state ([`account`]) behind one lock; [`sim`] is the handle that gives it time, latency, faults and a
//! data plane; [`openapi`] is what a call may say, and [`endpoint`], [`metadata`] and [`admin`] put it on the wire.

pub mod account;
pub mod admin;
pub mod app;
pub mod clock;
pub mod config;
pub mod dump;
pub mod endpoint;
pub mod faults;
pub mod metadata;
pub mod openapi;
pub mod passes;
pub mod plane;
pub mod quota;
pub mod refusal;
pub mod roles;
pub mod signature;
pub mod sim;
pub mod spec;
pub mod wire;
pub mod world;
