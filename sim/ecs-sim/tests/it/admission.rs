//! What is refused before anything happens: keys, signatures, nonces, names, parameters, budgets.

use std::time::Duration;

use bytes::Bytes;
use ecs_api::action::Action;
use ecs_api::fault::FaultClass;
use ecs_api::model::eni::{DeleteNetworkInterface, DescribeNetworkInterfaces};
use ecs_api::request::{Endpoint, Stamp, build};
use ecs_api::sign::encode::timestamp;
use ecs_api::sign::{Credentials, Scheme, v1};
use http::Response;
use serde_json::Value;

use crate::world::{Failed, MINUTE, World, create_in, start};

const SCHEMES: [Scheme; 2] = [Scheme::V1, Scheme::V3];

fn endpoint() -> Endpoint {
    Endpoint {
        scheme: "http".to_owned(),
        authority: "h:1".to_owned(),
        region: "cn-hangzhou".parse().unwrap(),
    }
}

async fn code_of(
    world: &World,
    credentials: &Credentials,
    stamp: &Stamp,
    scheme: Scheme,
) -> String {
    let request = DescribeNetworkInterfaces::default();
    let request = build(&request, &endpoint(), credentials, stamp, scheme).unwrap();
    let response = world.sim.answer(request).await.unwrap();
    code_in(&response)
}

fn code_in(response: &Response<Bytes>) -> String {
    let body: Value = serde_json::from_slice(response.body()).unwrap();
    body["Code"].as_str().unwrap_or("ok").to_owned()
}

/// A V1 request by hand.
async fn by_hand(world: &World, method: &str, changes: &[(&str, &str)]) -> Response<Bytes> {
    let mut pairs: Vec<(String, String)> = [
        ("Action", "DescribeNetworkInterfaces"),
        ("Version", "2014-05-26"),
        ("Format", "JSON"),
        ("RegionId", "cn-hangzhou"),
        ("AccessKeyId", "testid"),
        ("SignatureMethod", "HMAC-SHA1"),
        ("SignatureVersion", "1.0"),
        ("SignatureNonce", &world.stamp().nonce),
        ("Timestamp", &timestamp(world.clock.now())),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    for (name, value) in changes {
        pairs.retain(|(key, _)| key != name);
        if !value.is_empty() {
            pairs.push(((*name).to_owned(), (*value).to_owned()));
        }
    }
    let query = v1::canonicalized_query(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    let signature = v1::signature("testsecret", &v1::string_to_sign(method, &query));
    let signature = ecs_api::sign::encode::percent_encode(&signature);
    let request = http::Request::builder()
        .method(method)
        .uri(format!("/?{query}&Signature={signature}"))
        .body(Bytes::new())
        .unwrap();
    world.sim.answer(request).await.unwrap()
}

#[tokio::test]
async fn request_of_an_unknown_key_is_refused() {
    let world = World::new().await;
    for scheme in SCHEMES {
        let code = code_of(
            &world,
            &Credentials::lasting("nobody", "x"),
            &world.stamp(),
            scheme,
        )
        .await;
        assert_eq!(code, "InvalidAccessKeyId.NotFound");
    }
}

#[tokio::test]
async fn request_of_a_disabled_key_is_refused() {
    let world = World::new().await;
    assert!(world.sim.disable_access_key("testid"));
    for scheme in SCHEMES {
        let code = code_of(
            &world,
            &Credentials::lasting("testid", "testsecret"),
            &world.stamp(),
            scheme,
        )
        .await;
        assert_eq!(code, "InvalidAccessKeyId.Inactive");
    }
}

#[tokio::test]
async fn request_with_a_wrong_secret_is_told_the_server_string() {
    let world = World::new().await;
    for scheme in SCHEMES {
        let request = build(
            &DescribeNetworkInterfaces::default(),
            &endpoint(),
            &Credentials::lasting("testid", "wrong"),
            &world.stamp(),
            scheme,
        );
        let response = world.sim.answer(request.unwrap()).await.unwrap();

        let body: Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(response.status(), 400);
        assert_eq!(body["Code"], "SignatureDoesNotMatch");
        let message = body["Message"].as_str().unwrap();
        assert!(
            message.contains("server string to sign is:POST"),
            "{message}"
        );
    }
}

#[tokio::test]
async fn request_more_than_fifteen_minutes_off_is_refused_in_both_directions() {
    let world = World::new().await;
    let key = Credentials::lasting("testid", "testsecret");
    let at = |millis: u64| Stamp {
        now: types::time::Tick(millis),
        ..world.stamp()
    };
    let (now, window) = (start().0, 15 * 60_000);
    for scheme in SCHEMES {
        assert_eq!(
            code_of(&world, &key, &at(now - window - 1000), scheme).await,
            "InvalidTimeStamp.Expired"
        );
        assert_eq!(
            code_of(&world, &key, &at(now + window + 1000), scheme).await,
            "InvalidTimeStamp.Expired"
        );
        assert_eq!(code_of(&world, &key, &at(now - window), scheme).await, "ok");
        assert_eq!(code_of(&world, &key, &at(now + window), scheme).await, "ok");
    }
}

#[tokio::test]
async fn nonce_is_refused_for_fifteen_minutes() {
    let world = World::new().await;
    let key = Credentials::lasting("testid", "testsecret");
    let nonce = "n".to_owned();
    let stamp = || Stamp {
        now: world.clock.now(),
        nonce: nonce.clone(),
    };

    assert_eq!(code_of(&world, &key, &stamp(), Scheme::V3).await, "ok");
    assert_eq!(
        code_of(&world, &key, &stamp(), Scheme::V1).await,
        "SignatureNonceUsed"
    );
    world.clock.advance(15 * MINUTE);
    assert_eq!(code_of(&world, &key, &stamp(), Scheme::V3).await, "ok");
}

#[tokio::test]
async fn nonce_of_another_key_is_not_used_up() {
    let world = World::new().await;
    world.sim.add_access_key("second", "s");
    let stamp = world.stamp();

    let first = code_of(
        &world,
        &Credentials::lasting("testid", "testsecret"),
        &stamp,
        Scheme::V3,
    )
    .await;
    assert_eq!(first, "ok");
    let second = code_of(
        &world,
        &Credentials::lasting("second", "s"),
        &stamp,
        Scheme::V3,
    )
    .await;
    assert_eq!(second, "ok");
}

#[tokio::test]
async fn temporary_key_needs_its_own_token_and_ends() {
    let world = World::new().await;
    let end = start().after(MINUTE);
    world.sim.add_temporary_key("STS.a", "s", "tok", Some(end));
    for scheme in SCHEMES {
        let code = |key: Credentials| {
            let (world, stamp) = (&world, world.stamp());
            async move { code_of(world, &key, &stamp, scheme).await }
        };
        assert_eq!(
            code(Credentials::temporary("STS.a", "s", "tok")).await,
            "ok"
        );
        assert_eq!(
            code(Credentials::lasting("STS.a", "s")).await,
            "MissingSecurityToken"
        );
        assert_eq!(
            code(Credentials::temporary("STS.a", "s", "bad")).await,
            "InvalidSecurityToken.MismatchWithAccessKey"
        );
    }
    world.clock.advance(MINUTE);
    let code = code_of(
        &world,
        &Credentials::temporary("STS.a", "s", "tok"),
        &world.stamp(),
        Scheme::V3,
    )
    .await;
    assert_eq!(code, "InvalidSecurityToken.Expired");
}

#[tokio::test]
async fn request_by_get_with_query_parameters_is_accepted() {
    let world = World::new().await;

    assert_eq!(code_in(&by_hand(&world, "GET", &[]).await), "ok");
    assert_eq!(code_in(&by_hand(&world, "POST", &[]).await), "ok");
}

#[tokio::test]
async fn unknown_action_version_and_region_have_codes_of_their_own() {
    let world = World::new().await;
    for (changes, status, code) in [
        (("Action", "DescribeMoon"), 404, "InvalidAction.NotFound"),
        (
            ("Action", "DescribeVSwitches"),
            404,
            "InvalidAction.NotFound",
        ),
        (("Action", ""), 400, "MissingParameter"),
        (("Version", "1999-01-01"), 400, "InvalidVersion"),
        (("RegionId", ""), 400, "MissingParameter"),
        (("RegionId", "cn-moon"), 404, "InvalidRegionId.NotFound"),
        (("Timestamp", "yesterday"), 400, "InvalidTimeStamp.Format"),
        (("Timestamp", ""), 400, "MissingTimestamp"),
        (("SignatureNonce", ""), 400, "IncompleteSignature"),
        (("SignatureMethod", "HMAC-MD5"), 400, "IncompleteSignature"),
        (("Misspelt", "1"), 400, "UnsupportedParameter"),
    ] {
        let response = by_hand(&world, "GET", &[changes]).await;

        assert_eq!(
            (response.status().as_u16(), code_in(&response).as_str()),
            (status, code),
            "{changes:?}"
        );
    }
}

#[tokio::test]
async fn version_of_the_vpc_api_has_its_own_actions() {
    let world = World::new().await;
    let vpc = [("Version", "2016-04-28"), ("Action", "DescribeVSwitches")];

    assert_eq!(code_in(&by_hand(&world, "GET", &vpc).await), "ok");
    let other = [("Version", "2016-04-28")];
    assert_eq!(
        code_in(&by_hand(&world, "GET", &other).await),
        "InvalidAction.NotFound"
    );
}

#[tokio::test]
async fn request_without_format_gets_xml() {
    let world = World::new().await;
    let text = |response: &Response<Bytes>| String::from_utf8(response.body().to_vec()).unwrap();

    let good = by_hand(&world, "GET", &[("Format", "")]).await;
    assert!(
        text(&good).contains("<DescribeNetworkInterfacesResponse>"),
        "{}",
        text(&good)
    );
    let bad = by_hand(&world, "GET", &[("Format", "XML"), ("Action", "Moon")]).await;
    assert!(
        text(&bad).contains("<Code>InvalidAction.NotFound</Code>"),
        "{}",
        text(&bad)
    );
    assert_eq!(bad.headers()["content-type"], "text/xml;charset=utf-8");
}

#[tokio::test]
async fn reply_repeats_its_request_id_in_a_header() {
    let world = World::new().await;

    let response = by_hand(&world, "GET", &[]).await;

    let body: Value = serde_json::from_slice(response.body()).unwrap();
    let id = body["RequestId"].as_str().unwrap();
    assert_eq!(response.headers()["x-acs-request-id"], id);
    assert_eq!(id.len(), 36);
    assert_eq!(id, id.to_uppercase());
    assert_eq!(
        response.headers()["content-type"],
        "application/json;charset=utf-8"
    );
}

#[tokio::test]
async fn call_over_the_quota_is_throttled_until_the_minute_is_over() {
    let world = World::new().await;
    world.sim.set_quota(Action::CreateNetworkInterface, 2);

    for expected in ["ok", "ok", "Throttling.User"] {
        assert_eq!(world.code(&create_in("vsw-h")).await, expected);
    }
    let Err(Failed::Fault(fault)) = world.ask(&create_in("vsw-h")).await else {
        panic!("not throttled");
    };
    assert_eq!((fault.class, fault.status), (FaultClass::Throttled, 400));
    // The test starts 5 s into a minute.
    assert_eq!(fault.retry_after, Some(Duration::from_secs(55)));
    world.clock.advance(Duration::from_secs(55));
    assert_eq!(world.code(&create_in("vsw-h")).await, "ok");

    let calls = &world.sim.dump().calls["CreateNetworkInterface"];
    assert_eq!((calls.total, calls.succeeded, calls.throttled), (5, 3, 2));
    assert_eq!(calls.refused["Throttling.User"], 2);
}

#[tokio::test]
async fn refused_signature_does_not_use_up_the_quota() {
    let world = World::new().await;
    world.sim.set_quota(Action::DescribeNetworkInterfaces, 1);
    let wrong = Credentials::lasting("testid", "wrong");
    assert_eq!(
        code_of(&world, &wrong, &world.stamp(), Scheme::V3).await,
        "SignatureDoesNotMatch"
    );

    let right = Credentials::lasting("testid", "testsecret");
    assert_eq!(
        code_of(&world, &right, &world.stamp(), Scheme::V3).await,
        "ok"
    );
}

#[tokio::test]
async fn ledger_has_every_call_with_its_request_id() {
    let world = World::new().await;
    let eni = world.eni("vsw-h").await.id;
    let request = DeleteNetworkInterface { eni: eni.clone() };
    let answer = world
        .ask(&request)
        .await
        .unwrap_or_else(|failed| panic!("{}", failed.code()));

    let calls = world.sim.calls();

    let last = calls.last().unwrap();
    assert_eq!(last.request_id, answer.request_id);
    assert_eq!(
        (last.action.as_str(), last.status),
        ("DeleteNetworkInterface", 200)
    );
    assert_eq!(
        (last.eni.as_str(), last.access_key_id.as_str()),
        (eni.as_str(), "testid")
    );
}
