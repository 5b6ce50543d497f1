//! The harness of the stories: real binaries in network namespaces, one cluster at a time.
//!
//! A story says what must hold; the harness starts the cluster, ends it whatever happens, and waits for levels with
//! a bound instead of sleeping.

pub mod audit;
pub mod check;
pub mod leftovers;
pub mod story;
