//! What the cloud refuses, by what the caller does about it.

use std::time::Duration;

use http::{HeaderMap, StatusCode};

use crate::action::Action;

/// What kind of refusal it is.
///
/// Source: ECS API reference, error codes; classes by what callers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultClass {
    /// The account's budget for the action is used up. Slow down, repeat later.
    Throttled,
    /// Something else is running or the service is short of breath; nothing was done. Repeat after a pause.
    Busy,
    /// The object is in a state that does not allow the call. Look, wait for the state, repeat.
    WaitState,
    /// The vSwitch has no free address. Use another one.
    Exhausted,
    /// An address is taken already.
    AddressInUse,
    /// No more ENIs on the instance, or in the account.
    LimitEni,
    /// No more addresses on the ENI.
    LimitAddress,
    /// The ENI does not exist.
    EniAbsent,
    /// The instance does not exist.
    InstanceAbsent,
    /// The address is not on the ENI.
    AddressAbsent,
    /// The security group takes no more members.
    SecurityGroupFull,
    /// The key may not do this, is unknown, disabled or expired, or the signature is wrong.
    Forbidden,
    /// The token was used with other parameters. Draw a new one.
    IdempotencyMismatch,
    /// The call is wrong and will stay wrong.
    Invalid,
    /// The cloud failed inside. Whether the call had an effect is not known.
    Internal,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message} (status {status}, request {request_id})")]
pub struct Fault {
    /// What to do about it.
    pub class: FaultClass,
    /// The cloud's code, such as `InvalidEniId.NotFound`; `Http.<status>` when it sent none.
    pub code: String,
    /// The cloud's words.
    pub message: String,
    /// HTTP status.
    pub status: u16,
    /// The cloud's id of the call; empty if it sent none.
    pub request_id: String,
    /// How long the cloud wants the caller to wait, if it said so.
    pub retry_after: Option<Duration>,
}

impl Fault {
    /// Classifies a refusal.
    pub fn new(
        status: StatusCode,
        headers: &HeaderMap,
        code: String,
        message: String,
        request_id: String,
    ) -> Self {
        let code = if code.is_empty() {
            format!("Http.{}", status.as_u16())
        } else {
            code
        };
        Self {
            class: classify(status, &code),
            code,
            message,
            status: status.as_u16(),
            request_id,
            retry_after: retry_after(headers),
        }
    }

    /// Whether the refusal means that what `action` should bring about is so already: the thing to delete, detach
    /// or unassign is not there.
    pub fn is_done_for(&self, action: Action) -> bool {
        match self.class {
            FaultClass::EniAbsent => matches!(
                action,
                Action::DeleteNetworkInterface
                    | Action::DetachNetworkInterface
                    | Action::UnassignPrivateIpAddresses
                    | Action::UnassignIpv6Addresses
            ),
            FaultClass::InstanceAbsent => action == Action::DetachNetworkInterface,
            FaultClass::AddressAbsent => matches!(
                action,
                Action::UnassignPrivateIpAddresses | Action::UnassignIpv6Addresses
            ),
            FaultClass::Throttled
            | FaultClass::Busy
            | FaultClass::WaitState
            | FaultClass::Exhausted
            | FaultClass::AddressInUse
            | FaultClass::LimitEni
            | FaultClass::LimitAddress
            | FaultClass::SecurityGroupFull
            | FaultClass::Forbidden
            | FaultClass::IdempotencyMismatch
            | FaultClass::Invalid
            | FaultClass::Internal => false,
        }
    }

    /// Whether the call may have had an effect in spite of the refusal.
    pub fn is_outcome_unknown(&self) -> bool {
        self.class == FaultClass::Internal
    }
}

fn classify(status: StatusCode, code: &str) -> FaultClass {
    if code.starts_with("Throttling") || status == StatusCode::TOO_MANY_REQUESTS {
        return FaultClass::Throttled;
    }
    known(code).unwrap_or_else(|| by_shape(status, code))
}

fn known(code: &str) -> Option<FaultClass> {
    let class = match code {
        "Rejected.Throttling" => FaultClass::Throttled,
        // A nonce that was seen means that this request was sent twice; a new one may pass.
        "ServiceUnavailable"
        | "Operation.Conflict"
        | "OperationConflict"
        | "InvalidOperation.Conflict"
        | "TaskConflict"
        | "SystemBusy"
        | "LastTokenProcessing"
        | "OperationFailed.IdempotentTokenProcessing"
        | "OperationFailed.DistibuteLock"
        | "SignatureNonceUsed" => FaultClass::Busy,
        "InvalidOperation.InvalidEniState"
        | "InvalidOperation.InvalidEcsState"
        | "InvalidOperation.HasMemberEniAttached"
        | "InvalidOperation.InvalidTrunkEniStatus"
        | "IncorrectInstanceStatus"
        | "IncorrectVSwitchStatus"
        | "IncorrectVpcStatus" => FaultClass::WaitState,
        "InvalidVSwitchId.IpNotEnough" | "QuotaExceeded.PrivateIpAddress" => FaultClass::Exhausted,
        "InvalidIp.IpAssigned" | "InvalidPrivateIpAddress.Duplicated" => FaultClass::AddressInUse,
        "EniPerInstanceLimitExceeded"
        | "InvalidOperation.EniCountExceeded"
        | "MaxEniCountExceeded" => FaultClass::LimitEni,
        "InvalidOperation.Ipv4CountExceeded"
        | "InvalidOperation.Ipv6CountExceeded"
        | "MaxEniPrivateIpsCountExceeded"
        | "MaxEniIpv6IpsCountExceeded" => FaultClass::LimitAddress,
        "InvalidEniId.NotFound" => FaultClass::EniAbsent,
        "InvalidEcsId.NotFound" | "InvalidInstanceId.NotFound" => FaultClass::InstanceAbsent,
        "InvalidIp.IpUnassigned" => FaultClass::AddressAbsent,
        "SecurityGroupInstanceLimitExceed" => FaultClass::SecurityGroupFull,
        "IdempotentParameterMismatch" | "IdempotenceParamNotMatch" | "IdempotentFailed" => {
            FaultClass::IdempotencyMismatch
        }
        "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "MissingSecurityToken"
        | "InvalidUserType.NotSupported"
        | "Abs.InvalidAccount.NotFound" => FaultClass::Forbidden,
        "InternalError" | "UnknownError" => FaultClass::Internal,
        _ => return None,
    };
    Some(class)
}

/// Families of codes that grow; then the status alone.
fn by_shape(status: StatusCode, code: &str) -> FaultClass {
    const FORBIDDEN: [&str; 4] = [
        "Forbidden",
        "InvalidAccessKeyId.",
        "InvalidSecurityToken.",
        "NoPermission",
    ];
    if FORBIDDEN.iter().any(|prefix| code.starts_with(prefix)) {
        return FaultClass::Forbidden;
    }
    if code.starts_with("IncorrectStatus") {
        return FaultClass::WaitState;
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        return FaultClass::Busy;
    }
    if status.is_client_error() {
        return FaultClass::Invalid;
    }
    FaultClass::Internal
}

/// The largest wait named by the three headers that the vendor's SDKs read.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let plain = text("x-acs-retry-after").and_then(|ms| ms.trim().parse::<u64>().ok());
    let left = ["x-ratelimit-user-api", "x-ratelimit-user"]
        .into_iter()
        .filter_map(text)
        .filter_map(|limits| {
            limits
                .split(',')
                .find_map(|part| part.trim().strip_prefix("TimeLeft:"))
                .and_then(|ms| ms.trim().parse::<u64>().ok())
        });
    plain
        .into_iter()
        .chain(left)
        .max()
        .filter(|ms| *ms > 0)
        .map(Duration::from_millis)
}
