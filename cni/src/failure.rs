//! Failures as the CNI specification writes them.

use serde_json::json;

/// A failed call: code, message, details.
///
/// Source: CNI specification 1.1.0, section 4 "Error".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// One of [`code`].
    pub(crate) code: u32,
    /// Short, and names the thing.
    pub(crate) message: String,
    /// What else is known; may be empty.
    pub(crate) details: String,
}

/// Codes of failures. From 100 on they are the plug-in's own.
pub(crate) mod code {
    /// The version of the configuration is not supported.
    pub(crate) const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the configuration asks for what does not exist here.
    pub(crate) const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is unknown or gone; the runtime need not clean up.
    pub(crate) const UNKNOWN_CONTAINER: u32 = 3;
    /// A variable of the environment is missing or wrong.
    pub(crate) const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub(crate) const IO: u32 = 5;
    /// The configuration is not JSON.
    pub(crate) const DECODE: u32 = 6;
    /// The configuration is wrong.
    pub(crate) const INVALID_CONFIG: u32 = 7;
    /// Trying again later may help.
    pub(crate) const TRY_AGAIN: u32 = 11;
    /// STATUS: an ADD would fail.
    pub(crate) const NOT_AVAILABLE: u32 = 50;
    /// The agent refused for a reason that trying again does not change.
    pub(crate) const REFUSED: u32 = 100;
    /// CHECK: the kernel does not hold what it should.
    pub(crate) const DRIFT: u32 = 101;
}

impl Failure {
    /// A failure without details.
    pub(crate) fn new(code: u32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: String::new(),
        }
    }

    /// Adds details.
    pub(crate) fn with(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The JSON that goes to standard output.
    pub(crate) fn to_json(&self, version: &str) -> String {
        let mut object = json!({
            "cniVersion": version,
            "code": self.code,
            "msg": self.message,
        });
        if !self.details.is_empty() {
            object["details"] = json!(self.details);
        }
        object.to_string()
    }
}
