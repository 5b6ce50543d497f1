//! Requests to an API server, and why they fail.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use kube::client::Body;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::health::Reason;
use crate::server::wire::{Garbled, Refusal};

/// Longest wait for the head of an answer.
const HEAD_WAIT: Duration = Duration::from_secs(30);
/// Longest wait for the next piece of a page.
const PIECE_WAIT: Duration = Duration::from_secs(30);
/// Longest page that is taken, in bytes: half as many objects are asked for after a longer one.
const PAGE_MAX: usize = 32 << 20;
/// Longest line of a watch, in bytes. An object has 3 MiB at most.
const LINE_MAX: usize = 16 << 20;
/// Longest text of a refusal that is read, in bytes.
const REFUSAL_MAX: usize = 64 << 10;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// No connection, or it broke, or nothing came for long.
    #[error("{0}")]
    Unreachable(String),
    /// Nothing came for long on a watch that was open.
    #[error("nothing came for {} s", .0.as_secs())]
    Silent(Duration),
    /// The answer was a refusal.
    #[error("{code} {message}")]
    Refused {
        code: u16,
        message: String,
        /// How long the server wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// The page is longer than we take.
    #[error("a page of more than 32 MiB")]
    TooLong,
    /// The answer is not understood.
    #[error(transparent)]
    Garbled(#[from] Garbled),
}

impl Failure {
    /// What sort it is.
    pub(super) const fn reason(&self) -> Reason {
        match self {
            Self::Unreachable(_) | Self::Silent(_) => Reason::Unreachable,
            Self::Refused { code, .. } => match code {
                401 => Reason::Unauthenticated,
                403 => Reason::Forbidden,
                404 => Reason::Missing,
                410 => Reason::Expired,
                429 | 500..=599 => Reason::Overloaded,
                _ => Reason::Odd,
            },
            Self::TooLong | Self::Garbled(_) => Reason::Odd,
        }
    }

    /// How long the server wants to be left alone.
    pub(super) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Unreachable(_) | Self::Silent(_) | Self::TooLong | Self::Garbled(_) => None,
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused {
            code: refusal.code,
            message: format!("{} {}", refusal.reason, refusal.message)
                .trim()
                .to_owned(),
            retry_after: None,
        }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        Self::Unreachable(mesh::causes::text(&error))
    }
}

/// Parameters of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Query(String);

impl Query {
    pub(super) fn with(mut self, key: &str, value: &str) -> Self {
        let between = if self.0.is_empty() { '?' } else { '&' };
        let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
        self.0.push(between);
        self.0.push_str(key);
        self.0.push('=');
        self.0.extend(value);
        self
    }
}

/// Sends requests. Clones share connections.
#[derive(Clone)]
pub(super) struct Api {
    client: kube::Client,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Api {
    pub(super) const fn new(client: kube::Client) -> Self {
        Self { client }
    }

    /// Gets a document as a whole.
    pub(super) async fn get(
        &self,
        path: &str,
        query: &Query,
        accept: &str,
    ) -> Result<Bytes, Failure> {
        let mut body = self.open(path, query, accept).await?;
        match gather(&mut body, PAGE_MAX).await? {
            Some(text) => Ok(text),
            None => Err(Failure::TooLong),
        }
    }

    /// Gets a document line by line. `silence` is the longest wait for the next piece.
    pub(super) async fn follow(
        &self,
        path: &str,
        query: &Query,
        accept: &str,
        silence: Duration,
    ) -> Result<Lines, Failure> {
        let body = self.open(path, query, accept).await?;
        Ok(Lines {
            body,
            buffer: BytesMut::new(),
            searched: 0,
            silence,
        })
    }

    async fn open(&self, path: &str, query: &Query, accept: &str) -> Result<Body, Failure> {
        let request = Request::get(format!("{path}{}", query.0))
            .header(header::ACCEPT, accept)
            .body(Body::empty())
            .map_err(|error| Failure::Unreachable(error.to_string()))?;
        let answer = tokio::time::timeout(HEAD_WAIT, self.client.send(request)).await;
        let answer = answer.map_err(|_| Failure::Unreachable("no answer in 30 s".to_owned()))??;
        if answer.status() == StatusCode::OK {
            Ok(answer.into_body())
        } else {
            Err(refusal(answer).await)
        }
    }
}

/// What a refusal says; its words when they can be read.
async fn refusal(answer: Response<Body>) -> Failure {
    let status = answer.status();
    let seconds = answer.headers().get(header::RETRY_AFTER);
    let seconds = seconds.and_then(|text| text.to_str().ok()?.parse().ok());
    let mut body = answer.into_body();
    let text = match gather(&mut body, REFUSAL_MAX).await {
        Ok(Some(text)) => text,
        Ok(None) | Err(_) => Bytes::new(),
    };
    let said: Refusal = serde_json::from_slice(&text).unwrap_or_default();
    let words = match said.message.as_str() {
        "" => status.canonical_reason().unwrap_or_default().to_owned(),
        words => words.to_owned(),
    };
    Failure::Refused {
        code: status.as_u16(),
        message: words,
        retry_after: seconds.map(Duration::from_secs),
    }
}

/// The whole body; nothing when it is longer than `max`.
async fn gather(body: &mut Body, max: usize) -> Result<Option<Bytes>, Failure> {
    let mut all = BytesMut::new();
    while let Some(piece) = piece(body, PIECE_WAIT).await? {
        if all.len().saturating_add(piece.len()) > max {
            return Ok(None);
        }
        all.extend_from_slice(&piece);
    }
    Ok(Some(all.freeze()))
}

async fn piece(body: &mut Body, wait: Duration) -> Result<Option<Bytes>, Failure> {
    loop {
        let frame = tokio::time::timeout(wait, body.frame()).await;
        match frame.map_err(|_| Failure::Silent(wait))? {
            None => return Ok(None),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) => return Err(Failure::from(error)),
        }
    }
}

/// Lines of an answer that goes on.
#[derive(Debug)]
pub(super) struct Lines {
    body: Body,
    buffer: BytesMut,
    /// So many bytes of the buffer hold no end of line.
    searched: usize,
    silence: Duration,
}

impl Lines {
    /// The next line, without its end; nothing when the server has ended the answer.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let fresh = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(at) = fresh.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched.saturating_add(at));
                drop(self.buffer.split_to(1));
                self.searched = 0;
                if line.is_empty() {
                    continue;
                }
                return Ok(Some(line.freeze()));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LINE_MAX {
                return Err(Failure::Unreachable(
                    "a line of more than 16 MiB".to_owned(),
                ));
            }
            match piece(&mut self.body, self.silence).await? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                // What has no end was cut off.
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static str) -> Lines {
        Lines {
            body: Body::from(text.as_bytes().to_vec()),
            buffer: BytesMut::new(),
            searched: 0,
            silence: Duration::from_secs(1),
        }
    }

    #[tokio::test]
    async fn lines_are_told_one_by_one_and_a_half_one_is_not() {
        let mut lines = lines("{1}\n\n{2}\n{3");

        assert_eq!(lines.next().await, Ok(Some(Bytes::from("{1}"))));
        assert_eq!(lines.next().await, Ok(Some(Bytes::from("{2}"))));
        assert_eq!(lines.next().await, Ok(None));
    }

    #[test]
    fn values_of_a_query_are_escaped() {
        let query = Query::default()
            .with("fieldSelector", "spec.nodeName=n1")
            .with("limit", "5");

        assert_eq!(query.0, "?fieldSelector=spec%2EnodeName%3Dn1&limit=5");
    }

    #[test]
    fn refusals_are_sorted_by_their_code() {
        let reason = |code| {
            Failure::Refused {
                code,
                message: String::new(),
                retry_after: None,
            }
            .reason()
        };

        assert_eq!(reason(401), Reason::Unauthenticated);
        assert_eq!(reason(403), Reason::Forbidden);
        assert_eq!(reason(404), Reason::Missing);
        assert_eq!(reason(410), Reason::Expired);
        assert_eq!(reason(429), Reason::Overloaded);
        assert_eq!(reason(503), Reason::Overloaded);
        assert_eq!(reason(422), Reason::Odd);
    }
}
