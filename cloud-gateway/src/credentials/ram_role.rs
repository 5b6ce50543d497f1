//! The role of the instance that we run on, by the metadata service.
//!
//! Source: ECS instance metadata, `ram/security-credentials/`. With a token where the service gives one (the hardened
//! mode), without where it does not.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ecs_api::sign::Credentials;
use http::{HeaderValue, Method, StatusCode};
use mesh::secret::Secret;
use secrecy::SecretString;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{CredentialError, Issued, Source, left_until, unreachable};
use crate::transport::Transport;

/// Name that lets the metadata service say which role the instance has.
pub const AUTO: &str = "auto";

const TOKEN_PATH: &str = "/latest/api/token";
const ROLES_PATH: &str = "/latest/meta-data/ram/security-credentials/";
/// Names the lifetime we want, in seconds.
const TTL_HEADER: &str = "x-aliyun-ecs-metadata-token-ttl-seconds";
/// Carries the token.
const TOKEN_HEADER: &str = "x-aliyun-ecs-metadata-token";
/// Longest lifetime of a token.
const TTL: Duration = Duration::from_hours(6);
/// Longest wait for an answer. Reason: the service is on the same host.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The role of our instance.
pub struct RamRole {
    base: String,
    role: String,
    transport: Arc<dyn Transport>,
    /// The token, and until when it is used.
    token: Mutex<Option<(Secret, Instant)>>,
}

impl fmt::Debug for RamRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RamRole")
            .field("base", &self.base)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

impl RamRole {
    /// `role` is a name or [`AUTO`]; `base` is `http://host[:port]` of the metadata service.
    pub fn new(base: &str, role: String, transport: Arc<dyn Transport>) -> Self {
        Self {
            base: base.trim_end_matches('/').to_owned(),
            role,
            transport,
            token: Mutex::new(None),
        }
    }

    fn refused(&self, why: String) -> CredentialError {
        CredentialError::Refused {
            what: format!("metadata service {}", self.base),
            why,
        }
    }

    /// The role to ask for.
    async fn role(&self) -> Result<String, CredentialError> {
        if self.role != AUTO {
            return Ok(self.role.clone());
        }
        let found = self.get(ROLES_PATH).await?;
        let name = found
            .as_deref()
            .and_then(|body| std::str::from_utf8(body).ok())
            .and_then(|text| text.lines().next())
            .map(str::trim)
            .filter(|name| is_role(name));
        name.map(str::to_owned)
            .ok_or_else(|| self.refused("the instance has no RAM role".to_owned()))
    }

    /// An item; `None` if there is none of that name.
    async fn get(&self, path: &str) -> Result<Option<Bytes>, CredentialError> {
        let first = self.get_once(path).await?;
        let answer = if first.status() == StatusCode::UNAUTHORIZED {
            // The token has ended sooner than it said, as after a restart of the service.
            *self.token.lock().await = None;
            self.get_once(path).await?
        } else {
            first
        };
        match answer.status() {
            StatusCode::OK => Ok(Some(answer.into_body())),
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(self.refused(format!("status {status} for {path}"))),
        }
    }

    async fn get_once(&self, path: &str) -> Result<http::Response<Bytes>, CredentialError> {
        let token = self.token().await?;
        let header = token.as_ref().map(|token| (TOKEN_HEADER, token.expose()));
        self.send(Method::GET, path, header).await
    }

    /// The token to ask with; `None` where the service gives none.
    async fn token(&self) -> Result<Option<Secret>, CredentialError> {
        let mut kept = self.token.lock().await;
        if let Some((token, until)) = &*kept
            && Instant::now() < *until
        {
            return Ok(Some(token.clone()));
        }
        let ttl = TTL.as_secs().to_string();
        let answer = self
            .send(Method::PUT, TOKEN_PATH, Some((TTL_HEADER, &ttl)))
            .await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                return Ok(None);
            }
            status => return Err(self.refused(format!("status {status} for {TOKEN_PATH}"))),
        }
        let text = std::str::from_utf8(answer.body())
            .unwrap_or_default()
            .trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(self.refused("its token is no printable ASCII".to_owned()));
        }
        let token = Secret::new(text);
        *kept = Some((token.clone(), Instant::now() + TTL / 2));
        Ok(Some(token))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        header: Option<(&str, &str)>,
    ) -> Result<http::Response<Bytes>, CredentialError> {
        let mut builder = http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        if let Some((name, value)) = header {
            let mut value = HeaderValue::try_from(value)
                .map_err(|_| self.refused("its token fits in no header".to_owned()))?;
            value.set_sensitive(name == TOKEN_HEADER);
            builder = builder.header(name, value);
        }
        let request = builder
            .body(Bytes::new())
            .map_err(|error| self.refused(error.to_string()))?;
        let sent = self.transport.send(request, TIMEOUT).await;
        sent.map_err(|error| unreachable(format!("metadata service {}", self.base), error))
    }
}

#[async_trait]
impl Source for RamRole {
    async fn fetch(&self) -> Result<Issued, CredentialError> {
        let role = self.role().await?;
        let body = self.get(&format!("{ROLES_PATH}{role}")).await?;
        let body =
            body.ok_or_else(|| self.refused(format!("the instance has no role {role:?}")))?;
        let malformed = |why: String| CredentialError::Malformed {
            what: format!("metadata service {}, role {role:?}", self.base),
            why,
        };
        // What serde would say may hold what it read.
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|_| malformed("the answer is not the JSON of a role".to_owned()))?;
        if answer.code != "Success" {
            return Err(self.refused(format!("role {role:?}: {}", answer.code)));
        }
        let left =
            left_until(&answer.expiration).map_err(|why| malformed(format!("Expiration {why}")))?;
        Ok(Issued {
            credentials: Credentials {
                access_key_id: answer.access_key_id,
                access_key_secret: SecretString::from(answer.access_key_secret.expose()),
                security_token: Some(SecretString::from(answer.security_token.expose())),
            },
            left: Some(left),
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    access_key_id: String,
    access_key_secret: Secret,
    security_token: Secret,
    expiration: String,
    code: String,
}

/// Whether it is the name of a role, and no path.
///
/// Source: RAM, CreateRole: 1 to 64 letters, digits, `.`, `-`, `_`.
pub fn is_role(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
}
