//! Where Kubernetes objects come from: typed pictures of one node, and changes of the whole cluster.
//!
//! A source (an API server, or a folder of manifests) owns the state in one task. Readers of [`pods::Pods`] see whole pictures,
//! so a missed notification costs nothing; readers of [`documents::Documents`] get every change in order, and are
//! waited for.

pub mod control;
pub mod documents;
pub mod files;
pub mod folder;
pub mod health;
pub mod metrics;
pub mod object;
pub mod pods;
pub mod reports;
pub mod server;
pub mod source;
