//! The part of the ECS and VPC OpenAPI that a pod network needs: actions, models, faults, signatures.
//!
//! Sans-I/O: a typed request plus credentials, time and nonce becomes an `http::Request`; status and bytes become
//! a typed reply or a fault. Sockets, clocks and randomness belong to the caller.

pub mod action;
pub mod fault;
pub mod json;
pub mod model;
pub mod reply;
pub mod request;
pub mod sign;
