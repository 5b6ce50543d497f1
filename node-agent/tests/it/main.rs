//! The agent's parts together, in network namespaces that are made and removed here. Needs root and fails without.

#![expect(
    clippy::unwrap_used,
    reason = "in a test, what can not go on may stop where it stands"
)]

mod controlplane;
mod devices;
mod door;
mod duty;
mod kubelet;
mod lab;
mod policy;
