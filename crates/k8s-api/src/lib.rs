//! The formats that Terway and Kubernetes gave us: `eni_conf`, annotation names, manifests.
//!
//! Parsers only; where objects come from is the business of `cluster`.

pub mod eni_conf;
pub mod manifest;
pub mod names;
pub mod provider;
