//! A role for the service account (RRSA): its token against temporary keys, at STS.
//!
//! Source: STS `AssumeRoleWithOIDC`, version 2015-04-01. The call is not signed: the token is the proof.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ecs_api::sign::Credentials;
use ecs_api::sign::encode::{percent_encode, timestamp};
use mesh::secret::Secret;
use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;
use serde::Deserialize;
use types::time::Tick;
use uuid::Uuid;

use super::{CredentialError, Issued, Source, aside, left_until, unreachable, unreadable};
use crate::transport::Transport;

/// The variables of ack-pod-identity-webhook.
pub const VARIABLE_ROLE: &str = "ALIBABA_CLOUD_ROLE_ARN";
/// See [`VARIABLE_ROLE`].
pub const VARIABLE_PROVIDER: &str = "ALIBABA_CLOUD_OIDC_PROVIDER_ARN";
/// See [`VARIABLE_ROLE`].
pub const VARIABLE_TOKEN_FILE: &str = "ALIBABA_CLOUD_OIDC_TOKEN_FILE";
/// Who we are in the cloud's audit log.
pub const VARIABLE_SESSION: &str = "ALIBABA_CLOUD_ROLE_SESSION_NAME";
/// Host of STS.
pub const VARIABLE_ENDPOINT: &str = "ALIBABA_CLOUD_STS_ENDPOINT";

/// Session name when nobody gives one.
pub const SESSION: &str = "terway-cloud-gateway";

const ACTION: &str = "AssumeRoleWithOIDC";
const VERSION: &str = "2015-04-01";
/// Life that is asked for, in seconds: the default of the action, which every role allows.
const DURATION: &str = "3600";
/// Characters of a token.
const TOKEN_LENGTHS: std::ops::RangeInclusive<usize> = 4..=20_000;
/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Characters of STS's words that are told on.
const MAX_WORDS: usize = 400;

/// What to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `http(s)://host[:port]` of STS.
    pub endpoint: String,
    /// `acs:ram::<account>:role/<name>`.
    pub role_arn: String,
    /// `acs:ram::<account>:oidc-provider/<name>`.
    pub provider_arn: String,
    /// Who we are in the cloud's audit log.
    pub session: String,
    /// The service account's token, read anew for each call.
    pub token_file: PathBuf,
}

/// The role.
#[derive(Debug)]
pub struct Oidc {
    settings: Settings,
    transport: Arc<dyn Transport>,
}

impl Oidc {
    /// By `transport`.
    pub fn new(settings: Settings, transport: Arc<dyn Transport>) -> Self {
        Self {
            settings,
            transport,
        }
    }

    async fn token(&self) -> Result<Zeroizing<String>, CredentialError> {
        let path = self.settings.token_file.clone();
        let read = aside(&self.settings.token_file, move || {
            fs::read_to_string(&path).map_err(|source| unreadable(&path, source))
        });
        let text = Zeroizing::new(read.await?);
        let token = text.trim();
        if !TOKEN_LENGTHS.contains(&token.len())
            || !token.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(CredentialError::Malformed {
                what: self.settings.token_file.display().to_string(),
                why: "is no service account's token".to_owned(),
            });
        }
        Ok(Zeroizing::new(token.to_owned()))
    }

    fn request(&self, token: &str) -> Result<http::Request<Bytes>, http::Error> {
        let nonce = Uuid::new_v4().to_string();
        let now = timestamp(Tick(mesh::clock::wall_ms()));
        let query: Vec<String> = [
            ("Action", ACTION),
            ("Version", VERSION),
            ("Format", "JSON"),
            ("Timestamp", &now),
            ("SignatureNonce", &nonce),
            ("RoleArn", &self.settings.role_arn),
            ("OIDCProviderArn", &self.settings.provider_arn),
            ("RoleSessionName", &self.settings.session),
            ("DurationSeconds", DURATION),
        ]
        .iter()
        .map(|(name, value)| format!("{name}={}", percent_encode(value)))
        .collect();
        http::Request::builder()
            .method(http::Method::POST)
            .uri(format!("{}/?{}", self.settings.endpoint, query.join("&")))
            .header(http::header::ACCEPT, "application/json")
            .header(
                http::header::CONTENT_TYPE,
                "application/x-www-form-urlencoded",
            )
            // In the body: addresses are written into logs on the way.
            .body(Bytes::from(format!("OIDCToken={}", percent_encode(token))))
    }

    fn what(&self) -> String {
        format!("STS {}", self.settings.endpoint)
    }
}

#[async_trait]
impl Source for Oidc {
    async fn fetch(&self) -> Result<Issued, CredentialError> {
        let token = self.token().await?;
        let refused = |why: String| CredentialError::Refused {
            what: self.what(),
            why,
        };
        let request = self
            .request(&token)
            .map_err(|error| refused(error.to_string()))?;
        let sent = self.transport.send(request, TIMEOUT).await;
        let response = sent.map_err(|error| unreachable(self.what(), error))?;
        if response.status() != http::StatusCode::OK {
            let words: Words = serde_json::from_slice(response.body()).unwrap_or_default();
            let words = format!("{}: {}", words.code, words.message)
                .replace(token.as_str(), mesh::secret::REDACTED);
            let words: String = words.chars().take(MAX_WORDS).collect();
            return Err(refused(format!(
                "role {}: status {}: {words}",
                self.settings.role_arn,
                response.status().as_u16()
            )));
        }
        let malformed = |why: String| CredentialError::Malformed {
            what: self.what(),
            why,
        };
        // What serde would say may hold what it read.
        let answer: Answer = serde_json::from_slice(response.body())
            .map_err(|_| malformed(format!("the answer is not that of {ACTION}")))?;
        let given = answer.credentials;
        let left =
            left_until(&given.expiration).map_err(|why| malformed(format!("Expiration {why}")))?;
        Ok(Issued {
            credentials: Credentials {
                access_key_id: given.access_key_id,
                access_key_secret: SecretString::from(given.access_key_secret.expose()),
                security_token: Some(SecretString::from(given.security_token.expose())),
            },
            left: Some(left),
        })
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Words {
    code: String,
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    credentials: Given,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Given {
    access_key_id: String,
    access_key_secret: Secret,
    security_token: Secret,
    expiration: String,
}
