//! The fabric against a real kernel: needs root, `ip` and `nft`, and fails without them.

#[cfg(test)]
mod metadata;
#[cfg(test)]
mod reachability;
#[cfg(test)]
mod returns;
#[cfg(test)]
mod spoofing;
#[cfg(test)]
mod world;
