//! The agents' side: one stream from one relay.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _};
use http::uri::PathAndQuery;
use mesh::client::{self, BadTarget, Channel};
use mesh::identity::IdentityKind;
use mesh::tls::TlsMaterial;
use mesh::tls::verify::Expect;
use prost::Message as _;
use proto::policy::v1::WatchRequest;
use proto::policy::v1::relay_server::SERVICE_NAME;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{GrpcMethod, Request, Status, Streaming};

use super::wire::Frame;

/// Largest frame that is read, in bytes: one with a single large policy.
const FRAME_MAX: usize = 16 << 20;
/// How long a relay may take to begin. One that is itself not in sync yet counts as away.
const BEGIN: Duration = Duration::from_secs(10);

const METHOD: &str = "Watch";
/// The method as HTTP/2 has it.
const PATH: &str = "/terway.policy.v1.Relay/Watch";

/// Requests by prost, answers in pieces that are the bytes they came in: what a frame has as changes is read one by
/// one later, so that a large frame never stands there as objects.
#[derive(Debug, Clone, Copy, Default)]
struct InPieces;

impl Codec for InPieces {
    type Encode = WatchRequest;
    type Decode = Frame;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        *self
    }

    fn decoder(&mut self) -> Self::Decoder {
        *self
    }
}

impl Encoder for InPieces {
    type Item = WatchRequest;
    type Error = Status;

    fn encode(&mut self, request: WatchRequest, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&request.encode_to_vec());
        Ok(())
    }
}

impl Decoder for InPieces {
    type Item = Frame;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Frame>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        Frame::decode(bytes)
            .map(Some)
            .map_err(|error| Status::internal(format!("a frame of the relay: {error}")))
    }
}

/// Makes streams. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    /// Our certificate: the node's.
    pub tls: TlsMaterial,
    /// Bounds of channels.
    pub params: client::Params,
    /// The cluster.
    pub cluster: String,
    /// Kubernetes name of the node.
    pub node_name: String,
}

/// No stream from a relay.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The address can not be read.
    #[error(transparent)]
    Target(#[from] BadTarget),
    /// The relay refused, is away, or went away.
    #[error("relay: {}", .0.message())]
    Status(#[from] Status),
    /// The relay answers and sends nothing.
    #[error("relay sent nothing for {} s", BEGIN.as_secs())]
    Silent,
}

/// Frames of one relay, the whole state first.
#[derive(Debug)]
pub struct Frames {
    first: Option<Frame>,
    stream: Streaming<Frame>,
}

impl Client {
    /// Opens a stream from the relay at `host:port` and waits for its first frame.
    ///
    /// # Errors
    /// [`WatchError`].
    ///
    /// # Cancel safety
    /// Cancel-safe: nothing was taken.
    pub async fn watch(&self, target: &str) -> Result<Frames, WatchError> {
        let expect = Expect::Kind(IdentityKind::Relay);
        let channel = Channel::tcp(target, self.tls.clone(), expect, &self.params)?;
        let mut client = Grpc::new(channel.without_deadline()).max_decoding_message_size(FRAME_MAX);
        let mut request = Request::new(WatchRequest {
            cluster: self.cluster.clone(),
            node_name: self.node_name.clone(),
        });
        request
            .extensions_mut()
            .insert(GrpcMethod::new(SERVICE_NAME, METHOD));
        let begin = async {
            client.ready().await?;
            let path = PathAndQuery::from_static(PATH);
            let answer = client.server_streaming(request, path, InPieces).await?;
            let mut stream = answer.into_inner();
            let first = stream.message().await?;
            Ok::<_, Status>(Frames { first, stream })
        };
        match tokio::time::timeout(BEGIN, begin).await {
            Ok(frames) => Ok(frames?),
            Err(_) => Err(WatchError::Silent),
        }
    }
}

impl Frames {
    /// The next frame; nothing when the relay ended the stream.
    ///
    /// # Errors
    /// [`WatchError::Status`] when the stream broke.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Frame>, WatchError> {
        match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => Ok(self.stream.message().await?),
        }
    }
}
