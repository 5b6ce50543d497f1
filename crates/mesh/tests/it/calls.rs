//! What becomes of calls: trace, deadline, load, panics, drain, broken connections.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use mesh::client::{self, Channel, Outcome, outcome};
use mesh::identity::{Identity, IdentityKind};
use mesh::server::Params;
use mesh::status;
use mesh::telemetry;
use mesh::tls::verify::Expect;
use serde_json::Value;
use tonic::{Code, Request};
use tracing::Instrument;

use crate::site::{DOOR, PATIENCE, Running, Site, call, call_with, open, start};

const KNOCK: &str = "/test.v1.Door/Knock";
const HANG: &str = "/test.v1.Door/Hang";
const STREAM: &str = "/test.v1.Door/Stream";

async fn door(params: Params) -> (Site, Running, Channel) {
    let site = Site::new();
    let running = start(site.material(&Identity::gateway("g1")), DOOR, params).await;
    let caller = Identity::node("c1", "i-1");
    let channel = site.channel(running.address, &caller, IdentityKind::Gateway);
    (site, running, channel)
}

#[tokio::test]
async fn handler_learns_who_calls() {
    let (_site, running, channel) = door(Params::default()).await;

    let answer = call(&channel, KNOCK).await.unwrap();

    let caller = answer.metadata().get("caller").unwrap();
    assert_eq!(caller, "spiffe://terway.local/cluster/c1/node/i-1");
    running.tasks.drain().stop();
}

/// Telemetry of this test process. It is installed for all threads: a subscriber of one thread is
/// not asked about spans that another thread met first.
fn span_file() -> &'static Path {
    static FILE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = FILE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spans.jsonl");
        let params = telemetry::Params {
            span_file: Some(path.clone()),
            log_filter: "off".to_owned(),
            ..telemetry::Params::default()
        };
        // Spans are written as they end, so nothing is to be flushed.
        std::mem::forget(telemetry::Telemetry::install(&params, "tester").unwrap());
        (dir, path)
    });
    path
}

#[tokio::test]
async fn call_carries_its_trace_to_the_handler() {
    let file = span_file();
    let (_site, running, channel) = door(Params::default()).await;
    let span = tracing::info_span!("caller");
    let here = telemetry::traceparent_of(&span).unwrap();

    let answer = call(&channel, KNOCK).instrument(span).await.unwrap();

    let there = answer
        .metadata()
        .get("seen-traceparent")
        .unwrap()
        .to_str()
        .unwrap();
    let part = |text: &str, at: usize| text.split('-').nth(at).unwrap().to_owned();
    assert_eq!(part(there, 1), part(&here, 1));
    assert_ne!(there, here, "the call has no span of its own");
    let written = async {
        let mut often = tokio::time::interval(Duration::from_millis(5));
        loop {
            often.tick().await;
            let lines = std::fs::read_to_string(file).unwrap();
            let spans = lines
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap());
            if let Some(span) = spans
                .into_iter()
                .find(|span| span["span_id"] == part(there, 2))
            {
                return span;
            }
        }
    };
    let rpc = tokio::time::timeout(PATIENCE, written)
        .await
        .expect("no span for the call");
    assert_eq!(rpc["name"], KNOCK);
    assert_eq!(rpc["kind"], "server");
    assert_eq!(rpc["attributes"]["rpc.grpc.status_code"], 0);
    assert_eq!(rpc["parent_span_id"], part(&here, 2));
    running.tasks.drain().stop();
}

#[tokio::test]
async fn deadline_of_the_caller_ends_the_call() {
    let (_site, running, channel) = door(Params::default()).await;
    let mut request = Request::new(());
    request.set_timeout(Duration::from_millis(200));

    let late = call_with(&channel, HANG, request).await.unwrap_err();

    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    assert_eq!(outcome(&late), Outcome::Unknown);
    running.tasks.drain().stop();
}

#[tokio::test]
async fn call_without_a_deadline_gets_the_channels() {
    let (_site, running, channel) = door(Params::default()).await;

    let with = call(&channel, KNOCK).await.unwrap();
    let without = call(&channel.without_deadline(), KNOCK).await.unwrap();
    let late = call(&channel.with_deadline(Duration::from_millis(100)), HANG)
        .await
        .unwrap_err();

    assert!(with.metadata().contains_key("has-deadline"));
    assert!(!without.metadata().contains_key("has-deadline"));
    assert_eq!(late.code(), Code::DeadlineExceeded);
    running.tasks.drain().stop();
}

#[tokio::test]
async fn deadline_is_cut_to_the_servers_maximum() {
    let params = Params {
        deadline_max_ms: 50,
        ..Params::default()
    };
    let (_site, running, channel) = door(params).await;

    let late = call(&channel.with_deadline(PATIENCE), HANG)
        .await
        .unwrap_err();

    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert!(late.message().contains("caller's deadline"), "{late}");
    running.tasks.drain().stop();
}

#[tokio::test]
async fn stream_with_a_deadline_ends_at_it_and_one_without_goes_on() {
    let (_site, running, channel) = door(Params::default()).await;
    let mut short = open(&channel.with_deadline(Duration::from_millis(300)), STREAM)
        .await
        .unwrap();
    let mut long = open(&channel.without_deadline(), STREAM).await.unwrap();

    assert_eq!(short.message().await.unwrap(), Some(()));
    assert_eq!(long.message().await.unwrap(), Some(()));
    let end = tokio::time::timeout(PATIENCE, short.message())
        .await
        .expect("it hangs");

    assert_eq!(end.unwrap_err().code(), Code::DeadlineExceeded);
    let still = futures::FutureExt::now_or_never(long.message());
    assert!(still.is_none(), "{still:?}");
    running.tasks.drain().stop();
}

#[tokio::test]
async fn call_beyond_the_bound_is_shed_with_a_reason() {
    let params = Params {
        in_flight_max: 1,
        ..Params::default()
    };
    let (_site, running, channel) = door(params).await;
    let hanging = {
        let channel = channel.clone();
        async move { call(&channel, HANG).await }
    };
    let first = running.tasks.spawn_once("first", hanging);
    let busy = async {
        let mut often = tokio::time::interval(Duration::from_millis(5));
        while !running
            .registry
            .encode()
            .contains("terway_rpc_server_in_flight 1")
        {
            often.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, busy)
        .await
        .expect("the first call never arrived");

    let shed = call(&channel, KNOCK).await.unwrap_err();

    assert_eq!(shed.code(), Code::ResourceExhausted);
    assert_eq!(status::reason(&shed).as_deref(), Some(status::OVERLOADED));
    assert!(status::retry_after(&shed).is_some());
    assert_eq!(outcome(&shed), Outcome::Answered);
    first.abort();
    running.tasks.drain().stop();
}

#[tokio::test]
async fn open_streams_leave_room_for_calls() {
    let params = Params {
        in_flight_max: 1,
        ..Params::default()
    };
    let (_site, running, channel) = door(params).await;
    let channel = channel.without_deadline();
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(open(&channel, STREAM).await.unwrap());
    }

    call(&channel, KNOCK).await.unwrap();

    running.tasks.drain().stop();
}

#[tokio::test]
async fn panic_in_a_handler_is_an_internal_error_and_the_server_lives() {
    let (_site, running, channel) = door(Params::default()).await;

    let unary = call(&channel, "/test.v1.Door/Panic").await.unwrap_err();
    let mut stream = open(&channel, "/test.v1.Door/PanicInStream").await.unwrap();
    let in_stream = loop {
        // The first message may or may not leave before the panic.
        if let Err(status) = stream.message().await {
            break status;
        }
    };

    assert_eq!(unary.code(), Code::Internal);
    assert_eq!(outcome(&unary), Outcome::Unknown);
    assert_eq!(in_stream.code(), Code::Internal);
    assert_eq!(running.rpc.panics(), 2);
    call(&channel, KNOCK).await.unwrap();
    let died = futures::FutureExt::now_or_never(running.tasks.died());
    assert_eq!(died, None);
    running.tasks.drain().stop();
}

#[tokio::test]
async fn finished_calls_are_counted_by_method_and_code() {
    let (_site, running, channel) = door(Params::default()).await;

    call(&channel, KNOCK).await.unwrap();
    call(&channel, "/test.v1.Door/Undeclared")
        .await
        .unwrap_err();
    call(&channel, "/test.v1.Door/Panic").await.unwrap_err();

    let text = running.registry.encode();
    for line in [
        "terway_rpc_server_calls_total{method=\"/test.v1.Door/Knock\",code=\"OK\"} 1",
        "terway_rpc_server_calls_total{method=\"undeclared\",code=\"PERMISSION_DENIED\"} 1",
        "terway_rpc_server_calls_total{method=\"/test.v1.Door/Panic\",code=\"INTERNAL\"} 1",
        "terway_rpc_server_duration_seconds_count{method=\"/test.v1.Door/Knock\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    running.tasks.drain().stop();
}

#[tokio::test]
async fn call_to_nobody_was_not_sent() {
    let site = Site::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let channel = site.channel(free, &Identity::node("c1", "i-1"), IdentityKind::Gateway);

    let failed = call(&channel, KNOCK).await.unwrap_err();

    assert_eq!(failed.code(), Code::Unavailable);
    assert_eq!(outcome(&failed), Outcome::NotSent, "{failed:?}");
    assert!(failed.message().contains("refused"), "{failed}");
}

#[tokio::test]
async fn call_to_a_socket_that_is_not_there_was_not_sent() {
    let channel = Channel::unix("/nowhere/agent.sock".as_ref(), &client::Params::default());

    let failed = call(&channel, KNOCK).await.unwrap_err();

    assert_eq!(outcome(&failed), Outcome::NotSent, "{failed:?}");
    assert!(failed.message().contains("/nowhere/agent.sock"), "{failed}");
}

#[tokio::test]
async fn call_to_a_server_of_another_kind_was_not_sent_and_says_why() {
    let (site, running, _) = door(Params::default()).await;
    let caller = Identity::node("c1", "i-1");
    let channel = site.channel(running.address, &caller, IdentityKind::Ipam);

    let failed = call(&channel, KNOCK).await.unwrap_err();

    assert_eq!(outcome(&failed), Outcome::NotSent);
    assert!(
        failed.message().contains("expected a server of kind ipam"),
        "{failed}"
    );
    running.tasks.drain().stop();
}

#[tokio::test]
async fn call_that_breaks_after_it_was_sent_is_unknown() {
    let (_site, running, channel) = door(Params::default()).await;
    let channel = channel.without_deadline();
    let hanging = {
        let channel = channel.clone();
        async move { call(&channel, HANG).await }
    };
    let call = running.tasks.spawn_once("call", hanging);
    let busy = async {
        let mut often = tokio::time::interval(Duration::from_millis(5));
        while !running
            .registry
            .encode()
            .contains("terway_rpc_server_in_flight 1")
        {
            often.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, busy)
        .await
        .expect("the call never arrived");

    // The server goes away without waiting for it.
    running.tasks.drain().stop();
    let broken = call.await.unwrap().unwrap_err();

    assert_eq!(outcome(&broken), Outcome::Unknown, "{broken:?}");
}

#[tokio::test]
async fn drain_waits_for_calls_and_refuses_new_connections() {
    let (site, running, channel) = door(Params::default()).await;
    let mut stream = open(&channel.without_deadline(), STREAM).await.unwrap();
    stream.message().await.unwrap();

    running.tasks.drain().start("test");
    let late = running
        .tasks
        .drain()
        .wait_unblocked(Duration::from_millis(100))
        .await;
    let other = site.channel(
        running.address,
        &Identity::node("c1", "i-2"),
        IdentityKind::Gateway,
    );
    let refused = call(&other, KNOCK).await;
    drop(stream);
    drop(channel);
    let drained = running.tasks.drain().wait_unblocked(PATIENCE).await;

    assert!(late.is_err(), "drain did not wait");
    assert_eq!(outcome(&refused.unwrap_err()), Outcome::NotSent);
    assert_eq!(drained, Ok(()));
}

#[tokio::test]
async fn channel_comes_back_after_its_server_did() {
    let site = Site::new();
    let material = site.material(&Identity::gateway("g1"));
    let running = start(material.clone(), DOOR, Params::default()).await;
    let expect = Expect::Kind(IdentityKind::Gateway);
    let caller = site.material(&Identity::node("c1", "i-1"));
    let target = running.address.to_string();
    let channel = Channel::tcp(&target, caller, expect, &client::Params::default()).unwrap();
    call(&channel, KNOCK).await.unwrap();

    running.tasks.drain().stop();
    assert!(running.tasks.wait(PATIENCE).await);
    let listener = tokio::net::TcpListener::bind(running.address)
        .await
        .unwrap();
    let bound = mesh::server::Bound::from_listener(listener, material, Params::default()).unwrap();
    let tasks = mesh::tasks::Tasks::default();
    bound.serve(
        tonic::service::Routes::default(),
        DOOR,
        &running.rpc,
        &tasks,
    );

    let answered = async {
        let mut often = tokio::time::interval(Duration::from_millis(20));
        loop {
            often.tick().await;
            // Nobody implements it there: an answer all the same.
            if let Err(status) = call(&channel, KNOCK).await
                && status.code() == Code::Unimplemented
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, answered)
        .await
        .expect("the channel stayed dead");
    tasks.drain().stop();
}
