//! RPC signature 1.0: HMAC-SHA1 over all parameters.
//!
//! Source: ECS API reference, request signatures.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

use crate::sign::encode::percent_encode;

/// The parameter that carries the signature, and is not part of it.
pub const SIGNATURE: &str = "Signature";
/// The only accepted `SignatureMethod`.
pub const METHOD: &str = "HMAC-SHA1";
/// The only accepted `SignatureVersion`.
pub const VERSION: &str = "1.0";

/// Sorts the parameters of query and form body by raw key, encodes and joins them. `Signature` is left out, empty
/// values stay.
pub fn canonicalized_query<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut pairs: Vec<_> = parameters
        .into_iter()
        .filter(|(key, _)| *key != SIGNATURE)
        .collect();
    pairs.sort_unstable();
    let encoded: Vec<_> = pairs
        .into_iter()
        .map(|(key, value)| format!("{}={}", percent_encode(key), percent_encode(value)))
        .collect();
    encoded.join("&")
}

/// What is signed: method, `/`, and the canonicalized query encoded once more.
pub fn string_to_sign(method: &str, canonicalized_query: &str) -> String {
    format!("{method}&%2F&{}", percent_encode(canonicalized_query))
}

/// Base64 of the HMAC-SHA1 of `string_to_sign` under the secret followed by `&`.
pub fn signature(secret: &str, string_to_sign: &str) -> String {
    let key = format!("{secret}&");
    let mut mac = keyed(key.as_bytes());
    mac.update(string_to_sign.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

#[expect(
    clippy::expect_used,
    reason = "HMAC takes keys of every length, so this cannot fail"
)]
fn keyed(key: &[u8]) -> Hmac<Sha1> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of every length")
}
