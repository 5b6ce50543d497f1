//! HTTP requests taken apart, replies put together.

use bytes::Bytes;
use ecs_api::reply::HEADER_REQUEST_ID;
use ecs_api::sign::encode::decode_pairs;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use crate::refusal::Refusal;

/// How the caller wants its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON.
    Json,
    /// XML: what V1 gets when it asks for nothing else.
    Xml,
}

/// A request in the pieces that matter.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// HTTP method, upper case.
    pub method: String,
    /// Path.
    pub path: String,
    /// Decoded query parameters, in their order.
    pub query: Vec<(String, String)>,
    /// Decoded form parameters, in their order.
    pub form: Vec<(String, String)>,
    /// Headers, names in lower case; several values are several entries.
    pub headers: Vec<(String, String)>,
    /// The body as it came.
    pub body: Bytes,
}

impl Inbound {
    /// Takes a request apart.
    pub fn read(request: &http::Request<Bytes>) -> Self {
        let headers: Vec<_> = request
            .headers()
            .iter()
            .map(|(name, value)| {
                let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                (name.as_str().to_owned(), value)
            })
            .collect();
        let is_form = request.headers().get(CONTENT_TYPE).is_some_and(|value| {
            value
                .as_bytes()
                .starts_with(b"application/x-www-form-urlencoded")
        });
        let form = if is_form {
            decode_pairs(&String::from_utf8_lossy(request.body()))
        } else {
            Vec::new()
        };
        Self {
            method: request.method().as_str().to_owned(),
            path: request.uri().path().to_owned(),
            query: decode_pairs(request.uri().query().unwrap_or_default()),
            form,
            headers,
            body: request.body().clone(),
        }
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Query and form parameters.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &str)> {
        self.query
            .iter()
            .chain(&self.form)
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The first value of a parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    /// Whether it is signed in the style of V3: with an `Authorization` header.
    pub fn is_v3(&self) -> bool {
        self.header("authorization").is_some()
    }

    /// How the caller wants its reply.
    pub fn format(&self) -> Format {
        let json = self
            .parameter("Format")
            .is_some_and(|format| format.eq_ignore_ascii_case("json"));
        if json || self.is_v3() {
            Format::Json
        } else {
            Format::Xml
        }
    }

    /// The name of the action, unverified.
    pub fn action(&self) -> &str {
        let name = if self.is_v3() {
            self.header(ecs_api::sign::v3::HEADER_ACTION)
        } else {
            self.parameter("Action")
        };
        name.unwrap_or_default()
    }
}

/// A reply with status 200.
pub fn success(format: Format, action: &str, mut body: Value, request_id: &str) -> Response<Bytes> {
    if let Some(fields) = body.as_object_mut() {
        fields.insert("RequestId".to_owned(), Value::from(request_id));
    }
    let root = format!("{action}Response");
    response(StatusCode::OK, format, &root, &body, request_id)
}

/// A refusal, with the hints by which the vendor's SDKs wait.
pub fn refusal(format: Format, refusal: &Refusal, host: &str, request_id: &str) -> Response<Bytes> {
    let body = json!({
        "RequestId": request_id,
        "HostId": host,
        "Code": refusal.code,
        "Message": refusal.message,
        "Recommend": "",
    });
    let mut response = response(refusal.status, format, "Error", &body, request_id);
    if let Some(ms) = refusal.retry_after_ms {
        let hint = format!("Remain:0,TimeLeft:{ms}");
        insert(&mut response, "x-acs-retry-after", &ms.to_string());
        insert(&mut response, "x-ratelimit-user-api", &hint);
        insert(&mut response, "x-ratelimit-user", &hint);
    }
    response
}

fn response(
    status: StatusCode,
    format: Format,
    root: &str,
    body: &Value,
    request_id: &str,
) -> Response<Bytes> {
    let (kind, text) = match format {
        Format::Json => ("application/json;charset=utf-8", body.to_string()),
        Format::Xml => ("text/xml;charset=utf-8", xml(root, body)),
    };
    let mut response = Response::new(Bytes::from(text));
    *response.status_mut() = status;
    insert(&mut response, CONTENT_TYPE.as_str(), kind);
    insert(&mut response, HEADER_REQUEST_ID, request_id);
    response
}

fn insert(response: &mut Response<Bytes>, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

fn xml(root: &str, body: &Value) -> String {
    let mut text = String::from("<?xml version='1.0' encoding='UTF-8'?>");
    element(&mut text, root, body);
    text
}

/// An object is an element with children, a list repeats its element, everything else is text.
fn element(out: &mut String, name: &str, value: &Value) {
    if let Value::Array(entries) = value {
        for entry in entries {
            element(out, name, entry);
        }
        return;
    }
    out.extend(["<", name, ">"]);
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                element(out, name, value);
            }
        }
        Value::String(text) => out.push_str(&escape(text)),
        Value::Null | Value::Array(_) => {}
        Value::Bool(_) | Value::Number(_) => out.push_str(&value.to_string()),
    }
    out.extend(["</", name, ">"]);
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xml_of_a_list_repeats_its_element() {
        let body = json!({"N": 1, "Set": {"Item": ["a", "b<"]}});

        assert_eq!(
            xml("R", &body),
            "<?xml version='1.0' encoding='UTF-8'?>\
             <R><N>1</N><Set><Item>a</Item><Item>b&lt;</Item></Set></R>"
        );
    }

    #[test]
    fn throttle_carries_the_three_hints() {
        let response = refusal(Format::Json, &Refusal::throttled(1500), "h", "R");

        let text = |name: &str| response.headers().get(name).unwrap().to_str().unwrap();
        assert_eq!(text("x-acs-retry-after"), "1500");
        assert!(text("x-ratelimit-user-api").ends_with("TimeLeft:1500"));
        assert!(text("x-ratelimit-user").ends_with("TimeLeft:1500"));
        assert_eq!(text("x-acs-request-id"), "R");
    }
}
