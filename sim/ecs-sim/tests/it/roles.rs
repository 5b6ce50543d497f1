//! RAM roles: keys for instances and service accounts that the cloud then takes.

use std::time::Duration;

use bytes::Bytes;
use ecs_api::sign::encode::{percent_encode, timestamp};
use ecs_sim::roles::RoleSpec;
use serde_json::Value;

use crate::world::World;

const PROVIDER: &str = "acs:ram::1234567890123456:oidc-provider/ack";

fn role() -> RoleSpec {
    RoleSpec {
        oidc_provider: Some(PROVIDER.to_owned()),
        oidc_tokens: vec!["a-token".to_owned()],
        ..RoleSpec::new("terway")
    }
}

/// Asks STS with these parameters in the query and the token in the body, as Go's SDK does.
async fn assume(world: &World, change: &[(&str, &str)]) -> (u16, Value) {
    let now = timestamp(world.clock.now());
    let arn = role().arn();
    let mut parameters = vec![
        ("Action", "AssumeRoleWithOIDC"),
        ("Version", "2015-04-01"),
        ("Format", "JSON"),
        ("Timestamp", now.as_str()),
        ("RoleArn", arn.as_str()),
        ("OIDCProviderArn", PROVIDER),
        ("RoleSessionName", "tester"),
        ("OIDCToken", "a-token"),
    ];
    for (name, value) in change {
        parameters.retain(|(known, _)| known != name);
        parameters.push((name, value));
    }
    let (body, query): (Vec<_>, Vec<_>) = parameters
        .into_iter()
        .map(|(name, value)| format!("{name}={}", percent_encode(value)))
        .partition(|pair| pair.starts_with("OIDCToken="));
    let request = http::Request::builder()
        .method("POST")
        .uri(format!("http://sts.test/?{}", query.join("&")))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Bytes::from(body.join("&")))
        .unwrap();
    let response = world.sim.answer(request).await.unwrap();
    let status = response.status().as_u16();
    (status, serde_json::from_slice(response.body()).unwrap())
}

#[tokio::test]
async fn token_that_a_role_trusts_gives_keys_of_an_hour() {
    let world = World::new().await;
    world.sim.set_role(role());

    let (status, answer) = assume(&world, &[]).await;

    let keys = &answer["Credentials"];
    assert_eq!(status, 200, "{answer}");
    assert!(keys["AccessKeyId"].as_str().unwrap().starts_with("STS."));
    assert!(
        keys["SecurityToken"]
            .as_str()
            .is_some_and(|t| !t.is_empty())
    );
    let end = timestamp(world.clock.now().after(Duration::from_hours(1)));
    assert_eq!(keys["Expiration"], end.as_str());
}

#[tokio::test]
async fn what_sts_would_refuse_is_refused_by_its_code() {
    let world = World::new().await;
    world.sim.set_role(role());
    let old = "2001-01-01T00:00:00Z";
    for (name, value, status, code) in [
        (
            "OIDCToken",
            "another",
            400,
            "AuthenticationFail.OIDCToken.Invalid",
        ),
        ("OIDCToken", "", 400, "MissingParameter"),
        (
            "RoleArn",
            "acs:ram::1:role/none",
            404,
            "EntityNotExist.Role",
        ),
        (
            "OIDCProviderArn",
            "acs:ram::1:oidc-provider/x",
            403,
            "NoPermission",
        ),
        ("RoleSessionName", "x", 400, "InvalidParameter"),
        ("DurationSeconds", "899", 400, "InvalidParameter"),
        ("Timestamp", old, 400, "InvalidTimeStamp.Expired"),
    ] {
        let (said, answer) = assume(&world, &[(name, value)]).await;

        assert_eq!(
            (said, &answer["Code"]),
            (status, &Value::from(code)),
            "{name}={value}"
        );
    }
}
