//! Why a verb did not reach its state, by what the caller does about it.

use std::net::IpAddr;
use std::time::Duration;

use ecs_api::action::{Action, Product};
use ecs_api::fault::{Fault, FaultClass};
use mesh::status::Refusal;
use proto::types::v1::Reason;
use tonic::{Code, Status};

use crate::call::{CallError, is_about_keys};

/// Why a verb did not reach its state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A newer owner of the shard was seen. The caller has lost the shard.
    #[error("epoch {epoch} of shard {shard} is over, epoch {seen} was seen")]
    EpochStale {
        /// The shard.
        shard: String,
        /// The caller's epoch.
        epoch: u64,
        /// The highest one seen.
        seen: u64,
    },
    /// The vSwitch is full. Use another one.
    #[error("vSwitch has no free address: {what}")]
    Exhausted {
        /// The cloud's words.
        what: String,
    },
    /// No further ENI on the instance or in the account.
    #[error("no further ENI is possible: {what}")]
    EniLimit {
        /// The cloud's words.
        what: String,
    },
    /// No further address on the ENI.
    #[error("no further address is possible: {what}")]
    AddressLimit {
        /// The cloud's words.
        what: String,
    },
    /// Somebody else has an address. Take others.
    #[error("in use by somebody else: {addresses:?}: {what}")]
    AddressInUse {
        /// Which of the wanted ones, as far as could be found out; may be empty.
        addresses: Vec<IpAddr>,
        /// The cloud's words.
        what: String,
    },
    /// The cloud does not know the object.
    #[error("{id} does not exist: {what}")]
    NotFound {
        /// The object.
        id: String,
        /// The cloud's words.
        what: String,
    },
    /// The object is in another state than the verb needs. Look, wait, repeat.
    #[error("{id} is in another state than needed: {what}")]
    StateConflict {
        /// The object.
        id: String,
        /// What was seen.
        what: String,
    },
    /// The security group is full.
    #[error("security group is full: {what}")]
    SecurityGroupFull {
        /// The cloud's words.
        what: String,
    },
    /// Refused for its rate before the deadline; nothing is under way.
    #[error("rate limit: {what}")]
    Throttled {
        /// Whose limit.
        what: String,
        /// When to come back.
        retry_after: Duration,
    },
    /// The credentials may not do this.
    #[error("{permission} is not allowed: {what}")]
    Forbidden {
        /// The permission that is missing, such as `ecs:CreateNetworkInterface`.
        permission: String,
        /// The cloud's words.
        what: String,
    },
    /// There are no credentials, or the cloud does not know them.
    #[error("{what}")]
    Credentials {
        /// Which source, or the cloud's words.
        what: String,
    },
    /// The vSwitch is unknown, or not where the instance is.
    #[error("vSwitch {id} can not be used: {what}")]
    VSwitchInvalid {
        /// The vSwitch, or the ENI that is in it.
        id: String,
        /// The cloud's words.
        what: String,
    },
    /// A security group is unknown, or of another VPC.
    #[error("security group {id} can not be used: {what}")]
    SecurityGroupInvalid {
        /// The groups that were asked for, separated by commas: the cloud does not say which it means.
        id: String,
        /// The cloud's words.
        what: String,
    },
    /// The cloud will refuse the same call again.
    #[error("refused as invalid: {what}")]
    Invalid {
        /// The cloud's words, or ours.
        what: String,
    },
    /// Nothing was done; the cloud or the way to it is out of order.
    #[error("cloud is out of reach: {what}")]
    Unavailable {
        /// What failed.
        what: String,
    },
    /// Something was sent, and what became of it is not known. Repeat with the same key.
    #[error("outcome is not known: {what}")]
    OutcomeUnknown {
        /// What was sent, what was seen last.
        what: String,
    },
    /// Too much queued work.
    #[error("too much is queued: {what}")]
    Overloaded {
        /// Which queue.
        what: String,
        /// When to come back.
        retry_after: Duration,
    },
    /// A field of the request is missing or malformed.
    #[error("{field}: {what}")]
    BadField {
        /// Its name.
        field: &'static str,
        /// What is wrong.
        what: String,
    },
}

/// What a call is about, for failures that name the object.
#[derive(Debug, Clone, Default)]
pub struct Subject {
    /// The ENI, if there is one already.
    pub eni: String,
    /// The instance, for attach and detach.
    pub instance: String,
    /// The vSwitch, for create.
    pub vswitch: String,
    /// The security groups, for create.
    pub security_groups: Vec<String>,
}

/// The RAM permission that an action needs.
///
/// Source: RAM authorization of ECS and VPC: `ecs:<Action>`, `vpc:<Action>`.
pub fn permission(action: Action) -> String {
    let product = match action.product() {
        Product::Ecs => "ecs",
        Product::Vpc => "vpc",
    };
    format!("{product}:{action}")
}

impl Subject {
    /// The vSwitch; of an ENI that exists, the ENI.
    fn place(&self) -> String {
        if self.vswitch.is_empty() {
            format!("of {}", self.eni)
        } else {
            self.vswitch.clone()
        }
    }
}

/// Whether the cloud says that the vSwitch is none of ours.
///
/// Source: ECS error codes. A mismatch of VPCs is one between vSwitch and security group when an ENI is created, which
/// is taken for the group's fault, and between ENI and instance when it is attached.
fn is_about_vswitch(action: Action, code: &str) -> bool {
    matches!(
        code,
        "InvalidVSwitchId.NotFound"
            | "InvalidVSwitchId.Malformed"
            | "InvalidOperation.AvailabilityZoneMismatch"
            | "InvalidOperation.ZoneMismatch"
    ) || (code == "InvalidOperation.VpcMismatch" && action == Action::AttachNetworkInterface)
}

/// Whether the cloud says that a security group is none of ours.
fn is_about_groups(code: &str) -> bool {
    code.starts_with("InvalidSecurityGroupId.")
        || matches!(
            code,
            "InvalidSecurityGroup.NotFound" | "InvalidOperation.VpcMismatch"
        )
}

impl Failure {
    /// A refusal of the cloud, for the caller of a verb.
    pub fn of_fault(action: Action, fault: &Fault, subject: &Subject) -> Self {
        let what = format!("{action}: {fault}");
        match fault.class {
            FaultClass::Throttled => Self::Throttled {
                what,
                retry_after: fault.retry_after.unwrap_or(Duration::from_secs(1)),
            },
            FaultClass::WaitState => Self::StateConflict {
                id: subject.eni.clone(),
                what,
            },
            FaultClass::Exhausted => Self::Exhausted { what },
            FaultClass::AddressInUse => Self::AddressInUse {
                addresses: Vec::new(),
                what,
            },
            FaultClass::LimitEni => Self::EniLimit { what },
            FaultClass::LimitAddress => Self::AddressLimit { what },
            FaultClass::EniAbsent => Self::NotFound {
                id: subject.eni.clone(),
                what,
            },
            FaultClass::InstanceAbsent => Self::NotFound {
                id: subject.instance.clone(),
                what,
            },
            FaultClass::SecurityGroupFull => Self::SecurityGroupFull { what },
            FaultClass::Forbidden if is_about_keys(fault) => Self::Credentials { what },
            FaultClass::Forbidden => Self::Forbidden {
                permission: permission(action),
                what,
            },
            FaultClass::Invalid if is_about_vswitch(action, &fault.code) => Self::VSwitchInvalid {
                id: subject.place(),
                what,
            },
            FaultClass::Invalid if is_about_groups(&fault.code) => Self::SecurityGroupInvalid {
                id: subject.security_groups.join(","),
                what,
            },
            // A token that was used with other parameters is a bug or a changed plan; another
            // token would hide it and could do the work twice.
            FaultClass::IdempotencyMismatch | FaultClass::AddressAbsent | FaultClass::Invalid => {
                Self::Invalid { what }
            }
            FaultClass::Internal if action.is_write() => Self::OutcomeUnknown { what },
            FaultClass::Busy | FaultClass::Internal => Self::Unavailable { what },
        }
    }

    /// A call that failed, for the caller of a verb.
    pub fn of_call(action: Action, error: &CallError, subject: &Subject) -> Self {
        match error {
            CallError::Refused(fault) => Self::of_fault(action, fault, subject),
            CallError::Throttled { what, retry_after } => Self::Throttled {
                what: what.clone(),
                retry_after: *retry_after,
            },
            CallError::Full { what, retry_after } => Self::Overloaded {
                what: what.clone(),
                retry_after: *retry_after,
            },
            CallError::NotSent { what } => Self::Unavailable {
                what: format!("{action}: {what}"),
            },
            CallError::NoCredentials { what } => Self::Credentials { what: what.clone() },
            CallError::Unknown { what } => Self::OutcomeUnknown {
                what: format!("{action}: {what}"),
            },
            CallError::Fenced { shard, epoch, seen } => Self::EpochStale {
                shard: shard.clone(),
                epoch: *epoch,
                seen: *seen,
            },
        }
    }

    /// The reason on the wire.
    pub fn reason(&self) -> Reason {
        match self {
            Self::EpochStale { .. } => Reason::EpochStale,
            Self::Exhausted { .. } => Reason::VswitchExhausted,
            Self::EniLimit { .. } => Reason::EniLimit,
            Self::AddressLimit { .. } => Reason::AddressLimit,
            Self::AddressInUse { .. } => Reason::AddressInUse,
            Self::NotFound { .. } => Reason::NotFound,
            Self::StateConflict { .. } => Reason::StateConflict,
            Self::SecurityGroupFull { .. } => Reason::SecurityGroupFull,
            Self::Throttled { .. } => Reason::CloudThrottled,
            Self::Forbidden { .. } => Reason::CloudForbidden,
            Self::Credentials { .. } => Reason::CloudCredentials,
            Self::VSwitchInvalid { .. } => Reason::VswitchInvalid,
            Self::SecurityGroupInvalid { .. } => Reason::SecurityGroupInvalid,
            Self::Invalid { .. } => Reason::CloudInvalid,
            Self::Unavailable { .. } => Reason::CloudUnavailable,
            Self::OutcomeUnknown { .. } => Reason::OutcomeUnknown,
            Self::Overloaded { .. } => Reason::Overloaded,
            Self::BadField { .. } => Reason::BadField,
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::EpochStale { .. } | Self::StateConflict { .. } | Self::Credentials { .. } => {
                Code::FailedPrecondition
            }
            Self::Exhausted { .. }
            | Self::EniLimit { .. }
            | Self::AddressLimit { .. }
            | Self::SecurityGroupFull { .. }
            | Self::Throttled { .. }
            | Self::Overloaded { .. } => Code::ResourceExhausted,
            Self::AddressInUse { .. } => Code::AlreadyExists,
            Self::NotFound { .. } => Code::NotFound,
            Self::Forbidden { .. } => Code::PermissionDenied,
            Self::Invalid { .. }
            | Self::VSwitchInvalid { .. }
            | Self::SecurityGroupInvalid { .. }
            | Self::BadField { .. } => Code::InvalidArgument,
            Self::Unavailable { .. } => Code::Unavailable,
            Self::OutcomeUnknown { .. } => Code::DeadlineExceeded,
        }
    }

    /// The status with reason, metadata and time to come back.
    pub fn to_status(&self) -> Status {
        let refusal = Refusal::new(self.code(), self.reason().as_str_name(), self.to_string());
        match self {
            Self::EpochStale { shard, epoch, seen } => refusal
                .with("shard", shard)
                .with("epoch", epoch.to_string())
                .with("seen", seen.to_string()),
            Self::AddressInUse { addresses, .. } => {
                let mut texts = addresses.iter().map(ToString::to_string);
                let refusal = refusal.with("address", texts.next().unwrap_or_default());
                let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                refusal.with("addresses", all.join(","))
            }
            Self::NotFound { id, .. }
            | Self::StateConflict { id, .. }
            | Self::VSwitchInvalid { id, .. }
            | Self::SecurityGroupInvalid { id, .. } => refusal.with("id", id),
            Self::Throttled { retry_after, .. } | Self::Overloaded { retry_after, .. } => {
                refusal.retry_after(*retry_after)
            }
            Self::Forbidden { permission, .. } => refusal.with("permission", permission),
            Self::BadField { field, .. } => refusal.with("field", *field),
            Self::Exhausted { .. }
            | Self::EniLimit { .. }
            | Self::AddressLimit { .. }
            | Self::SecurityGroupFull { .. }
            | Self::Credentials { .. }
            | Self::Invalid { .. }
            | Self::Unavailable { .. }
            | Self::OutcomeUnknown { .. } => refusal,
        }
        .into_status()
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;

    fn fault(status: StatusCode, code: &str) -> Fault {
        Fault::new(
            status,
            &HeaderMap::new(),
            code.to_owned(),
            "words".to_owned(),
            "REQ-1".to_owned(),
        )
    }

    fn reason_of(action: Action, status: StatusCode, code: &str) -> Reason {
        Failure::of_fault(action, &fault(status, code), &Subject::default()).reason()
    }

    const TOLD: &[(Action, StatusCode, &str, Reason)] = &[
        (
            Action::CreateNetworkInterface,
            StatusCode::FORBIDDEN,
            "InvalidVSwitchId.IpNotEnough",
            Reason::VswitchExhausted,
        ),
        (
            Action::CreateNetworkInterface,
            StatusCode::BAD_REQUEST,
            "QuotaExceeded.PrivateIpAddress",
            Reason::VswitchExhausted,
        ),
        (
            Action::AssignPrivateIpAddresses,
            StatusCode::FORBIDDEN,
            "InvalidIp.IpAssigned",
            Reason::AddressInUse,
        ),
        (
            Action::AttachNetworkInterface,
            StatusCode::FORBIDDEN,
            "EniPerInstanceLimitExceeded",
            Reason::EniLimit,
        ),
        (
            Action::AssignPrivateIpAddresses,
            StatusCode::FORBIDDEN,
            "InvalidOperation.Ipv4CountExceeded",
            Reason::AddressLimit,
        ),
        (
            Action::AttachNetworkInterface,
            StatusCode::NOT_FOUND,
            "InvalidEniId.NotFound",
            Reason::NotFound,
        ),
        (
            Action::CreateNetworkInterface,
            StatusCode::NOT_FOUND,
            "InvalidVSwitchId.NotFound",
            Reason::VswitchInvalid,
        ),
        (
            Action::AttachNetworkInterface,
            StatusCode::FORBIDDEN,
            "InvalidOperation.AvailabilityZoneMismatch",
            Reason::VswitchInvalid,
        ),
        (
            Action::AttachNetworkInterface,
            StatusCode::FORBIDDEN,
            "InvalidOperation.VpcMismatch",
            Reason::VswitchInvalid,
        ),
        (
            Action::CreateNetworkInterface,
            StatusCode::NOT_FOUND,
            "InvalidSecurityGroupId.NotFound",
            Reason::SecurityGroupInvalid,
        ),
        (
            Action::CreateNetworkInterface,
            StatusCode::FORBIDDEN,
            "InvalidSecurityGroupId.NotVpc",
            Reason::SecurityGroupInvalid,
        ),
        (
            Action::CreateNetworkInterface,
            StatusCode::NOT_FOUND,
            "InvalidAccessKeyId.NotFound",
            Reason::CloudCredentials,
        ),
        (
            Action::CreateNetworkInterface,
            StatusCode::BAD_REQUEST,
            "InvalidSecurityToken.Expired",
            Reason::CloudCredentials,
        ),
        (
            Action::AttachNetworkInterface,
            StatusCode::BAD_REQUEST,
            "InvalidOperation.InvalidEniState",
            Reason::StateConflict,
        ),
        (
            Action::CreateNetworkInterface,
            StatusCode::BAD_REQUEST,
            "Throttling.User",
            Reason::CloudThrottled,
        ),
        (
            Action::CreateNetworkInterface,
            StatusCode::FORBIDDEN,
            "Forbidden.RAM",
            Reason::CloudForbidden,
        ),
        (
            Action::CreateNetworkInterface,
            StatusCode::BAD_REQUEST,
            "IdempotentParameterMismatch",
            Reason::CloudInvalid,
        ),
        (
            Action::CreateNetworkInterface,
            StatusCode::BAD_REQUEST,
            "MissingParameter",
            Reason::CloudInvalid,
        ),
        (
            Action::CreateNetworkInterface,
            StatusCode::FORBIDDEN,
            "SecurityGroupInstanceLimitExceed",
            Reason::SecurityGroupFull,
        ),
        (
            Action::AttachNetworkInterface,
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            Reason::OutcomeUnknown,
        ),
        (
            Action::DescribeNetworkInterfaces,
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            Reason::CloudUnavailable,
        ),
        (
            Action::CreateNetworkInterface,
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            Reason::CloudUnavailable,
        ),
    ];

    #[test]
    fn faults_of_the_cloud_have_the_reason_that_says_what_to_do() {
        for (action, status, code, reason) in TOLD {
            assert_eq!(reason_of(*action, *status, code), *reason, "{code}");
        }
    }

    #[test]
    fn forbidden_call_names_the_missing_permission() {
        let fault = fault(StatusCode::FORBIDDEN, "Forbidden.RAM");

        let status =
            Failure::of_fault(Action::DescribeVSwitches, &fault, &Subject::default()).to_status();

        assert_eq!(
            mesh::status::metadata(&status, "permission").as_deref(),
            Some("vpc:DescribeVSwitches")
        );
        assert_eq!(
            mesh::status::reason(&status).as_deref(),
            Some("REASON_CLOUD_FORBIDDEN")
        );
    }

    #[test]
    fn throttled_failure_says_when_to_come_back() {
        let failure = Failure::Throttled {
            what: String::new(),
            retry_after: Duration::from_millis(1_500),
        };

        assert_eq!(
            mesh::status::retry_after(&failure.to_status()),
            Some(Duration::from_millis(1_500))
        );
    }

    #[test]
    fn address_in_use_names_the_first_address_and_all() {
        let failure = Failure::AddressInUse {
            addresses: vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()],
            what: String::new(),
        };

        let status = failure.to_status();

        assert_eq!(
            mesh::status::metadata(&status, "address").as_deref(),
            Some("10.0.0.1")
        );
        assert_eq!(
            mesh::status::metadata(&status, "addresses").as_deref(),
            Some("10.0.0.1,10.0.0.2")
        );
    }
}
