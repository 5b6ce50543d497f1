//! The agent's parts against a real kernel, in network namespaces.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "tests fail by panicking"
)]

mod asking;
mod bed;
mod enforcing;
mod gating;
mod inspecting;
mod installing;
mod kernel;
mod pod_namespace;
mod poison;
mod process;
mod program;
mod relaying;
mod restarting;
mod revoking;
mod special;
mod switching;
mod traffic;
