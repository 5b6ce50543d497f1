//! `terwayctl policy`: why a flow is allowed or denied.
//!
//! [`offline`] answers from a folder of manifests by the reference evaluator, without an agent; [`agent`] asks the
//! agent of a node, which adds what its kernel has. [`run`] is the command, [`question`] what people type.

pub mod agent;
pub mod offline;
pub mod question;
pub mod run;
