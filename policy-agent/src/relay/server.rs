//! The relay's door: streams of frames that are encoded once, whoever reads them.
//!
//! Written by hand instead of generated, since the generated one encodes every frame anew for every stream.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};
use mesh::identity::Identity;
use mesh::status::{IDENTITY_MISMATCH, NOT_READY, OVERLOADED, Refusal};
use mesh::tasks::Tasks;
use prost::Message as _;
use proto::policy::v1::WatchRequest;
use proto::policy::v1::relay_server::SERVICE_NAME;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Body, BoxFuture, Service, StdError};
use tonic::server::{NamedService, ServerStreamingService};
use tonic::{Code, Request, Response, Status};

use crate::relay::source::{Head, Source, TooSlow};

/// Frames of one stream that wait for its reader beside the log, at most.
const AHEAD: usize = 4;
/// How long a reader may take for one frame.
const PATIENCE: Duration = Duration::from_secs(30);
/// When an agent that finds no room comes back.
const COME_BACK: Duration = Duration::from_secs(2);

/// The service `terway.policy.v1.Relay` over a source. Clones share everything.
#[derive(Debug, Clone)]
pub struct Server {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    source: Source,
    cluster: String,
    room: Arc<Semaphore>,
    agents_max: usize,
    tasks: Tasks,
}

impl Server {
    /// Serves agents of `cluster`, at most `agents_max` at a time. Streams run on `tasks` and end with its drain.
    pub fn new(source: Source, cluster: &str, agents_max: usize, tasks: &Tasks) -> Self {
        let agents_max = agents_max.min(Semaphore::MAX_PERMITS);
        Self {
            inner: Arc::new(Inner {
                source,
                cluster: cluster.to_owned(),
                room: Arc::new(Semaphore::new(agents_max)),
                agents_max,
                tasks: tasks.clone(),
            }),
        }
    }

    /// Streams that are read now.
    pub fn streams(&self) -> usize {
        self.inner.agents_max - self.inner.room.available_permits()
    }
}

impl Inner {
    fn watch(
        &self,
        request: &Request<WatchRequest>,
    ) -> Result<ReceiverStream<Result<Bytes, Status>>, Status> {
        self.check(mesh::server::peer(request)?, request.get_ref())?;
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
            let full = format!("{} agents read already", self.agents_max);
            return Err(Refusal::new(Code::ResourceExhausted, OVERLOADED, full)
                .retry_after(COME_BACK)
                .into());
        };
        let (out, frames) = mpsc::channel(AHEAD);
        let stream = Stream {
            head: self.source.watch(),
            source: self.source.clone(),
            out,
            _permit: permit,
        };
        let draining = self.tasks.drain().draining().clone();
        self.tasks.spawn_once("relay stream", async move {
            tokio::select! {
                biased;
                () = draining.cancelled() => {}
                () = stream.run() => {}
            }
        });
        Ok(ReceiverStream::new(frames))
    }

    /// A node of our cluster may read, and nobody else: what is sent names every pod of the cluster.
    fn check(&self, peer: &Identity, request: &WatchRequest) -> Result<(), Status> {
        let is_ours = match peer {
            Identity::Node { cluster, .. } => **cluster == *self.cluster,
            Identity::Ipam { .. }
            | Identity::Gateway { .. }
            | Identity::Controller { .. }
            | Identity::Relay { .. }
            | Identity::Admin { .. }
            | Identity::Etcd { .. } => false,
        };
        if !is_ours {
            let why = format!("{peer} is no node of cluster {}", self.cluster);
            return Err(Refusal::new(Code::PermissionDenied, IDENTITY_MISMATCH, why).into());
        }
        if request.cluster != self.cluster {
            let why = format!("this relay serves cluster {}", self.cluster);
            return Err(Refusal::bad_field("cluster", why).into());
        }
        Ok(())
    }
}

/// One agent's stream.
struct Stream {
    source: Source,
    head: watch::Receiver<Head>,
    out: mpsc::Sender<Result<Bytes, Status>>,
    _permit: OwnedSemaphorePermit,
}

/// Why a stream ends.
enum End {
    /// Nobody reads it.
    Closed,
    /// Its reader takes too long.
    Slow,
}

impl Stream {
    async fn run(mut self) {
        match self.follow().await {
            End::Closed => {}
            End::Slow => {
                let why = "the stream is read too slowly: begin anew";
                let status = Refusal::new(Code::Aborted, NOT_READY, why).into_status();
                // With a full queue the reader learns it by the end of the stream.
                drop(self.out.try_send(Err(status)));
            }
        }
    }

    async fn follow(&mut self) -> End {
        let closed = self.out.clone();
        tokio::select! {
            () = closed.closed() => return End::Closed,
            synced = self.head.wait_for(|head| head.synced) => if synced.is_err() {
                return End::Closed;
            },
        }
        let mut at = {
            let base = self.source.base();
            for frame in &base.frames {
                if let Err(end) = self.send(base.sequence, frame.clone()).await {
                    return end;
                }
            }
            base.sequence
        };
        loop {
            match self.source.after(at) {
                Err(TooSlow) => return End::Slow,
                Ok(Some(frame)) => {
                    if let Err(end) = self.send(at, frame).await {
                        return end;
                    }
                    at += 1;
                }
                Ok(None) => {
                    tokio::select! {
                        () = closed.closed() => return End::Closed,
                        moved = self.head.wait_for(|head| head.sequence > at) => if moved.is_err() {
                            return End::Closed;
                        },
                    }
                }
            }
        }
    }

    /// Sends a frame while the place `at` is still in the log: a reader that holds back must not hold the state.
    async fn send(&mut self, at: u64, frame: Bytes) -> Result<(), End> {
        let (source, out) = (&self.source, &self.out);
        let sent = async {
            let room = out.reserve().await.map_err(|_| End::Closed)?;
            room.send(Ok(frame));
            Ok(())
        };
        tokio::select! {
            biased;
            sent = sent => sent,
            _ = self.head.wait_for(|_| !source.reaches(at)) => Err(End::Slow),
            () = tokio::time::sleep(PATIENCE) => Err(End::Slow),
        }
    }
}

/// Requests by prost, answers as the bytes they are.
#[derive(Debug, Clone, Copy, Default)]
struct Frames;

impl Codec for Frames {
    type Encode = Bytes;
    type Decode = WatchRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        *self
    }

    fn decoder(&mut self) -> Self::Decoder {
        *self
    }
}

impl Encoder for Frames {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, frame: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(frame);
        Ok(())
    }
}

impl Decoder for Frames {
    type Item = WatchRequest;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<WatchRequest>, Status> {
        let text = from.copy_to_bytes(from.remaining());
        WatchRequest::decode(text)
            .map(Some)
            .map_err(|error| Refusal::bad_field("request", error).into_status())
    }
}

struct Watch(Arc<Inner>);

impl ServerStreamingService<WatchRequest> for Watch {
    type Response = Bytes;
    type ResponseStream = ReceiverStream<Result<Bytes, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<WatchRequest>) -> Self::Future {
        let answer = self.0.watch(&request).map(Response::new);
        Box::pin(async move { answer })
    }
}

impl<B> Service<http::Request<B>> for Server
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            // The table of the server lets the declared method through and no other.
            let mut grpc = tonic::server::Grpc::new(Frames);
            Ok(grpc.server_streaming(Watch(inner), request).await)
        })
    }
}

impl NamedService for Server {
    const NAME: &'static str = SERVICE_NAME;
}
