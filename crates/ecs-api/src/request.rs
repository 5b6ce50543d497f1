//! A typed request to a signed HTTP request.
//!
//! POST with the parameters in the query and an empty body, as Terway's clients send it.

use bytes::Bytes;
use http::{HeaderValue, Method, Uri};
use types::cloud::RegionId;
use types::time::Tick;

use crate::action::Action;
use crate::model::Request;
use crate::sign::encode::{percent_encode, timestamp};
use crate::sign::{Credentials, Scheme, v1, v3};

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `http` or `https`.
    pub scheme: String,
    /// Host, with the port if it is not the scheme's own. It is signed as it stands here.
    pub authority: String,
    /// Sent as `RegionId` with every call.
    pub region: RegionId,
}

/// What makes a request unique: fresh for each try, also of the same call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Wall time; the cloud accepts 15 minutes to either side.
    pub now: Tick,
    /// Never used before with the same key, such as a random UUID.
    pub nonce: String,
}

/// The endpoint or the credentials cannot be written into a request.
#[derive(Debug, thiserror::Error)]
#[error("{action} to {authority:?} cannot be written as an HTTP request")]
pub struct InvalidRequest {
    /// Which call.
    pub action: Action,
    /// Where to.
    pub authority: String,
    /// What the HTTP library said.
    #[source]
    pub source: http::Error,
}

/// Signs `request`.
///
/// # Errors
/// [`InvalidRequest`] when scheme or authority are no part of a URI, or a key holds characters that no header can.
pub fn build<R: Request>(
    request: &R,
    endpoint: &Endpoint,
    credentials: &Credentials,
    stamp: &Stamp,
    scheme: Scheme,
) -> Result<http::Request<Bytes>, InvalidRequest> {
    let mut params = request.params().into_pairs();
    params.push(("RegionId".to_owned(), endpoint.region.to_string()));
    let built = match scheme {
        Scheme::V1 => build_v1(R::ACTION, params, endpoint, credentials, stamp),
        Scheme::V3 => build_v3(R::ACTION, &params, endpoint, credentials, stamp),
    };
    built.map_err(|source| InvalidRequest {
        action: R::ACTION,
        authority: endpoint.authority.clone(),
        source,
    })
}

fn wire_query(params: &[(String, String)]) -> String {
    let encoded: Vec<_> = params
        .iter()
        .map(|(key, value)| format!("{}={}", percent_encode(key), percent_encode(value)))
        .collect();
    encoded.join("&")
}

fn uri(endpoint: &Endpoint, params: &[(String, String)]) -> Result<Uri, http::Error> {
    Uri::builder()
        .scheme(endpoint.scheme.as_str())
        .authority(endpoint.authority.as_str())
        .path_and_query(format!("/?{}", wire_query(params)))
        .build()
}

fn build_v1(
    action: Action,
    mut params: Vec<(String, String)>,
    endpoint: &Endpoint,
    credentials: &Credentials,
    stamp: &Stamp,
) -> Result<http::Request<Bytes>, http::Error> {
    let common = [
        ("Action", action.name().to_owned()),
        ("Version", action.version().to_owned()),
        ("Format", "JSON".to_owned()),
        ("AccessKeyId", credentials.access_key_id.clone()),
        ("SignatureMethod", v1::METHOD.to_owned()),
        ("SignatureVersion", v1::VERSION.to_owned()),
        ("SignatureNonce", stamp.nonce.clone()),
        ("Timestamp", timestamp(stamp.now)),
    ];
    params.extend(common.map(|(name, value)| (name.to_owned(), value)));
    if let Some(token) = credentials.token() {
        params.push(("SecurityToken".to_owned(), token.to_owned()));
    }
    let query = v1::canonicalized_query(params.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    let text = v1::string_to_sign("POST", &query);
    params.push((
        v1::SIGNATURE.to_owned(),
        v1::signature(credentials.secret(), &text),
    ));
    http::Request::builder()
        .method(Method::POST)
        .uri(uri(endpoint, &params)?)
        .header(http::header::HOST, &endpoint.authority)
        .header(
            http::header::CONTENT_TYPE,
            "application/x-www-form-urlencoded",
        )
        .body(Bytes::new())
}

fn build_v3(
    action: Action,
    params: &[(String, String)],
    endpoint: &Endpoint,
    credentials: &Credentials,
    stamp: &Stamp,
) -> Result<http::Request<Bytes>, http::Error> {
    let body_hash = v3::body_hash(&[]);
    let mut headers: Vec<(String, String)> = [
        ("host", endpoint.authority.clone()),
        (v3::HEADER_ACTION, action.name().to_owned()),
        (v3::HEADER_VERSION, action.version().to_owned()),
        (v3::HEADER_DATE, timestamp(stamp.now)),
        (v3::HEADER_NONCE, stamp.nonce.clone()),
        (v3::HEADER_CONTENT, body_hash.clone()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    if let Some(token) = credentials.token() {
        let id = credentials.access_key_id.clone();
        headers.push((v3::HEADER_ACCESS_KEY.to_owned(), id));
        headers.push((v3::HEADER_TOKEN.to_owned(), token.to_owned()));
    }
    let canonical = v3::canonical_request(&v3::Parts {
        method: "POST",
        path: "/",
        query: params,
        headers: &headers,
        body_hash: &body_hash,
    });
    let authorization = v3::Authorization {
        access_key_id: credentials.access_key_id.clone(),
        signed_headers: v3::signed_headers(&headers),
        signature: v3::signature(credentials.secret(), &v3::string_to_sign(&canonical)),
    };
    let mut builder = http::Request::builder()
        .method(Method::POST)
        .uri(uri(endpoint, params)?)
        .header(http::header::AUTHORIZATION, authorization.render())
        .header(http::header::ACCEPT, "application/json");
    for (name, value) in headers {
        let mut value = HeaderValue::try_from(value)?;
        // Keeps the token out of what a client library prints of its headers.
        value.set_sensitive(name == v3::HEADER_TOKEN);
        builder = builder.header(name, value);
    }
    builder.body(Bytes::new())
}
