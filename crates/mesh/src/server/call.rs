//! One call, step by step. Plain code in the order in which it happens.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::{Service, ServiceExt};
use tracing::{Instrument, Span, field};

use crate::authz::{self, Table};
use crate::identity::Peer;
use crate::server::Params;
use crate::server::reply::{Finish, Reply};
use crate::server::rpc_metrics::RpcMetrics;
use crate::status::{IDENTITY_MISMATCH, OVERLOADED, Refusal};
use crate::tasks::panic_text;
use crate::telemetry;

/// Label of calls to methods that are not in the table: callers do not choose our labels.
const UNDECLARED: &str = "undeclared";

/// When to come back after a refusal for overload.
const COME_BACK: Duration = Duration::from_millis(200);

/// When the caller stops waiting; among the request's extensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(pub(crate) Instant);

pub(crate) struct Calls {
    routes: Routes,
    table: Table,
    metrics: RpcMetrics,
    room: Semaphore,
    deadline_max: Duration,
}

impl Calls {
    pub(crate) fn new(routes: Routes, table: Table, metrics: RpcMetrics, params: &Params) -> Self {
        Self {
            routes,
            table,
            metrics,
            room: Semaphore::new(params.in_flight_max),
            deadline_max: Duration::from_millis(params.deadline_max_ms),
        }
    }

    /// Answers one call. Never fails: whatever goes wrong is a status.
    pub(crate) async fn answer(
        self: Arc<Self>,
        peer: Arc<Peer>,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let started = Instant::now();
        let method =
            authz::row(self.table, request.uri().path()).map_or(UNDECLARED, |row| row.method);
        let span = trace(method, &peer, request.headers());
        let finish = Finish::new(method, started, span.clone(), self.metrics.clone());
        match self.checked(&peer, request).instrument(span).await {
            Ok((response, deadline)) => Reply::wrap(response, deadline, finish),
            Err(status) => {
                finish.with(status.code());
                status.into_http()
            }
        }
    }

    async fn checked(
        &self,
        peer: &Arc<Peer>,
        mut request: Request<Incoming>,
    ) -> Result<(Response<Body>, Option<Instant>), Status> {
        let deadline = self.deadline(request.headers())?;
        let Ok(_permit) = self.room.try_acquire() else {
            self.metrics.shed();
            return Err(overloaded());
        };
        let _in_flight = self.metrics.entered();
        if !authz::allows(self.table, request.uri().path(), peer.kind()) {
            return Err(forbidden(peer, request.uri().path()));
        }
        request.extensions_mut().insert(Arc::clone(peer));
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(Deadline(deadline));
        }
        let handler = AssertUnwindSafe(self.routes.clone().oneshot_call(request)).catch_unwind();
        let outcome = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, handler)
                .await
                .map_err(|_| Status::deadline_exceeded("the caller's deadline has passed"))?,
            None => handler.await,
        };
        match outcome {
            Ok(response) => Ok((response, deadline)),
            Err(panic) => {
                self.metrics.panicked();
                tracing::error!(panic = panic_text(&*panic), "handler panicked");
                Err(Status::internal("the handler panicked"))
            }
        }
    }

    fn deadline(&self, headers: &HeaderMap) -> Result<Option<Instant>, Status> {
        let Some(value) = headers.get("grpc-timeout") else {
            return Ok(None);
        };
        match value.to_str().ok().and_then(timeout_of) {
            Some(timeout) => Ok(Some(Instant::now() + timeout.min(self.deadline_max))),
            None => Err(Status::invalid_argument("grpc-timeout can not be read")),
        }
    }
}

trait OneCall {
    async fn oneshot_call(self, request: Request<Incoming>) -> Response<Body>;
}

impl OneCall for Routes {
    async fn oneshot_call(mut self, request: Request<Incoming>) -> Response<Body> {
        let ready = match ServiceExt::<Request<Incoming>>::ready(&mut self).await {
            Ok(ready) => ready,
            Err(never) => match never {},
        };
        match ready.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// A span per call, child of the caller's.
fn trace(method: &'static str, peer: &Peer, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        "rpc",
        otel.name = method,
        otel.kind = "server",
        otel.status_code = field::Empty,
        rpc.system = "grpc",
        rpc.method = method,
        rpc.grpc.status_code = field::Empty,
        rpc.peer = field::display(peer.kind()),
    );
    if let Some(parent) = headers
        .get(telemetry::HEADER)
        .and_then(|value| value.to_str().ok())
    {
        telemetry::set_parent(&span, parent);
    }
    span
}

fn overloaded() -> Status {
    Refusal::new(
        Code::ResourceExhausted,
        OVERLOADED,
        "too many calls in flight",
    )
    .retry_after(COME_BACK)
    .into_status()
}

fn forbidden(peer: &Peer, method: &str) -> Status {
    tracing::warn!(%peer, method, "call refused");
    let text = format!("{} may not call {method}", peer.kind());
    Refusal::new(Code::PermissionDenied, IDENTITY_MISMATCH, text).into_status()
}

/// Source: gRPC over HTTP/2, "Requests", Timeout: at most eight digits and a unit.
pub(crate) fn timeout_of(text: &str) -> Option<Duration> {
    let unit_at = text.len().checked_sub(1)?;
    let (digits, unit) = text.split_at_checked(unit_at)?;
    if digits.len() > 8 || digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::timeout_of;

    #[test]
    fn timeout_is_read_in_every_unit() {
        for (text, expected) in [
            ("1H", Duration::from_hours(1)),
            ("2M", Duration::from_mins(2)),
            ("3S", Duration::from_secs(3)),
            ("250m", Duration::from_millis(250)),
            ("7u", Duration::from_micros(7)),
            ("99999999n", Duration::from_nanos(99_999_999)),
        ] {
            assert_eq!(timeout_of(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn malformed_timeout_is_refused() {
        for text in [
            "",
            "S",
            "1",
            "1s",
            "-1S",
            "123456789S",
            "1.5S",
            "1 S",
            "1é",
            "+1S",
        ] {
            assert_eq!(timeout_of(text), None, "{text}");
        }
    }
}
