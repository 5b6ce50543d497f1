//! gRPC servers: mTLS over TCP, or a unix socket for this machine's root. One that issues
//! certificates may also let in who has none yet, as a caller that the table knows by that.
//!
//! Every call goes through the same row of steps, outermost first: trace, metrics, deadline,
//! load shedding with a bound on calls in flight, authorization by table, handler. A panic in a
//! handler becomes INTERNAL and a counter.

mod call;
mod connection;
mod reply;
pub mod rpc_metrics;
mod unix;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tonic::service::Routes;
use tonic::{Request, Status};

use crate::authz::Table;
use crate::clock;
use crate::identity::{Identity, Peer};
use crate::server::call::Calls;
use crate::server::connection::{Connection, serve};
use crate::server::rpc_metrics::{HandshakeFailure, RpcMetrics};
use crate::server::unix::SocketFile;
use crate::status::{IDENTITY_MISMATCH, Refusal};
use crate::tasks::Tasks;
use crate::tls::TlsMaterial;

/// Bounds of a server. The address belongs to the service's own configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Connections at a time; more are closed at once.
    pub connections_max: usize,
    /// Handshakes at a time; more wait in the kernel's queue.
    pub handshakes_max: usize,
    /// Longest handshake, in milliseconds.
    pub handshake_ms: u64,
    /// Calls that a handler works on at a time; more are refused with OVERLOADED. A stream counts
    /// until its first answer only.
    pub in_flight_max: usize,
    /// Calls of one connection at a time, streams included.
    pub streams_max: u32,
    /// Longest deadline a caller can ask for, in milliseconds; a longer one is cut to it.
    pub deadline_max_ms: u64,
    /// How often a silent connection is asked for a sign of life, in milliseconds.
    pub keepalive_ms: u64,
    /// How long it may take to answer that, in milliseconds.
    pub keepalive_timeout_ms: u64,
    /// How long calls may go on once their caller's certificate has ended, in milliseconds.
    pub expiry_grace_ms: u64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            handshakes_max: 128,
            handshake_ms: 5_000,
            in_flight_max: 1_024,
            streams_max: 1_024,
            deadline_max_ms: 120_000,
            keepalive_ms: 20_000,
            keepalive_timeout_ms: 10_000,
            expiry_grace_ms: 5_000,
        }
    }
}

/// Where a server can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP address with the port that was taken.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A server that could not open its port.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}")]
pub struct BindError {
    /// Where.
    pub address: Address,
    /// What the kernel said.
    #[source]
    pub source: std::io::Error,
}

/// What becomes of callers without a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strangers {
    /// The handshake fails.
    Refused,
    /// They get in as [`Peer::Anonymous`], for a short time and few at once.
    Anonymous,
}

/// How long a connection without a certificate lasts: one question and its answer.
const STRANGER_LIFE: Duration = Duration::from_mins(1);

/// Connections without a certificate at a time, so that they do not take the room of those who have one. More are
/// closed at once.
const STRANGERS_MAX: usize = 512;

#[derive(Debug)]
enum Door {
    Tcp {
        listener: TcpListener,
        tls: TlsMaterial,
        strangers: Strangers,
    },
    Unix {
        listener: UnixListener,
        file: SocketFile,
        owner: u32,
    },
}

/// An open port that nobody serves yet.
#[derive(Debug)]
#[must_use = "a port that is not served hangs its clients"]
pub struct Bound {
    door: Door,
    address: Address,
    params: Params,
}

impl Bound {
    /// Opens a TCP port with mTLS; port 0 takes a free one.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn tcp(
        address: SocketAddr,
        tls: TlsMaterial,
        params: Params,
    ) -> Result<Self, BindError> {
        let failed = |source| BindError {
            address: Address::Tcp(address),
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        Self::from_listener(listener, tls, params).map_err(failed)
    }

    /// Takes a TCP listener that somebody else opened, as tests and simulations do.
    ///
    /// # Errors
    /// When the listener does not know its address.
    pub fn from_listener(
        listener: TcpListener,
        tls: TlsMaterial,
        params: Params,
    ) -> std::io::Result<Self> {
        let address = Address::Tcp(listener.local_addr()?);
        let strangers = Strangers::Refused;
        Ok(Self {
            door: Door::Tcp {
                listener,
                tls,
                strangers,
            },
            address,
            params,
        })
    }

    /// Lets callers without a certificate in, as [`Peer::Anonymous`]: the table says what they
    /// reach. A certificate that is shown must still be a good one. No effect on a unix socket.
    pub fn with_strangers(mut self) -> Self {
        if let Door::Tcp { strangers, .. } = &mut self.door {
            *strangers = Strangers::Anonymous;
        }
        self
    }

    /// Opens a unix socket with mode 0600 whose callers must be root. A socket file left behind by
    /// a dead process is replaced; one that is alive is not. Missing folders are made.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn unix(path: &Path, params: Params) -> Result<Self, BindError> {
        Self::unix_of(path, 0, params)
    }

    fn unix_of(path: &Path, owner: u32, params: Params) -> Result<Self, BindError> {
        let address = Address::Unix(path.to_owned());
        match SocketFile::open(path) {
            Ok((listener, file)) => Ok(Self {
                door: Door::Unix {
                    listener,
                    file,
                    owner,
                },
                address,
                params,
            }),
            Err(source) => Err(BindError { address, source }),
        }
    }

    /// Where the server can be reached.
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// Serves `routes` to whom `table` allows, until drain. Calls in flight hold the drain back.
    pub fn serve(self, routes: Routes, table: Table, metrics: &RpcMetrics, tasks: &Tasks) {
        let calls = Calls::new(routes.prepare(), table, metrics.clone(), &self.params);
        let listening = Listening {
            calls: Arc::new(calls),
            params: self.params,
            handshakes: Arc::new(Semaphore::new(self.params.handshakes_max)),
            room: Arc::new(Semaphore::new(self.params.connections_max)),
            stranger_room: Arc::new(Semaphore::new(STRANGERS_MAX)),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
        };
        tracing::info!(address = %self.address, "grpc server listens");
        match self.door {
            Door::Tcp {
                listener,
                tls,
                strangers,
            } => {
                let accepting = listening.accept_tcp(listener, tls, strangers);
                tasks.spawn("grpc server", accepting);
            }
            Door::Unix {
                listener,
                file,
                owner,
            } => {
                tasks.spawn("grpc server", listening.accept_unix(listener, file, owner));
            }
        }
    }
}

/// Longest pause after `accept` failed: out of descriptors heals by itself, but not at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

struct Listening {
    calls: Arc<Calls>,
    params: Params,
    handshakes: Arc<Semaphore>,
    room: Arc<Semaphore>,
    stranger_room: Arc<Semaphore>,
    metrics: RpcMetrics,
    tasks: Tasks,
}

impl Listening {
    async fn accept_tcp(self, listener: TcpListener, tls: TlsMaterial, strangers: Strangers) {
        let this = Arc::new(self);
        let draining = this.tasks.drain().draining().clone();
        loop {
            let Ok(permit) = Arc::clone(&this.handshakes).acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                biased;
                () = draining.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => {
                    let acceptor = match strangers {
                        Strangers::Refused => tls.server_config(),
                        Strangers::Anonymous => tls.server_config_for_strangers(),
                    };
                    let acceptor = TlsAcceptor::from(acceptor);
                    let connection =
                        Arc::clone(&this).tcp_connection(stream, from, acceptor, permit, strangers);
                    this.tasks.spawn_once("grpc connection", connection);
                }
                Err(error) => {
                    tracing::warn!(%error, "connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn accept_unix(self, listener: UnixListener, file: SocketFile, owner: u32) {
        let this = Arc::new(self);
        let draining = this.tasks.drain().draining().clone();
        loop {
            let accepted = tokio::select! {
                biased;
                () = draining.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let connection = Arc::clone(&this).unix_connection(stream, owner);
                    this.tasks.spawn_once("grpc connection", connection);
                }
                Err(error) => {
                    tracing::warn!(%error, "connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        file.remove();
    }

    async fn tcp_connection(
        self: Arc<Self>,
        stream: TcpStream,
        from: SocketAddr,
        acceptor: TlsAcceptor,
        permit: OwnedSemaphorePermit,
        strangers: Strangers,
    ) {
        // Small frames must not wait for acknowledgements; without it calls are only slower.
        drop(stream.set_nodelay(true));
        let limit = Duration::from_millis(self.params.handshake_ms);
        let stream = match tokio::time::timeout(limit, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.metrics.handshake_failed(HandshakeFailure::of(&error));
                tracing::debug!(%from, %error, "handshake failed");
                return;
            }
            Err(_) => {
                self.metrics.handshake_failed(HandshakeFailure::Timeout);
                tracing::debug!(%from, "handshake took too long");
                return;
            }
        };
        drop(permit);
        let leaf = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(<[_]>::first);
        let known = leaf.map(|leaf| (Identity::of_certificate(leaf), crate::tls::not_after(leaf)));
        match (known, strangers) {
            (Some((Ok(identity), expiry)), _) => {
                let peer = Arc::new(Peer::Mesh(identity));
                self.connection(stream, peer, expiry.map(remaining)).await;
            }
            (None, Strangers::Anonymous) => {
                let Ok(_room) = self.stranger_room.try_acquire() else {
                    tracing::debug!(%from, "caller without a certificate refused: too many");
                    return;
                };
                let peer = Arc::new(Peer::Anonymous);
                self.connection(stream, peer, Some(STRANGER_LIFE)).await;
            }
            // The handshake has checked both; a server that is unsure says no.
            (Some((Err(_), _)), _) | (None, Strangers::Refused) => {}
        }
    }

    async fn unix_connection(self: Arc<Self>, stream: UnixStream, owner: u32) {
        match stream.peer_cred() {
            Ok(cred) if cred.uid() == owner => {
                self.connection(stream, Arc::new(Peer::LocalRoot), None)
                    .await;
            }
            Ok(cred) => {
                self.metrics.handshake_failed(HandshakeFailure::NotRoot);
                tracing::warn!(uid = cred.uid(), "caller on the unix socket is not root");
            }
            Err(error) => tracing::warn!(%error, "caller on the unix socket is unknown"),
        }
    }

    async fn connection<S>(&self, stream: S, peer: Arc<Peer>, life: Option<Duration>)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let Ok(_room) = self.room.try_acquire() else {
            tracing::warn!(%peer, "connection refused: too many");
            return;
        };
        let connection = Connection {
            peer,
            life,
            calls: Arc::clone(&self.calls),
        };
        serve(stream, connection, &self.params, &self.tasks).await;
    }
}

/// Until the certificate is refused at a new handshake. Certificates count in whole seconds and
/// include the last one; without that second a caller would come back just to be cut off again.
fn remaining(until: SystemTime) -> Duration {
    until.duration_since(clock::wall()).unwrap_or_default() + Duration::from_secs(1)
}

/// Who called, as a certificate says.
///
/// # Errors
/// A status with reason IDENTITY_MISMATCH for a caller without a certificate (local root, or anonymous).
pub fn peer<T>(request: &Request<T>) -> Result<&Identity, Status> {
    match caller(request)? {
        Peer::Mesh(identity) => Ok(identity),
        Peer::LocalRoot | Peer::Anonymous => Err(Refusal::new(
            tonic::Code::PermissionDenied,
            IDENTITY_MISMATCH,
            "the call needs a certificate",
        )
        .into_status()),
    }
}

/// Who called: a certificate's identity, this machine's root, or somebody unknown.
///
/// # Errors
/// UNAUTHENTICATED for a request that did not come through a server of this module.
pub fn caller<T>(request: &Request<T>) -> Result<&Peer, Status> {
    request
        .extensions()
        .get::<Arc<Peer>>()
        .map(Arc::as_ref)
        .ok_or_else(|| Status::unauthenticated("the caller is unknown"))
}

/// Reads a `grpc-timeout` header.
pub(crate) fn timeout_of(text: &str) -> Option<Duration> {
    call::timeout_of(text)
}

/// Marks a request as coming from `peer`: for tests that call a service without a wire.
pub fn impersonate<T>(request: &mut Request<T>, peer: Peer) {
    request.extensions_mut().insert(Arc::new(peer));
}

/// When the caller stops waiting, if it said so.
pub fn deadline<T>(request: &Request<T>) -> Option<tokio::time::Instant> {
    request
        .extensions()
        .get::<call::Deadline>()
        .map(|deadline| deadline.0)
}

#[cfg(test)]
mod tests;
