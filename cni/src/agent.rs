//! The node-agent, over its unix socket.

use std::future::Future;
use std::path::Path;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proto::node::v1::cni_client::CniClient;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::AsciiMetadataValue;

use crate::reason::Refusal;

/// A client that sends on one connection.
pub(crate) type Client = CniClient<Wire>;

/// Why the agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// Nobody listens: nothing was sent.
    #[error("node-agent does not answer at {path}: {source}")]
    Absent {
        /// The socket.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It was sent, and no answer came: nobody knows whether it took effect.
    #[error("node-agent was lost during the call: {0}")]
    Lost(String),
    /// It answered with a refusal.
    #[error("node-agent refused")]
    Refused(Refusal),
}

/// Puts requests on the connection.
#[derive(Debug, Clone)]
pub(crate) struct Wire(SendRequest<Body>);

impl tower::Service<Request<Body>> for Wire {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// A request with the trace context and the time that is left.
pub(crate) fn request<T>(message: T, traceparent: &str, limit: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Ok(value) = AsciiMetadataValue::try_from(traceparent) {
        request.metadata_mut().insert("traceparent", value);
    }
    request.set_timeout(limit);
    request
}

/// Connects, makes one call, and waits for its answer for at most `limit`.
///
/// # Errors
/// See [`AgentError`].
pub(crate) async fn call<T, F, C>(socket: &Path, limit: Duration, make: F) -> Result<T, AgentError>
where
    F: FnOnce(Client) -> C,
    C: Future<Output = Result<tonic::Response<T>, Status>>,
{
    match tokio::time::timeout(limit, converse(socket, make)).await {
        Ok(result) => result,
        Err(_) => Err(AgentError::Lost(format!(
            "no answer within {} s",
            limit.as_secs()
        ))),
    }
}

async fn converse<T, F, C>(socket: &Path, make: F) -> Result<T, AgentError>
where
    F: FnOnce(Client) -> C,
    C: Future<Output = Result<tonic::Response<T>, Status>>,
{
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| AgentError::Absent {
            path: socket.display().to_string(),
            source,
        })?;
    let lost = |e: hyper::Error| AgentError::Lost(e.to_string());
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(lost)?;
    let origin = Uri::from_static("http://node-agent");
    let mut call = pin!(make(CniClient::with_origin(Wire(sender), origin)));
    let mut connection = pin!(connection);
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            answer = &mut call => {
                return answer.map(tonic::Response::into_inner).map_err(|s| classify(&s));
            }
            // Once it has ended the call learns of it by itself.
            _ = &mut connection, if open => open = false,
        }
    }
}

fn classify(status: &Status) -> AgentError {
    // A status with a source was made on this side, from a broken connection.
    match std::error::Error::source(status) {
        Some(source) => AgentError::Lost(source.to_string()),
        None => AgentError::Refused(Refusal::of(status)),
    }
}
