//! What servers count.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Unit;
use tonic::Code;

use crate::metrics::Registry;

/// From a call that stays on the node to one that waits for the cloud, in seconds.
const BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0, 60.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Finished {
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: HandshakeFailure,
}

/// Label of an exemplar.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Trace {
    trace_id: String,
}

type Durations =
    Family<Method, HistogramWithExemplars<Trace>, fn() -> HistogramWithExemplars<Trace>>;

/// Why somebody did not get in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum HandshakeFailure {
    /// It took too long.
    Timeout,
    /// The certificate was missing or refused, or the protocol too old.
    Refused,
    /// The connection broke.
    Broken,
    /// The caller on the unix socket is not root.
    NotRoot,
}

impl HandshakeFailure {
    pub(crate) fn of(error: &std::io::Error) -> Self {
        let by_tls = error
            .get_ref()
            .is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>);
        if by_tls { Self::Refused } else { Self::Broken }
    }
}

/// Counters of all servers of a process; clones share them.
#[derive(Debug, Clone)]
pub struct RpcMetrics {
    finished: Family<Finished, Counter>,
    durations: Durations,
    in_flight: Gauge,
    panics: Counter,
    shed: Counter,
    handshakes: Family<Reason, Counter>,
}

impl RpcMetrics {
    /// Registers the counters. Once per process.
    pub fn register(registry: &Registry) -> Self {
        let this = Self {
            finished: Family::default(),
            durations: Family::new_with_constructor(|| {
                HistogramWithExemplars::new(BUCKETS.into_iter())
            }),
            in_flight: Gauge::default(),
            panics: Counter::default(),
            shed: Counter::default(),
            handshakes: Family::default(),
        };
        registry.register(
            "rpc_server_calls",
            "calls by method and code",
            this.finished.clone(),
        );
        registry.register_with_unit(
            "rpc_server_duration",
            "time from the request to the end of the answer",
            Unit::Seconds,
            this.durations.clone(),
        );
        registry.register(
            "rpc_server_in_flight",
            "calls a handler works on",
            this.in_flight.clone(),
        );
        registry.register(
            "rpc_server_panics",
            "handlers that panicked",
            this.panics.clone(),
        );
        registry.register(
            "rpc_server_shed",
            "calls refused for overload",
            this.shed.clone(),
        );
        registry.register(
            "rpc_server_handshake_failures",
            "connections that did not get in",
            this.handshakes.clone(),
        );
        this
    }

    pub(crate) fn finished(
        &self,
        method: &'static str,
        code: Code,
        seconds: f64,
        trace_id: Option<String>,
    ) {
        self.finished
            .get_or_create(&Finished {
                method,
                code: code_name(code),
            })
            .inc();
        self.durations.get_or_create(&Method { method }).observe(
            seconds,
            trace_id.map(|trace_id| Trace { trace_id }),
            None,
        );
    }

    pub(crate) fn panicked(&self) {
        self.panics.inc();
    }

    pub(crate) fn shed(&self) {
        self.shed.inc();
    }

    pub(crate) fn handshake_failed(&self, reason: HandshakeFailure) {
        self.handshakes.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn entered(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// Handlers that panicked so far.
    pub fn panics(&self) -> u64 {
        self.panics.get()
    }
}

/// A call that a handler works on.
pub(crate) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Source: gRPC, "Status codes and their use in gRPC".
pub(crate) const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
