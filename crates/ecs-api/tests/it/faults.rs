//! Codes on the wire to classes.

use std::time::Duration;

use ecs_api::action::Action;
use ecs_api::fault::{Fault, FaultClass};
use http::{HeaderMap, StatusCode};
use rstest::rstest;

fn fault(status: u16, code: &str) -> Fault {
    Fault::new(
        StatusCode::from_u16(status).unwrap(),
        &HeaderMap::new(),
        code.to_owned(),
        "m".to_owned(),
        "R-1".to_owned(),
    )
}

#[rstest]
#[case(400, "Throttling", FaultClass::Throttled)]
#[case(400, "Throttling.User", FaultClass::Throttled)]
#[case(400, "Throttling.Api", FaultClass::Throttled)]
#[case(400, "Throttling.SomethingNew", FaultClass::Throttled)]
#[case(429, "", FaultClass::Throttled)]
#[case(503, "ServiceUnavailable", FaultClass::Busy)]
#[case(503, "", FaultClass::Busy)]
#[case(403, "Operation.Conflict", FaultClass::Busy)]
#[case(400, "InvalidOperation.InvalidEniState", FaultClass::WaitState)]
#[case(400, "InvalidOperation.InvalidEcsState", FaultClass::WaitState)]
#[case(400, "IncorrectStatus.Whatever", FaultClass::WaitState)]
#[case(403, "InvalidVSwitchId.IpNotEnough", FaultClass::Exhausted)]
#[case(400, "QuotaExceeded.PrivateIpAddress", FaultClass::Exhausted)]
#[case(403, "InvalidIp.IpAssigned", FaultClass::AddressInUse)]
#[case(403, "EniPerInstanceLimitExceeded", FaultClass::LimitEni)]
#[case(403, "InvalidOperation.Ipv4CountExceeded", FaultClass::LimitAddress)]
#[case(403, "MaxEniIpv6IpsCountExceeded", FaultClass::LimitAddress)]
#[case(404, "InvalidEniId.NotFound", FaultClass::EniAbsent)]
#[case(403, "InvalidEcsId.NotFound", FaultClass::InstanceAbsent)]
#[case(403, "InvalidIp.IpUnassigned", FaultClass::AddressAbsent)]
#[case(403, "SecurityGroupInstanceLimitExceed", FaultClass::SecurityGroupFull)]
#[case(403, "Forbidden.RAM", FaultClass::Forbidden)]
#[case(404, "InvalidAccessKeyId.NotFound", FaultClass::Forbidden)]
#[case(400, "SignatureDoesNotMatch", FaultClass::Forbidden)]
#[case(400, "IdempotentParameterMismatch", FaultClass::IdempotencyMismatch)]
#[case(400, "MissingParameter", FaultClass::Invalid)]
#[case(400, "SomethingNew", FaultClass::Invalid)]
#[case(500, "InternalError", FaultClass::Internal)]
#[case(502, "", FaultClass::Internal)]
fn fault_by_code_has_its_class(#[case] status: u16, #[case] code: &str, #[case] class: FaultClass) {
    assert_eq!(fault(status, code).class, class);
}

#[test]
fn fault_keeps_code_and_request_id_in_its_words() {
    let text = fault(404, "InvalidEniId.NotFound").to_string();

    assert!(
        text.contains("InvalidEniId.NotFound") && text.contains("R-1"),
        "{text}"
    );
}

#[test]
fn fault_that_the_thing_is_absent_is_done_for_removals_only() {
    let absent = fault(404, "InvalidEniId.NotFound");

    assert!(absent.is_done_for(Action::DeleteNetworkInterface));
    assert!(absent.is_done_for(Action::DetachNetworkInterface));
    assert!(!absent.is_done_for(Action::AttachNetworkInterface));
    let address = fault(403, "InvalidIp.IpUnassigned");
    assert!(address.is_done_for(Action::UnassignIpv6Addresses));
    assert!(!address.is_done_for(Action::DeleteNetworkInterface));
    assert!(!fault(400, "Throttling").is_done_for(Action::DeleteNetworkInterface));
}

#[test]
fn throttle_hints_give_the_longest_wait() {
    let mut headers = HeaderMap::new();
    headers.insert("x-acs-retry-after", "250".parse().unwrap());
    headers.insert(
        "x-ratelimit-user",
        "Limit:10,Remain:0,TimeLeft:700".parse().unwrap(),
    );

    let fault = Fault::new(
        StatusCode::BAD_REQUEST,
        &headers,
        "Throttling.User".to_owned(),
        String::new(),
        String::new(),
    );

    assert_eq!(fault.retry_after, Some(Duration::from_millis(700)));
}
