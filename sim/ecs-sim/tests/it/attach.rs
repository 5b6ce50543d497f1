//! Attach, detach, delete: the states, the limits, and what the data plane is told when.

use std::sync::atomic::Ordering;

use ecs_api::model::Pick;
use ecs_api::model::eni::{
    AttachNetworkInterface, CreateNetworkInterface, DeleteNetworkInterface, DetachNetworkInterface,
    EniKind, EniStatus,
};
use ecs_sim::account::instance::InstanceStatus;
use types::cloud::{EniId, InstanceId};

use crate::world::{World, attach, create_in, endless};

fn detach(eni: &EniId, instance: &InstanceId) -> DetachNetworkInterface {
    DetachNetworkInterface {
        eni: eni.clone(),
        instance: instance.clone(),
        trunk: None,
    }
}

fn delete(eni: &EniId) -> DeleteNetworkInterface {
    DeleteNetworkInterface { eni: eni.clone() }
}

async fn status(world: &World, eni: &EniId) -> EniStatus {
    world.describe(eni).await.unwrap().status
}

// Paused time moves only while everybody waits, so every state in between can be seen.
#[tokio::test(start_paused = true)]
async fn eni_goes_through_all_its_states() {
    let world = World::new().await;
    world.sim.set_latency(endless());
    let instance = world.instance("i-a", "vsw-h").await.id;
    let eni = world.eni("vsw-h").await.id;
    let free = world.available("vsw-h");

    assert_eq!(world.code(&attach(&eni, &instance)).await, "ok");
    assert_eq!(status(&world, &eni).await, EniStatus::Attaching);
    assert_eq!(world.plane.addresses(&eni), None);
    world.sim.settled().await;
    let row = world.describe(&eni).await.unwrap();
    assert_eq!(
        (row.status, row.instance),
        (EniStatus::InUse, Some(instance.clone()))
    );
    assert_eq!(world.plane.addresses(&eni).unwrap().len(), 1);

    assert_eq!(world.code(&detach(&eni, &instance)).await, "ok");
    assert_eq!(status(&world, &eni).await, EniStatus::Detaching);
    assert_eq!(world.code(&detach(&eni, &instance)).await, "ok");
    world.sim.settled().await;
    let row = world.describe(&eni).await.unwrap();
    assert_eq!((row.status, row.instance), (EniStatus::Available, None));
    assert_eq!(world.plane.addresses(&eni), None);

    assert_eq!(world.code(&delete(&eni)).await, "ok");
    assert_eq!(status(&world, &eni).await, EniStatus::Deleting);
    assert_eq!(world.code(&delete(&eni)).await, "ok");
    world.sim.settled().await;
    assert_eq!(world.describe(&eni).await, None);
    assert_eq!(world.available("vsw-h"), free + 1);
    assert_eq!(world.code(&delete(&eni)).await, "InvalidEniId.NotFound");
}

#[tokio::test]
async fn call_in_the_wrong_state_is_refused() {
    let world = World::new().await;
    let instance = world.instance("i-a", "vsw-h").await.id;
    let eni = world.eni("vsw-h").await.id;
    assert_eq!(
        world.code(&detach(&eni, &instance)).await,
        "InvalidOperation.InvalidEniState"
    );

    world.sim.set_latency(endless());
    assert_eq!(world.code(&attach(&eni, &instance)).await, "ok");

    for code in [
        world.code(&attach(&eni, &instance)).await,
        world.code(&detach(&eni, &instance)).await,
        world.code(&delete(&eni)).await,
    ] {
        assert_eq!(code, "InvalidOperation.InvalidEniState");
    }
}

#[tokio::test]
async fn attach_across_zones_and_vpcs_is_refused() {
    let world = World::new().await;
    let instance = world.instance("i-a", "vsw-h").await.id;
    let (far, foreign) = (world.eni("vsw-i").await.id, world.eni("vsw-b").await.id);

    let zone = world.code(&attach(&far, &instance)).await;
    assert_eq!(zone, "InvalidOperation.AvailabilityZoneMismatch");
    let vpc = world.code(&attach(&foreign, &instance)).await;
    assert_eq!(vpc, "InvalidOperation.VpcMismatch");
}

#[tokio::test]
async fn attach_of_what_does_not_exist_is_refused() {
    let world = World::new().await;
    let instance = world.instance("i-a", "vsw-h").await.id;
    let eni = world.eni("vsw-h").await.id;
    let (no_eni, no_instance) = ("eni-none".parse().unwrap(), "i-none".parse().unwrap());

    assert_eq!(
        world.code(&attach(&no_eni, &instance)).await,
        "InvalidEniId.NotFound"
    );
    assert_eq!(
        world.code(&attach(&eni, &no_instance)).await,
        "InvalidEcsId.NotFound"
    );
    let Err(failed) = world.ask(&detach(&eni, &no_instance)).await else {
        panic!("not refused");
    };
    assert_eq!(
        (failed.code(), failed.status()),
        ("InvalidEcsId.NotFound", 403)
    );
}

#[tokio::test]
async fn primary_eni_can_be_neither_attached_detached_nor_deleted() {
    let world = World::new().await;
    let view = world.instance("i-a", "vsw-h").await;
    let eni = &view.primary.eni;

    assert_eq!(
        world.code(&attach(eni, &view.id)).await,
        "InvalidOperation.InvalidEniType"
    );
    let code = world.code(&detach(eni, &view.id)).await;
    assert_eq!(code, "InvalidOperation.DetachPrimaryEniNotAllowed");
    assert_eq!(
        world.code(&delete(eni)).await,
        "InvalidOperation.InvalidEniType"
    );
}

#[tokio::test]
async fn detach_from_another_instance_is_refused() {
    let world = World::new().await;
    let (a, b) = (
        world.instance("i-a", "vsw-h").await.id,
        world.instance("i-b", "vsw-h").await.id,
    );
    let eni = world.attached(&a, &create_in("vsw-h")).await;

    assert_eq!(
        world.code(&detach(&eni, &b)).await,
        "InvalidParameter.EniNotBelongEcs"
    );
}

#[tokio::test]
async fn attach_to_an_instance_between_states_is_refused() {
    let world = World::new().await;
    let instance = world.instance("i-a", "vsw-h").await.id;
    let eni = world.eni("vsw-h").await.id;
    world
        .sim
        .set_instance_status(&instance, InstanceStatus::Stopping)
        .unwrap();
    assert_eq!(
        world.code(&attach(&eni, &instance)).await,
        "InvalidOperation.InvalidEcsState"
    );

    world
        .sim
        .set_instance_status(&instance, InstanceStatus::Stopped)
        .unwrap();
    assert_eq!(world.code(&attach(&eni, &instance)).await, "ok");
}

#[tokio::test]
async fn attach_beyond_the_type_s_enis_is_refused() {
    let world = World::new().await;
    let instance = world.instance("i-a", "vsw-h").await.id;
    for _ in 0..3 {
        world.attached(&instance, &create_in("vsw-h")).await;
    }
    let eni = world.eni("vsw-h").await.id;

    let code = world.code(&attach(&eni, &instance)).await;

    assert_eq!(code, "EniPerInstanceLimitExceeded");
}

#[tokio::test]
async fn attach_with_more_addresses_than_the_type_allows_is_refused() {
    let world = World::new().await;
    let instance = world.instance("i-a", "vsw-h").await.id;
    let small = world.instance_of("ecs.g6.large", "i-b", "vsw-h").await.id;
    let many4 = CreateNetworkInterface {
        ipv4: Pick::Count(15),
        ..create_in("vsw-h")
    };
    let many6 = CreateNetworkInterface {
        ipv6: Pick::Count(2),
        ..create_in("vsw-h")
    };
    let (many4, many6) = (world.create(&many4).await.id, world.create(&many6).await.id);

    let code = world.code(&attach(&many4, &instance)).await;
    assert_eq!(code, "InvalidOperation.Ipv4CountExceeded");
    let code = world.code(&attach(&many6, &small)).await;
    assert_eq!(code, "InvalidOperation.Ipv6CountExceeded");
}

#[tokio::test]
async fn sixth_attach_at_a_time_is_refused() {
    let world = World::new().await;
    let instance = world.instance_of("ecs.g6.8xlarge", "i-a", "vsw-h").await.id;
    world.sim.set_latency(endless());
    for _ in 0..5 {
        let eni = world.eni("vsw-h").await.id;
        assert_eq!(world.code(&attach(&eni, &instance)).await, "ok");
    }
    let eni = world.eni("vsw-h").await.id;

    let Err(failed) = world.ask(&attach(&eni, &instance)).await else {
        panic!("not refused");
    };

    assert_eq!(
        (failed.code(), failed.status()),
        ("Operation.Conflict", 403)
    );
}

#[tokio::test]
async fn attach_that_the_data_plane_refuses_leaves_the_eni_available() {
    let world = World::new().await;
    let instance = world.instance("i-a", "vsw-h").await.id;
    let eni = world.eni("vsw-h").await.id;
    world.plane.broken.store(true, Ordering::SeqCst);
    assert_eq!(world.code(&attach(&eni, &instance)).await, "ok");
    world.sim.settled().await;

    let row = world.describe(&eni).await.unwrap();

    assert_eq!((row.status, row.instance), (EniStatus::Available, None));
}

#[tokio::test]
async fn member_eni_is_carried_by_a_trunk() {
    let world = World::new().await;
    let instance = world.instance("i-a", "vsw-h").await.id;
    let trunk = CreateNetworkInterface {
        kind: EniKind::Trunk,
        ..create_in("vsw-h")
    };
    let trunk = world.attached(&instance, &trunk).await;
    let member = world.eni("vsw-h").await.id;
    let on_trunk = AttachNetworkInterface {
        trunk: Some(trunk.clone()),
        ..attach(&member, &instance)
    };

    assert_eq!(world.code(&on_trunk).await, "ok");
    world.sim.settled().await;

    let row = world.describe(&member).await.unwrap();
    assert_eq!(
        (row.kind, row.trunk, row.device_index),
        (EniKind::Member, Some(trunk.clone()), Some(1))
    );
    let code = world.code(&detach(&trunk, &instance)).await;
    assert_eq!(code, "InvalidOperation.HasMemberEniAttached");
    assert_eq!(world.code(&detach(&member, &instance)).await, "ok");
    world.sim.settled().await;
    assert_eq!(
        world.describe(&member).await.unwrap().kind,
        EniKind::Secondary
    );
}

#[tokio::test]
async fn trunk_on_a_type_without_trunks_is_refused() {
    let world = World::new().await;
    let instance = world.instance_of("ecs.g6.large", "i-a", "vsw-h").await.id;
    let trunk = CreateNetworkInterface {
        kind: EniKind::Trunk,
        ..create_in("vsw-h")
    };
    let trunk = world.create(&trunk).await.id;

    let code = world.code(&attach(&trunk, &instance)).await;

    assert_eq!(code, "InvalidOperation.InstanceTypeNotSupportEniTrunking");
}

#[tokio::test]
async fn detach_behind_the_back_frees_the_eni_and_unplugs_it() {
    let world = World::new().await;
    let instance = world.instance("i-a", "vsw-h").await.id;
    let eni = world.attached(&instance, &create_in("vsw-h")).await;

    world.sim.detach_behind_back(&eni).await.unwrap();

    assert_eq!(status(&world, &eni).await, EniStatus::Available);
    assert_eq!(world.plane.addresses(&eni), None);
    assert!(
        !world
            .sim
            .dump()
            .calls
            .contains_key("DetachNetworkInterface")
    );
}
