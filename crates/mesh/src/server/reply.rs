//! The body of an answer, watched to its end: code, duration, deadline, panics in streams.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderMap, Response};
use hyper::body::{Bytes, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::Span;

use crate::server::rpc_metrics::{RpcMetrics, code_name};
use crate::tasks::panic_text;
use crate::telemetry;

/// The header and trailer that holds a call's code.
const GRPC_STATUS: &str = "grpc-status";

/// What is noted when a call ends, once. A call that is dropped was cancelled by its caller.
pub(crate) struct Finish {
    method: &'static str,
    started: Instant,
    span: Span,
    metrics: RpcMetrics,
    noted: bool,
}

impl Finish {
    pub(crate) const fn new(
        method: &'static str,
        started: Instant,
        span: Span,
        metrics: RpcMetrics,
    ) -> Self {
        Self {
            method,
            started,
            span,
            metrics,
            noted: false,
        }
    }

    pub(crate) fn with(mut self, code: Code) {
        self.note(code);
    }

    fn note(&mut self, code: Code) {
        if std::mem::replace(&mut self.noted, true) {
            return;
        }
        self.span.record("rpc.grpc.status_code", i32::from(code));
        if is_our_fault(code) {
            self.span.record("otel.status_code", "ERROR");
        }
        let trace_id = telemetry::recorded_trace_id(&self.span);
        self.metrics.finished(
            self.method,
            code,
            self.started.elapsed().as_secs_f64(),
            trace_id,
        );
        tracing::debug!(parent: &self.span, method = self.method, code = code_name(code), "call");
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        self.note(Code::Cancelled);
    }
}

/// Source: OpenTelemetry semantic conventions for gRPC, server spans.
const fn is_our_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

pub(crate) struct Reply {
    inner: Body,
    deadline: Option<Pin<Box<Sleep>>>,
    finish: Finish,
    ended: bool,
}

impl Reply {
    pub(crate) fn wrap(
        response: Response<Body>,
        deadline: Option<Instant>,
        finish: Finish,
    ) -> Response<Body> {
        // A status in the headers is an answer without a body; nobody will poll it.
        if let Some(code) = code_in(response.headers()) {
            finish.with(code);
            return response;
        }
        response.map(|inner| {
            Body::new(Self {
                inner,
                deadline: deadline.map(|at| Box::pin(tokio::time::sleep_until(at))),
                finish,
                ended: false,
            })
        })
    }

    fn end_with(&mut self, status: &Status) -> Frame<Bytes> {
        self.ended = true;
        self.finish.note(status.code());
        let mut trailers = HeaderMap::new();
        // Our texts are plain ASCII, so this does not fail; without trailers the caller sees an
        // unknown status, which is no worse.
        drop(status.add_header(&mut trailers));
        Frame::trailers(trailers)
    }
}

impl hyper::body::Body for Reply {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let span = this.finish.span.clone();
        let _entered = span.enter();
        let polled = catch_unwind(AssertUnwindSafe(|| {
            Pin::new(&mut this.inner).poll_frame(context)
        }));
        let frame = match polled {
            Ok(Poll::Ready(frame)) => frame,
            Ok(Poll::Pending) => {
                let late = this
                    .deadline
                    .as_mut()
                    .is_some_and(|sleep| sleep.as_mut().poll(context).is_ready());
                if late {
                    let status = Status::deadline_exceeded("the caller's deadline has passed");
                    return Poll::Ready(Some(Ok(this.end_with(&status))));
                }
                return Poll::Pending;
            }
            Err(panic) => {
                this.finish.metrics.panicked();
                tracing::error!(panic = panic_text(&*panic), "stream panicked");
                let status = Status::internal("the handler panicked");
                return Poll::Ready(Some(Ok(this.end_with(&status))));
            }
        };
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.ended = true;
                    this.finish.note(code_in(trailers).unwrap_or(Code::Unknown));
                }
            }
            Some(Err(status)) => this.finish.note(status.code()),
            None => this.finish.note(Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers
        .get(GRPC_STATUS)
        .map(|value| Code::from_bytes(value.as_bytes()))
}
