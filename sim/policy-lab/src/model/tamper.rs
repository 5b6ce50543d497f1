//! Where mistakes are planted: on what the product is given, or on what it emits; never inside it.

use nft_wire::change::Change;
use policy_core::object::Event;
use serde_json::Value;

/// Changes what passes. Every method's default leaves it as it is.
pub trait Tamper {
    /// All documents before they are read.
    fn documents(&mut self, documents: &[Value]) -> Vec<Value> {
        documents.to_vec()
    }

    /// One event before an engine gets it; several, if one becomes several.
    fn event(&mut self, event: Event) -> Vec<Event> {
        vec![event]
    }

    /// One transaction before the machine gets it.
    fn changes(&mut self, changes: Vec<Change>) -> Vec<Change> {
        changes
    }

    /// Whether the transactions of one round are joined into one.
    fn joins(&self) -> bool {
        false
    }
}

/// Changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Honest;

impl Tamper for Honest {}
