//! Typed requests and replies.

pub mod address;
pub mod eni;
pub mod inventory;
pub mod params;

use crate::action::Action;
use crate::json::{Malformed, Node};
use crate::model::params::Params;

/// A request that knows its action, its parameters and its reply.
pub trait Request {
    /// What is asked for.
    const ACTION: Action;
    /// What comes back.
    type Reply: Reply;

    /// The business parameters; `RegionId` and everything about signing are added later.
    fn params(&self) -> Params;
}

/// A reply that can be read from JSON.
pub trait Reply: Sized {
    /// Reads the reply, leniently about scalars and absent lists.
    ///
    /// # Errors
    /// [`Malformed`] when a field that the caller cannot do without is absent or cannot be read.
    fn decode(node: Node<'_>) -> Result<Self, Malformed>;
}

/// Replies that carry nothing but their request id.
impl Reply for () {
    fn decode(_node: Node<'_>) -> Result<Self, Malformed> {
        Ok(())
    }
}

/// Addresses to put on an ENI: chosen by the caller, chosen by the cloud, or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Pick<A> {
    /// None of this family.
    #[default]
    Nothing,
    /// Exactly these.
    Listed(Vec<A>),
    /// So many, chosen by the cloud.
    Count(u32),
}
