//! One call of the cloud: budget, signature, exchange, classification, and the repeats that are safe.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ecs_api::action::{Action, Product};
use ecs_api::fault::{Fault, FaultClass};
use ecs_api::model::Request;
use ecs_api::reply::{Answer, ReplyError, decode};
use ecs_api::request::{Endpoint, Stamp, build};
use ecs_api::sign::{Credentials, Scheme};
use mesh::backoff::{Backoff, Params as BackoffParams};
use tokio::time::Instant;
use tracing::{Instrument, field, info_span};
use types::time::Tick;
use uuid::Uuid;

use crate::credentials::Keeper;
use crate::fence::Fence;
use crate::limits::{Budgets, Class, NoBudget};
use crate::metrics::Metrics;
use crate::transport::{Transport, TransportError};

/// Why a call has no answer that is good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The cloud refused it. Nothing was done, unless the class is `Internal`.
    #[error(transparent)]
    Refused(#[from] Fault),
    /// Our budget or the cloud's has no room before the deadline. Nothing was done.
    #[error("rate limit: {what}")]
    Throttled {
        /// Whose limit.
        what: String,
        /// When to come back.
        retry_after: Duration,
    },
    /// Too many calls wait for the same budget. Nothing was done.
    #[error("queue is full: {what}")]
    Full {
        /// Which queue.
        what: String,
        /// When to come back.
        retry_after: Duration,
    },
    /// It did not leave this process. Nothing was done.
    #[error("not sent: {what}")]
    NotSent {
        /// What failed.
        what: String,
    },
    /// There is nothing to sign it with. Nothing was done.
    #[error("{what}")]
    NoCredentials {
        /// Which source, and what is wrong with it.
        what: String,
    },
    /// It was sent and not answered, or not legibly. Nobody knows whether it took effect.
    #[error("outcome is not known: {what}")]
    Unknown {
        /// What failed.
        what: String,
    },
    /// A newer owner of the shard was seen before it was sent.
    #[error("epoch {epoch} of shard {shard} is over, epoch {seen} was seen")]
    Fenced {
        /// The shard.
        shard: String,
        /// The operation's epoch.
        epoch: u64,
        /// The highest one seen.
        seen: u64,
    },
}

/// Under which conditions a call is made.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Who goes first.
    pub class: Class,
    /// When its caller stops waiting.
    pub deadline: Instant,
    /// For writes: whether their owner may still send.
    pub fence: Option<Arc<Fence>>,
}

impl Terms {
    /// For reads.
    pub fn read(class: Class, deadline: Instant) -> Self {
        Self {
            class,
            deadline,
            fence: None,
        }
    }

    /// How long the caller still waits.
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Sleeps, but never past the deadline. False if there is no time for it.
    pub async fn pause(&self, wait: Duration) -> bool {
        if wait >= self.left() {
            return false;
        }
        tokio::time::sleep(wait).await;
        true
    }
}

/// How calls are made.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where each API lives.
    pub endpoints: BTreeMap<Product, Endpoint>,
    /// How requests are signed.
    pub scheme: Scheme,
    /// Longest wait for one answer.
    pub timeout: Duration,
    /// How often one call is sent at most.
    pub attempts: u32,
    /// Waits between them.
    pub backoff: BackoffParams,
}

/// Makes calls.
#[derive(Debug)]
pub struct Caller {
    settings: Settings,
    budgets: Arc<Budgets>,
    credentials: Arc<Keeper>,
    transport: Arc<dyn Transport>,
    metrics: Arc<Metrics>,
}

impl Caller {
    /// Puts the parts together.
    pub fn new(
        settings: Settings,
        budgets: Arc<Budgets>,
        credentials: Arc<Keeper>,
        transport: Arc<dyn Transport>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            settings,
            budgets,
            credentials,
            transport,
            metrics,
        }
    }

    /// Makes the call, and repeats it while that is safe and there is time.
    ///
    /// Safe is: after a refusal that says that nothing was done; and after any failure of a read or of an action
    /// with a `ClientToken`, since the request and with it the token stay the same.
    pub async fn call<R: Request + Sync>(
        &self,
        request: &R,
        terms: &Terms,
    ) -> Result<Answer<R::Reply>, CallError> {
        self.admit(R::ACTION, terms).await?;
        self.call_admitted(request, terms).await
    }

    /// Waits for the budget of one call. For callers that decide late what to ask.
    pub async fn admit(&self, action: Action, terms: &Terms) -> Result<(), CallError> {
        let queue = info_span!("gw.queue", cloud.action = action.name());
        let budget = self
            .budgets
            .acquire(action, terms.class, terms.deadline)
            .instrument(queue);
        let passed = match &terms.fence {
            Some(fence) => tokio::select! {
                biased;
                () = fence.raised() => return Err(fenced(fence)),
                passed = budget => passed,
            },
            None => budget.await,
        };
        passed.map_err(|refused| match refused {
            NoBudget::TooLate { retry_after } => CallError::Throttled {
                what: format!("our budget of {action}"),
                retry_after,
            },
            NoBudget::Full {
                waiting,
                retry_after,
            } => CallError::Full {
                what: format!("{waiting} calls of {action} are waiting"),
                retry_after,
            },
        })
    }

    /// As [`Caller::call`], with the budget of the first try spent already.
    pub async fn call_admitted<R: Request + Sync>(
        &self,
        request: &R,
        terms: &Terms,
    ) -> Result<Answer<R::Reply>, CallError> {
        let mut backoff = Backoff::try_new(self.settings.backoff).unwrap_or_default();
        let mut unanswered = false;
        let mut tries: u32 = 0;
        loop {
            tries = tries.saturating_add(1);
            let failed = match self.attempt(request, terms).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            unanswered |= may_have_happened(&failed);
            let wait = backoff.next_wait().max(hint(&failed));
            if !may_repeat(R::ACTION, &failed)
                || tries >= self.settings.attempts
                || !terms.pause(wait).await
            {
                return Err(settle(R::ACTION, failed, unanswered, wait));
            }
            if let Err(refused) = self.admit(R::ACTION, terms).await {
                return Err(settle(R::ACTION, refused, unanswered, wait));
            }
        }
    }

    async fn attempt<R: Request + Sync>(
        &self,
        request: &R,
        terms: &Terms,
    ) -> Result<Answer<R::Reply>, CallError> {
        let used = self.signer()?;
        let first = self.exchange(request, terms, &used).await;
        if let Err(CallError::Refused(fault)) = &first
            && is_about_keys(fault)
            && self.credentials.renewed_since(&used).await
        {
            self.admit(R::ACTION, terms).await?;
            let renewed = self.signer()?;
            return self.exchange(request, terms, &renewed).await;
        }
        first
    }

    fn signer(&self) -> Result<Arc<Credentials>, CallError> {
        self.credentials
            .current()
            .map_err(|none| CallError::NoCredentials {
                what: none.to_string(),
            })
    }

    async fn exchange<R: Request + Sync>(
        &self,
        request: &R,
        terms: &Terms,
        credentials: &Credentials,
    ) -> Result<Answer<R::Reply>, CallError> {
        let action = R::ACTION;
        if let Some(fence) = &terms.fence {
            if fence.is_raised() {
                return Err(fenced(fence));
            }
            fence.note_sent();
        }
        let span = info_span!(
            "cloud.call",
            otel.name = format!("cloud.{action}"),
            otel.kind = "client",
            cloud.action = action.name(),
            cloud.request_id = field::Empty,
            cloud.code = field::Empty,
        );
        let started = Instant::now();
        let result = self
            .send(request, terms, credentials)
            .instrument(span.clone())
            .await;
        let (code, request_id) = facts(&result);
        span.record("cloud.code", code);
        span.record("cloud.request_id", request_id);
        self.metrics.request(action, code, started.elapsed());
        if let Err(CallError::Refused(fault)) = &result {
            if fault.class == FaultClass::Throttled {
                self.budgets.throttled(action);
            }
            tracing::debug!(parent: &span, %fault, "refused");
        }
        result
    }

    async fn send<R: Request + Sync>(
        &self,
        request: &R,
        terms: &Terms,
        credentials: &Credentials,
    ) -> Result<Answer<R::Reply>, CallError> {
        let action = R::ACTION;
        let endpoint = self
            .settings
            .endpoints
            .get(&action.product())
            .ok_or_else(|| CallError::NotSent {
                what: format!("no endpoint for {action}"),
            })?;
        let stamp = Stamp {
            now: Tick(mesh::clock::wall_ms()),
            nonce: Uuid::new_v4().to_string(),
        };
        let signed = build(request, endpoint, credentials, &stamp, self.settings.scheme).map_err(
            |error| CallError::NotSent {
                what: error.to_string(),
            },
        )?;
        let timeout = self.settings.timeout.min(terms.left());
        let response = self
            .transport
            .send(signed, timeout)
            .await
            .map_err(|error| match error {
                TransportError::NotSent { what } => CallError::NotSent { what },
                TransportError::NoAnswer { what } => CallError::Unknown { what },
            })?;
        decode::<R>(response.status(), response.headers(), response.body()).map_err(|error| {
            match error {
                ReplyError::Fault(fault) => CallError::Refused(fault),
                ReplyError::Malformed(malformed) => CallError::Unknown {
                    what: malformed.to_string(),
                },
            }
        })
    }
}

fn fenced(fence: &Fence) -> CallError {
    let (shard, epoch, seen) = fence.facts();
    CallError::Fenced { shard, epoch, seen }
}

/// Whether the refusal is about who signed, so that other keys may help.
pub(crate) fn is_about_keys(fault: &Fault) -> bool {
    const ABOUT_KEYS: [&str; 3] = [
        "InvalidAccessKeyId",
        "InvalidSecurityToken",
        "SignatureDoesNotMatch",
    ];
    ABOUT_KEYS
        .iter()
        .any(|prefix| fault.code.starts_with(prefix))
}

/// Whether the call can have had an effect although it failed.
fn may_have_happened(failed: &CallError) -> bool {
    match failed {
        CallError::Unknown { .. } => true,
        CallError::Refused(fault) => fault.is_outcome_unknown(),
        CallError::Throttled { .. }
        | CallError::Full { .. }
        | CallError::NotSent { .. }
        | CallError::NoCredentials { .. }
        | CallError::Fenced { .. } => false,
    }
}

/// Whether the same request may be sent again right here. After an unknown outcome only reads and calls with a
/// token may; the verbs read back before they repeat the others.
fn may_repeat(action: Action, failed: &CallError) -> bool {
    if may_have_happened(failed) {
        return !action.is_write() || action.takes_client_token();
    }
    match failed {
        CallError::Refused(fault) => {
            matches!(fault.class, FaultClass::Throttled | FaultClass::Busy)
        }
        CallError::NotSent { .. } => true,
        CallError::Throttled { .. }
        | CallError::Full { .. }
        | CallError::NoCredentials { .. }
        | CallError::Unknown { .. }
        | CallError::Fenced { .. } => false,
    }
}

/// The wait that the cloud asked for.
fn hint(failed: &CallError) -> Duration {
    match failed {
        CallError::Refused(fault) => fault.retry_after.unwrap_or_default(),
        CallError::Throttled { .. }
        | CallError::Full { .. }
        | CallError::NotSent { .. }
        | CallError::NoCredentials { .. }
        | CallError::Unknown { .. }
        | CallError::Fenced { .. } => Duration::ZERO,
    }
}

/// The failure that the caller sees once there are no repeats any more. If an earlier try of a write was not
/// answered, a refusal that says nothing of the object does not settle it.
fn settle(action: Action, last: CallError, unanswered: bool, wait: Duration) -> CallError {
    let temporary = match &last {
        CallError::Refused(fault) => matches!(
            fault.class,
            FaultClass::Throttled | FaultClass::Busy | FaultClass::Internal | FaultClass::Forbidden
        ),
        CallError::Throttled { .. }
        | CallError::Full { .. }
        | CallError::NotSent { .. }
        | CallError::NoCredentials { .. }
        | CallError::Unknown { .. }
        | CallError::Fenced { .. } => true,
    };
    if unanswered && temporary && action.is_write() {
        return CallError::Unknown {
            what: last.to_string(),
        };
    }
    if let CallError::Refused(fault) = &last
        && fault.class == FaultClass::Throttled
    {
        return CallError::Throttled {
            what: fault.to_string(),
            retry_after: wait,
        };
    }
    last
}

/// Code and request id of an exchange, for metrics and traces.
fn facts<R>(result: &Result<Answer<R>, CallError>) -> (&str, &str) {
    match result {
        Ok(answer) => ("OK", &answer.request_id),
        Err(CallError::Refused(fault)) => (&fault.code, &fault.request_id),
        Err(CallError::NotSent { .. }) => ("not_sent", ""),
        Err(CallError::Unknown { .. }) => ("no_answer", ""),
        Err(CallError::NoCredentials { .. }) => ("no_credentials", ""),
        Err(CallError::Fenced { .. }) => ("fenced", ""),
        Err(CallError::Throttled { .. } | CallError::Full { .. }) => ("no_budget", ""),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;

    fn refused(status: StatusCode, code: &str) -> CallError {
        CallError::Refused(Fault::new(
            status,
            &HeaderMap::new(),
            code.to_owned(),
            String::new(),
            String::new(),
        ))
    }

    fn unknown() -> CallError {
        CallError::Unknown {
            what: String::new(),
        }
    }

    #[test]
    fn unanswered_call_is_repeated_only_with_a_token_or_as_a_read() {
        for (action, repeats) in [
            (Action::CreateNetworkInterface, true),
            (Action::AssignPrivateIpAddresses, true),
            (Action::AssignIpv6Addresses, true),
            (Action::DescribeNetworkInterfaces, true),
            (Action::AttachNetworkInterface, false),
            (Action::DetachNetworkInterface, false),
            (Action::DeleteNetworkInterface, false),
            (Action::UnassignPrivateIpAddresses, false),
            (Action::UnassignIpv6Addresses, false),
        ] {
            assert_eq!(may_repeat(action, &unknown()), repeats, "{action}");
            let internal = refused(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
            assert_eq!(may_repeat(action, &internal), repeats, "{action}");
        }
    }

    #[test]
    fn refusal_that_did_nothing_is_repeated_for_every_action() {
        for action in Action::ALL {
            for code in ["Throttling", "Throttling.User", "Operation.Conflict"] {
                assert!(may_repeat(action, &refused(StatusCode::BAD_REQUEST, code)));
            }
            assert!(!may_repeat(
                action,
                &refused(StatusCode::NOT_FOUND, "InvalidEniId.NotFound")
            ));
        }
    }

    #[test]
    fn write_that_was_once_unanswered_stays_unknown_when_the_time_is_over() {
        let action = Action::CreateNetworkInterface;
        let throttled = refused(StatusCode::BAD_REQUEST, "Throttling.User");

        let settled = settle(action, throttled, true, Duration::ZERO);

        assert!(matches!(settled, CallError::Unknown { .. }), "{settled:?}");
    }

    #[test]
    fn definite_refusal_settles_an_unanswered_write() {
        let action = Action::CreateNetworkInterface;
        let full = refused(StatusCode::FORBIDDEN, "InvalidVSwitchId.IpNotEnough");

        let settled = settle(action, full.clone(), true, Duration::ZERO);

        assert_eq!(settled, full);
    }

    #[test]
    fn throttling_of_the_cloud_says_when_to_come_back() {
        let throttled = refused(StatusCode::BAD_REQUEST, "Throttling");
        let wait = Duration::from_millis(700);

        let settled = settle(Action::DeleteNetworkInterface, throttled, false, wait);

        assert!(
            matches!(settled, CallError::Throttled { retry_after, .. } if retry_after == wait),
            "{settled:?}"
        );
    }
}
