//! The vendor's signature vectors: each is accepted, and refused after a change of each signed component.

use bytes::Bytes;
use ecs_api::sign::Credentials;
use ecs_api::sign::encode::{parse_timestamp, percent_encode};
use ecs_sim::signature::Keys;
use ecs_sim::wire::Inbound;
use serde_json::Value;

const VECTORS: &str = include_str!("../../../../crates/ecs-api/tests/vectors.json");

const DATE: &str = "2026-01-02T03:04:05Z";

fn vectors(kind: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(VECTORS).unwrap();
    all[kind].as_array().unwrap().clone()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn pairs(value: &Value) -> Vec<(String, String)> {
    let fields = value.as_object().unwrap().iter();
    fields
        .map(|(key, value)| (key.clone(), text(value).to_owned()))
        .collect()
}

fn query(pairs: &[(String, String)]) -> String {
    let encoded: Vec<_> = pairs
        .iter()
        .map(|(key, value)| format!("{}={}", percent_encode(key), percent_encode(value)))
        .collect();
    encoded.join("&")
}

/// The vector's key, the only one there is; temporary if the vector was signed with a token.
fn keys(temporary: bool) -> Keys {
    let all: Value = serde_json::from_str(VECTORS).unwrap();
    let given = &all["credentials"];
    let (id, secret) = (
        text(&given["access_key_id"]),
        text(&given["access_key_secret"]),
    );
    let credentials = if temporary {
        Credentials::temporary(id, secret, text(&given["security_token"]))
    } else {
        Credentials::lasting(id, secret)
    };
    let mut keys = Keys::default();
    keys.add(credentials, None);
    keys
}

/// `ok`, or the code of the refusal, with a fresh set of keys at the time of the vector.
fn verify(inbound: &Inbound, temporary: bool) -> String {
    let date = inbound
        .parameter("Timestamp")
        .or_else(|| inbound.header("x-acs-date"));
    // The vendor's own example is of 2016.
    let year_2016 = date.is_some_and(|date| date.starts_with("2016"));
    let now = if year_2016 {
        "2016-02-23T12:46:24Z"
    } else {
        DATE
    };
    match keys(temporary).verify(inbound, parse_timestamp(now).unwrap()) {
        Ok(_) => "ok".to_owned(),
        Err(refusal) => refusal.code,
    }
}

fn v1_inbound(vector: &Value) -> Inbound {
    let mut wire = text(&vector["signed_path_and_query"]).to_owned();
    if wire.is_empty() {
        let mut parameters = pairs(&vector["query"]);
        parameters.push((
            "Signature".to_owned(),
            text(&vector["signature"]).to_owned(),
        ));
        wire = format!("/?{}", query(&parameters));
    }
    let body = text(&vector["body"]).to_owned();
    let mut request = http::Request::builder()
        .method(text(&vector["method"]))
        .uri(wire)
        .header("host", text(&vector["host"]));
    if !body.is_empty() {
        request = request.header("content-type", "application/x-www-form-urlencoded");
    }
    Inbound::read(&request.body(Bytes::from(body)).unwrap())
}

fn v3_inbound(vector: &Value, authorization: &Value) -> Inbound {
    let uri = text(&vector["wire_url"]).strip_prefix("https://ecs.cn-hangzhou.aliyuncs.com");
    let mut request = http::Request::builder()
        .method(text(&vector["method"]))
        .uri(uri.unwrap())
        .header("authorization", text(authorization));
    for (name, value) in pairs(&vector["headers"]) {
        request = request.header(name, value);
    }
    Inbound::read(
        &request
            .body(Bytes::from(text(&vector["body"]).to_owned()))
            .unwrap(),
    )
}

/// A value that differs and is still of the same kind.
fn other(name: &str, value: &str) -> String {
    match name {
        "Timestamp" | "x-acs-date" => value.replace(":05Z", ":06Z").replace(":24Z", ":25Z"),
        _ => format!("{value}x"),
    }
}

/// What a change of this component is refused with.
fn refused_with(name: &str) -> &'static [&'static str] {
    match name {
        "AccessKeyId" => &["InvalidAccessKeyId.NotFound"],
        "SignatureMethod" | "SignatureVersion" | "SignatureType" => &["IncompleteSignature"],
        _ => &["SignatureDoesNotMatch"],
    }
}

#[test]
fn v1_vectors_are_accepted() {
    for vector in vectors("v1") {
        let inbound = v1_inbound(&vector);
        let temporary = inbound.parameter("SecurityToken").is_some();

        assert_eq!(verify(&inbound, temporary), "ok", "{}", vector["name"]);
    }
}

#[test]
fn v1_vectors_with_a_changed_component_are_refused() {
    let mut checked = 0;
    for vector in vectors("v1") {
        let inbound = v1_inbound(&vector);
        let temporary = inbound.parameter("SecurityToken").is_some();
        let mut check = |changed: &Inbound, name: &str, codes: &[&str]| {
            let code = verify(changed, temporary);
            assert!(
                codes.contains(&code.as_str()),
                "{} {name}: {code}",
                vector["name"]
            );
            checked += 1;
        };

        for (index, (name, value)) in inbound.query.iter().enumerate() {
            let mut changed = inbound.clone();
            changed.query[index].1 = other(name, value);
            check(&changed, name, refused_with(name));
            let mut renamed = inbound.clone();
            renamed.query[index].0 = format!("{name}x");
            let absent = match name.as_str() {
                "Timestamp" => &["MissingTimestamp"][..],
                "AccessKeyId" | "Signature" | "SignatureNonce" | "SignatureMethod"
                | "SignatureVersion" => &["IncompleteSignature"],
                _ => &["SignatureDoesNotMatch"],
            };
            check(&renamed, name, absent);
        }
        for index in 0..inbound.form.len() {
            let mut changed = inbound.clone();
            changed.form[index].1.push('x');
            check(&changed, "form", &["SignatureDoesNotMatch"]);
        }
        let mut added = inbound.clone();
        added.query.push(("Extra".to_owned(), String::new()));
        check(&added, "an added parameter", &["SignatureDoesNotMatch"]);
        let mut method = inbound.clone();
        method.method = if inbound.method == "GET" {
            "POST"
        } else {
            "GET"
        }
        .to_owned();
        check(&method, "method", &["SignatureDoesNotMatch"]);
    }
    assert!(checked > 120, "{checked}");
}

// Issue 3, done means 3: both header sets.
#[test]
fn v3_vectors_are_accepted() {
    for vector in vectors("v3") {
        for set in [&vector, &vector["go_sdk_header_set"]] {
            let inbound = v3_inbound(&vector, &set["authorization"]);
            let temporary = inbound.header("x-acs-security-token").is_some();

            assert_eq!(verify(&inbound, temporary), "ok", "{}", vector["name"]);
        }
    }
}

#[test]
fn v3_vectors_with_a_changed_component_are_refused() {
    let mut checked = 0;
    for vector in vectors("v3") {
        for set in [&vector, &vector["go_sdk_header_set"]] {
            let inbound = v3_inbound(&vector, &set["authorization"]);
            let temporary = inbound.header("x-acs-security-token").is_some();
            let names: Vec<_> = text(&set["signed_headers"]).split(';').collect();
            let mut check = |changed: &Inbound, name: &str, code: &str| {
                assert_eq!(
                    verify(changed, temporary),
                    code,
                    "{} {name}",
                    vector["name"]
                );
                checked += 1;
            };

            for (index, (name, value)) in inbound.headers.iter().enumerate() {
                if !names.contains(&name.as_str()) {
                    continue;
                }
                let mut changed = inbound.clone();
                changed.headers[index].1 = other(name, value);
                check(&changed, name, "SignatureDoesNotMatch");
                let mut removed = inbound.clone();
                removed.headers.remove(index);
                let code = if name == "x-acs-date" {
                    "MissingTimestamp"
                } else {
                    "IncompleteSignature"
                };
                check(&removed, name, code);
            }
            for index in 0..inbound.query.len() {
                let mut changed = inbound.clone();
                changed.query[index].1.push('x');
                check(&changed, "query", "SignatureDoesNotMatch");
                let mut removed = inbound.clone();
                removed.query.remove(index);
                check(&removed, "query", "SignatureDoesNotMatch");
            }
            check_rest(&inbound, &names, &mut check);
        }
    }
    assert!(checked > 150, "{checked}");
}

fn check_rest(inbound: &Inbound, names: &[&str], check: &mut impl FnMut(&Inbound, &str, &str)) {
    let mut changed = inbound.clone();
    changed.query.push(("Extra".to_owned(), "1".to_owned()));
    check(&changed, "an added parameter", "SignatureDoesNotMatch");
    let mut changed = inbound.clone();
    changed.body = [&changed.body[..], b"x"].concat().into();
    check(&changed, "body", "SignatureDoesNotMatch");
    let mut changed = inbound.clone();
    "GET".clone_into(&mut changed.method);
    check(&changed, "method", "SignatureDoesNotMatch");
    let mut changed = inbound.clone();
    "/x".clone_into(&mut changed.path);
    check(&changed, "path", "SignatureDoesNotMatch");

    let at = inbound
        .headers
        .iter()
        .position(|(name, _)| name == "authorization")
        .unwrap();
    let with = |from: &str, to: &str| {
        let mut changed = inbound.clone();
        let value = &mut changed.headers[at].1;
        assert!(value.contains(from), "{from} in {value}");
        *value = value.replacen(from, to, 1);
        changed
    };
    check(
        &with("Credential=testid", "Credential=other"),
        "credential",
        "InvalidAccessKeyId.NotFound",
    );
    check(
        &with("Signature=", "Signature=0"),
        "signature",
        "SignatureDoesNotMatch",
    );
    check(
        &with("HMAC-SHA256", "HMAC-SM3"),
        "algorithm",
        "IncompleteSignature",
    );
    for name in names {
        let shorter: Vec<_> = names
            .iter()
            .copied()
            .filter(|other| other != name)
            .collect();
        let changed = with(&names.join(";"), &shorter.join(";"));
        let insisted =
            ecs_api::sign::v3::REQUIRED_HEADERS.contains(name) || *name == "x-acs-security-token";
        let code = if insisted {
            "IncompleteSignature"
        } else {
            "SignatureDoesNotMatch"
        };
        check(&changed, name, code);
    }
}
