//! The small ports beside gRPC, and the collector.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh::admin::{self, Admin};
use mesh::health::{self, Health};
use mesh::metrics::Registry;
use mesh::tasks::Tasks;
use mesh::telemetry::{self, LogFilter, Telemetry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::site::PATIENCE;

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// One request as a person's tool would make it; the whole answer.
async fn ask(address: SocketAddr, request: &str, body: &str) -> String {
    let asking = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
        let whole = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(whole.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .expect("no answer")
}

#[tokio::test]
async fn health_port_shows_conditions_and_metrics() {
    let (tasks, health, registry) = (Tasks::default(), Health::new(), Registry::new());
    let port = health::Bound::open(&health::Params {
        listen: Some(loopback()),
    })
    .await
    .unwrap()
    .unwrap();
    let address = port.address();
    let session = health.condition("session");
    port.serve(health, registry, &tasks);

    let alive = ask(address, "GET /livez", "").await;
    let unready = ask(address, "GET /readyz", "").await;
    session.met();
    let ready = ask(address, "GET /readyz", "").await;
    let metrics = ask(address, "GET /metrics", "").await;
    tasks.drain().start("test");
    let draining = ask(address, "GET /readyz", "").await;

    assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");
    assert!(
        unready.starts_with("HTTP/1.1 503") && unready.contains("session: starting"),
        "{unready}"
    );
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    assert!(
        metrics.contains("application/openmetrics-text"),
        "{metrics}"
    );
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(
        draining.starts_with("HTTP/1.1 503") && draining.contains("draining: test"),
        "{draining}"
    );
    tasks.drain().stop();
    assert!(tasks.wait(PATIENCE).await);
}

async fn admin_port() -> (SocketAddr, Tasks, LogFilter, Telemetry) {
    let (subscriber, telemetry) = telemetry::build(&telemetry::Params::default(), "t").unwrap();
    // The filter lives as long as its subscriber.
    std::mem::forget(subscriber);
    let (tasks, admin, filter) = (Tasks::default(), Admin::new(), telemetry.filter());
    admin.dump("pool", || async { serde_json::json!({ "free": 3 }) });
    let port = admin::Bound::open(&admin::Params {
        listen: Some(loopback()),
    })
    .await
    .unwrap()
    .unwrap();
    let address = port.address();
    port.serve(
        admin,
        serde_json::json!({ "pods_max": 7 }),
        filter.clone(),
        &tasks,
    );
    (address, tasks, filter, telemetry)
}

#[tokio::test]
async fn admin_port_shows_state_and_configuration() {
    let (address, tasks, ..) = admin_port().await;

    let whole = ask(address, "GET /state", "").await;
    let part = ask(address, "GET /state/pool", "").await;
    let unknown = ask(address, "GET /state/nothing", "").await;
    let config = ask(address, "GET /config", "").await;

    assert!(whole.ends_with("{\"pool\":{\"free\":3}}"), "{whole}");
    assert!(part.ends_with("{\"free\":3}"), "{part}");
    assert!(
        unknown.starts_with("HTTP/1.1 404") && unknown.contains("nothing"),
        "{unknown}"
    );
    assert!(config.ends_with("{\"pods_max\":7}"), "{config}");
    tasks.drain().stop();
}

#[tokio::test]
async fn admin_port_changes_the_log_filter_and_starts_the_drain() {
    let (address, tasks, filter, _telemetry) = admin_port().await;

    let bad = ask(address, "PUT /log", "mesh=loud").await;
    let good = ask(address, "PUT /log", "warn,mesh=debug\n").await;
    let shown = ask(address, "GET /log", "").await;
    let looked = ask(address, "GET /drain", "").await;
    assert!(!tasks.drain().draining().is_cancelled());
    let drained = ask(address, "POST /drain", "").await;

    assert!(
        bad.starts_with("HTTP/1.1 400") && bad.contains("mesh=loud"),
        "{bad}"
    );
    assert!(good.starts_with("HTTP/1.1 204"), "{good}");
    assert!(
        shown.contains("mesh=debug") && filter.get().contains("mesh=debug"),
        "{shown}"
    );
    assert!(looked.starts_with("HTTP/1.1 405"), "{looked}");
    assert!(drained.starts_with("HTTP/1.1 202"), "{drained}");
    assert_eq!(tasks.drain().why(), Some("admin request"));
    tasks.drain().stop();
}

#[tokio::test]
async fn taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();

    let refused = health::Bound::open(&health::Params {
        listen: Some(address),
    })
    .await;

    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains(&address.to_string())
    );
}

/// A collector that counts what it is sent.
async fn collector() -> (SocketAddr, watch::Receiver<usize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sent, received) = watch::channel(0);
    let sent = Arc::new(sent);
    let answer = move |request: axum::extract::Request| {
        let sent = Arc::clone(&sent);
        async move {
            let export = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
            assert_eq!(request.uri().path(), export);
            sent.send_modify(|count| *count += 1);
            let mut grpc = tonic::server::Grpc::new(tonic_prost::ProstCodec::<(), ()>::default());
            let done = tower::service_fn(|_: tonic::Request<()>| async {
                Ok::<_, tonic::Status>(tonic::Response::new(()))
            });
            grpc.unary(done, request.map(tonic::body::Body::new))
                .await
                .map(axum::body::Body::new)
        }
    };
    let router = axum::Router::new().fallback(answer);
    let serve = async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper_util::service::TowerToHyperService::new(router);
        let io = hyper_util::rt::TokioIo::new(stream);
        let executor = hyper_util::rt::TokioExecutor::new();
        // Ends with the exporter's connection.
        drop(
            hyper::server::conn::http2::Builder::new(executor)
                .serve_connection(io, service)
                .await,
        );
    };
    Tasks::default().spawn_once("collector", serve);
    (address, received)
}

#[tokio::test]
async fn spans_reach_the_collector_at_the_end_at_the_latest() {
    let (address, mut received) = collector().await;
    let params = telemetry::Params {
        otlp_endpoint: Some(format!("http://{address}")),
        ..telemetry::Params::default()
    };
    let (subscriber, telemetry) = telemetry::build(&params, "tester").unwrap();
    tracing::subscriber::with_default(subscriber, || {
        drop(tracing::info_span!("sent to the collector"));
    });

    telemetry.flush().await;

    let arrived = tokio::time::timeout(PATIENCE, received.wait_for(|count| *count > 0)).await;
    assert!(arrived.is_ok(), "nothing arrived");
}

#[tokio::test]
async fn collector_that_is_away_costs_no_more_than_the_flushs_bound() {
    let params = telemetry::Params {
        otlp_endpoint: Some("http://127.0.0.1:1".to_owned()),
        ..telemetry::Params::default()
    };
    let (subscriber, telemetry) = telemetry::build(&params, "tester").unwrap();
    tracing::subscriber::with_default(subscriber, || {
        drop(tracing::info_span!("sent to nobody"));
    });

    tokio::time::timeout(PATIENCE, telemetry.flush())
        .await
        .expect("flush hangs");
}
