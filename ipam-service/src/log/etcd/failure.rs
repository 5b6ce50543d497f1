//! What a failed call to etcd means: was it sent, may it have happened, whose fault is it.

use std::error::Error;

use etcd_client as etcd;
use mesh::causes;
use tonic::Code;

use crate::log::kv::KvError;

/// What a failed call means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// No connection: nothing left this machine. Another endpoint may do.
    NotSent(String),
    /// etcd refused it; another endpoint would say the same.
    Refused(KvError),
    /// etcd has no capacity at the moment; nothing was done.
    Busy(String),
    /// Anything else: it may have happened.
    Lost(String),
}

/// Sorts an error of the library. When in doubt it is [`Failure::Lost`].
pub(super) fn classify(error: &etcd::Error) -> Failure {
    match error {
        etcd::Error::GRpcStatus(status) => classify_status(status),
        etcd::Error::TransportError(err) if is_connect(err) => Failure::NotSent(causes::text(err)),
        etcd::Error::LeaseKeepAliveError(why) if why.contains("not found") => {
            Failure::Refused(KvError::SessionEnded)
        }
        etcd::Error::InvalidArgs(why) => Failure::Refused(KvError::Invalid(why.clone())),
        etcd::Error::TransportError(_)
        | etcd::Error::LeaseKeepAliveError(_)
        | etcd::Error::InvalidUri(_)
        | etcd::Error::IoError(_)
        | etcd::Error::WatchError(_)
        | etcd::Error::Utf8Error(_)
        | etcd::Error::ElectError(_)
        | etcd::Error::InvalidMetadataValue(_)
        | etcd::Error::EndpointError(_)
        | etcd::Error::EndpointsNotManaged
        | etcd::Error::Internal(_) => Failure::Lost(error.to_string()),
    }
}

fn classify_status(status: &tonic::Status) -> Failure {
    let not_sent = mesh::client::outcome(status) == mesh::client::Outcome::NotSent;
    if not_sent || is_connect(status) {
        return Failure::NotSent(causes::text(status));
    }
    let message = status.message();
    match status.code() {
        Code::NotFound if message.contains("lease not found") => {
            Failure::Refused(KvError::SessionEnded)
        }
        // Checked before anything is proposed. Source: etcd, api/v3rpc/rpctypes/error.go.
        Code::InvalidArgument => Failure::Refused(KvError::Invalid(message.to_owned())),
        Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented => {
            Failure::Refused(KvError::Unavailable(message.to_owned()))
        }
        // "too many requests" and "database space exceeded": not applied.
        Code::ResourceExhausted => Failure::Busy(message.to_owned()),
        // Among them "request timed out" and "leader changed", and an answer that is too long to be
        // decoded (OutOfRange): the write may have been applied.
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Failure::Lost(format!("{:?}: {message}", status.code())),
    }
}

/// Whether the connection itself could not be made.
fn is_connect(error: &(dyn Error + 'static)) -> bool {
    causes::chain(error).any(<dyn Error>::is::<tonic::ConnectError>)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: tonic::Status) -> Failure {
        classify(&etcd::Error::GRpcStatus(status))
    }

    #[test]
    fn timed_out_request_may_have_happened() {
        let failure = of(tonic::Status::unavailable("etcdserver: request timed out"));

        assert!(matches!(failure, Failure::Lost(_)), "{failure:?}");
    }

    #[test]
    fn answer_too_long_to_decode_may_have_happened() {
        let failure = of(tonic::Status::out_of_range(
            "decoded message length too large",
        ));

        assert!(matches!(failure, Failure::Lost(_)), "{failure:?}");
    }

    #[test]
    fn missing_lease_is_an_ended_session() {
        let failure = of(tonic::Status::not_found(
            "etcdserver: requested lease not found",
        ));

        assert_eq!(failure, Failure::Refused(KvError::SessionEnded));
    }

    #[test]
    fn full_database_did_nothing() {
        let failure = of(tonic::Status::resource_exhausted(
            "etcdserver: mvcc: database space exceeded",
        ));

        assert!(matches!(failure, Failure::Busy(_)), "{failure:?}");
    }
}
