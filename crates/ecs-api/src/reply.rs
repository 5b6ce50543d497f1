//! Status and bytes to a typed reply or a fault.

use http::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::fault::Fault;
use crate::json::{Malformed, Node};
use crate::model::{Reply, Request};

/// Header that repeats the request id.
pub const HEADER_REQUEST_ID: &str = "x-acs-request-id";

/// A reply with the id under which the cloud logged the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<R> {
    /// The cloud's id of the call; empty if it sent none.
    pub request_id: String,
    /// What it said.
    pub reply: R,
}

/// Why there is no typed reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// The cloud refused the call.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The cloud answered something else. A write may have happened: read back before a repeat.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Reads the reply to a request of type `R`.
///
/// # Errors
/// [`ReplyError::Fault`] for every status but 200, even if its body is not JSON; [`ReplyError::Malformed`] for a
/// status 200 that does not hold what it must.
pub fn decode<R: Request>(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Answer<R::Reply>, ReplyError> {
    let value: Option<Value> = serde_json::from_slice(body).ok();
    let value = value.unwrap_or(Value::Null);
    let node = Node::new(&value);
    let request_id = node
        .text("RequestId")
        .or_else(|| Some(headers.get(HEADER_REQUEST_ID)?.to_str().ok()?.to_owned()))
        .unwrap_or_default();
    if status != StatusCode::OK {
        let code = node.text("Code").unwrap_or_default();
        let message = node.text("Message").unwrap_or_default();
        return Err(Fault::new(status, headers, code, message, request_id).into());
    }
    if !value.is_object() {
        return Err(Malformed {
            what: "body is not a JSON object".to_owned(),
            request_id,
        }
        .into());
    }
    match R::Reply::decode(node) {
        Ok(reply) => Ok(Answer { request_id, reply }),
        Err(malformed) => Err(Malformed {
            request_id,
            ..malformed
        }
        .into()),
    }
}
