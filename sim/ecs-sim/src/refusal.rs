//! What the simulated cloud says when it refuses.

use http::StatusCode;

/// A refusal: status, code and message as the real service sends them.
///
/// Source: ECS API reference, error codes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// The code.
    pub code: String,
    /// The message.
    pub message: String,
    /// For throttles: milliseconds until the budget is fresh.
    pub retry_after_ms: Option<u64>,
}

impl Refusal {
    /// A refusal.
    pub fn new(status: StatusCode, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            retry_after_ms: None,
        }
    }

    /// Status 400.
    pub fn bad(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// Status 403.
    pub fn forbidden(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, message)
    }

    /// Status 404.
    pub fn not_found(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// A parameter that does not parse or is out of its range.
    pub fn invalid(name: &str, why: &str) -> Self {
        Self::bad(
            "InvalidParameter",
            format!("The specified parameter \"{name}\" is not valid: {why}."),
        )
    }

    /// A parameter that must be there.
    pub fn missing(name: &str) -> Self {
        Self::bad(
            "MissingParameter",
            format!(
                "The input parameter \"{name}\" that is mandatory for processing this request is not supplied."
            ),
        )
    }

    /// Parameters that exclude each other.
    pub fn conflict(names: &str) -> Self {
        Self::bad(
            "InvalidParameter.Conflict",
            format!("The parameters {names} exclude each other."),
        )
    }

    /// An ENI that does not exist, or belongs to somebody else.
    pub fn no_eni() -> Self {
        Self::not_found("InvalidEniId.NotFound", "The specified EniId is not found.")
    }

    /// An ENI in another status than the call needs.
    pub fn eni_state(status: &str) -> Self {
        Self::bad(
            "InvalidOperation.InvalidEniState",
            format!("The operation is not allowed in the current ENI state {status}."),
        )
    }

    /// An instance that is neither running nor stopped.
    pub fn ecs_state() -> Self {
        Self::bad(
            "InvalidOperation.InvalidEcsState",
            "The operation is not allowed in the current ECS state.",
        )
    }

    /// An inner failure.
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            "The request processing has failed due to some unknown error, exception or failure.",
        )
    }

    /// The account's budget for the action is used up for `left_ms` more.
    pub fn throttled(left_ms: u64) -> Self {
        Self {
            retry_after_ms: Some(left_ms.max(1)),
            ..Self::bad(
                "Throttling.User",
                "Request was denied due to user flow control.",
            )
        }
    }
}
