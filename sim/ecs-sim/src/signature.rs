//! Who signed a request, and whether it is fresh.
//!
//! Order: key known, timestamp, signature, session token, nonce. Each failure has its own code.
//!
//! Source: ECS API reference, common error codes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ecs_api::sign::encode::parse_timestamp;
use ecs_api::sign::{Credentials, v1, v3};
use types::time::Tick;

use crate::refusal::Refusal;
use crate::wire::Inbound;

/// How far a timestamp may be off, and how long a nonce is remembered.
///
/// Source: common error codes, `InvalidTimeStamp.Expired` and `SignatureNonceUsed`.
const WINDOW: Duration = Duration::from_mins(15);

#[derive(Debug)]
struct Key {
    credentials: Credentials,
    expires_at: Option<Tick>,
    disabled: bool,
}

/// The account's keys, and the nonces they have used.
#[derive(Debug, Default)]
pub struct Keys {
    by_id: BTreeMap<String, Key>,
    seen: BTreeSet<(String, String)>,
    order: VecDeque<(Tick, (String, String))>,
}

/// What a signature says.
struct Signed<'a> {
    access_key_id: &'a str,
    timestamp: Option<&'a str>,
    nonce: &'a str,
    token: Option<&'a str>,
    signature: &'a str,
}

impl Keys {
    /// Adds a key, or replaces it. Temporary keys end at `expires_at`.
    pub fn add(&mut self, credentials: Credentials, expires_at: Option<Tick>) {
        let key = Key {
            credentials,
            expires_at,
            disabled: false,
        };
        self.by_id
            .insert(key.credentials.access_key_id.clone(), key);
    }

    /// Forgets temporary keys that ended long ago. Until then their end is told from an unknown key.
    pub fn forget_ended(&mut self, now: Tick) {
        self.by_id.retain(|_, key| {
            key.expires_at
                .is_none_or(|end| now < end.after(Duration::from_hours(24)))
        });
    }

    /// Disables a key. False if there is none of that id.
    pub fn disable(&mut self, access_key_id: &str) -> bool {
        match self.by_id.get_mut(access_key_id) {
            Some(key) => {
                key.disabled = true;
                true
            }
            None => false,
        }
    }

    /// Checks a request and returns the id of the key that signed it. Its nonce is used up by that.
    ///
    /// # Errors
    /// The codes of the common error table.
    pub fn verify(&mut self, inbound: &Inbound, now: Tick) -> Result<String, Refusal> {
        let authorization;
        let signed = if inbound.is_v3() {
            let text = inbound.header("authorization").unwrap_or_default();
            authorization = v3::Authorization::parse(text).ok_or_else(incomplete)?;
            read_v3(inbound, &authorization)?
        } else {
            read_v1(inbound)?
        };
        let key = self.by_id.get(signed.access_key_id).ok_or_else(|| {
            Refusal::not_found(
                "InvalidAccessKeyId.NotFound",
                "Specified access key is not found.",
            )
        })?;
        if key.disabled {
            return Err(Refusal::bad(
                "InvalidAccessKeyId.Inactive",
                "Specified access key is disabled.",
            ));
        }
        check_timestamp(signed.timestamp, now)?;
        let (expected, text) = if inbound.is_v3() {
            expected_v3(inbound, key.credentials.secret())?
        } else {
            expected_v1(inbound, key.credentials.secret())
        };
        if expected != signed.signature {
            return Err(Refusal::bad(
                "SignatureDoesNotMatch",
                format!(
                    "Specified signature is not matched with our calculation. server string to sign is:{text}"
                ),
            ));
        }
        check_token(key, signed.token, now)?;
        self.use_nonce(signed.access_key_id, signed.nonce, now)?;
        Ok(signed.access_key_id.to_owned())
    }

    fn use_nonce(&mut self, access_key_id: &str, nonce: &str, now: Tick) -> Result<(), Refusal> {
        while let Some((at, _)) = self.order.front()
            && now.since(*at) >= WINDOW
        {
            if let Some((_, used)) = self.order.pop_front() {
                self.seen.remove(&used);
            }
        }
        let used = (access_key_id.to_owned(), nonce.to_owned());
        if !self.seen.insert(used.clone()) {
            return Err(Refusal::bad(
                "SignatureNonceUsed",
                "Specified signature nonce was used already.",
            ));
        }
        self.order.push_back((now, used));
        Ok(())
    }
}

fn incomplete() -> Refusal {
    Refusal::bad(
        "IncompleteSignature",
        "The request signature does not conform to Aliyun standards.",
    )
}

fn filled(text: Option<&str>) -> Result<&str, Refusal> {
    text.filter(|text| !text.is_empty()).ok_or_else(incomplete)
}

fn read_v1(inbound: &Inbound) -> Result<Signed<'_>, Refusal> {
    let is = |name, wanted: &str| inbound.parameter(name) == Some(wanted);
    let plain_type = inbound.parameter("SignatureType").is_none_or(str::is_empty);
    if !is("SignatureMethod", v1::METHOD) || !is("SignatureVersion", v1::VERSION) || !plain_type {
        return Err(incomplete());
    }
    Ok(Signed {
        access_key_id: filled(inbound.parameter("AccessKeyId"))?,
        timestamp: inbound.parameter("Timestamp"),
        nonce: filled(inbound.parameter("SignatureNonce"))?,
        token: inbound.parameter("SecurityToken"),
        signature: filled(inbound.parameter(v1::SIGNATURE))?,
    })
}

fn expected_v1(inbound: &Inbound, secret: &str) -> (String, String) {
    let query = v1::canonicalized_query(inbound.parameters());
    let text = v1::string_to_sign(&inbound.method, &query);
    (v1::signature(secret, &text), text)
}

fn read_v3<'a>(
    inbound: &'a Inbound,
    authorization: &'a v3::Authorization,
) -> Result<Signed<'a>, Refusal> {
    let names: BTreeSet<_> = authorization.signed_headers.split(';').collect();
    let token = inbound.header(v3::HEADER_TOKEN);
    let signs = |name: &str| names.contains(name) && inbound.header(name).is_some();
    let token_signed = token.is_none() || signs(v3::HEADER_TOKEN);
    if !v3::REQUIRED_HEADERS
        .iter()
        .filter(|name| **name != v3::HEADER_DATE)
        .all(|name| signs(name))
        || !names.contains(v3::HEADER_DATE)
        || !token_signed
    {
        return Err(incomplete());
    }
    Ok(Signed {
        access_key_id: &authorization.access_key_id,
        timestamp: inbound.header(v3::HEADER_DATE),
        nonce: filled(inbound.header(v3::HEADER_NONCE))?,
        token,
        signature: &authorization.signature,
    })
}

fn expected_v3(inbound: &Inbound, secret: &str) -> Result<(String, String), Refusal> {
    let text = inbound.header("authorization").unwrap_or_default();
    let authorization = v3::Authorization::parse(text).ok_or_else(incomplete)?;
    let names: BTreeSet<_> = authorization.signed_headers.split(';').collect();
    let headers: Vec<_> = inbound
        .headers
        .iter()
        .filter(|(name, _)| names.contains(name.as_str()))
        .cloned()
        .collect();
    if v3::signed_headers(&headers) != authorization.signed_headers {
        return Err(incomplete());
    }
    let body_hash = v3::body_hash(&inbound.body);
    if inbound.header(v3::HEADER_CONTENT) != Some(&body_hash) {
        return Err(Refusal::bad(
            "SignatureDoesNotMatch",
            format!(
                "Specified signature is not matched with our calculation. The SHA-256 of the body is {body_hash}."
            ),
        ));
    }
    let canonical = v3::canonical_request(&v3::Parts {
        method: &inbound.method,
        path: &inbound.path,
        query: &inbound.query,
        headers: &headers,
        body_hash: &body_hash,
    });
    let text = v3::string_to_sign(&canonical);
    Ok((v3::signature(secret, &text), canonical))
}

fn check_timestamp(text: Option<&str>, now: Tick) -> Result<(), Refusal> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Err(Refusal::bad(
            "MissingTimestamp",
            "The input parameter \"Timestamp\" that is mandatory for processing this request is not supplied.",
        ));
    };
    let at = parse_timestamp(text).ok_or_else(|| {
        Refusal::bad(
            "InvalidTimeStamp.Format",
            "Specified time stamp or date value is not well formatted.",
        )
    })?;
    if now.since(at) > WINDOW || at.since(now) > WINDOW {
        return Err(Refusal::bad(
            "InvalidTimeStamp.Expired",
            "Specified time stamp or date value is expired.",
        ));
    }
    Ok(())
}

fn check_token(key: &Key, given: Option<&str>, now: Tick) -> Result<(), Refusal> {
    let given = given.filter(|token| !token.is_empty());
    let (code, message) = match (key.credentials.token(), given) {
        (None, None) => return Ok(()),
        (Some(_), None) => (
            "MissingSecurityToken",
            "SecurityToken is mandatory for this action.",
        ),
        (Some(token), Some(given)) if token == given => {
            if key.expires_at.is_none_or(|end| now < end) {
                return Ok(());
            }
            (
                "InvalidSecurityToken.Expired",
                "Specified SecurityToken is expired.",
            )
        }
        (None | Some(_), Some(_)) => (
            "InvalidSecurityToken.MismatchWithAccessKey",
            "Specified SecurityToken mismatches with the AccessKey.",
        ),
    };
    Err(Refusal::bad(code, message))
}
