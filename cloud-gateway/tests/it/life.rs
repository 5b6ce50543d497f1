//! The life of ENIs, and operations that are asked for again.

use ecs_api::action::Action;
use proto::cloud::v1::cloud_server::Cloud;
use proto::cloud::v1::{
    DescribeEnisRequest, DescribeInstancesRequest, DescribeVSwitchesRequest, DetachEniRequest,
};
use tonic::Request;

use crate::world::{INSTANCE, OTHER_INSTANCE, VSWITCH, World, new_eni, op, reason, texts};

#[tokio::test]
async fn eni_lives_from_create_to_delete() {
    let world = World::new().await;

    let mut request = new_eni(1, "10.0.0.10");
    request.ipv4 = texts(&["10.0.0.11", "10.0.0.12"]);
    request.ipv6 = texts(&["2001:db8::11"]);
    let made = world.create(request).await.unwrap();
    assert_eq!(made.ipv4, ["10.0.0.10", "10.0.0.11", "10.0.0.12"]);
    assert_eq!(made.ipv6, ["2001:db8::11"]);
    assert_eq!(
        (made.status.as_str(), made.vswitch_id.as_str()),
        ("Available", VSWITCH)
    );

    let attached = world.attach(2, &made.id).await.unwrap();
    assert_eq!(
        (attached.status.as_str(), attached.instance_id.as_str()),
        ("InUse", INSTANCE)
    );
    assert!(attached.mac.starts_with("00:16:3e"), "{}", attached.mac);

    let grown = world
        .assign(3, &made.id, &["10.0.0.20", "10.0.0.21"], &["2001:db8::20"])
        .await
        .unwrap();
    assert_eq!(grown.ipv4.len(), 5);
    assert_eq!(grown.ipv6.len(), 2);

    let shrunk = world
        .unassign(4, &made.id, &["10.0.0.11", "10.0.0.20"], &["2001:db8::11"])
        .await
        .unwrap()
        .unwrap();
    assert_eq!(shrunk.ipv4, ["10.0.0.10", "10.0.0.12", "10.0.0.21"]);
    assert_eq!(shrunk.ipv6, ["2001:db8::20"]);

    world.detach(5, &made.id).await.unwrap();
    assert_eq!(world.eni(&made.id).unwrap().status, "Available");
    world.delete(6, &made.id).await.unwrap();
    assert!(world.enis().is_empty());
}

// I: exactly-once cloud calls. Asked again with its key, an operation answers and does nothing.
#[tokio::test]
async fn repeated_operations_have_one_effect_with_and_without_memory() {
    for restarts in [false, true] {
        let mut world = World::new().await;
        let id = world.made(1, "10.0.0.10").await;
        if restarts {
            world.restart().await;
        }
        assert_eq!(world.made(1, "10.0.0.10").await, id);
        assert_eq!(world.enis().len(), 1);

        for _ in 0..2 {
            world.attach(2, &id).await.unwrap();
            if restarts {
                world.restart().await;
            }
        }
        assert_eq!(world.succeeded(Action::AttachNetworkInterface), 1);

        for _ in 0..2 {
            let eni = world
                .assign(3, &id, &["10.0.0.11"], &["2001:db8::11"])
                .await
                .unwrap();
            assert_eq!((eni.ipv4.len(), eni.ipv6.len()), (2, 1));
            if restarts {
                world.restart().await;
            }
        }

        for _ in 0..2 {
            let eni = world
                .unassign(4, &id, &["10.0.0.11"], &["2001:db8::11"])
                .await
                .unwrap()
                .unwrap();
            assert_eq!((eni.ipv4.len(), eni.ipv6.len()), (1, 0));
            if restarts {
                world.restart().await;
            }
        }
        assert_eq!(world.succeeded(Action::UnassignPrivateIpAddresses), 1);
        assert_eq!(world.succeeded(Action::UnassignIpv6Addresses), 1);

        for _ in 0..2 {
            world.detach(5, &id).await.unwrap();
            if restarts {
                world.restart().await;
            }
        }
        assert_eq!(world.succeeded(Action::DetachNetworkInterface), 1);

        for _ in 0..2 {
            world.delete(6, &id).await.unwrap();
            if restarts {
                world.restart().await;
            }
        }
        assert_eq!(world.succeeded(Action::DeleteNetworkInterface), 1);
        assert!(world.enis().is_empty());
    }
}

#[tokio::test]
async fn calls_with_one_key_at_the_same_time_share_one_operation() {
    let world = World::new().await;
    let id = world.made(1, "10.0.0.10").await;

    let (a, b, c) = tokio::join!(
        world.attach(2, &id),
        world.attach(2, &id),
        world.attach(2, &id)
    );

    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert_eq!(world.total(Action::AttachNetworkInterface), 1);
}

#[tokio::test]
async fn key_used_for_something_else_is_refused() {
    let world = World::new().await;
    let id = world.made(1, "10.0.0.10").await;

    let refused = world.attach(1, &id).await.unwrap_err();

    assert_eq!(reason(&refused), "REASON_CLOUD_INVALID");
    assert_eq!(world.total(Action::AttachNetworkInterface), 0);
}

#[tokio::test]
async fn detach_and_delete_of_what_is_not_there_succeed() {
    let world = World::new().await;
    let id = world.attached(1, "10.0.0.10").await;
    world.detach(3, &id).await.unwrap();
    world.detach(4, &id).await.unwrap();
    world.delete(5, &id).await.unwrap();

    world.detach(6, &id).await.unwrap();
    world.delete(7, &id).await.unwrap();
    let gone = world.unassign(8, &id, &["10.0.0.11"], &[]).await.unwrap();

    assert_eq!(gone, None);
}

#[tokio::test]
async fn detach_from_another_instance_is_a_state_conflict() {
    let world = World::new().await;
    let id = world.attached(1, "10.0.0.10").await;
    let request = DetachEniRequest {
        op: Some(op(3, 1)),
        eni_id: id.clone(),
        instance_id: OTHER_INSTANCE.to_owned(),
        ..DetachEniRequest::default()
    };

    let refused = world
        .gateway
        .api
        .detach_eni(Request::new(request))
        .await
        .unwrap_err();

    assert_eq!(reason(&refused), "REASON_STATE_CONFLICT");
    assert_eq!(world.eni(&id).unwrap().status, "InUse");
}

#[tokio::test]
async fn delete_of_an_attached_eni_is_a_state_conflict() {
    let world = World::new().await;
    let id = world.attached(1, "10.0.0.10").await;

    let refused = world.delete(3, &id).await.unwrap_err();

    assert_eq!(reason(&refused), "REASON_STATE_CONFLICT");
}

#[tokio::test]
async fn unassign_of_some_that_are_gone_takes_the_rest() {
    let world = World::new().await;
    let id = world.made(1, "10.0.0.10").await;
    world
        .assign(2, &id, &["10.0.0.11", "10.0.0.12"], &[])
        .await
        .unwrap();
    world.unassign(3, &id, &["10.0.0.11"], &[]).await.unwrap();

    let eni = world
        .unassign(4, &id, &["10.0.0.11", "10.0.0.12"], &[])
        .await
        .unwrap()
        .unwrap();

    assert_eq!(eni.ipv4, ["10.0.0.10"]);
}

#[tokio::test]
async fn primary_address_can_not_be_unassigned() {
    let world = World::new().await;
    let id = world.made(1, "10.0.0.10").await;

    let refused = world
        .unassign(2, &id, &["10.0.0.10"], &[])
        .await
        .unwrap_err();

    assert_eq!(reason(&refused), "REASON_BAD_FIELD");
}

#[tokio::test]
async fn enis_are_found_by_id_and_by_filter() {
    let world = World::new().await;
    let first = world.attached(1, "10.0.0.10").await;
    let second = world.made(3, "10.0.0.20").await;
    let find = async |request: DescribeEnisRequest| {
        let api = &world.gateway.api;
        let answer = api.describe_enis(Request::new(request)).await.unwrap();
        let mut ids: Vec<_> = answer.into_inner().enis.into_iter().map(|e| e.id).collect();
        ids.sort();
        ids
    };

    let by_id = find(DescribeEnisRequest {
        eni_ids: vec![first.clone(), second.clone(), "eni-absent".to_owned()],
        instance_id: INSTANCE.to_owned(),
        ..DescribeEnisRequest::default()
    })
    .await;
    let by_vswitch = find(DescribeEnisRequest {
        vswitch_id: VSWITCH.to_owned(),
        ..DescribeEnisRequest::default()
    })
    .await;
    let by_tag = find(DescribeEnisRequest {
        tags: [("terway.io/op".to_owned(), format!("{VSWITCH}.0/3"))].into(),
        ..DescribeEnisRequest::default()
    })
    .await;

    let mut both = vec![first.clone(), second.clone()];
    both.sort();
    assert_eq!(by_id, [first]);
    assert_eq!(by_vswitch, both);
    assert_eq!(by_tag, [second]);
}

#[tokio::test]
async fn facts_are_read_once_for_all_who_ask() {
    let world = World::new().await;
    let api = &world.gateway.api;
    let ask = || {
        api.describe_instances(Request::new(DescribeInstancesRequest {
            instance_ids: texts(&[INSTANCE, "i-absent"]),
        }))
    };

    let (a, b) = tokio::join!(ask(), ask());

    let instances = a.unwrap().into_inner().instances;
    assert_eq!(instances, b.unwrap().into_inner().instances);
    let [instance] = &instances[..] else {
        panic!("{instances:?}");
    };
    assert_eq!(instance.instance_type, "ecs.g7.xlarge");
    assert_eq!(instance.vswitch_id, "vsw-nodes");
    assert!(instance.primary_eni_id.starts_with("eni-"));
    let quota = instance.quota.unwrap();
    assert_eq!((quota.enis, quota.ipv4_per_eni), (4, 15));
    assert_eq!(world.total(Action::DescribeInstanceTypes), 1);
    // The unknown id is asked for again by the second.
    assert!(world.total(Action::DescribeInstances) <= 2);
}

#[tokio::test]
async fn vswitches_are_described_with_both_ranges() {
    let world = World::new().await;
    let request = DescribeVSwitchesRequest {
        vswitch_ids: texts(&[VSWITCH, "vsw-absent"]),
    };

    let answer = world
        .gateway
        .api
        .describe_v_switches(Request::new(request))
        .await
        .unwrap();

    let vswitches = answer.into_inner().vswitches;
    let [vswitch] = &vswitches[..] else {
        panic!("{vswitches:?}");
    };
    assert_eq!(vswitch.ipv4_cidr, "10.0.0.0/24");
    assert_eq!(vswitch.ipv6_cidr, "2001:db8::/64");
    assert_eq!(vswitch.available_ipv4, 252);
}
