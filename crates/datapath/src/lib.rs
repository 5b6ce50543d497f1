//! Desired kernel state, the difference to what the kernel holds, and the netlink calls that close it.
//!
//! [`desired`] says what a pod, an ENI and a node need; [`observed`] is what a namespace holds;
//! [`plan`] compares the two without touching anything and gives [`op`]erations; [`kernel`] does the work. A plan against
//! a kernel that already agrees is empty, so applying anything twice changes nothing. [`watch`] tells what
//! changes meanwhile.
//!
//! The state is that of Terway's "ENI secondary IP, veth + policy routing" mode: names, rules and
//! tables are the same, so that a node can change over without restarting its pods.

pub mod desired;
pub mod error;
pub mod forward;
pub mod host;
pub mod kernel;
mod moved;
pub mod names;
pub mod namespace;
pub mod netlink;
pub mod observed;
pub mod op;
pub mod owner;
pub mod plan;
pub mod watch;
pub mod whole;
