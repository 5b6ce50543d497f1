//! One way to be a service: configuration, telemetry, TLS identities, gRPC servers and clients,
//! tasks, drain, health, metrics and the admin port.
//!
//! Mesh knows no domain: nothing here speaks of addresses, pods or clouds. The authorization
//! table holds method paths as text and is checked against the wire contract by a test.

pub mod admin;
pub mod authz;
pub mod backoff;
pub mod ca;
pub mod causes;
pub mod client;
pub mod clock;
pub mod config;
pub mod crash;
pub mod drain;
pub mod health;
pub mod http;
pub mod identity;
pub mod metrics;
pub mod run;
pub mod secret;
pub mod server;
pub mod status;
pub mod tasks;
pub mod telemetry;
pub mod tls;
