//! The API server, read with the rights of whoever asks.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use mesh::causes;
use serde::de::DeserializeOwned;

use crate::status::objects::List;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Objects on a page.
const PAGE: u32 = 500;
/// Pages of one list; what comes behind is left out.
const PAGES_MAX: u32 = 100;

/// Why something was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The server did not answer.
    #[error("the API server does not answer: {0}")]
    Unreachable(String),
    /// The server said no.
    #[error("{code} {message}")]
    Refused {
        /// HTTP status.
        code: u16,
        /// In words.
        message: String,
    },
}

impl ReadError {
    /// Whether there is no such thing.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }
}

/// An API server.
#[derive(Clone)]
pub struct Source {
    client: kube::Client,
    server: String,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Source {
    /// As the file says; else as kubectl would find it; else as a pod. Nothing is sent yet.
    ///
    /// # Errors
    /// When there is no usable configuration.
    pub async fn connect(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Self> {
        let options = KubeConfigOptions {
            context: context.map(str::to_owned),
            ..KubeConfigOptions::default()
        };
        let mut config = match (kubeconfig, context) {
            (Some(path), _) => {
                let file = Kubeconfig::read_from(path);
                let file = file.with_context(|| path.display().to_string())?;
                kube::Config::from_custom_kubeconfig(file, &options).await?
            }
            (None, Some(_)) => kube::Config::from_kubeconfig(&options).await?,
            (None, None) => kube::Config::infer().await?,
        };
        config.connect_timeout = Some(PATIENCE);
        config.read_timeout = Some(PATIENCE);
        config.default_retry = false;
        let server = config.cluster_url.to_string();
        Ok(Self {
            client: kube::Client::try_from(config)?,
            server,
        })
    }

    /// Where it is.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// One object.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ReadError> {
        let request = request(path)?;
        let answer = tokio::time::timeout(PATIENCE, self.client.request::<T>(request)).await;
        answer.map_err(|_| late())?.map_err(of_kube)
    }

    /// What a path holds, as text.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn text(&self, path: &str) -> Result<String, ReadError> {
        let request = request(path)?;
        let answer = tokio::time::timeout(PATIENCE, self.client.request_text(request)).await;
        answer.map_err(|_| late())?.map_err(of_kube)
    }

    /// All objects of a list; `query` are selectors, without a question mark.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &str,
    ) -> Result<Vec<T>, ReadError> {
        let mut all = Vec::new();
        let mut next = String::new();
        for _ in 0..PAGES_MAX {
            let page = format!("{path}?limit={PAGE}&continue={next}&{query}");
            let list: List<T> = self.get(&page).await?;
            all.extend(list.items.into_iter().flatten());
            match list.metadata.next {
                Some(token) if !token.is_empty() => next = token,
                Some(_) | None => break,
            }
        }
        Ok(all)
    }
}

fn request(path: &str) -> Result<Request<Vec<u8>>, ReadError> {
    let request = Request::get(path).body(Vec::new());
    request.map_err(|error| ReadError::Unreachable(error.to_string()))
}

fn late() -> ReadError {
    ReadError::Unreachable(format!("nothing came in {} s", PATIENCE.as_secs()))
}

fn of_kube(error: kube::Error) -> ReadError {
    if let kube::Error::Api(status) = error {
        return ReadError::Refused {
            code: status.code,
            message: status.message,
        };
    }
    ReadError::Unreachable(causes::text(&error))
}
