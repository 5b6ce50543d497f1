//! With what calls are signed: where it comes from, and how it is kept fresh.
//!
//! There is one source at a time. All of them are kept by one [`Keeper`], so that expiry, rotation and complaints are
//! the same for files and for what is fetched. Nothing here prints a secret.

pub mod files;
pub mod keeper;
pub mod oidc;
pub mod ram_role;
pub mod token_config;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use ecs_api::sign::Credentials;
use ecs_api::sign::encode::parse_timestamp;
use types::time::Tick;

use crate::transport::TransportError;
pub use files::{FILE_ID, FILE_SECRET, FILE_TOKEN};
pub use keeper::{Keeper, NoCredentials, Rhythm};

/// Credentials as a source gave them.
#[derive(Debug)]
pub struct Issued {
    /// What to sign with.
    pub credentials: Credentials,
    /// How long they are good from now on; `None` if nothing says.
    pub left: Option<Duration>,
}

/// Where credentials come from.
#[async_trait]
pub trait Source: Send + Sync + Debug {
    /// Looks once. The caller bounds the time and repeats.
    ///
    /// # Errors
    /// [`CredentialError`], which holds no secret.
    async fn fetch(&self) -> Result<Issued, CredentialError>;
}

/// A source gives no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A file or the directory cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file or an answer is not what it should be.
    #[error("{what}: {why}")]
    Malformed {
        /// The file, or who answered.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// Whoever gives credentials gives none to us.
    #[error("{what}: {why}")]
    Refused {
        /// The file, or who answered.
        what: String,
        /// Its words.
        why: String,
    },
    /// Whoever gives credentials cannot be reached.
    #[error("{what} cannot be reached: {why}")]
    Unreachable {
        /// Who.
        what: String,
        /// What failed.
        why: String,
    },
}

fn unreadable(path: &Path, source: std::io::Error) -> CredentialError {
    CredentialError::Unreadable {
        path: path.to_owned(),
        source,
    }
}

fn unreachable(what: String, error: TransportError) -> CredentialError {
    let why = match error {
        TransportError::NotSent { what } | TransportError::NoAnswer { what } => what,
    };
    CredentialError::Unreachable { what, why }
}

/// Reads files on a thread that may block.
async fn aside<T: Send + 'static>(
    path: &Path,
    read: impl FnOnce() -> Result<T, CredentialError> + Send + 'static,
) -> Result<T, CredentialError> {
    let read = tokio::task::spawn_blocking(read).await;
    read.unwrap_or_else(|stopped| Err(unreadable(path, std::io::Error::other(stopped))))
}

/// The time from now to `text`, as all sources write it.
fn left_until(text: &str) -> Result<Duration, &'static str> {
    let end = parse_timestamp(text).ok_or("is no time of the form yyyy-MM-ddTHH:mm:ssZ")?;
    let left = end.since(Tick(mesh::clock::wall_ms()));
    if left.is_zero() {
        return Err("is over: somebody must renew it");
    }
    Ok(left)
}
