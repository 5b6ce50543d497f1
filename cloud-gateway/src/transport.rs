//! One HTTP exchange with the cloud, and whether a failed one can have had an effect.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

/// Largest answer that is read. Reason: a page of 500 ENIs with 50 addresses each stays below 8 MiB.
const MAX_ANSWER: usize = 16 << 20;
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections kept per endpoint when idle.
const IDLE_CONNECTIONS: usize = 32;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The request did not leave: nothing can have happened.
    #[error("not sent: {what}")]
    NotSent {
        /// What failed.
        what: String,
    },
    /// The request may have arrived.
    #[error("sent, but no answer: {what}")]
    NoAnswer {
        /// What failed.
        what: String,
    },
}

/// Sends requests that are signed already.
#[async_trait]
pub trait Transport: Send + Sync + Debug {
    /// One request, one answer, at most for `timeout`. Never repeats by itself.
    async fn send(
        &self,
        request: http::Request<Bytes>,
        timeout: Duration,
    ) -> Result<http::Response<Bytes>, TransportError>;
}

/// HTTP or HTTPS, by the scheme of the request.
#[derive(Debug, Clone)]
pub struct HttpTransport {
    client: reqwest::Client,
}

/// The HTTP client could not be made.
#[derive(Debug, thiserror::Error)]
#[error("HTTP client cannot be made")]
pub struct ClientError {
    /// What the library said.
    #[source]
    pub source: reqwest::Error,
}

impl HttpTransport {
    /// A client with its own connections. The process's TLS provider must be installed.
    pub fn new() -> Result<Self, ClientError> {
        let client = reqwest::Client::builder()
            // A proxy would see the keys' signatures and may rewrite the signed host.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build()
            .map_err(|source| ClientError { source })?;
        Ok(Self { client })
    }
}

#[async_trait]
impl Transport for HttpTransport {
    async fn send(
        &self,
        request: http::Request<Bytes>,
        timeout: Duration,
    ) -> Result<http::Response<Bytes>, TransportError> {
        let mut request = reqwest::Request::try_from(request).map_err(|error| classify(&error))?;
        *request.timeout_mut() = Some(timeout);
        let mut response = self
            .client
            .execute(request)
            .await
            .map_err(|error| classify(&error))?;
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| lost(&error))? {
            if body.len().saturating_add(chunk.len()) > MAX_ANSWER {
                return Err(TransportError::NoAnswer {
                    what: format!("the answer is longer than {MAX_ANSWER} bytes"),
                });
            }
            body.extend_from_slice(&chunk);
        }
        let mut answer = http::Response::new(body.freeze());
        *answer.status_mut() = response.status();
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        Ok(answer)
    }
}

fn classify(error: &reqwest::Error) -> TransportError {
    if error.is_connect() || error.is_builder() {
        return TransportError::NotSent { what: text(error) };
    }
    lost(error)
}

fn lost(error: &reqwest::Error) -> TransportError {
    TransportError::NoAnswer { what: text(error) }
}

/// The chain of causes, without the URL: with the older signature it holds the session token.
fn text(error: &reqwest::Error) -> String {
    let mut text = match () {
        () if error.is_timeout() => "timed out".to_owned(),
        () if error.is_connect() => "cannot connect".to_owned(),
        () if error.is_builder() => "no valid request".to_owned(),
        () => "connection failed".to_owned(),
    };
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn request(to: &str) -> http::Request<Bytes> {
        http::Request::builder()
            .method("POST")
            .uri(format!("http://{to}/?SecurityToken=hush"))
            .body(Bytes::new())
            .unwrap()
    }

    fn transport() -> HttpTransport {
        mesh::tls::install_provider();
        HttpTransport::new().unwrap()
    }

    #[tokio::test]
    async fn endpoint_that_nobody_listens_on_was_not_sent_to() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = free.local_addr().unwrap();
        drop(free);

        let answer = transport()
            .send(request(&address.to_string()), Duration::from_secs(5))
            .await;

        assert!(
            matches!(answer, Err(TransportError::NotSent { .. })),
            "{answer:?}"
        );
    }

    #[tokio::test]
    async fn connection_that_closes_without_an_answer_leaves_the_outcome_open() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = [0; 64];
            socket.read_exact(&mut head).await.unwrap();
            socket.shutdown().await.unwrap();
        };

        let client = transport();
        let (answer, ()) = tokio::join!(
            client.send(request(&address.to_string()), Duration::from_secs(5)),
            server
        );

        let Err(TransportError::NoAnswer { what }) = answer else {
            panic!("{answer:?}");
        };
        assert!(!what.contains("hush"), "{what}");
    }

    #[tokio::test]
    async fn answer_that_takes_too_long_leaves_the_outcome_open() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();

        let answer = transport()
            .send(request(&address.to_string()), Duration::from_millis(50))
            .await;

        assert!(
            matches!(answer, Err(TransportError::NoAnswer { .. })),
            "{answer:?}"
        );
    }
}
