//! Answers that are lost, and reads that are old: the effect stays one, and the answer right.

use std::time::Duration;

use ecs_api::action::Action;
use ecs_sim::faults::{Effect, Fault};
use tokio::time::Instant;

use proto::cloud::v1::AttachEniRequest;
use proto::cloud::v1::cloud_server::Cloud;
use tonic::Request;

use crate::world::{OTHER_INSTANCE, World, new_eni, op, reason};

/// What can become of an answer.
fn lost_after_effect() -> [Effect; 2] {
    [Effect::LoseAnswer, Effect::InternalErrorAfterEffect]
}

/// What can become of a request.
fn lost_before_effect() -> [Effect; 2] {
    [Effect::LoseRequest, Effect::InternalError]
}

// R: a call that succeeded and was not answered is neither lost nor done twice.
#[tokio::test]
async fn create_whose_answer_is_lost_makes_one_eni() {
    for effect in lost_after_effect().into_iter().chain(lost_before_effect()) {
        let world = World::new().await;
        let fault = Fault::on(Action::CreateNetworkInterface, effect.clone()).times(2);
        world.sim.inject_fault(fault);

        let made = world.create(new_eni(1, "10.0.0.10")).await.unwrap();

        let enis = world.enis();
        assert_eq!(enis.len(), 1, "{effect:?}");
        assert_eq!(enis[0].id.as_str(), made.id);
    }
}

#[tokio::test]
async fn attach_whose_answer_is_lost_attaches_once() {
    for effect in lost_after_effect() {
        let world = World::new().await;
        let id = world.made(1, "10.0.0.10").await;
        world
            .sim
            .inject_fault(Fault::on(Action::AttachNetworkInterface, effect.clone()).times(1));

        let attached = world.attach(2, &id).await.unwrap();

        assert_eq!(attached.status, "InUse");
        assert_eq!(
            world.total(Action::AttachNetworkInterface),
            1,
            "{effect:?}: the state was read, so nothing was repeated"
        );
    }
}

#[tokio::test]
async fn detach_whose_answer_is_lost_detaches_once() {
    for effect in lost_after_effect() {
        let world = World::new().await;
        let id = world.attached(1, "10.0.0.10").await;
        world
            .sim
            .inject_fault(Fault::on(Action::DetachNetworkInterface, effect.clone()).times(1));

        world.detach(3, &id).await.unwrap();

        assert_eq!(world.eni(&id).unwrap().status, "Available");
        assert_eq!(world.total(Action::DetachNetworkInterface), 1, "{effect:?}");
    }
}

#[tokio::test]
async fn delete_whose_answer_is_lost_deletes_once() {
    for effect in lost_after_effect() {
        let world = World::new().await;
        let id = world.made(1, "10.0.0.10").await;
        world
            .sim
            .inject_fault(Fault::on(Action::DeleteNetworkInterface, effect.clone()).times(1));

        world.delete(2, &id).await.unwrap();

        assert!(world.enis().is_empty());
        assert_eq!(world.total(Action::DeleteNetworkInterface), 1, "{effect:?}");
    }
}

#[tokio::test]
async fn assign_whose_answer_is_lost_assigns_once() {
    for effect in lost_after_effect() {
        let world = World::new().await;
        let id = world.attached(1, "10.0.0.10").await;
        for action in [
            Action::AssignPrivateIpAddresses,
            Action::AssignIpv6Addresses,
        ] {
            world
                .sim
                .inject_fault(Fault::on(action, effect.clone()).times(1));
        }

        let eni = world
            .assign(3, &id, &["10.0.0.11", "10.0.0.12"], &["2001:db8::11"])
            .await
            .unwrap();

        assert_eq!((eni.ipv4.len(), eni.ipv6.len()), (3, 1), "{effect:?}");
        assert_eq!(world.eni(&id).unwrap().ipv4.len(), 3);
    }
}

#[tokio::test]
async fn unassign_whose_answer_is_lost_unassigns_once() {
    for effect in lost_after_effect() {
        let world = World::new().await;
        let id = world.attached(1, "10.0.0.10").await;
        world
            .assign(3, &id, &["10.0.0.11"], &["2001:db8::11"])
            .await
            .unwrap();
        let actions = [
            Action::UnassignPrivateIpAddresses,
            Action::UnassignIpv6Addresses,
        ];
        for action in actions {
            world
                .sim
                .inject_fault(Fault::on(action, effect.clone()).times(1));
        }

        let eni = world
            .unassign(4, &id, &["10.0.0.11"], &["2001:db8::11"])
            .await
            .unwrap()
            .unwrap();

        assert_eq!((eni.ipv4.len(), eni.ipv6.len()), (1, 0), "{effect:?}");
        for action in actions {
            assert_eq!(world.total(action), 1, "{effect:?} {action}");
        }
    }
}

#[tokio::test]
async fn requests_that_are_lost_on_their_way_are_sent_again() {
    for effect in lost_before_effect() {
        let world = World::new().await;
        for action in Action::ALL {
            world
                .sim
                .inject_fault(Fault::on(action, effect.clone()).times(1));
        }
        let id = world.attached(1, "10.0.0.10").await;
        world
            .assign(3, &id, &["10.0.0.11"], &["2001:db8::11"])
            .await
            .unwrap();
        let eni = world
            .unassign(4, &id, &["10.0.0.11"], &["2001:db8::11"])
            .await
            .unwrap()
            .unwrap();
        assert_eq!((eni.ipv4.len(), eni.ipv6.len()), (1, 0), "{effect:?}");
        world.detach(5, &id).await.unwrap();
        world.delete(6, &id).await.unwrap();

        assert!(world.enis().is_empty());
    }
}

#[tokio::test]
async fn cloud_that_forgot_the_token_still_has_one_eni_per_operation() {
    let mut world = World::new().await;
    let made = world.made(1, "10.0.0.10").await;
    // As if the token were too old: the repeat is refused because its own address is taken.
    let forgotten = Effect::Refuse {
        status: 403,
        code: "InvalidIp.IpAssigned".to_owned(),
        message: "The IP is assigned.".to_owned(),
    };
    let fault = Fault::on(Action::CreateNetworkInterface, forgotten).times(1);
    world.sim.inject_fault(fault);
    world.restart().await;

    let again = world.create(new_eni(1, "10.0.0.10")).await.unwrap();

    assert_eq!(again.id, made);
    assert_eq!(world.enis().len(), 1);
}

#[tokio::test]
async fn cloud_that_never_answers_leaves_the_outcome_unknown() {
    let world = World::with(&["ops.timeout_ms=1500"]).await;
    let id = world.made(1, "10.0.0.10").await;
    world
        .sim
        .inject_fault(Fault::everywhere(Effect::LoseAnswer));

    let create = world.create(new_eni(2, "10.0.0.20")).await.unwrap_err();
    let attach = world.attach(3, &id).await.unwrap_err();
    let assign = world.assign(4, &id, &["10.0.0.30"], &[]).await.unwrap_err();

    for status in [&create, &attach, &assign] {
        assert_eq!(reason(status), "REASON_OUTCOME_UNKNOWN", "{status:?}");
    }
    // Later the same operations find what they did.
    world.sim.clear_faults();
    world.create(new_eni(2, "10.0.0.20")).await.unwrap();
    world.attach(3, &id).await.unwrap();
    world.assign(4, &id, &["10.0.0.30"], &[]).await.unwrap();
    assert_eq!(world.enis().len(), 2);
    assert_eq!(world.succeeded(Action::AttachNetworkInterface), 1);
}

// I: reads may be old; nothing is concluded from one alone.
#[tokio::test]
async fn stale_reads_delay_the_answers_and_do_not_change_them() {
    let world = World::new().await;
    world
        .sim
        .set_lags(Duration::from_millis(120), Duration::ZERO);

    let id = world.attached(1, "10.0.0.10").await;
    assert_eq!(world.eni(&id).unwrap().status, "InUse");
    let grown = world
        .assign(3, &id, &["10.0.0.11"], &["2001:db8::11"])
        .await
        .unwrap();
    assert_eq!((grown.ipv4.len(), grown.ipv6.len()), (2, 1));
    let shrunk = world
        .unassign(4, &id, &["10.0.0.11"], &["2001:db8::11"])
        .await
        .unwrap()
        .unwrap();
    assert_eq!((shrunk.ipv4.len(), shrunk.ipv6.len()), (1, 0));
    world.detach(5, &id).await.unwrap();
    assert_eq!(world.eni(&id).unwrap().status, "Available");
    world.delete(6, &id).await.unwrap();
    assert!(world.enis().is_empty());
    // Old states were waited out, not taken for reasons to send again.
    for action in [
        Action::AttachNetworkInterface,
        Action::DetachNetworkInterface,
        Action::DeleteNetworkInterface,
    ] {
        assert_eq!(world.total(action), 1, "{action}");
    }
}

#[tokio::test]
async fn read_from_before_the_detach_does_not_spoil_the_next_attach() {
    let world = World::new().await;
    let id = world.made(1, "10.0.0.10").await;
    world.attach(2, &id).await.unwrap();
    let attached = Instant::now();
    world.detach(3, &id).await.unwrap();
    let lag_ms = u64::try_from(attached.elapsed().as_millis()).unwrap() + 1;
    let stale = Fault::on(
        Action::DescribeNetworkInterfaces,
        Effect::StaleDescribe { lag_ms },
    );
    world.sim.inject_fault(stale.times(1));
    let request = AttachEniRequest {
        op: Some(op(4, 1)),
        eni_id: id.clone(),
        instance_id: OTHER_INSTANCE.to_owned(),
        ..AttachEniRequest::default()
    };

    let attached = world.gateway.api.attach_eni(Request::new(request)).await;

    let eni = attached.unwrap().into_inner().eni.unwrap();
    assert_eq!(eni.instance_id, OTHER_INSTANCE);
}

// I: an unassign that was never done is not taken for done because a read shows the time before the assign.
#[tokio::test]
async fn read_from_before_the_assign_does_not_hide_a_lost_unassign() {
    let world = World::new().await;
    let id = world.attached(1, "10.0.0.10").await;
    world.assign(3, &id, &["10.0.0.11"], &[]).await.unwrap();
    let request = Fault::on(Action::UnassignPrivateIpAddresses, Effect::LoseRequest);
    world.sim.inject_fault(request.times(1));
    // From before there was anything.
    let stale = Fault::on(
        Action::DescribeNetworkInterfaces,
        Effect::StaleDescribe { lag_ms: 60_000 },
    );
    // The look after the lost call, and the first one that confirms it.
    world.sim.inject_fault(stale.times(2));

    world.unassign(4, &id, &["10.0.0.11"], &[]).await.unwrap();

    assert_eq!(world.eni(&id).unwrap().ipv4.len(), 1);
    assert_eq!(world.total(Action::UnassignPrivateIpAddresses), 2);
}

#[tokio::test]
async fn addresses_that_somebody_took_away_are_put_back_in_spite_of_the_token() {
    let mut world = World::new().await;
    let id = world.attached(1, "10.0.0.10").await;
    world.assign(3, &id, &["10.0.0.11"], &[]).await.unwrap();
    world.unassign(4, &id, &["10.0.0.11"], &[]).await.unwrap();
    world.restart().await;

    let eni = world.assign(3, &id, &["10.0.0.11"], &[]).await.unwrap();

    assert_eq!(eni.ipv4.len(), 2);
    assert_eq!(world.eni(&id).unwrap().ipv4.len(), 2);
}
