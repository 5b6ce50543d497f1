//! Typed requests to signed HTTP requests.

use ecs_api::model::Pick;
use ecs_api::model::address::AssignPrivateIpAddresses;
use ecs_api::model::eni::DescribeNetworkInterfaces;
use ecs_api::model::inventory::{DescribeInstances, DescribeVSwitches};
use ecs_api::model::{Request, eni::CreateNetworkInterface};
use ecs_api::request::{Endpoint, Stamp, build};
use ecs_api::sign::encode::{decode_pairs, parse_timestamp};
use ecs_api::sign::{Credentials, Scheme, v1, v3};

fn endpoint() -> Endpoint {
    Endpoint {
        scheme: "http".to_owned(),
        authority: "127.0.0.1:18080".to_owned(),
        region: "cn-hangzhou".parse().unwrap(),
    }
}

fn stamp() -> Stamp {
    Stamp {
        now: parse_timestamp("2026-01-02T03:04:05Z").unwrap(),
        nonce: "nonce-1".to_owned(),
    }
}

fn credentials() -> Credentials {
    Credentials::temporary("testid", "testsecret", "token+/=")
}

fn assign() -> AssignPrivateIpAddresses {
    AssignPrivateIpAddresses {
        eni: "eni-a".parse().unwrap(),
        ipv4: Pick::Count(10),
        client_token: Some("t".to_owned()),
    }
}

#[test]
fn v1_request_carries_everything_in_its_query() {
    let request = build(&assign(), &endpoint(), &credentials(), &stamp(), Scheme::V1).unwrap();

    assert_eq!(request.method(), "POST");
    assert!(request.body().is_empty());
    let pairs = decode_pairs(request.uri().query().unwrap());
    let value = |name: &str| {
        let pair = pairs.iter().find(|(key, _)| key == name);
        pair.map(|(_, value)| value.as_str()).unwrap_or_default()
    };
    assert_eq!(value("Action"), "AssignPrivateIpAddresses");
    assert_eq!(value("Version"), "2014-05-26");
    assert_eq!(value("Timestamp"), "2026-01-02T03:04:05Z");
    assert_eq!(value("SecurityToken"), "token+/=");
    assert_eq!(value("SecondaryPrivateIpAddressCount"), "10");
    let signed = pairs
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()));
    let text = v1::string_to_sign("POST", &v1::canonicalized_query(signed));
    assert_eq!(value("Signature"), v1::signature("testsecret", &text));
}

#[test]
fn v3_request_signs_its_host_with_the_port_and_its_token() {
    let request = build(&assign(), &endpoint(), &credentials(), &stamp(), Scheme::V3).unwrap();

    let header = |name: &str| request.headers().get(name).unwrap().to_str().unwrap();
    assert_eq!(header("host"), "127.0.0.1:18080");
    assert_eq!(header("x-acs-action"), "AssignPrivateIpAddresses");
    let authorization = v3::Authorization::parse(header("authorization")).unwrap();
    let signed: Vec<_> = authorization.signed_headers.split(';').collect();
    for name in v3::REQUIRED_HEADERS {
        assert!(signed.contains(&name), "{name}");
    }
    assert!(signed.contains(&"x-acs-security-token"));
    assert!(
        request
            .headers()
            .get("x-acs-security-token")
            .unwrap()
            .is_sensitive()
    );
}

#[test]
fn request_in_debug_output_hides_the_token_and_never_has_the_secret() {
    let request = build(&assign(), &endpoint(), &credentials(), &stamp(), Scheme::V3).unwrap();

    let text = format!("{request:?}");

    assert!(!text.contains("token+/="), "{text}");
    assert!(!text.contains("testsecret"), "{text}");
}

#[test]
fn request_to_an_authority_that_is_none_is_refused() {
    let endpoint = Endpoint {
        authority: "not a host".to_owned(),
        ..endpoint()
    };

    let err = build(&assign(), &endpoint, &credentials(), &stamp(), Scheme::V3).unwrap_err();

    assert!(err.to_string().contains("not a host"), "{err}");
}

#[test]
fn list_parameters_follow_the_conventions_of_their_action() {
    let text = |params: &[(String, String)]| -> Vec<String> {
        params
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect()
    };
    let instances = DescribeInstances {
        instances: vec!["i-a".parse().unwrap(), "i-b".parse().unwrap()],
        ..DescribeInstances::default()
    };
    assert_eq!(
        text(instances.params().pairs()),
        [r#"InstanceIds=["i-a","i-b"]"#]
    );
    let vswitches = DescribeVSwitches {
        vswitches: vec!["vsw-a".parse().unwrap(), "vsw-b".parse().unwrap()],
        ..DescribeVSwitches::default()
    };
    assert_eq!(text(vswitches.params().pairs()), ["VSwitchId=vsw-a,vsw-b"]);
    let enis = DescribeNetworkInterfaces {
        enis: vec!["eni-a".parse().unwrap(), "eni-b".parse().unwrap()],
        ..DescribeNetworkInterfaces::default()
    };
    assert_eq!(
        text(enis.params().pairs()),
        ["NetworkInterfaceId.1=eni-a", "NetworkInterfaceId.2=eni-b"]
    );
    let mut create =
        CreateNetworkInterface::new("vsw-a".parse().unwrap(), vec!["sg-a".parse().unwrap()]);
    create.tags.insert("k".to_owned(), "v".to_owned());
    create.ipv4 = Pick::Listed(vec!["10.0.0.1".parse().unwrap()]);
    assert_eq!(
        text(create.params().pairs()),
        [
            "VSwitchId=vsw-a",
            "SecurityGroupIds.1=sg-a",
            "InstanceType=Secondary",
            "PrivateIpAddress.1=10.0.0.1",
            "Tag.1.Key=k",
            "Tag.1.Value=v"
        ]
    );
}
