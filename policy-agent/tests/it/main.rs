//! The agent's parts against a real kernel, in network namespaces.

mod bed;
mod enforcing;
mod gating;
mod inspecting;
mod kernel;
mod pod_namespace;
mod restarting;
mod revoking;
mod switching;
mod traffic;
