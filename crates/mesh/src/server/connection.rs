//! One connection from its handshake to its end.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::identity::Peer;
use crate::server::Params;
use crate::server::call::Calls;
use crate::tasks::Tasks;

/// Longest life of a connection without a certificate's end; only keeps arithmetic in range.
const LIFE_MAX: Duration = Duration::from_hours(24 * 365);

pub(crate) struct Connection {
    pub(crate) peer: Arc<Peer>,
    /// Until the caller's certificate ends: it must come back with a newer one.
    pub(crate) life: Option<Duration>,
    pub(crate) calls: Arc<Calls>,
}

/// Calls run as tracked tasks, so that the end of the process waits for them.
#[derive(Clone)]
struct Tracked(Tasks);

impl<F> Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, call: F) {
        self.0.spawn_once("grpc call", call);
    }
}

/// Serves calls until the caller goes, its certificate ends, or we drain.
pub(crate) async fn serve<S>(stream: S, connection: Connection, params: &Params, tasks: &Tasks)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Connection { peer, life, calls } = connection;
    let service = service_fn(move |request| {
        let reply = Arc::clone(&calls).answer(Arc::clone(&peer), request);
        async move { Ok::<_, Infallible>(reply.await) }
    });
    let serving = http2::Builder::new(Tracked(tasks.clone()))
        .timer(TokioTimer::new())
        .max_concurrent_streams(params.streams_max)
        .keep_alive_interval(Duration::from_millis(params.keepalive_ms))
        .keep_alive_timeout(Duration::from_millis(params.keepalive_timeout_ms))
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    let drain = tasks.drain();
    let blocker = drain.block("grpc connection");
    let expiry = tokio::time::sleep(life.unwrap_or(LIFE_MAX).min(LIFE_MAX));
    let ended = tokio::select! {
        biased;
        ended = &mut serving => Some(ended),
        () = drain.draining().cancelled() => None,
        () = expiry => None,
    };
    let ended = if let Some(ended) = ended {
        ended
    } else {
        // GOAWAY: nothing new, what runs may finish.
        serving.as_mut().graceful_shutdown();
        let last_calls = Duration::from_millis(params.expiry_grace_ms);
        let limit = if drain.draining().is_cancelled() {
            LIFE_MAX
        } else {
            last_calls
        };
        tokio::select! {
            biased;
            ended = &mut serving => ended,
            () = drain.stopping().cancelled() => Ok(()),
            () = tokio::time::sleep(limit) => Ok(()),
        }
    };
    drop(blocker);
    if let Err(error) = ended {
        tracing::debug!(%error, "connection broke");
    }
}
