//! The fabric against a real kernel: needs root, `ip` and `nft`, and fails without them.

mod metadata;
mod reachability;
mod spoofing;
mod world;
