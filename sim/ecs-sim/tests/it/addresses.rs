//! Assign and unassign: limits, conflicts, tokens, and what the data plane routes.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use ecs_api::model::Pick;
use ecs_api::model::address::{
    AssignIpv6Addresses, AssignPrivateIpAddresses, UnassignIpv6Addresses,
    UnassignPrivateIpAddresses,
};
use ecs_api::model::eni::CreateNetworkInterface;
use std::net::{Ipv4Addr, Ipv6Addr};
use types::cloud::EniId;

use crate::world::{World, attach, create_in, endless, v4, v6};

fn assign4(eni: &EniId, ipv4: Pick<Ipv4Addr>) -> AssignPrivateIpAddresses {
    AssignPrivateIpAddresses {
        eni: eni.clone(),
        ipv4,
        client_token: None,
    }
}

fn assign6(eni: &EniId, ipv6: Pick<Ipv6Addr>) -> AssignIpv6Addresses {
    AssignIpv6Addresses {
        eni: eni.clone(),
        ipv6,
        client_token: None,
    }
}

fn unassign4(eni: &EniId, ipv4: &[Ipv4Addr]) -> UnassignPrivateIpAddresses {
    UnassignPrivateIpAddresses {
        eni: eni.clone(),
        ipv4: ipv4.to_vec(),
    }
}

fn unassign6(eni: &EniId, ipv6: &[Ipv6Addr]) -> UnassignIpv6Addresses {
    UnassignIpv6Addresses {
        eni: eni.clone(),
        ipv6: ipv6.to_vec(),
    }
}

async fn attached(world: &World) -> EniId {
    let instance = world.instance("i-a", "vsw-h").await.id;
    world.attached(&instance, &create_in("vsw-h")).await
}

#[tokio::test]
async fn assigned_addresses_are_routed_before_the_answer() {
    let world = World::new().await;
    let eni = attached(&world).await;
    let (ip4, ip6) = (v4("10.0.0.100"), v6("2001:db8:0:100::100"));

    assert_eq!(
        world.code(&assign4(&eni, Pick::Listed(vec![ip4]))).await,
        "ok"
    );
    assert_eq!(
        world.code(&assign6(&eni, Pick::Listed(vec![ip6]))).await,
        "ok"
    );

    let row = world.describe(&eni).await.unwrap();
    assert!(row.ipv4.contains(&ip4) && row.ipv6.contains(&ip6));
    let routed = world.plane.addresses(&eni).unwrap();
    assert_eq!(
        routed,
        [IpAddr::V4(row.primary_ip), IpAddr::V4(ip4), IpAddr::V6(ip6)]
    );
}

#[tokio::test]
async fn unassigned_addresses_are_neither_routed_nor_taken() {
    let world = World::new().await;
    let eni = attached(&world).await;
    let assigned = world
        .ask(&assign4(&eni, Pick::Count(3)))
        .await
        .unwrap_or_else(|f| panic!("{}", f.code()));
    let free = world.available("vsw-h");

    assert_eq!(
        world.code(&unassign4(&eni, &assigned.reply.ipv4)).await,
        "ok"
    );

    assert_eq!(world.plane.addresses(&eni).unwrap().len(), 1);
    assert_eq!(world.available("vsw-h"), free + 3);
    let again = world.code(&unassign4(&eni, &assigned.reply.ipv4)).await;
    assert_eq!(again, "InvalidIp.IpUnassigned");
}

#[tokio::test]
async fn unassign_of_one_unknown_address_takes_none() {
    let world = World::new().await;
    let eni = attached(&world).await;
    let (ip4, ip6) = (v4("10.0.0.100"), v6("2001:db8:0:100::100"));
    world.code(&assign4(&eni, Pick::Listed(vec![ip4]))).await;
    world.code(&assign6(&eni, Pick::Listed(vec![ip6]))).await;
    let before = world.plane.addresses(&eni);

    let code = world.code(&unassign4(&eni, &[ip4, v4("10.0.0.200")])).await;
    assert_eq!(code, "InvalidIp.IpUnassigned");
    let code = world
        .code(&unassign6(&eni, &[ip6, v6("2001:db8:0:100::200")]))
        .await;
    assert_eq!(code, "InvalidIp.IpUnassigned");
    let primary = world.describe(&eni).await.unwrap().primary_ip;
    assert_eq!(
        world.code(&unassign4(&eni, &[primary])).await,
        "InvalidIp.IpUnassigned"
    );
    assert_eq!(
        world.code(&unassign4(&eni, &[ip4, ip4])).await,
        "InvalidIp.IpRepeated"
    );

    assert_eq!(world.plane.addresses(&eni), before);
}

#[tokio::test]
async fn eni_in_use_takes_as_many_addresses_as_its_type_allows() {
    let world = World::new().await;
    let eni = attached(&world).await;

    assert_eq!(
        world.code(&assign4(&eni, Pick::Count(15))).await,
        "InvalidOperation.Ipv4CountExceeded"
    );
    assert_eq!(world.code(&assign4(&eni, Pick::Count(14))).await, "ok");
    assert_eq!(
        world.code(&assign4(&eni, Pick::Count(1))).await,
        "InvalidOperation.Ipv4CountExceeded"
    );
    assert_eq!(world.code(&assign6(&eni, Pick::Count(10))).await, "ok");
    assert_eq!(
        world.code(&assign6(&eni, Pick::Count(6))).await,
        "InvalidOperation.Ipv6CountExceeded"
    );
    assert_eq!(world.code(&assign6(&eni, Pick::Count(5))).await, "ok");
}

#[tokio::test]
async fn available_eni_takes_49_secondary_and_10_ipv6_addresses() {
    let world = World::new().await;
    let eni = world.eni("vsw-h").await.id;

    assert_eq!(world.code(&assign4(&eni, Pick::Count(49))).await, "ok");
    assert_eq!(
        world.code(&assign4(&eni, Pick::Count(1))).await,
        "MaxEniPrivateIpsCountExceeded"
    );
    assert_eq!(world.code(&assign6(&eni, Pick::Count(10))).await, "ok");
    assert_eq!(
        world.code(&assign6(&eni, Pick::Count(1))).await,
        "MaxEniIpv6IpsCountExceeded"
    );
}

#[tokio::test]
async fn ipv6_on_a_type_without_it_is_refused() {
    let world = World::new().await;
    let view = world
        .instance_of("ecs.ebmg5.24xlarge", "i-a", "vsw-h")
        .await;
    let eni = world.attached(&view.id, &create_in("vsw-h")).await;

    let code = world.code(&assign6(&eni, Pick::Count(1))).await;

    assert_eq!(code, "InvalidOperation.Ipv6NotSupport");
}

#[tokio::test]
async fn assign_while_attaching_is_refused() {
    let world = World::new().await;
    let instance = world.instance("i-a", "vsw-h").await.id;
    let eni = world.eni("vsw-h").await.id;
    world.sim.set_latency(endless());
    world.code(&attach(&eni, &instance)).await;

    let code = world.code(&assign4(&eni, Pick::Count(1))).await;

    assert_eq!(code, "InvalidOperation.InvalidEniState");
}

#[tokio::test]
async fn assign_of_addresses_that_cannot_be_is_refused() {
    let world = World::new().await;
    let eni = attached(&world).await;
    let taken = world.eni("vsw-h").await.primary_ip;
    for (ips, code) in [
        (vec![taken], "InvalidIp.IpAssigned"),
        (vec![v4("10.0.1.1")], "InvalidVSwitchId.IpInvalid"),
        (vec![v4("10.0.0.254")], "InvalidVSwitchId.IpInvalid"),
        (
            vec![v4("10.0.0.90"), v4("10.0.0.90")],
            "InvalidIp.IpRepeated",
        ),
    ] {
        assert_eq!(world.code(&assign4(&eni, Pick::Listed(ips))).await, code);
    }
    assert_eq!(
        world.code(&assign4(&eni, Pick::Nothing)).await,
        "MissingParameter"
    );
    assert_eq!(
        world.code(&assign6(&eni, Pick::Nothing)).await,
        "MissingParameter"
    );
    let absent = "eni-none".parse().unwrap();
    assert_eq!(
        world.code(&assign4(&absent, Pick::Count(1))).await,
        "InvalidEniId.NotFound"
    );
}

#[tokio::test]
async fn assign_from_a_full_vswitch_takes_nothing() {
    let world = World::new().await;
    let eni = world.eni("vsw-small").await.id;

    let code = world.code(&assign4(&eni, Pick::Count(4))).await;

    assert_eq!(code, "InvalidVSwitchId.IpNotEnough");
    assert_eq!(world.available("vsw-small"), 3);
}

#[tokio::test]
async fn assign_under_the_same_token_has_one_effect() {
    let world = World::new().await;
    let eni = attached(&world).await;
    let request = AssignPrivateIpAddresses {
        client_token: Some("t".to_owned()),
        ..assign4(&eni, Pick::Count(2))
    };

    let first = world
        .ask(&request)
        .await
        .unwrap_or_else(|f| panic!("{}", f.code()));
    let second = world
        .ask(&request)
        .await
        .unwrap_or_else(|f| panic!("{}", f.code()));

    assert_eq!(first.reply, second.reply);
    assert_ne!(first.request_id, second.request_id);
    assert_eq!(world.describe(&eni).await.unwrap().ipv4.len(), 3);
}

#[tokio::test]
async fn assign_that_the_data_plane_refuses_gives_the_addresses_back() {
    let world = World::new().await;
    let eni = attached(&world).await;
    let free = world.available("vsw-h");
    world.plane.broken.store(true, Ordering::SeqCst);

    let Err(failed) = world.ask(&assign4(&eni, Pick::Count(2))).await else {
        panic!("not refused");
    };

    assert_eq!((failed.code(), failed.status()), ("InternalError", 500));
    assert_eq!(world.available("vsw-h"), free);
}

#[tokio::test]
async fn prefixes_are_refused_as_unsupported() {
    let world = World::new().await;
    let eni = world.eni("vsw-h").await.id;
    let request = PrefixCount(eni);

    assert_eq!(world.code(&request).await, "UnsupportedParameter");
}

struct PrefixCount(EniId);

impl ecs_api::model::Request for PrefixCount {
    const ACTION: ecs_api::action::Action = ecs_api::action::Action::AssignPrivateIpAddresses;
    type Reply = ();

    fn params(&self) -> ecs_api::model::params::Params {
        ecs_api::model::params::Params::new()
            .with("NetworkInterfaceId", &self.0)
            .with("Ipv4PrefixCount", 1)
    }
}

// Many callers at once: whatever the order, nobody gets an address that somebody else has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn assigns_at_the_same_time_never_share_an_address() {
    let world = std::sync::Arc::new(World::new().await);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let world = std::sync::Arc::clone(&world);
        tasks.spawn(async move {
            let request = CreateNetworkInterface {
                ipv4: Pick::Count(3),
                ..create_in("vsw-h")
            };
            let eni = world.create(&request).await;
            let more = world.ask(&assign4(&eni.id, Pick::Count(3))).await;
            let more = more.unwrap_or_else(|f| panic!("{}", f.code()));
            [eni.ipv4, more.reply.ipv4].concat()
        });
    }

    let mut all: Vec<_> = tasks.join_all().await.concat();

    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!((count, all.len()), (140, 140));
    assert_eq!(world.available("vsw-h"), 252 - 140);
}
