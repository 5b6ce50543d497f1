//! The Describe actions: filters, pages, lists of ids.

use std::collections::BTreeSet;

use ecs_api::model::Request;
use ecs_api::model::eni::{
    CreateNetworkInterface, DescribeNetworkInterfaces, EniKind, EniPage, EniStatus,
};
use ecs_api::model::inventory::{
    DescribeInstanceTypes, DescribeInstances, DescribeSecurityGroups, DescribeVSwitches,
};
use ecs_sim::spec::InstanceTypeSpec;
use types::quota::EniQuota;

use crate::world::{World, create_in};

async fn ask<R: Request>(world: &World, request: &R) -> R::Reply {
    let answer = world.ask(request).await;
    answer
        .unwrap_or_else(|failed| panic!("{}", failed.code()))
        .reply
}

fn all() -> DescribeNetworkInterfaces {
    DescribeNetworkInterfaces::default()
}

async fn count(world: &World, request: DescribeNetworkInterfaces) -> usize {
    let request = DescribeNetworkInterfaces {
        max_results: Some(500),
        ..request
    };
    ask(world, &request).await.enis.len()
}

#[tokio::test]
async fn eni_pages_cover_all_enis_once() {
    let world = World::new().await;
    for _ in 0..25 {
        world.eni("vsw-h").await;
    }

    let mut seen = BTreeSet::new();
    let mut sizes = Vec::new();
    let mut next_token = None;
    loop {
        let request = DescribeNetworkInterfaces {
            next_token,
            ..all()
        };
        let EniPage {
            enis,
            next_token: next,
        } = ask(&world, &request).await;
        sizes.push(enis.len());
        seen.extend(enis.into_iter().map(|eni| eni.id));
        next_token = next;
        if next_token.is_none() {
            break;
        }
    }

    assert_eq!((seen.len(), sizes), (25, vec![10, 10, 5]));
}

#[tokio::test]
async fn max_results_is_pulled_into_its_range() {
    let world = World::new().await;
    for _ in 0..12 {
        world.eni("vsw-h").await;
    }
    for (asked, got) in [(1, 10), (11, 11), (5000, 12)] {
        let request = DescribeNetworkInterfaces {
            max_results: Some(asked),
            ..all()
        };
        assert_eq!(ask(&world, &request).await.enis.len(), got, "{asked}");
    }
}

#[tokio::test]
async fn next_token_of_somebody_else_is_refused() {
    let world = World::new().await;
    let request = DescribeNetworkInterfaces {
        next_token: Some("nonsense".to_owned()),
        ..all()
    };

    assert_eq!(world.code(&request).await, "InvalidParameter");
}

#[tokio::test]
async fn enis_are_found_by_every_filter() {
    let world = World::new().await;
    let instance = world.instance("i-a", "vsw-h").await;
    let tagged = CreateNetworkInterface {
        tags: [
            ("k".to_owned(), "v".to_owned()),
            ("l".to_owned(), "w".to_owned()),
        ]
        .into(),
        ..create_in("vsw-i")
    };
    let tagged = world.create(&tagged).await;
    world.eni("vsw-b").await;
    let eni = world.attached(&instance.id, &create_in("vsw-h")).await;
    let tags = |pairs: &[(&str, &str)]| DescribeNetworkInterfaces {
        tags: pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        ..all()
    };
    let by_instance = || DescribeNetworkInterfaces {
        instance: Some(instance.id.clone()),
        ..all()
    };

    assert_eq!(count(&world, all()).await, 4);
    assert_eq!(count(&world, by_instance()).await, 2);
    let secondary = DescribeNetworkInterfaces {
        kind: Some(EniKind::Secondary),
        ..by_instance()
    };
    assert_eq!(ask(&world, &secondary).await.enis[0].id, eni);
    let vpc = DescribeNetworkInterfaces {
        vpc: Some("vpc-b".parse().unwrap()),
        ..all()
    };
    assert_eq!(count(&world, vpc).await, 1);
    let vswitch = DescribeNetworkInterfaces {
        vswitch: Some("vsw-i".parse().unwrap()),
        ..all()
    };
    assert_eq!(count(&world, vswitch).await, 1);
    let status = DescribeNetworkInterfaces {
        status: Some(EniStatus::Available),
        ..all()
    };
    assert_eq!(count(&world, status).await, 2);
    assert_eq!(count(&world, tags(&[("k", "v"), ("l", "w")])).await, 1);
    assert_eq!(count(&world, tags(&[("k", "")])).await, 1);
    assert_eq!(count(&world, tags(&[("k", "v"), ("l", "x")])).await, 0);
    let by_ip = DescribeNetworkInterfaces {
        ipv4: vec![tagged.primary_ip],
        ..all()
    };
    assert_eq!(ask(&world, &by_ip).await.enis[0].id, tagged.id);
}

#[tokio::test]
async fn unknown_ids_are_absent_and_more_than_100_are_refused() {
    let world = World::new().await;
    let eni = world.eni("vsw-h").await.id;
    let ids = |n: usize| DescribeNetworkInterfaces {
        enis: (0..n)
            .map(|n| format!("eni-none{n}").parse().unwrap())
            .collect(),
        ..all()
    };
    let mut request = ids(99);
    request.enis.push(eni);

    assert_eq!(ask(&world, &request).await.enis.len(), 1);
    assert_eq!(world.code(&ids(101)).await, "InvalidParameter");
}

#[tokio::test]
async fn instances_are_described_with_their_primary_eni() {
    let world = World::new().await;
    let view = world.instance("i-a", "vsw-h").await;
    world.attached(&view.id, &create_in("vsw-h")).await;
    let request = DescribeInstances {
        instances: vec!["i-a".parse().unwrap(), "i-none".parse().unwrap()],
        ..DescribeInstances::default()
    };

    let page = ask(&world, &request).await;

    assert_eq!(page.instances.len(), 1);
    let instance = &page.instances[0];
    assert_eq!(instance.primary_eni.as_ref(), Some(&view.primary.eni));
    assert_eq!(
        instance.primary_ip.map(std::net::IpAddr::V4),
        view.primary.addresses.first().copied()
    );
    assert_eq!(instance.instance_type.as_str(), "ecs.g7.xlarge");
    assert_eq!(
        (instance.zone.as_str(), instance.region.as_str()),
        ("cn-hangzhou-h", "cn-hangzhou")
    );
    assert_eq!(
        (instance.vswitch.as_str(), instance.status.as_str()),
        ("vsw-h", "Running")
    );
}

#[tokio::test]
async fn instance_pages_cover_all_instances() {
    let world = World::new().await;
    for n in 0..12 {
        world.instance(&format!("i-{n:02}"), "vsw-h").await;
    }

    let first = ask(&world, &DescribeInstances::default()).await;
    let request = DescribeInstances {
        next_token: first.next_token,
        ..DescribeInstances::default()
    };
    let second = ask(&world, &request).await;

    assert_eq!((first.instances.len(), second.instances.len()), (10, 2));
    assert_eq!(second.next_token, None);
}

// The type that the design's examples use; its row is quoted from the real service.
#[tokio::test]
async fn instance_types_have_their_limits_and_can_be_added() {
    let world = World::new().await;
    let quota = EniQuota {
        enis: 2,
        enis_total: 2,
        ipv4_per_eni: 3,
        ipv6_per_eni: 3,
        trunk: false,
    };
    world.sim.set_instance_type(InstanceTypeSpec {
        id: "ecs.tiny".parse().unwrap(),
        quota,
    });
    let request = DescribeInstanceTypes {
        instance_types: vec![
            "ecs.g7.xlarge".parse().unwrap(),
            "ecs.tiny".parse().unwrap(),
        ],
        ..DescribeInstanceTypes::default()
    };

    let page = ask(&world, &request).await;

    let row = |id: &str| {
        page.instance_types
            .iter()
            .find(|row| row.id.as_str() == id)
            .unwrap()
            .quota
    };
    let g7 = EniQuota {
        enis: 4,
        enis_total: 20,
        ipv4_per_eni: 15,
        ipv6_per_eni: 15,
        trunk: true,
    };
    assert_eq!((row("ecs.g7.xlarge"), row("ecs.tiny")), (g7, quota));
}

#[tokio::test]
async fn vswitches_are_described_with_ranges_and_free_counts() {
    let world = World::new().await;
    world.eni("vsw-h").await;
    let request = DescribeVSwitches {
        vswitches: vec!["vsw-h".parse().unwrap(), "vsw-small".parse().unwrap()],
        ..DescribeVSwitches::default()
    };

    let page = ask(&world, &request).await;

    assert_eq!(page.total_count, 2);
    let (h, small) = (&page.vswitches[0], &page.vswitches[1]);
    assert_eq!((h.available_ipv4, small.available_ipv4), (251, 4));
    assert_eq!(h.ipv6_cidr.unwrap().to_string(), "2001:db8:0:100::/64");
    assert_eq!(small.ipv6_cidr, None);
}

#[tokio::test]
async fn vswitch_pages_are_numbered_and_bounded() {
    let world = World::new().await;
    let page = |number, size| DescribeVSwitches {
        page_number: Some(number),
        page_size: Some(size),
        ..DescribeVSwitches::default()
    };

    assert_eq!(ask(&world, &page(1, 3)).await.vswitches.len(), 3);
    assert_eq!(ask(&world, &page(2, 3)).await.vswitches.len(), 1);
    assert_eq!(ask(&world, &page(3, 3)).await.vswitches.len(), 0);
    assert_eq!(world.code(&page(1, 51)).await, "InvalidParameter");
}

#[tokio::test]
async fn security_groups_are_found_by_id_and_vpc() {
    let world = World::new().await;
    let by_id = DescribeSecurityGroups {
        security_groups: vec!["sg-a".parse().unwrap(), "sg-none".parse().unwrap()],
        ..DescribeSecurityGroups::default()
    };
    let by_vpc = DescribeSecurityGroups {
        vpc: Some("vpc-b".parse().unwrap()),
        ..DescribeSecurityGroups::default()
    };

    let page = ask(&world, &by_id).await;
    assert_eq!(page.security_groups.len(), 1);
    assert_eq!(page.security_groups[0].vpc.as_str(), "vpc-a");
    assert_eq!(
        ask(&world, &by_vpc).await.security_groups[0].id.as_str(),
        "sg-b"
    );
}
