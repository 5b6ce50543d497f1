//! Budgets, throttling, merged reads.

use std::time::Duration;

use ecs_api::action::Action;
use ecs_sim::config::{Latency, Span};
use ecs_sim::faults::{Effect, Fault};
use futures::future::join_all;
use proto::cloud::v1::DescribeEnisRequest;
use proto::cloud::v1::cloud_server::Cloud;
use tonic::Request;

use crate::world::{World, new_eni, reason};

#[tokio::test]
async fn throttled_call_is_repeated_and_the_rate_halved() {
    let world = World::new().await;
    let fault = Fault::on(Action::CreateNetworkInterface, Effect::Throttle).times(1);
    world.sim.inject_fault(fault);

    world.create(new_eni(1, "10.0.0.10")).await.unwrap();

    let budgets = world.gateway.budgets.dump();
    assert_eq!(budgets["DescribeNetworkInterfaces"]["rate_permille"], 1_000);
    let rate = &budgets["CreateNetworkInterface"]["rate_permille"];
    assert!(rate.as_u64().unwrap() < 600, "{rate}");
}

#[tokio::test]
async fn call_throttled_past_its_deadline_says_when_to_come_back() {
    let world = World::with(&["ops.timeout_ms=500"]).await;
    world
        .sim
        .inject_fault(Fault::on(Action::CreateNetworkInterface, Effect::Throttle));

    let status = world.create(new_eni(1, "10.0.0.10")).await.unwrap_err();

    assert_eq!(reason(&status), "REASON_CLOUD_THROTTLED");
    assert!(mesh::status::retry_after(&status).unwrap() >= Duration::from_millis(900));
    assert!(world.enis().is_empty());
}

#[tokio::test]
async fn budget_that_is_spent_sheds_at_once() {
    let world = World::with(&[
        "rate_limits.per_minute.CreateNetworkInterface=10",
        "ops.timeout_ms=1000",
    ])
    .await;
    world.create(new_eni(1, "10.0.0.10")).await.unwrap();

    let status = world.create(new_eni(2, "10.0.0.20")).await.unwrap_err();

    assert_eq!(reason(&status), "REASON_CLOUD_THROTTLED");
    assert!(mesh::status::retry_after(&status).unwrap() > Duration::from_secs(1));
    assert_eq!(world.total(Action::CreateNetworkInterface), 1);
}

#[tokio::test]
async fn cloud_with_our_quota_never_throttles_us() {
    let world = World::with(&[
        "rate_limits.per_minute.CreateNetworkInterface=60",
        "ops.timeout_ms=3000",
    ])
    .await;
    world.sim.set_quota(Action::CreateNetworkInterface, 60);

    let work = (1..=30_u64).map(|n| world.create(new_eni(n, &format!("10.0.0.{}", n + 9))));
    let mut shed = 0;
    for result in join_all(work).await {
        if let Err(status) = result {
            assert_eq!(reason(&status), "REASON_CLOUD_THROTTLED");
            shed += 1;
        }
    }

    let dump = world.sim.dump();
    assert_eq!(dump.calls["CreateNetworkInterface"].throttled, 0);
    assert!(shed > 0 && shed < 30, "{shed}");
}

#[tokio::test]
async fn reads_of_the_same_moment_are_one_call() {
    let world = World::with(&["readback.window_ms=50"]).await;
    let ids: Vec<_> = (0..150).map(|n| format!("eni-{n}")).collect();
    let read = |id: &String| {
        world
            .gateway
            .api
            .describe_enis(Request::new(DescribeEnisRequest {
                eni_ids: vec![id.clone()],
                ..DescribeEnisRequest::default()
            }))
    };

    let answers = join_all(ids.iter().map(read)).await;

    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(world.total(Action::DescribeNetworkInterfaces), 2);
}

#[tokio::test]
async fn operations_that_wait_for_their_states_share_their_looks() {
    let world = World::with(&[
        "readback.tick_ms=50",
        "readback.first_ms=50",
        "readback.window_ms=20",
    ])
    .await;
    world.sim.set_latency(Latency {
        attach: Span::new(300, 300),
        ..Latency::fast()
    });
    let mut ids = Vec::new();
    for n in 1..=3 {
        ids.push(world.made(n, &format!("10.0.0.{}", n + 9)).await);
    }
    let before = world.total(Action::DescribeNetworkInterfaces);

    let work = ids.iter().zip(10_u64..).map(|(id, n)| world.attach(n, id));
    let attached = join_all(work).await;

    assert!(attached.iter().all(Result::is_ok), "{attached:?}");
    let looks = world.total(Action::DescribeNetworkInterfaces) - before;
    // Alone each of them looks six times or more in 300 ms; a few looks may miss their common tick.
    assert!(looks <= 14, "{looks} looks");
}
