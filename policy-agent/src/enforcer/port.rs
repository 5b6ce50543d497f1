//! What the enforcer needs of the kernel. One implementation speaks netlink; tests have one that refuses at will.

use std::net::IpAddr;
use std::sync::Arc;

use nft_wire::change::Change;
use nft_wire::element::Element;
use nft_wire::snapshot::Snapshot;
use policy_core::plan::{Failure, Target};

/// Our tables in one namespace; those that are not there are not in it.
pub type Dump = Vec<Snapshot>;

/// A dump that did not come about.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The namespace is gone: its tables are gone with it.
    #[error("the namespace is gone")]
    NamespaceGone,
    /// It can be tried again.
    #[error("{0}")]
    Failed(String),
}

/// A transaction that did not take effect, or of which nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refused {
    /// For the engine.
    pub failure: Failure,
    /// The namespace does not exist any more.
    pub namespace_gone: bool,
    /// For people.
    pub text: String,
}

/// Opens a way to the kernel's rules beside the enforcer's own, to read. It blocks, as all its calls do.
pub type OpenRules = Arc<dyn Fn() -> Result<Box<dyn Rules + Send>, String> + Send + Sync>;

/// The kernel's rules in every namespace of concern. Calls block, for as long as the kernel works.
pub trait Rules {
    /// Does all changes or none.
    ///
    /// # Errors
    /// [`Refused`].
    fn commit(&mut self, target: &Target, changes: &[Change]) -> Result<(), Refused>;

    /// What our tables hold; the same generation at its beginning and its end.
    ///
    /// # Errors
    /// [`DumpError`].
    fn dump(&mut self, target: &Target) -> Result<Dump, DumpError>;

    /// Elements of one set or map of our `inet` table; `None` when it is not there.
    ///
    /// # Errors
    /// [`DumpError`].
    fn elements(&mut self, target: &Target, name: &str) -> Result<Option<Vec<Element>>, DumpError>;

    /// Nothing is asked of this namespace any more.
    fn forget(&mut self, target: &Target);

    /// The addresses of the node's own links.
    fn node_addresses(&mut self) -> Vec<IpAddr>;

    /// Whether our table has an owner, and outlives it.
    fn ownership(&mut self) -> Ownership;
}

/// Who may change our table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ownership {
    /// We alone.
    pub owned: bool,
    /// It outlives us.
    pub persistent: bool,
}
