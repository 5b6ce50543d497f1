//! The policy agent: NetworkPolicy in the kernel of one node.

pub mod feed;
pub mod relay;
