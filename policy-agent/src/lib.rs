//! The policy agent: NetworkPolicy in the kernel of one node.
