//! The datapath against a real kernel, in network namespaces that are made and removed here. What the
//! kernel holds is read with `ip -j`, so that our own reader is no witness in its own case. Needs
//! root and fails without.

mod check;
mod forward;
mod lab;
mod lifecycle;
mod node;
mod traffic;
mod watch;
