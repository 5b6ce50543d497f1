//! Keys that change, owners that change.

use std::time::Duration;

use ecs_api::action::Action;
use ecs_sim::faults::{Effect, Fault};
use proto::cloud::v1::cloud_server::Cloud;
use proto::cloud::v1::{AttachEniRequest, CreateEniRequest, FenceRequest};
use tonic::{Request, Status};

use crate::world::{INSTANCE, VSWITCH, World, new_eni, op, reason, write_keys};

#[tokio::test]
async fn rotated_keys_are_used_without_a_failed_operation() {
    let world = World::new().await;
    world.made(1, "10.0.0.10").await;

    write_keys(world.dir.path(), "id-2", "secret-2");
    world.sim.add_access_key("id-2", "secret-2");
    assert!(world.sim.disable_access_key("id-1"));
    world.made(2, "10.0.0.20").await;

    let last = world.sim.calls().pop().unwrap();
    assert_eq!(last.access_key_id, "id-2");
}

#[tokio::test]
async fn disabled_keys_are_told_from_a_missing_permission() {
    let world = World::new().await;
    assert!(world.sim.disable_access_key("id-1"));

    let status = world.create(new_eni(1, "10.0.0.10")).await.unwrap_err();

    assert_eq!(reason(&status), "REASON_CLOUD_CREDENTIALS");
    assert!(!status.message().contains("secret-1"));
}

#[tokio::test]
async fn both_signatures_are_accepted_by_the_cloud() {
    for set in ["cloud.signature=v1", "cloud.signature=v3"] {
        let world = World::with(&[set]).await;

        world.made(1, "10.0.0.10").await;
    }
}

async fn fence(world: &World, epoch: u64) -> Result<Vec<u64>, Status> {
    let request = FenceRequest {
        authority: "cluster-a".to_owned(),
        shard: format!("{VSWITCH}.0"),
        epoch,
    };
    let answer = world.gateway.api.fence(Request::new(request)).await?;
    Ok(answer.into_inner().in_flight)
}

fn in_epoch(epoch: u64, sequence: u64, ip: &str) -> CreateEniRequest {
    CreateEniRequest {
        op: Some(op(sequence, epoch)),
        ..new_eni(sequence, ip)
    }
}

// I: the work of an owner that has lost its shard is refused.
#[tokio::test]
async fn owner_of_an_older_epoch_is_refused() {
    let world = World::new().await;
    assert_eq!(fence(&world, 5).await.unwrap(), Vec::<u64>::new());

    let stale = world.create(in_epoch(4, 1, "10.0.0.10")).await.unwrap_err();

    assert_eq!(reason(&stale), "REASON_EPOCH_STALE");
    assert_eq!(mesh::status::metadata(&stale, "seen").as_deref(), Some("5"));
    assert_eq!(world.total(Action::CreateNetworkInterface), 0);
    assert!(world.create(in_epoch(5, 1, "10.0.0.10")).await.is_ok());
    assert_eq!(
        reason(&fence(&world, 4).await.unwrap_err()),
        "REASON_EPOCH_STALE"
    );
}

#[tokio::test]
async fn fence_names_what_is_on_the_wire_and_the_new_owner_joins_it() {
    let world = World::new().await;
    let id = world.made(1, "10.0.0.10").await;
    let slow = Fault::on(Action::AttachNetworkInterface, Effect::Delay { ms: 400 });
    world.sim.inject_fault(slow.times(1));
    let attach = |epoch| {
        world.gateway.api.attach_eni(Request::new(AttachEniRequest {
            op: Some(op(2, epoch)),
            eni_id: id.clone(),
            instance_id: INSTANCE.to_owned(),
            ..AttachEniRequest::default()
        }))
    };
    let new_owner = async {
        tokio::time::timeout(Duration::from_secs(5), async {
            while world.gateway.ops.dump()["running"][0]["sent"] != true {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        let on_wire = fence(&world, 2).await.unwrap();
        (on_wire, attach(2).await)
    };

    let (old, (on_wire, new)) = tokio::join!(attach(1), new_owner);

    assert_eq!(on_wire, [2]);
    assert!(old.is_ok() && new.is_ok(), "{old:?} {new:?}");
    assert_eq!(world.succeeded(Action::AttachNetworkInterface), 1);
}

#[tokio::test]
async fn queued_work_of_an_older_owner_is_dropped() {
    let world = World::with(&["rate_limits.per_minute.CreateNetworkInterface=30"]).await;
    for n in 1..=3 {
        world
            .create(in_epoch(1, n, &format!("10.0.0.{}", n + 9)))
            .await
            .unwrap();
    }
    // The budget is spent: this one waits two seconds for its turn.
    let queued = world.create(in_epoch(1, 4, "10.0.0.40"));
    let takeover = async {
        tokio::time::timeout(Duration::from_secs(5), async {
            while world.gateway.budgets.dump()["CreateNetworkInterface"]["waiting"] != 1 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        fence(&world, 2).await.unwrap()
    };

    let (queued, on_wire) = tokio::join!(queued, takeover);

    assert_eq!(on_wire, Vec::<u64>::new());
    assert_eq!(reason(&queued.unwrap_err()), "REASON_EPOCH_STALE");
    assert_eq!(world.total(Action::CreateNetworkInterface), 3);
}
