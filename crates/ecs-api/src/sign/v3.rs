//! ACS3-HMAC-SHA256: HMAC-SHA256 over method, path, query, chosen headers and the hash of the body.
//!
//! Source: Alibaba Cloud SDK reference, request syntax and signature method V3.

use std::collections::BTreeSet;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::sign::encode::{hex, percent_encode};

/// Name of the algorithm, as it begins the `Authorization` header and the string to sign.
pub const ALGORITHM: &str = "ACS3-HMAC-SHA256";
/// Names the action.
pub const HEADER_ACTION: &str = "x-acs-action";
/// Names the API's version.
pub const HEADER_VERSION: &str = "x-acs-version";
/// When the request was signed.
pub const HEADER_DATE: &str = "x-acs-date";
/// Makes the request unique.
pub const HEADER_NONCE: &str = "x-acs-signature-nonce";
/// Lower-case hexadecimal SHA-256 of the body.
pub const HEADER_CONTENT: &str = "x-acs-content-sha256";
/// The key id, once more, with temporary keys.
pub const HEADER_ACCESS_KEY: &str = "x-acs-accesskey-id";
/// The session token of temporary keys.
pub const HEADER_TOKEN: &str = "x-acs-security-token";

/// Headers a verifier should insist on.
pub const REQUIRED_HEADERS: [&str; 6] = [
    "host",
    HEADER_DATE,
    HEADER_CONTENT,
    HEADER_ACTION,
    HEADER_VERSION,
    HEADER_NONCE,
];

/// A request in the pieces that are signed.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// HTTP method, upper case.
    pub method: &'a str,
    /// Path, `/` for all actions here.
    pub path: &'a str,
    /// Decoded query parameters.
    pub query: &'a [(String, String)],
    /// Headers that are signed; several values of one name are several entries. Names in any case.
    pub headers: &'a [(String, String)],
    /// Lower-case hexadecimal SHA-256 of the body.
    pub body_hash: &'a str,
}

/// Lower-case hexadecimal SHA-256.
pub fn body_hash(body: &[u8]) -> String {
    hex(&Sha256::digest(body))
}

/// Sorts the parameters by key and encodes their values; the keys are plain ASCII and stay.
pub fn canonical_query(query: &[(String, String)]) -> String {
    let mut pairs: Vec<_> = query.iter().collect();
    pairs.sort_unstable();
    let encoded: Vec<_> = pairs
        .into_iter()
        .map(|(key, value)| format!("{key}={}", percent_encode(value)))
        .collect();
    encoded.join("&")
}

/// `name:value\n` for each header, names in lower case and sorted, values trimmed; several values of one name are
/// sorted and joined by commas.
pub fn canonical_headers(headers: &[(String, String)]) -> String {
    let mut lines = String::new();
    for name in names(headers) {
        let mut values: Vec<_> = headers
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(&name))
            .map(|(_, value)| value.trim())
            .collect();
        values.sort_unstable();
        lines.extend([&name, ":", &values.join(","), "\n"]);
    }
    lines
}

/// The names of the signed headers, sorted and joined by `;`.
pub fn signed_headers(headers: &[(String, String)]) -> String {
    names(headers).into_iter().collect::<Vec<_>>().join(";")
}

fn names(headers: &[(String, String)]) -> BTreeSet<String> {
    headers
        .iter()
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect()
}

/// The six lines whose hash is signed.
pub fn canonical_request(parts: &Parts<'_>) -> String {
    format!(
        "{}\n{}\n{}\n{}\n{}\n{}",
        parts.method,
        parts.path,
        canonical_query(parts.query),
        canonical_headers(parts.headers),
        signed_headers(parts.headers),
        parts.body_hash
    )
}

/// What is signed: the algorithm and the hash of the canonical request.
pub fn string_to_sign(canonical_request: &str) -> String {
    format!(
        "{ALGORITHM}\n{}",
        hex(&Sha256::digest(canonical_request.as_bytes()))
    )
}

/// Lower-case hexadecimal HMAC-SHA256 of `string_to_sign` under the secret as it is.
pub fn signature(secret: &str, string_to_sign: &str) -> String {
    let mut mac = keyed(secret.as_bytes());
    mac.update(string_to_sign.as_bytes());
    hex(&mac.finalize().into_bytes())
}

#[expect(
    clippy::expect_used,
    reason = "HMAC takes keys of every length, so this cannot fail"
)]
fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of every length")
}

/// The value of the `Authorization` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// The AccessKey id.
    pub access_key_id: String,
    /// Names of the signed headers, joined by `;`, as sent.
    pub signed_headers: String,
    /// The signature.
    pub signature: String,
}

impl Authorization {
    /// The text of the header.
    pub fn render(&self) -> String {
        format!(
            "{ALGORITHM} Credential={},SignedHeaders={},Signature={}",
            self.access_key_id, self.signed_headers, self.signature
        )
    }

    /// Reads the header. `None` when the algorithm is another one or a part is missing.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(ALGORITHM)?.strip_prefix(' ')?;
        let mut parts = rest.split(',').map(str::trim);
        let access_key_id = parts.next()?.strip_prefix("Credential=")?;
        let signed_headers = parts.next()?.strip_prefix("SignedHeaders=")?;
        let signature = parts.next()?.strip_prefix("Signature=")?;
        let whole = parts.next().is_none()
            && !access_key_id.is_empty()
            && !signed_headers.is_empty()
            && !signature.is_empty();
        whole.then(|| Self {
            access_key_id: access_key_id.to_owned(),
            signed_headers: signed_headers.to_owned(),
            signature: signature.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn header_with_two_values_is_sorted_and_joined() {
        let headers = [
            pair("X-Acs-B", " z "),
            pair("x-acs-b", "a"),
            pair("host", "h:1"),
        ];

        assert_eq!(canonical_headers(&headers), "host:h:1\nx-acs-b:a,z\n");
        assert_eq!(signed_headers(&headers), "host;x-acs-b");
    }

    #[test]
    fn authorization_of_a_sibling_algorithm_is_refused() {
        let text = "ACS3-HMAC-SM3 Credential=a,SignedHeaders=host,Signature=b";

        assert_eq!(Authorization::parse(text), None);
    }

    #[test]
    fn authorization_without_a_part_is_refused() {
        assert_eq!(
            Authorization::parse("ACS3-HMAC-SHA256 Credential=a,SignedHeaders=host"),
            None
        );
        assert_eq!(
            Authorization::parse("ACS3-HMAC-SHA256 Credential=,SignedHeaders=host,Signature=b"),
            None
        );
    }
}
