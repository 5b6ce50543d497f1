//! CreateNetworkInterface: limits, addresses, groups, tokens.

use ecs_api::model::Pick;
use ecs_api::model::eni::{CreateNetworkInterface, EniKind, EniStatus};
use ecs_sim::config::Limits;

use crate::world::{Failed, MINUTE, WORLD, World, create_in, v4, v6};

fn with_token(token: &str) -> CreateNetworkInterface {
    CreateNetworkInterface {
        client_token: Some(token.to_owned()),
        ..create_in("vsw-h")
    }
}

#[tokio::test]
async fn created_eni_is_available_with_the_addresses_asked_for() {
    let world = World::new().await;
    let request = CreateNetworkInterface {
        primary_ip: Some(v4("10.0.0.10")),
        ipv4: Pick::Listed((11..=20).map(|n| v4(&format!("10.0.0.{n}"))).collect()),
        ipv6: Pick::Listed(
            (16..26)
                .map(|n| v6(&format!("2001:db8:0:100::{n:x}")))
                .collect(),
        ),
        name: "name".to_owned(),
        tags: [("k".to_owned(), "v".to_owned())].into(),
        ..create_in("vsw-h")
    };

    let eni = world.create(&request).await;

    assert_eq!(
        (eni.status, eni.kind),
        (EniStatus::Available, EniKind::Secondary)
    );
    assert_eq!(
        eni.ipv4,
        (10..=20)
            .map(|n| v4(&format!("10.0.0.{n}")))
            .collect::<Vec<_>>()
    );
    assert_eq!(eni.ipv6.len(), 10);
    assert!(eni.mac.to_string().starts_with("00:16:3e:"));
    let row = world.describe(&eni.id).await.unwrap();
    assert_eq!(
        (row.ipv4, row.ipv6, row.tags),
        (eni.ipv4, eni.ipv6, request.tags)
    );
    assert_eq!(row.zone.unwrap().as_str(), "cn-hangzhou-h");
    assert_eq!(row.created_at.unwrap(), crate::world::start());
    assert_eq!(world.available("vsw-h"), 252 - 11);
}

#[tokio::test]
async fn create_by_count_adds_to_the_primary_address() {
    let world = World::new().await;
    let request = CreateNetworkInterface {
        ipv4: Pick::Count(49),
        ipv6: Pick::Count(10),
        ..create_in("vsw-h")
    };

    let eni = world.create(&request).await;

    assert_eq!((eni.ipv4.len(), eni.ipv6.len()), (50, 10));
}

#[tokio::test]
async fn create_beyond_the_documented_lengths_is_refused() {
    let world = World::new().await;
    let eleven4: Vec<_> = (11..=21).map(|n| v4(&format!("10.0.0.{n}"))).collect();
    let eleven6: Vec<_> = (16..27)
        .map(|n| v6(&format!("2001:db8:0:100::{n:x}")))
        .collect();
    for request in [
        CreateNetworkInterface {
            ipv4: Pick::Listed(eleven4),
            ..create_in("vsw-h")
        },
        CreateNetworkInterface {
            ipv4: Pick::Count(50),
            ..create_in("vsw-h")
        },
        CreateNetworkInterface {
            ipv4: Pick::Count(0),
            ..create_in("vsw-h")
        },
        CreateNetworkInterface {
            ipv6: Pick::Listed(eleven6),
            ..create_in("vsw-h")
        },
        CreateNetworkInterface {
            ipv6: Pick::Count(11),
            ..create_in("vsw-h")
        },
        CreateNetworkInterface {
            name: "n".to_owned(),
            ..create_in("vsw-h")
        },
        CreateNetworkInterface {
            description: "http://a".to_owned(),
            ..create_in("vsw-h")
        },
        with_token(&"t".repeat(65)),
    ] {
        assert_eq!(
            world.code(&request).await,
            "InvalidParameter",
            "{request:?}"
        );
    }
    assert_eq!(world.available("vsw-h"), 252);
}

#[tokio::test]
async fn create_with_an_address_that_cannot_be_is_refused() {
    let world = World::new().await;
    let taken = world.eni("vsw-h").await.primary_ip;
    let primary = |ip: &str| CreateNetworkInterface {
        primary_ip: Some(v4(ip)),
        ..create_in("vsw-h")
    };
    for (request, code) in [
        (primary(&taken.to_string()), "InvalidIp.IpAssigned"),
        (primary("10.0.1.7"), "InvalidVSwitchId.IpInvalid"),
        (primary("10.0.0.253"), "InvalidVSwitchId.IpInvalid"),
        (primary("10.0.0.0"), "InvalidVSwitchId.IpInvalid"),
        (
            CreateNetworkInterface {
                ipv4: Pick::Listed(vec![v4("10.0.0.9"), v4("10.0.0.9")]),
                ..create_in("vsw-h")
            },
            "InvalidIp.IpRepeated",
        ),
        (
            CreateNetworkInterface {
                ipv6: Pick::Count(1),
                ..create_in("vsw-small")
            },
            "InvalidVSwitch.Ipv6NotTurnOn",
        ),
        (
            CreateNetworkInterface {
                ipv6: Pick::Listed(vec![v6("2001:db8:0:100::1")]),
                ..create_in("vsw-h")
            },
            "InvalidVSwitchId.IpInvalid",
        ),
    ] {
        let Err(failed) = world.ask(&request).await else {
            panic!("{request:?}");
        };
        assert_eq!((failed.code(), failed.status()), (code, 403), "{request:?}");
    }
}

#[tokio::test]
async fn create_in_a_full_vswitch_says_that_there_are_not_enough_addresses() {
    let world = World::new().await;
    for _ in 0..4 {
        world.eni("vsw-small").await;
    }

    let Err(failed) = world.ask(&create_in("vsw-small")).await else {
        panic!("not refused");
    };

    assert_eq!(
        (failed.code(), failed.status()),
        ("InvalidVSwitchId.IpNotEnough", 403)
    );
    assert_eq!(world.available("vsw-small"), 0);
}

#[tokio::test]
async fn create_that_names_absent_things_is_refused() {
    let world = World::new().await;
    let groups = |ids: &[&str]| CreateNetworkInterface {
        security_groups: ids.iter().map(|id| id.parse().unwrap()).collect(),
        ..create_in("vsw-h")
    };
    for (request, status, code) in [
        (create_in("vsw-none"), 404, "InvalidVSwitchId.NotFound"),
        (groups(&["sg-none"]), 404, "InvalidSecurityGroupId.NotFound"),
        (groups(&["sg-b"]), 403, "InvalidSecurityGroupId.NotVpc"),
        (groups(&[]), 400, "MissingParameter"),
        (
            groups(&["sg-1", "sg-2", "sg-3", "sg-4", "sg-5", "sg-6"]),
            400,
            "JoinedGroupLimitExceed",
        ),
    ] {
        let Err(failed) = world.ask(&request).await else {
            panic!("{request:?}");
        };
        assert_eq!(
            (failed.code(), failed.status()),
            (code, status),
            "{request:?}"
        );
    }
}

#[tokio::test]
async fn create_beyond_the_region_s_quota_is_refused() {
    let limits = Limits {
        enis: 1,
        ..Limits::default()
    };
    let world = World::with(WORLD, |config| config.limits = limits).await;
    world.instance("i-a", "vsw-h").await;

    assert_eq!(world.code(&create_in("vsw-h")).await, "ok");
    assert_eq!(world.code(&create_in("vsw-h")).await, "MaxEniCountExceeded");
}

#[tokio::test]
async fn create_into_a_full_security_group_is_refused() {
    let limits = Limits {
        normal_group: 5,
        ..Limits::default()
    };
    let world = World::with(WORLD, |config| config.limits = limits).await;
    let request = CreateNetworkInterface {
        ipv4: Pick::Count(3),
        ..create_in("vsw-h")
    };

    assert_eq!(world.code(&request).await, "ok");
    assert_eq!(
        world.code(&request).await,
        "SecurityGroupInstanceLimitExceed"
    );
    assert_eq!(world.code(&create_in("vsw-h")).await, "ok");
}

#[tokio::test]
async fn create_with_a_tag_the_cloud_keeps_is_refused() {
    let world = World::new().await;
    let tagged = |key: &str| CreateNetworkInterface {
        tags: [(key.to_owned(), String::new())].into(),
        ..create_in("vsw-h")
    };

    assert_eq!(
        world.code(&tagged("acs:x")).await,
        "InvalidTagKey.Malformed"
    );
    assert_eq!(
        world.code(&tagged("aliyun")).await,
        "InvalidTagKey.Malformed"
    );
    let many = CreateNetworkInterface {
        tags: (0..21).map(|n| (format!("k{n}"), String::new())).collect(),
        ..create_in("vsw-h")
    };
    assert_eq!(world.code(&many).await, "QuotaExceed.Tags");
}

// R: a repeated create makes no second ENI.
#[tokio::test]
async fn create_under_the_same_token_gives_the_first_eni_again() {
    let world = World::new().await;

    let first = world.create(&with_token("t")).await;
    let second = world.create(&with_token("t")).await;

    assert_eq!(first, second);
    assert_eq!(world.sim.dump().enis.len(), 1);
}

#[tokio::test]
async fn create_under_the_same_token_with_other_parameters_is_a_mismatch() {
    let world = World::new().await;
    world.create(&with_token("t")).await;
    let other = CreateNetworkInterface {
        name: "other".to_owned(),
        ..with_token("t")
    };

    let Err(failed) = world.ask(&other).await else {
        panic!("not refused");
    };

    assert_eq!(
        (failed.code(), failed.status()),
        ("IdempotentParameterMismatch", 400)
    );
    assert_eq!(world.sim.dump().enis.len(), 1);
}

#[tokio::test]
async fn create_that_failed_can_be_repeated_under_its_token() {
    let world = World::new().await;
    let foreign = world
        .sim
        .take_foreign(&"vsw-h".parse().unwrap(), "10.0.0.50".parse().unwrap());
    let request = CreateNetworkInterface {
        primary_ip: Some(v4("10.0.0.50")),
        ..with_token("t")
    };
    assert_eq!(world.code(&request).await, "InvalidIp.IpAssigned");
    world.sim.release_foreign(&foreign.unwrap()).unwrap();

    assert_eq!(world.code(&request).await, "ok");
}

#[tokio::test]
async fn token_is_forgotten_after_a_day() {
    let world = World::new().await;
    let first = world.create(&with_token("t")).await;
    world.clock.advance(24 * 60 * MINUTE);

    let second = world.create(&with_token("t")).await;

    assert_ne!(first.id, second.id);
}

#[tokio::test]
async fn same_seed_gives_the_same_ids_and_addresses() {
    let (one, two) = (World::new().await, World::new().await);

    let (first, second) = (one.eni("vsw-h").await, two.eni("vsw-h").await);

    assert_eq!(
        (first.id, first.mac, first.ipv4),
        (second.id, second.mac, second.ipv4)
    );
}

#[tokio::test]
async fn address_that_another_user_took_is_assigned_and_its_eni_is_hidden() {
    let world = World::new().await;
    let ip = "10.0.0.77";
    let foreign = world
        .sim
        .take_foreign(&"vsw-h".parse().unwrap(), ip.parse().unwrap())
        .unwrap();
    let request = CreateNetworkInterface {
        primary_ip: Some(v4(ip)),
        ..create_in("vsw-h")
    };

    let Err(Failed::Fault(fault)) = world.ask(&request).await else {
        panic!("not refused");
    };

    assert_eq!(fault.code, "InvalidIp.IpAssigned");
    assert_eq!(world.describe(&foreign).await, None);
    assert!(
        world
            .sim
            .dump()
            .enis
            .iter()
            .any(|eni| eni.foreign && eni.id == foreign)
    );
}
