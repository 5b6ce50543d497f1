//! The crate from outside: vectors of the vendor's SDKs, faults, replies, requests.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking, as the tests do"
)]

mod faults;
mod replies;
mod requests;
mod vectors;
