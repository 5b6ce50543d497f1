//! Bytes to replies, as leniently as the vendor's clients read them.

use ecs_api::fault::FaultClass;
use ecs_api::model::eni::{
    CreateNetworkInterface, CreatedEni, DescribeNetworkInterfaces, EniKind, EniStatus,
};
use ecs_api::model::inventory::{DescribeInstanceTypes, DescribeVSwitches};
use ecs_api::reply::{ReplyError, decode};
use http::{HeaderMap, StatusCode};
use proptest::prelude::*;

fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("x-acs-request-id", "R-HEADER".parse().unwrap());
    headers
}

#[test]
fn eni_row_is_read_whole() {
    let body = br#"{"RequestId":"R-1","NextToken":"","NetworkInterfaceSets":{"NetworkInterfaceSet":[{
        "NetworkInterfaceId":"eni-a","MacAddress":"00:16:3e:00:00:01","Status":"InUse","Type":"Secondary",
        "VSwitchId":"vsw-a","VpcId":"vpc-a","ZoneId":"cn-hangzhou-h","PrivateIpAddress":"10.0.0.9",
        "PrivateIpSets":{"PrivateIpSet":[
            {"PrivateIpAddress":"10.0.0.5","Primary":false},{"PrivateIpAddress":"10.0.0.9","Primary":true}]},
        "Ipv6Sets":{"Ipv6Set":[{"Ipv6Address":"2001:db8::9"}]},
        "SecurityGroupIds":{"SecurityGroupId":["sg-a","sg-b"]},
        "Tags":{"Tag":[{"TagKey":"k","TagValue":"v"},{"TagKey":"empty"}]},
        "Attachment":{"InstanceId":"i-a","DeviceIndex":"3"},"CreationTime":"2026-01-02T03:04:05Z"}]}}"#;

    let answer = decode::<DescribeNetworkInterfaces>(StatusCode::OK, &headers(), body).unwrap();

    assert_eq!(answer.request_id, "R-1");
    assert_eq!(answer.reply.next_token, None);
    let eni = &answer.reply.enis[0];
    assert_eq!(
        (eni.status, eni.kind),
        (EniStatus::InUse, EniKind::Secondary)
    );
    assert_eq!(eni.instance.as_ref().unwrap().as_str(), "i-a");
    assert_eq!(eni.device_index, Some(3));
    assert_eq!(
        eni.ipv4.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.9", "10.0.0.5"]
    );
    assert_eq!(eni.ipv6.len(), 1);
    assert_eq!(eni.security_groups.len(), 2);
    assert_eq!(eni.tags.get("empty").unwrap(), "");
    assert_eq!(eni.created_at.unwrap().0, 1_767_323_045_000);
}

#[test]
fn lists_that_are_null_or_missing_are_empty() {
    for body in [
        "{}",
        r#"{"NetworkInterfaceSets":null}"#,
        r#"{"NetworkInterfaceSets":{}}"#,
    ] {
        let answer =
            decode::<DescribeNetworkInterfaces>(StatusCode::OK, &headers(), body.as_bytes());

        let answer = answer.unwrap();
        assert!(answer.reply.enis.is_empty(), "{body}");
        assert_eq!(answer.request_id, "R-HEADER");
    }
}

#[test]
fn numbers_as_text_are_numbers() {
    let body = br#"{"InstanceTypes":{"InstanceType":[{"InstanceTypeId":"ecs.g7.xlarge","EniQuantity":"4",
        "EniTotalQuantity":20,"EniPrivateIpAddressQuantity":15,"EniIpv6AddressQuantity":"15","EniTrunkSupported":"True"}]}}"#;

    let answer = decode::<DescribeInstanceTypes>(StatusCode::OK, &headers(), body).unwrap();

    let quota = answer.reply.instance_types[0].quota;
    assert_eq!(
        (quota.enis, quota.enis_total, quota.ipv4_per_eni),
        (4, 20, 15)
    );
    assert!(quota.trunk && quota.supports_dual_stack());
}

#[test]
fn vswitch_without_ipv6_has_none() {
    let body = br#"{"VSwitches":{"VSwitch":[{"VSwitchId":"vsw-a","VpcId":"vpc-a","ZoneId":"z",
        "CidrBlock":"10.0.0.0/24","Ipv6CidrBlock":"","AvailableIpAddressCount":252}]},"TotalCount":1}"#;

    let answer = decode::<DescribeVSwitches>(StatusCode::OK, &headers(), body).unwrap();

    assert_eq!(answer.reply.vswitches[0].ipv6_cidr, None);
    assert_eq!(answer.reply.vswitches[0].available_ipv4, 252);
}

#[test]
fn create_without_an_id_made_nothing() {
    let body = br#"{"RequestId":"R","NetworkInterfaceId":""}"#;

    let answer = decode::<CreateNetworkInterface>(StatusCode::OK, &headers(), body).unwrap();

    assert_eq!(answer.reply, CreatedEni::NotMade);
}

#[test]
fn fault_body_gives_its_code_and_request_id() {
    let body =
        br#"{"RequestId":"R-9","HostId":"h","Code":"Throttling.User","Message":"slow down"}"#;

    let err = decode::<DescribeNetworkInterfaces>(StatusCode::BAD_REQUEST, &headers(), body);

    let Err(ReplyError::Fault(fault)) = err else {
        panic!("{err:?}");
    };
    assert_eq!(fault.class, FaultClass::Throttled);
    assert_eq!(fault.request_id, "R-9");
}

#[test]
fn status_200_with_half_a_body_is_malformed_and_keeps_the_request_id() {
    let body = br#"{"RequestId":"R-9","NetworkInterfaceSets":{"Netw"#;

    let err = decode::<DescribeNetworkInterfaces>(StatusCode::OK, &headers(), body);

    let Err(ReplyError::Malformed(malformed)) = err else {
        panic!("{err:?}");
    };
    assert_eq!(malformed.request_id, "R-HEADER");
}

#[test]
fn row_with_a_broken_address_is_malformed_by_its_name() {
    let body = br#"{"NetworkInterfaceSets":{"NetworkInterfaceSet":[{"NetworkInterfaceId":"eni-a",
        "MacAddress":"00:16:3e:00:00:01","VSwitchId":"vsw-a","PrivateIpAddress":"10.0.0"}]}}"#;

    let err = decode::<DescribeNetworkInterfaces>(StatusCode::OK, &headers(), body).unwrap_err();

    assert!(err.to_string().contains("PrivateIpAddress"), "{err}");
}

proptest! {
    #[test]
    fn reply_of_any_bytes_does_not_panic(status in 100_u16..600, body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let status = StatusCode::from_u16(status).unwrap();

        let answer = decode::<DescribeNetworkInterfaces>(status, &HeaderMap::new(), &body);

        prop_assert!(status == StatusCode::OK || answer.is_err());
    }
}
