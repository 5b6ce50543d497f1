//! What the revoker needs of conntrack. One implementation speaks netlink; tests have one of their own.

use std::net::IpAddr;

use nft_wire::conntrack::{Filter, Flow, Mark};

/// Conntrack can not be read or changed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct FlowsError(pub String);

/// The connection tracker of the node's namespace. Calls block, for as long as the kernel works.
pub trait Flows {
    /// Shows every flow that passes the filter. Flows that come and go meanwhile may be missed or shown twice.
    ///
    /// # Errors
    /// [`FlowsError`]; some flows may have been shown.
    fn dump(&mut self, filter: &Filter, each: &mut dyn FnMut(&Flow)) -> Result<(), FlowsError>;

    /// Changes bits of the marks of these flows. One that ended meanwhile is no error.
    ///
    /// # Errors
    /// [`FlowsError`]; some marks may have been changed.
    fn mark(&mut self, changes: &[(Flow, Mark)]) -> Result<(), FlowsError>;

    /// Deletes these flows' entries. One that ended meanwhile is no error.
    ///
    /// # Errors
    /// [`FlowsError`]; some may have been deleted.
    fn delete(&mut self, flows: &[Flow]) -> Result<(), FlowsError>;

    /// The addresses of the node's own links.
    fn node_addresses(&mut self) -> Vec<IpAddr>;
}
