//! gRPC channels: connect on first use, check who answers, carry trace and deadline.
//!
//! A [`Channel`] is a transport for the generated clients: `XClient::new(channel)`. When a call
//! fails, [`outcome`] tells whether the other side can have acted.

mod answer;

use std::error::Error as StdError;
use std::future::Future;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls::CertificateError;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::body::Body;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

use crate::causes;
use crate::client::answer::Answer;
use crate::server::timeout_of;
use crate::status;
use crate::telemetry;
use crate::tls::verify::Expect;
use crate::tls::{TlsMaterial, Trust};

/// The header of a deadline.
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Most digits of that header's number.
///
/// Source: gRPC over HTTP/2, "Requests", TimeoutValue.
const TIMEOUT_MS_MAX: u128 = 99_999_999;

/// Bounds of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Longest connect with handshake, in milliseconds.
    pub connect_ms: u64,
    /// Deadline of a call that sets none, in milliseconds. See [`Channel::without_deadline`].
    pub deadline_ms: u64,
    /// How often a silent connection is asked for a sign of life, in milliseconds.
    pub keepalive_ms: u64,
    /// How long the server may take to answer that, in milliseconds.
    pub keepalive_timeout_ms: u64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            connect_ms: 3_000,
            deadline_ms: 10_000,
            keepalive_ms: 10_000,
            keepalive_timeout_ms: 5_000,
        }
    }
}

/// A target that cannot be dialled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{target:?} is not host:port")]
pub struct BadTarget {
    /// As given.
    pub target: String,
}

/// A channel to one server. Clones share the connection.
#[derive(Clone)]
pub struct Channel {
    inner: tonic::transport::Channel,
    target: Arc<str>,
    deadline: Option<Duration>,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel")
            .field("target", &self.target)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl Channel {
    /// A channel to `host:port` over mTLS. Nothing is dialled before the first call. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`BadTarget`].
    pub fn tcp(
        target: &str,
        tls: TlsMaterial,
        expect: Expect,
        params: &Params,
    ) -> Result<Self, BadTarget> {
        Self::dialling(target, Papers::Certificate(tls), expect, params)
    }

    /// The same without a certificate of ours, for who has none yet. Servers refuse that, but for
    /// the one that issues certificates.
    ///
    /// # Errors
    /// [`BadTarget`].
    pub fn anonymous(
        target: &str,
        trust: Trust,
        expect: Expect,
        params: &Params,
    ) -> Result<Self, BadTarget> {
        Self::dialling(target, Papers::None(trust), expect, params)
    }

    fn dialling(
        target: &str,
        papers: Papers,
        expect: Expect,
        params: &Params,
    ) -> Result<Self, BadTarget> {
        let bad = || BadTarget {
            target: target.to_owned(),
        };
        let (host, port) = target.rsplit_once(':').ok_or_else(bad)?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(bad());
        }
        let endpoint = Endpoint::from_shared(format!("http://{target}")).map_err(|_| bad())?;
        let dial = TcpDial {
            target: target.into(),
            papers,
            expect,
        };
        let limit = Duration::from_millis(params.connect_ms);
        let connector = tower::service_fn(move |_: Uri| {
            let dial = dial.clone();
            async move { within(limit, dial.connect()).await.map(TokioIo::new) }
        });
        Ok(Self::of(&endpoint, connector, target, params))
    }

    /// A channel to this machine's service on a unix socket. Nothing is dialled before the first
    /// call. Needs a tokio runtime.
    pub fn unix(path: &Path, params: &Params) -> Self {
        let limit = Duration::from_millis(params.connect_ms);
        let target = path.display().to_string();
        let path: Arc<PathBuf> = Arc::new(path.to_owned());
        let connector = tower::service_fn(move |_: Uri| {
            let path = Arc::clone(&path);
            async move {
                let connect = async { Ok(UnixStream::connect(&*path).await?) };
                within(limit, connect).await.map(TokioIo::new)
            }
        });
        Self::of(
            &Endpoint::from_static("http://localhost"),
            connector,
            &target,
            params,
        )
    }

    fn of<C>(endpoint: &Endpoint, connector: C, target: &str, params: &Params) -> Self
    where
        C: Service<Uri, Error = ConnectFailed> + Send + 'static,
        C::Response: hyper::rt::Read + hyper::rt::Write + Send + Unpin,
        C::Future: Send,
    {
        let inner = endpoint
            .clone()
            .http2_keep_alive_interval(Duration::from_millis(params.keepalive_ms))
            .keep_alive_timeout(Duration::from_millis(params.keepalive_timeout_ms))
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(connector);
        let deadline = Some(Duration::from_millis(params.deadline_ms));
        Self {
            inner,
            target: target.into(),
            deadline,
        }
    }

    /// The same connection for calls with another default deadline.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self {
            deadline: Some(deadline),
            ..self.clone()
        }
    }

    /// The same connection for long-lived streams: a call has a deadline only if it sets one.
    #[must_use]
    pub fn without_deadline(&self) -> Self {
        Self {
            deadline: None,
            ..self.clone()
        }
    }

    /// `host:port` or the path of the socket.
    pub fn target(&self) -> &str {
        &self.target
    }

    fn prepare(&self, request: &mut Request<Body>) -> Option<Instant> {
        let headers = request.headers_mut();
        if !headers.contains_key(telemetry::HEADER)
            && let Some(parent) = telemetry::current_traceparent()
            && let Ok(value) = HeaderValue::try_from(parent)
        {
            headers.insert(telemetry::HEADER, value);
        }
        let asked = headers
            .get(GRPC_TIMEOUT)
            .and_then(|value| timeout_of(value.to_str().ok()?));
        let timeout = asked.or(self.deadline)?;
        if asked.is_none() {
            let ms = timeout.as_millis().min(TIMEOUT_MS_MAX);
            if let Ok(value) = HeaderValue::try_from(format!("{ms}m")) {
                headers.insert(GRPC_TIMEOUT, value);
            }
        }
        Some(Instant::now() + timeout)
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // The inner channel is awaited inside the call, where its wait has a deadline.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let deadline = self.prepare(&mut request);
        let inner = self.inner.clone();
        let target = Arc::clone(&self.target);
        Box::pin(async move {
            let answer = inner.oneshot(request);
            let answer = match deadline {
                Some(deadline) => match tokio::time::timeout_at(deadline, answer).await {
                    Ok(answer) => answer,
                    Err(_) => return Err(late(&target)),
                },
                None => answer.await,
            };
            match answer {
                Ok(response) => Ok(Answer::wrap(response, deadline, target)),
                Err(error) => Err(unanswered(&target, Box::new(error))),
            }
        })
    }
}

type Cause = Box<dyn StdError + Send + Sync>;

async fn within<T>(
    limit: Duration,
    connect: impl Future<Output = Result<T, Cause>>,
) -> Result<T, ConnectFailed> {
    match tokio::time::timeout(limit, connect).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(cause)) => Err(ConnectFailed(cause)),
        Err(_) => Err(ConnectFailed("no connection in time".into())),
    }
}

/// What we show, and whom we trust.
#[derive(Clone)]
enum Papers {
    Certificate(TlsMaterial),
    None(Trust),
}

#[derive(Clone)]
struct TcpDial {
    target: Arc<str>,
    papers: Papers,
    expect: Expect,
}

impl TcpDial {
    async fn connect(self) -> Result<TlsStream<TcpStream>, Cause> {
        let stream = TcpStream::connect(&*self.target).await?;
        stream.set_nodelay(true)?;
        let config = match &self.papers {
            Papers::Certificate(tls) => tls.client_config(&self.expect)?,
            Papers::None(trust) => trust.client_config(&self.expect)?,
        };
        let name = self.expect.server_name();
        TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(plainly)
    }
}

/// Our own verifier's words are deep inside what rustls says, in the form of a debug print.
fn plainly(error: std::io::Error) -> Cause {
    let refused = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match refused {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(ours))) => {
            ours.0.to_string().into()
        }
        Some(_) | None => error.into(),
    }
}

/// Whom to expect at `host:port` when the name itself is to be checked, as for etcd.
///
/// # Errors
/// [`BadTarget`] when the host is neither a DNS name nor an address.
pub fn expect_name(target: &str) -> Result<Expect, BadTarget> {
    let bad = || BadTarget {
        target: target.to_owned(),
    };
    let (host, _) = target.rsplit_once(':').ok_or_else(bad)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = match host.parse::<IpAddr>() {
        Ok(address) => ServerName::IpAddress(address.into()),
        Err(_) => ServerName::try_from(host.to_owned()).map_err(|_| bad())?,
    };
    Ok(Expect::Name(name))
}

/// No connection: the request was not written.
#[derive(Debug)]
struct ConnectFailed(Cause);

impl std::fmt::Display for ConnectFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no connection")
    }
}

impl StdError for ConnectFailed {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

/// Source of a status that the server did not send.
#[derive(Debug)]
struct Unanswered {
    sent: bool,
    cause: Option<Cause>,
}

impl std::fmt::Display for Unanswered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.sent {
            "sent and not answered"
        } else {
            "not sent"
        })
    }
}

impl StdError for Unanswered {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let cause = self.cause.as_deref()?;
        Some(cause)
    }
}

fn late(target: &str) -> Status {
    let mut status = Status::deadline_exceeded(format!("no answer from {target} in time"));
    status.set_source(Arc::new(Unanswered {
        sent: true,
        cause: None,
    }));
    status
}

fn unanswered(target: &str, cause: Cause) -> Status {
    let mut sent = true;
    let mut code = Code::Unavailable;
    for error in causes::chain(&*cause) {
        sent &= !error.is::<ConnectFailed>();
        if error.is::<tonic::TimeoutExpired>() {
            code = Code::DeadlineExceeded;
        }
    }
    let text = causes::text(&*cause);
    let mut status = Status::new(code, format!("call {target}: {text}"));
    status.set_source(Arc::new(Unanswered {
        sent,
        cause: Some(cause),
    }));
    status
}

/// What is known of a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The request was not written: nothing happened, repeating is safe.
    NotSent,
    /// It was sent and nobody can say whether it took effect: look before repeating.
    Unknown,
    /// The server answered, and its status says what happened.
    Answered,
}

/// What is known of a call that failed with `status`. In doubt it is [`Outcome::Unknown`].
pub fn outcome(status: &Status) -> Outcome {
    let source = StdError::source(status);
    let mut causes = source.into_iter().flat_map(causes::chain);
    if let Some(unanswered) = causes.find_map(|error| error.downcast_ref::<Unanswered>()) {
        return if unanswered.sent {
            Outcome::Unknown
        } else {
            Outcome::NotSent
        };
    }
    if source.is_some() {
        return Outcome::Unknown;
    }
    // A status with our reason was written by a handler or a server's gate, on purpose.
    if status::reason(status).is_some() {
        return Outcome::Answered;
    }
    match status.code() {
        // Made by libraries on either side when a call breaks half-way, or by a server whose
        // handler was cut off.
        Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Outcome::Unknown,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated => Outcome::Answered,
    }
}

#[cfg(test)]
mod tests {
    use super::{Outcome, expect_name, late, outcome};
    use crate::status::{OVERLOADED, Refusal};
    use crate::tls::verify::Expect;
    use tonic::{Code, Status};

    #[test]
    fn outcome_of_a_servers_refusal_is_answered() {
        let refusal = Refusal::new(Code::Unavailable, OVERLOADED, "full").into_status();

        assert_eq!(outcome(&refusal), Outcome::Answered);
        assert_eq!(outcome(&Status::not_found("eni-1")), Outcome::Answered);
    }

    #[test]
    fn outcome_of_a_broken_call_is_unknown() {
        assert_eq!(outcome(&late("gw:1")), Outcome::Unknown);
        assert_eq!(
            outcome(&Status::deadline_exceeded("cut off")),
            Outcome::Unknown
        );
        assert_eq!(outcome(&Status::internal("panicked")), Outcome::Unknown);
    }

    #[test]
    fn expected_name_is_the_host_of_the_target() {
        for (target, host) in [
            ("10.0.0.1:2379", "10.0.0.1"),
            ("[::1]:2379", "::1"),
            ("etcd-0:2379", "etcd-0"),
        ] {
            let Ok(Expect::Name(name)) = expect_name(target) else {
                panic!("{target}")
            };
            assert_eq!(name.to_str(), host);
        }
        assert!(expect_name("etcd-0").is_err());
        assert!(expect_name("a b:1").is_err());
    }
}
