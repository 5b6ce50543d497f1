//! The simulator from outside: calls through its handler and through real sockets.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking, as the tests do"
)]

mod addresses;
mod admission;
mod attach;
mod binary;
mod create;
mod describe;
mod faults;
mod http_life;
mod metadata;
mod roles;
mod vectors;
mod world;
