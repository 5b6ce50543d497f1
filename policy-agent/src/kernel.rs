//! The kernel, by netlink: rules, flows, news of changes, and who holds the socket that owns our table.
//!
//! No call here waits for the network or for other processes: the kernel works while a message is being
//! sent, and its answers lie ready when the send returns. So all calls block exactly as long as the kernel
//! works, and belong on a thread of their own.

pub mod address;
pub mod conntrack;
mod link;
pub mod monitor;
pub mod nft;
pub mod owner;
pub mod probe;

pub use link::OpenError;
