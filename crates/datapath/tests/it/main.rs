//! The datapath against a real kernel, in network namespaces that are made and removed here. What the
//! kernel holds is read with `ip -j`, so that our own reader is no witness in its own case. Needs
//! root and fails without.

#![expect(
    clippy::unwrap_used,
    reason = "in a test, what can not go on may stop where it stands"
)]

mod check;
mod forward;
mod lab;
mod lifecycle;
mod node;
mod traffic;
mod watch;
mod whole;
