//! Refusals on the wire: a gRPC status with a machine-readable reason.
//!
//! A caller decides by [`reason`], never by the text. The reason travels as
//! `google.rpc.ErrorInfo` (domain `terway`), the time to come back as `google.rpc.RetryInfo`.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The domain of our `ErrorInfo`.
pub const DOMAIN: &str = "terway";

/// The service has too much to do. Named as in `terway.types.v1.Reason`.
pub const OVERLOADED: &str = "REASON_OVERLOADED";
/// The caller may not do this, or not for this object. Named as in `terway.types.v1.Reason`.
pub const IDENTITY_MISMATCH: &str = "REASON_IDENTITY_MISMATCH";
/// The service cannot serve (yet, or any more). Named as in `terway.types.v1.Reason`.
pub const NOT_READY: &str = "REASON_NOT_READY";

/// A field of the request can not be used. Named as in `terway.types.v1.Reason`.
pub const BAD_FIELD: &str = "REASON_BAD_FIELD";

/// A status in the making.
#[derive(Debug, Clone)]
#[must_use = "a refusal says nothing until it is made a status"]
pub struct Refusal {
    code: Code,
    reason: String,
    message: String,
    metadata: HashMap<String, String>,
    retry_after: Option<Duration>,
}

impl Refusal {
    /// Starts a refusal. `reason` is the name of a value of `terway.types.v1.Reason`.
    pub fn new(code: Code, reason: &str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            message: message.into(),
            metadata: HashMap::new(),
            retry_after: None,
        }
    }

    /// Refuses a field of the request. Its name also goes along as the fact `field`.
    pub fn bad_field(field: &str, why: impl Display) -> Self {
        Self::new(Code::InvalidArgument, BAD_FIELD, format!("{field}: {why}")).with("field", field)
    }

    /// Adds a fact that the caller may decide by.
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Says when to come back.
    pub const fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The finished status.
    pub fn into_status(self) -> Status {
        let mut details = ErrorDetails::with_error_info(self.reason, DOMAIN, self.metadata);
        if let Some(wait) = self.retry_after {
            details.set_retry_info(Some(wait));
        }
        Status::with_error_details(self.code, self.message, details)
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        refusal.into_status()
    }
}

/// The reason, if the status is one of ours.
pub fn reason(status: &Status) -> Option<String> {
    let info = status.get_details_error_info()?;
    (info.domain == DOMAIN).then_some(info.reason)
}

/// A fact of a refusal of ours.
pub fn metadata(status: &Status, key: &str) -> Option<String> {
    let mut info = status.get_details_error_info()?;
    if info.domain != DOMAIN {
        return None;
    }
    info.metadata.remove(key)
}

/// When to come back, if the status says so.
pub fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::{Code, Status};

    use super::{
        BAD_FIELD, IDENTITY_MISMATCH, NOT_READY, OVERLOADED, Refusal, metadata, reason, retry_after,
    };

    #[test]
    fn refusal_is_read_back_from_its_status() {
        let status = Refusal::new(Code::ResourceExhausted, OVERLOADED, "queue is full")
            .with("queue", "cloud")
            .retry_after(Duration::from_millis(250))
            .into_status();

        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(reason(&status).as_deref(), Some(OVERLOADED));
        assert_eq!(metadata(&status, "queue").as_deref(), Some("cloud"));
        assert_eq!(metadata(&status, "other"), None);
        assert_eq!(retry_after(&status), Some(Duration::from_millis(250)));
    }

    #[test]
    fn refusal_of_a_field_names_it() {
        let status = Refusal::bad_field("mtu", "9 is too small").into_status();

        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "mtu: 9 is too small");
        assert_eq!(reason(&status).as_deref(), Some(BAD_FIELD));
        assert_eq!(metadata(&status, "field").as_deref(), Some("mtu"));
    }

    #[test]
    fn status_of_somebody_else_has_no_reason() {
        let status = Status::unavailable("connection refused");

        assert_eq!(reason(&status), None);
        assert_eq!(retry_after(&status), None);
    }

    #[test]
    fn reasons_used_here_exist_on_the_wire() {
        for name in [OVERLOADED, IDENTITY_MISMATCH, NOT_READY, BAD_FIELD] {
            assert!(
                proto::types::v1::Reason::from_str_name(name).is_some(),
                "{name}"
            );
        }
    }
}
