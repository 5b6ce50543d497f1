//! Every signature vector, to the byte, with each string on the way to it.

use ecs_api::sign::encode::decode_pairs;
use ecs_api::sign::{v1, v3};
use serde_json::Value;

const VECTORS: &str = include_str!("../vectors.json");

fn vectors(kind: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(VECTORS).unwrap();
    all[kind].as_array().unwrap().clone()
}

/// Sorted, whether or not the JSON library keeps the order of the file.
fn pairs(value: &Value) -> Vec<(String, String)> {
    let rows = value.as_object().unwrap().iter();
    let mut pairs: Vec<_> = rows
        .map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()))
        .collect();
    pairs.sort();
    pairs
}

fn secret() -> String {
    let all: Value = serde_json::from_str(VECTORS).unwrap();
    all["credentials"]["access_key_secret"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn v1_vectors_are_signed_to_the_byte() {
    let vectors = vectors("v1");
    assert_eq!(vectors.len(), 5);

    for vector in vectors {
        let name = &vector["name"];
        let mut parameters = pairs(&vector["query"]);
        parameters.extend(pairs(&vector["form"]));
        let parameters = parameters
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()));

        let query = v1::canonicalized_query(parameters);
        assert_eq!(vector["canonicalized_query"], query.as_str(), "{name}");
        let text = v1::string_to_sign(vector["method"].as_str().unwrap(), &query);
        assert_eq!(vector["string_to_sign"], text.as_str(), "{name}");
        assert_eq!(
            vector["signature"],
            v1::signature(&secret(), &text).as_str(),
            "{name}"
        );
    }
}

#[test]
fn v1_vectors_decode_from_their_wire_form() {
    for vector in vectors("v1") {
        let wire = vector["signed_path_and_query"].as_str().unwrap();
        let Some(query) = wire.strip_prefix("/?") else {
            assert_eq!(vector["name"], "vendor-documentation-example");
            continue;
        };

        let mut decoded = decode_pairs(query);
        let signature = decoded.pop().unwrap();
        decoded.sort();

        assert_eq!(
            signature,
            (
                "Signature".to_owned(),
                vector["signature"].as_str().unwrap().to_owned()
            )
        );
        assert_eq!(decoded, pairs(&vector["query"]), "{}", vector["name"]);
        let mut form = decode_pairs(vector["body"].as_str().unwrap());
        form.sort();
        assert_eq!(form, pairs(&vector["form"]), "{}", vector["name"]);
    }
}

#[test]
fn v3_vectors_are_signed_to_the_byte() {
    let vectors = vectors("v3");
    assert_eq!(vectors.len(), 3);

    for vector in vectors {
        let name = &vector["name"];
        let query = pairs(&vector["query"]);
        let headers = pairs(&vector["headers"]);
        let body_hash = v3::body_hash(vector["body"].as_str().unwrap().as_bytes());
        assert_eq!(vector["hashed_payload"], body_hash.as_str(), "{name}");
        assert_eq!(
            vector["canonical_query"],
            v3::canonical_query(&query).as_str(),
            "{name}"
        );
        assert_eq!(
            vector["canonical_headers"],
            v3::canonical_headers(&headers).as_str(),
            "{name}"
        );
        check_v3(&vector, &vector, &query, &headers, &body_hash);
    }
}

// The Go SDK signs fewer headers than the Python SDK.
#[test]
fn v3_vectors_with_the_smaller_header_set_are_signed_to_the_byte() {
    for vector in vectors("v3") {
        let query = pairs(&vector["query"]);
        let go = &vector["go_sdk_header_set"];
        let names: Vec<_> = go["signed_headers"].as_str().unwrap().split(';').collect();
        let mut headers = pairs(&vector["headers"]);
        headers.retain(|(name, _)| names.contains(&name.as_str()));
        let body_hash = v3::body_hash(vector["body"].as_str().unwrap().as_bytes());
        check_v3(&vector, go, &query, &headers, &body_hash);
    }
}

fn check_v3(
    vector: &Value,
    expected: &Value,
    query: &[(String, String)],
    headers: &[(String, String)],
    body_hash: &str,
) {
    let name = &vector["name"];
    assert_eq!(
        expected["signed_headers"],
        v3::signed_headers(headers).as_str(),
        "{name}"
    );
    let request = v3::canonical_request(&v3::Parts {
        method: vector["method"].as_str().unwrap(),
        path: vector["path"].as_str().unwrap(),
        query,
        headers,
        body_hash,
    });
    assert_eq!(expected["canonical_request"], request.as_str(), "{name}");
    let text = v3::string_to_sign(&request);
    assert_eq!(expected["string_to_sign"], text.as_str(), "{name}");
    let signature = v3::signature(&secret(), &text);
    assert_eq!(expected["signature"], signature.as_str(), "{name}");
    let authorization = v3::Authorization {
        access_key_id: "testid".to_owned(),
        signed_headers: v3::signed_headers(headers),
        signature,
    };
    assert_eq!(
        expected["authorization"],
        authorization.render().as_str(),
        "{name}"
    );
    assert_eq!(
        v3::Authorization::parse(&authorization.render()),
        Some(authorization)
    );
}
