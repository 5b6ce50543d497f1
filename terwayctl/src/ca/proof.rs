//! The instance's own word on who it is: its identity document, signed by the cloud.
//!
//! Source: ECS OpenAPI facts, metadata service (token mode first; without it where there are no tokens).

use std::time::Duration;

use reqwest::{Client, Response};
use serde_json::Value;

/// Where the metadata service answers on every instance.
pub const ENDPOINT: &str = "http://100.100.100.200";
/// Longest exchange. The service is on the machine itself, as good as.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Life of a token that is asked for, in seconds: long enough for two questions.
const TOKEN_TTL: &str = "60";
/// Longest answer that is read, in bytes.
const ANSWER_MAX: usize = 64 << 10;

const DOCUMENT: &str = "dynamic/instance-identity/document";
const SIGNATURE: &str = "dynamic/instance-identity/pkcs7";

/// The document and its signature, both as they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proof {
    /// JSON.
    pub document: String,
    /// PKCS#7, base64.
    pub signature: String,
}

/// The metadata service did not help.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// No answer.
    #[error("metadata item {item} was not answered")]
    Unavailable {
        /// Path below `/latest/`.
        item: &'static str,
        /// What the client said.
        #[source]
        source: reqwest::Error,
    },
    /// An answer that is not a success.
    #[error("metadata item {item} was answered with status {status}")]
    Refused {
        /// Path below `/latest/`.
        item: &'static str,
        /// HTTP status.
        status: u16,
    },
    /// An answer that is not text of a sensible length.
    #[error("metadata item {item} is no text of at most 64 KiB")]
    Malformed {
        /// Path below `/latest/`.
        item: &'static str,
    },
}

impl Proof {
    /// Asks the metadata service at `endpoint`.
    ///
    /// # Errors
    /// [`ProofError`], naming the item.
    pub async fn read(endpoint: &str) -> Result<Self, ProofError> {
        let client = Client::builder().timeout(TIMEOUT).no_proxy().build();
        let service = Service {
            client: client.map_err(|source| ProofError::Unavailable {
                item: "(client)",
                source,
            })?,
            endpoint: endpoint.trim_end_matches('/'),
        };
        let token = service.token().await?;
        Ok(Self {
            document: service.item(DOCUMENT, token.as_deref()).await?,
            signature: service.item(SIGNATURE, token.as_deref()).await?,
        })
    }

    /// The instance that the document names.
    pub fn instance(&self) -> Option<String> {
        let document: Value = serde_json::from_str(&self.document).ok()?;
        Some(document.get("instance-id")?.as_str()?.to_owned())
    }
}

struct Service<'a> {
    client: Client,
    endpoint: &'a str,
}

impl Service<'_> {
    /// A token, or `None` where the service has no tokens (403 or 404).
    async fn token(&self) -> Result<Option<String>, ProofError> {
        let item = "api/token";
        let answer = self
            .client
            .put(format!("{}/latest/{item}", self.endpoint))
            .header("X-aliyun-ecs-metadata-token-ttl-seconds", TOKEN_TTL)
            .send()
            .await
            .map_err(|source| ProofError::Unavailable { item, source })?;
        match answer.status().as_u16() {
            200 => Ok(Some(text(item, answer).await?)),
            403 | 404 => Ok(None),
            status => Err(ProofError::Refused { item, status }),
        }
    }

    async fn item(&self, item: &'static str, token: Option<&str>) -> Result<String, ProofError> {
        let mut ask = self.client.get(format!("{}/latest/{item}", self.endpoint));
        if let Some(token) = token {
            ask = ask.header("X-aliyun-ecs-metadata-token", token);
        }
        let answer = ask
            .send()
            .await
            .map_err(|source| ProofError::Unavailable { item, source })?;
        match answer.status().as_u16() {
            200 => text(item, answer).await,
            status => Err(ProofError::Refused { item, status }),
        }
    }
}

async fn text(item: &'static str, mut answer: Response) -> Result<String, ProofError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer
        .chunk()
        .await
        .map_err(|source| ProofError::Unavailable { item, source })?
    {
        if bytes.len().saturating_add(chunk.len()) > ANSWER_MAX {
            return Err(ProofError::Malformed { item });
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| ProofError::Malformed { item })
}

#[cfg(test)]
mod tests {
    use super::Proof;

    #[test]
    fn instance_is_read_from_the_document() {
        let proof = |document: &str| Proof {
            document: document.to_owned(),
            signature: String::new(),
        };

        let document = r#"{"zone-id": "cn-hangzhou-i", "instance-id": "i-1"}"#;
        assert_eq!(proof(document).instance().as_deref(), Some("i-1"));
        for odd in ["", "[]", "{}", r#"{"instance-id": 1}"#] {
            assert_eq!(proof(odd).instance(), None, "{odd}");
        }
    }
}
