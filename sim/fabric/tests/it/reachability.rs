//! Who reaches whom across vSwitches, and who does not.

use std::time::Duration;

use ecs_sim::plane::DataPlane;
use fabric::vpc::{Fabric, FabricConfig};

use crate::world::{World, connect, has_link, ip, port, serve};

#[tokio::test]
async fn instances_of_two_vswitches_reach_each_other_over_both_families() {
    let world = World::new().await;
    let (at_a, at_b) = (serve(&world.a), serve(&world.b));

    for (from, to, target, source) in [
        (&world.a, at_b, "10.0.2.5", "10.0.1.5"),
        (&world.a, at_b, "2001:db8:0:2::5", "2001:db8:0:1::5"),
        (&world.b, at_a, "10.0.1.5", "10.0.2.5"),
        (&world.b, at_a, "2001:db8:0:1::5", "2001:db8:0:2::5"),
    ] {
        let seen = connect(from, target, to).unwrap();

        assert_eq!(seen.to_string(), source);
    }
    world.fabric.stop().await.unwrap();
}

#[tokio::test]
async fn unassigned_address_of_a_vswitch_is_unreachable() {
    let world = World::new().await;
    let at_b = serve(&world.b);
    ip(&world.b, "addr add 10.0.2.6/32 dev eth0");

    assert!(connect(&world.a, "10.0.2.6", at_b).is_err());
    assert!(connect(&world.a, "2001:db8:0:2::6", at_b).is_err());

    let mut more = world.port_b.clone();
    more.addresses.push("10.0.2.6".parse().unwrap());
    world.fabric.set_addresses(&more).await.unwrap();
    connect(&world.a, "10.0.2.6", at_b).unwrap();

    world.fabric.set_addresses(&world.port_b).await.unwrap();
    assert!(connect(&world.a, "10.0.2.6", at_b).is_err());
}

#[tokio::test]
async fn neighbour_in_the_same_vswitch_is_found_by_arp() {
    let world = World::new().await;
    let mut third = port(3, 1, &["10.0.1.9"]);
    third.instance = "i-3".parse().unwrap();
    let c = world
        .fabric
        .add_instance(&third.instance, "c")
        .await
        .unwrap();
    world.fabric.plug(&third).await.unwrap();
    let at_c = serve(&c);

    // 10.0.1.0/24 is on-link for the instance, so it asks for the MAC.
    assert!(connect(&world.a, "10.0.1.9", at_c).is_ok());
    assert!(connect(&world.a, "10.0.1.10", at_c).is_err());
}

#[tokio::test]
async fn gateway_answers_arp_and_neighbour_discovery() {
    let world = World::new().await;
    let anything = serve(world.fabric.vpc());

    connect(&world.a, "10.0.1.253", anything).unwrap();
    connect(&world.a, "2001:db8:0:1:ffff:ffff:ffff:fff7", anything).unwrap();
}

#[tokio::test]
async fn unplug_takes_the_link_and_its_routes_away() {
    let world = World::new().await;
    let at_b = serve(&world.b);
    let mut second = port(9, 2, &["10.0.2.77"]);
    second.primary = false;
    world.fabric.plug(&second).await.unwrap();
    assert!(has_link(&world.b, "00:16:3e:00:00:09"));
    assert_eq!(
        world.fabric.guest_link(&second.eni).await.as_deref(),
        Some("eth1")
    );
    assert!(ip(&world.b, "-o link show dev eth1").contains("state DOWN"));

    world.fabric.unplug(&second.eni).await.unwrap();
    world.fabric.unplug(&second.eni).await.unwrap();

    assert!(!has_link(&world.b, "00:16:3e:00:00:09"));
    assert!(!ip(world.fabric.vpc(), "route").contains("10.0.2.77"));
    connect(&world.a, "10.0.2.5", at_b).unwrap();
}

#[tokio::test]
async fn link_of_a_plugged_eni_appears_after_the_lag() {
    let lag = Duration::from_millis(300);
    let world = World::with(FabricConfig {
        link_lag: lag,
        source_check: true,
    })
    .await;
    let mut second = port(9, 2, &["10.0.2.77"]);
    second.primary = false;
    world.fabric.plug(&second).await.unwrap();

    assert!(!has_link(&world.b, "00:16:3e:00:00:09"));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    let mut look = tokio::time::interval(Duration::from_millis(20));
    while !has_link(&world.b, "00:16:3e:00:00:09") {
        look.tick().await;
        assert!(tokio::time::Instant::now() < deadline, "no link after 10 s");
    }
}

#[tokio::test]
async fn plug_of_an_unknown_instance_names_it() {
    let fabric = Fabric::start(FabricConfig::default()).await.unwrap();

    let error = fabric.plug(&port(1, 1, &[])).await.unwrap_err();

    assert!(error.to_string().contains("i-1"), "{error}");
}

#[tokio::test]
async fn stop_removes_every_namespace_of_the_run() {
    let world = World::new().await;
    let prefix = world.fabric.prefix().to_owned();
    world.fabric.create_namespace("pod").unwrap();

    world.fabric.stop().await.unwrap();

    assert_eq!(fabric::namespace::with_prefix(&prefix), vec![]);
    assert!(world.fabric.plug(&world.port_a).await.is_err());
}
