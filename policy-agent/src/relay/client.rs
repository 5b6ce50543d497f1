//! The agents' side: one stream from one relay.

use std::time::Duration;

use mesh::client::{self, BadTarget, Channel};
use mesh::identity::IdentityKind;
use mesh::tls::TlsMaterial;
use mesh::tls::verify::Expect;
use proto::policy::v1::relay_client::RelayClient;
use proto::policy::v1::{WatchFrame, WatchRequest};
use tonic::{Status, Streaming};

/// Largest frame that is read, in bytes: one with a single large policy.
const FRAME_MAX: usize = 16 << 20;
/// How long a relay may take to begin. One that is itself not in sync yet counts as away.
const BEGIN: Duration = Duration::from_secs(10);

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
    first: Option<WatchFrame>,
    stream: Streaming<WatchFrame>,
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
        let mut client =
            RelayClient::new(channel.without_deadline()).max_decoding_message_size(FRAME_MAX);
        let request = WatchRequest {
            cluster: self.cluster.clone(),
            node_name: self.node_name.clone(),
        };
        let begin = async {
            let mut stream = client.watch(request).await?.into_inner();
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
    pub async fn next(&mut self) -> Result<Option<WatchFrame>, WatchError> {
        match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => Ok(self.stream.message().await?),
        }
    }
}
