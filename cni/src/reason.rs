//! From the agent's refusal to a CNI failure.

use std::collections::HashMap;

use prost::Message;
use proto::types::v1::Reason;
use tonic::{Code, Status};

use crate::failure::{Failure, code};

/// `google.rpc.Status`, as far as it is needed.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.ErrorInfo`.
#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(map = "string, string", tag = "3")]
    metadata: HashMap<String, String>,
}

/// Statuses without a reason of ours that may be otherwise the next time.
const PASSING: [Code; 4] = [
    Code::Unavailable,
    Code::DeadlineExceeded,
    Code::ResourceExhausted,
    Code::Aborted,
];

/// What the agent says, as far as a decision hangs on it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    /// Why.
    pub(crate) reason: Reason,
    facts: HashMap<String, String>,
    status: Code,
    message: String,
}

impl Refusal {
    /// Reads a status. One without details of ours has the reason "unspecified".
    pub(crate) fn of(status: &Status) -> Self {
        let info = error_info(status.details()).filter(|i| i.domain == "terway");
        let (reason, facts) = info.map_or((Reason::Unspecified, HashMap::new()), |i| {
            let reason = Reason::from_str_name(&i.reason).unwrap_or(Reason::Unspecified);
            (reason, i.metadata)
        });
        Self {
            reason,
            facts,
            status: status.code(),
            message: status.message().to_owned(),
        }
    }

    /// As a CNI failure.
    pub(crate) fn failure(&self) -> Failure {
        let message = if self.message.is_empty() {
            format!("node-agent: {:?}", self.status)
        } else {
            format!("node-agent: {}", self.message)
        };
        let name = if self.reason == Reason::Unspecified {
            format!("gRPC status {:?}", self.status)
        } else {
            self.reason.as_str_name().to_owned()
        };
        let mut facts: Vec<String> = self.facts.iter().map(|(k, v)| format!("{k}={v}")).collect();
        facts.sort();
        facts.insert(0, name);
        Failure::new(self.code(), message).with(facts.join(" "))
    }

    fn code(&self) -> u32 {
        match self.reason {
            Reason::Unspecified if PASSING.contains(&self.status) => code::TRY_AGAIN,
            // A later call may find room, an answer, or somebody at home.
            Reason::NotOwner
            | Reason::EpochStale
            | Reason::VswitchExhausted
            | Reason::EniLimit
            | Reason::AddressLimit
            | Reason::AddressInUse
            | Reason::StateConflict
            | Reason::CloudThrottled
            | Reason::CloudUnavailable
            | Reason::OutcomeUnknown
            | Reason::StoreUnavailable
            | Reason::Overloaded
            | Reason::PoolEmpty
            | Reason::PodUnknown
            | Reason::Busy
            | Reason::NotReady
            | Reason::SecurityGroupFull => code::TRY_AGAIN,
            Reason::NotFound | Reason::NetnsGone => code::UNKNOWN_CONTAINER,
            Reason::KernelDrift => code::DRIFT,
            Reason::BadField => match self.facts.get("field") {
                Some(field) if field.starts_with("CNI_") => code::INVALID_ENVIRONMENT,
                _ => code::INVALID_CONFIG,
            },
            Reason::Unspecified
            | Reason::CloudForbidden
            | Reason::CloudCredentials
            | Reason::CloudInvalid
            | Reason::VswitchInvalid
            | Reason::SecurityGroupInvalid
            | Reason::IdentityMismatch
            | Reason::NodeUnknown => code::REFUSED,
        }
    }
}

fn error_info(details: &[u8]) -> Option<ErrorInfo> {
    let status = RpcStatus::decode(details).ok()?;
    let any = status
        .details
        .iter()
        .find(|d| d.type_url.ends_with("/google.rpc.ErrorInfo"))?;
    ErrorInfo::decode(any.value.as_slice()).ok()
}
