//! Injected faults.

use std::time::Duration;

use ecs_api::action::Action;
use ecs_api::model::Pick;
use ecs_api::model::address::AssignPrivateIpAddresses;
use ecs_api::model::eni::{CreateNetworkInterface, EniStatus};
use ecs_sim::faults::{Effect, Fault};

use crate::world::{Failed, MINUTE, World, attach, create_in};

const CREATE: Action = Action::CreateNetworkInterface;

fn with_token() -> CreateNetworkInterface {
    CreateNetworkInterface {
        client_token: Some("t".to_owned()),
        ..create_in("vsw-h")
    }
}

#[tokio::test]
async fn throttle_strikes_so_many_calls() {
    let world = World::new().await;
    world
        .sim
        .inject_fault(Fault::on(CREATE, Effect::Throttle).times(2));

    for expected in ["Throttling.User", "Throttling.User", "ok"] {
        assert_eq!(world.code(&create_in("vsw-h")).await, expected);
    }
    assert!(world.sim.faults().is_empty());
}

#[tokio::test]
async fn throttle_strikes_for_so_long() {
    let world = World::new().await;
    world
        .sim
        .inject_fault(Fault::on(CREATE, Effect::Throttle).during(MINUTE));

    assert_eq!(world.code(&create_in("vsw-h")).await, "Throttling.User");
    world.clock.advance(MINUTE);
    assert_eq!(world.code(&create_in("vsw-h")).await, "ok");
}

// The answer is lost after the effect: only the token keeps the repeat from making a second ENI.
#[tokio::test]
async fn lost_answer_has_its_effect_and_the_repeat_finds_it() {
    let world = World::new().await;
    world
        .sim
        .inject_fault(Fault::on(CREATE, Effect::LoseAnswer).times(1));

    assert!(matches!(world.ask(&with_token()).await, Err(Failed::Lost)));
    assert_eq!(world.sim.dump().enis.len(), 1);
    let eni = world.create(&with_token()).await;

    let dump = world.sim.dump();
    assert_eq!((dump.enis.len(), &dump.enis[0].id), (1, &eni.id));
    assert_eq!(world.sim.calls()[0].status, 0);
}

#[tokio::test]
async fn lost_request_has_no_effect() {
    let world = World::new().await;
    world
        .sim
        .inject_fault(Fault::on(CREATE, Effect::LoseRequest).times(1));

    assert!(matches!(world.ask(&with_token()).await, Err(Failed::Lost)));

    assert!(world.sim.dump().enis.is_empty());
}

#[tokio::test]
async fn internal_error_comes_with_and_without_an_effect() {
    let world = World::new().await;
    world
        .sim
        .inject_fault(Fault::on(CREATE, Effect::InternalError).times(1));
    world.sim.inject_fault(
        Fault::on(CREATE, Effect::InternalErrorAfterEffect)
            .after(1)
            .times(1),
    );

    assert_eq!(world.code(&create_in("vsw-h")).await, "InternalError");
    assert!(world.sim.dump().enis.is_empty());
    assert_eq!(world.code(&create_in("vsw-h")).await, "InternalError");
    assert_eq!(world.sim.dump().enis.len(), 1);
}

#[tokio::test]
async fn refusal_can_be_anything() {
    let world = World::new().await;
    let effect = Effect::Refuse {
        status: 403,
        code: "Operation.Conflict".to_owned(),
        message: "ecs task is conflicted.".to_owned(),
    };
    world.sim.inject_fault(Fault::on(CREATE, effect).times(1));

    let Err(failed) = world.ask(&create_in("vsw-h")).await else {
        panic!("not refused");
    };

    assert_eq!(
        (failed.code(), failed.status()),
        ("Operation.Conflict", 403)
    );
}

#[tokio::test]
async fn stale_describe_shows_the_past() {
    let world = World::new().await;
    let instance = world.instance("i-a", "vsw-h").await.id;
    let eni = world.eni("vsw-h").await.id;
    world.clock.advance(Duration::from_secs(5));
    world.code(&attach(&eni, &instance)).await;
    world.sim.settled().await;
    world.clock.advance(Duration::from_secs(1));
    let stale = Effect::StaleDescribe { lag_ms: 3_000 };
    let fault = world
        .sim
        .inject_fault(Fault::on(Action::DescribeNetworkInterfaces, stale));

    assert_eq!(
        world.describe(&eni).await.unwrap().status,
        EniStatus::Available
    );
    assert!(world.sim.remove_fault(fault));
    assert_eq!(world.describe(&eni).await.unwrap().status, EniStatus::InUse);
}

#[tokio::test]
async fn read_lag_hides_an_assign_until_it_has_passed() {
    let world = World::new().await;
    let eni = world.eni("vsw-h").await.id;
    world.clock.advance(MINUTE);
    world.sim.set_lags(Duration::from_secs(2), Duration::ZERO);
    let request = AssignPrivateIpAddresses {
        eni: eni.clone(),
        ipv4: Pick::Count(1),
        client_token: None,
    };
    assert_eq!(world.code(&request).await, "ok");

    assert_eq!(world.describe(&eni).await.unwrap().ipv4.len(), 1);
    world.clock.advance(Duration::from_secs(2));
    assert_eq!(world.describe(&eni).await.unwrap().ipv4.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn delay_makes_one_call_slower() {
    let world = World::new().await;
    world
        .sim
        .inject_fault(Fault::on(CREATE, Effect::Delay { ms: 7_000 }).times(1));
    let before = tokio::time::Instant::now();

    world.eni("vsw-h").await;
    let slow = before.elapsed();
    world.eni("vsw-h").await;

    assert!(slow >= Duration::from_secs(7));
    assert!(before.elapsed() < slow + Duration::from_secs(1));
}

// A caller that is killed while it waits: the cloud does not notice.
#[tokio::test(start_paused = true)]
async fn call_whose_caller_is_gone_still_has_its_effect() {
    let world = World::new().await;
    world
        .sim
        .inject_fault(Fault::on(CREATE, Effect::Delay { ms: 1_000 }));
    let request = create_in("vsw-h");
    let call = world.ask(&request);

    let gone = tokio::time::timeout(Duration::from_millis(100), call).await;
    world.sim.settled().await;

    assert!(gone.is_err());
    assert_eq!(world.sim.dump().enis.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn real_latencies_take_seconds() {
    let world = World::new().await;
    let instance = world.instance("i-a", "vsw-h").await.id;
    world.sim.set_latency(ecs_sim::config::Latency::real());
    let eni = world.eni("vsw-h").await.id;
    let before = tokio::time::Instant::now();

    world.code(&attach(&eni, &instance)).await;
    world.sim.settled().await;

    let took = before.elapsed();
    assert!(
        took >= Duration::from_secs(2) && took <= Duration::from_millis(5_400),
        "{took:?}"
    );
}
