//! The metadata service. It knows its callers by their source address.
//!
//! Source: ECS instance metadata, both modes. Status codes are not documented; these are what the vendor's clients
//! expect: 400 for a bad lifetime, 401 for a bad token, 403 when the caller may not ask, 404 for an absent item.

mod items;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use http::{HeaderMap, Method, StatusCode};

use crate::roles::ITEMS;
use crate::sim::{Seen, Sim};

/// Where tokens are asked for.
const TOKEN_PATH: &str = "/latest/api/token";
/// Names the lifetime a caller wants, in seconds.
const TTL_HEADER: &str = "x-aliyun-ecs-metadata-token-ttl-seconds";
/// Carries the token.
const TOKEN_HEADER: &str = "x-aliyun-ecs-metadata-token";
/// Longest lifetime of a token, in seconds.
const MAX_TTL: u64 = 21_600;

impl Sim {
    /// The metadata service. Serve it with connect info of [`SocketAddr`]: callers are told apart by their source
    /// address.
    pub fn metadata_router(&self) -> Router {
        Router::new().fallback(serve).with_state(self.clone())
    }
}

async fn serve(
    State(sim): State<Sim>,
    ConnectInfo(source): ConnectInfo<SocketAddr>,
    request: Request,
) -> (StatusCode, String) {
    let answer = sim.with_metadata(|seen| answer(seen, &request, source.ip().to_canonical()));
    match answer {
        Ok(text) => (StatusCode::OK, text),
        Err(status) => (status, String::new()),
    }
}

fn answer(seen: Seen<'_>, request: &Request, source: IpAddr) -> Result<String, StatusCode> {
    let Seen {
        passes,
        account,
        roles,
        keys,
        now,
        lag,
    } = seen;
    let Some(instance) = account.instance_at(source).cloned() else {
        return Err(StatusCode::FORBIDDEN);
    };
    if passes.are_disabled() {
        return Err(StatusCode::FORBIDDEN);
    }
    let path = request.uri().path();
    if path == TOKEN_PATH {
        if request.method() != Method::PUT {
            return Err(StatusCode::METHOD_NOT_ALLOWED);
        }
        let ttl = check_token_request(request.headers())?;
        return Ok(passes.issue(&instance, ttl, now));
    }
    if request.method() != Method::GET {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let given = header(request.headers(), TOKEN_HEADER);
    if !passes.accepts(given, &instance, now) {
        return Err(StatusCode::UNAUTHORIZED);
    }
    let item = path.strip_prefix("/latest/meta-data/");
    if let Some(name) = item.and_then(|item| item.strip_prefix(ITEMS)) {
        return roles
            .item(&instance, name, keys, now)
            .ok_or(StatusCode::NOT_FOUND);
    }
    let view = items::View::new(account, &instance, now, lag).ok_or(StatusCode::NOT_FOUND)?;
    item.and_then(|item| view.item(item))
        .ok_or(StatusCode::NOT_FOUND)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The lifetime asked for.
fn check_token_request(headers: &HeaderMap) -> Result<Duration, StatusCode> {
    // A proxy must not get tokens for those behind it.
    if headers.contains_key("x-forwarded-for") {
        return Err(StatusCode::FORBIDDEN);
    }
    let ttl = header(headers, TTL_HEADER)
        .and_then(|text| text.trim().parse::<u64>().ok())
        .filter(|ttl| (1..=MAX_TTL).contains(ttl))
        .ok_or(StatusCode::BAD_REQUEST)?;
    Ok(Duration::from_secs(ttl))
}
