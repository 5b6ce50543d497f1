//! What the server says.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};

pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// An object as a list has it: without its kind, as real servers answer.
pub(crate) fn item(object: &Value, metadata: bool) -> Value {
    let mut item = object.clone();
    let map = item.as_object_mut().unwrap();
    map.remove("apiVersion");
    map.remove("kind");
    if metadata {
        map.retain(|key, _| key == "metadata");
    }
    item
}

pub(crate) fn event(kind: &str, object: &Value, metadata: bool) -> String {
    let object = if metadata {
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
    } else {
        object.clone()
    };
    json!({"type": kind, "object": object}).to_string() + "\n"
}

pub(crate) fn bookmark(version: u64, initial_end: bool) -> String {
    let notes = if initial_end {
        json!({"k8s.io/initial-events-end": "true"})
    } else {
        json!({})
    };
    let metadata = json!({"resourceVersion": version.to_string(), "annotations": notes});
    json!({"type": "BOOKMARK", "object": {"metadata": metadata}}).to_string() + "\n"
}

pub(crate) fn whole(text: String) -> Response<Body> {
    Response::new(Full::new(Bytes::from(text)).boxed())
}

/// An answer that promises more than it holds.
pub(crate) fn cut_off(text: &str, promised: usize) -> Response<Body> {
    let piece = Ok(Frame::data(Bytes::from(text.to_owned())));
    let body = StreamBody::new(futures::stream::iter([piece]));
    let mut answer = Response::new(body.boxed());
    let length = http::HeaderValue::from(promised);
    answer
        .headers_mut()
        .insert(http::header::CONTENT_LENGTH, length);
    answer
}

pub(crate) fn refusal(code: u16, reason: &str, after: Option<u64>) -> Response<Body> {
    let status = json!({"kind": "Status", "code": code, "reason": reason,
        "message": format!("{reason} by the test")});
    let mut answer = whole(status.to_string());
    *answer.status_mut() = StatusCode::from_u16(code).unwrap();
    if let Some(after) = after {
        answer
            .headers_mut()
            .insert(http::header::RETRY_AFTER, after.into());
    }
    answer
}
