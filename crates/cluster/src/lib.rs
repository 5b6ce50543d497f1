//! Where Kubernetes objects come from: typed snapshots that readers watch.
//!
//! A source (today a folder of manifests) owns the state in one task; readers hold a
//! [`pods::Pods`] and see whole pictures, so a missed notification costs nothing.

pub mod folder;
pub mod pods;
