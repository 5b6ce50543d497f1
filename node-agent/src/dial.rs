//! Channels to ipam replicas with the node's identity.

use mesh::backoff::{self, Backoff};
use mesh::client::{self, Channel};
use mesh::identity::IdentityKind;
use mesh::status::Refusal;
use mesh::tls::TlsMaterial;
use mesh::tls::verify::Expect;
use tonic::Status;

/// Makes channels. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dial {
    /// Our certificate.
    pub tls: TlsMaterial,
    /// Bounds.
    pub params: client::Params,
}

impl Dial {
    /// A channel for streams to the replica at `host:port`; nothing is dialled before the first call.
    ///
    /// # Errors
    /// A status when the address can not be read.
    pub fn stream(&self, replica: &str) -> Result<Channel, Status> {
        let expect = Expect::Kind(IdentityKind::Ipam);
        let channel = Channel::tcp(replica, self.tls.clone(), expect, &self.params);
        let channel = channel.map_err(|error| Refusal::bad_field("replica", error))?;
        Ok(channel.without_deadline())
    }
}

/// A row of pauses between attempts.
pub fn pauses(first_ms: u64, max_ms: u64) -> Backoff {
    let params = backoff::Params { first_ms, max_ms };
    Backoff::try_new(params).unwrap_or_else(|_| Backoff::default())
}
