//! What could not be read in a document.

use std::fmt;

/// One thing that could not be read, or is not supported, and what it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Kind of the object, as written in it; empty when the document has none.
    pub kind: String,
    /// Namespace of the object; empty for cluster-wide ones.
    pub namespace: String,
    /// Name of the object; empty when the document has none.
    pub name: String,
    /// A sentence: what is wrong, where, and what it was taken for.
    pub detail: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{}: {}", self.name, self.detail)
    }
}
