//! The product against the oracle without a kernel: documents in, transactions into evaluators of nf_tables, packets
//! through the evaluators, and every verdict compared.
//!
//! A [`cluster::Cluster`] has an engine and a [`crate::machine::Machine`] for each node. A [`tamper::Tamper`] stands
//! between the documents and the engines, and between the engines and the machines; it is how mistakes are planted
//! to see whether the comparison notices them.

pub mod cluster;
pub mod compare;
pub mod history;
pub mod scenes;
pub mod tamper;
