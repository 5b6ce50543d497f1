//! The two signatures of the OpenAPI, and what both need.
//!
//! Each scheme exposes its intermediate strings, so that a signer, a verifier and a person with a vector in hand
//! can compare them step by step. Clock and nonce are arguments.

pub mod encode;
pub mod v1;
pub mod v3;

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// How a request is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scheme {
    /// RPC signature 1.0: HMAC-SHA1 over the parameters.
    V1,
    /// ACS3-HMAC-SHA256: HMAC over headers, parameters and body.
    #[default]
    V3,
}

/// A key pair, with the session token if it is temporary.
#[derive(Clone)]
pub struct Credentials {
    /// The AccessKey id. Public.
    pub access_key_id: String,
    /// The AccessKey secret.
    pub access_key_secret: SecretString,
    /// The token of temporary (STS) keys.
    pub security_token: Option<SecretString>,
}

impl Credentials {
    /// A lasting key pair.
    pub fn lasting(access_key_id: &str, access_key_secret: &str) -> Self {
        Self {
            access_key_id: access_key_id.to_owned(),
            access_key_secret: SecretString::from(access_key_secret),
            security_token: None,
        }
    }

    /// A temporary key pair with its token.
    pub fn temporary(access_key_id: &str, access_key_secret: &str, security_token: &str) -> Self {
        Self {
            security_token: Some(SecretString::from(security_token)),
            ..Self::lasting(access_key_id, access_key_secret)
        }
    }

    /// The secret, for a signer or a verifier.
    pub fn secret(&self) -> &str {
        self.access_key_secret.expose_secret()
    }

    /// The session token, for a signer or a verifier.
    pub fn token(&self) -> Option<&str> {
        self.security_token
            .as_ref()
            .map(ExposeSecret::expose_secret)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_debug_output_hide_their_secrets() {
        let credentials = Credentials::temporary("testid", "hush-hush", "also-hush");

        let text = format!("{credentials:?}");

        assert!(text.contains("testid"), "{text}");
        assert!(!text.contains("hush"), "{text}");
    }
}
