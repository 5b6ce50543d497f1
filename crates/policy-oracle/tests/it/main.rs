//! The oracle against the meaning of the APIs, letter by letter, and its own laws.
#![expect(
    clippy::needless_pass_by_value,
    clippy::unwrap_used,
    clippy::panic,
    reason = "documents are written in place, and the fixtures are part of the tests"
)]

mod bad_input;
mod block;
mod fixture;
mod isolation;
mod laws;
mod node_and_self;
mod port;
mod selector;
mod tier;
