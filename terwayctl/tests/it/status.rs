//! `terwayctl status` against an API server that has objects, refuses, or is not there.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Output;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::IntoResponse;
use mesh::drain::Drain;
use mesh::tasks::Tasks;
use serde_json::{Value, json};

/// Answers by path; what is not there is an empty list.
#[derive(Debug, Default)]
struct Objects {
    lists: BTreeMap<String, Vec<Value>>,
    texts: BTreeMap<String, String>,
    forbidden: Vec<String>,
    asked: Vec<String>,
}

struct Server {
    objects: Arc<Mutex<Objects>>,
    address: SocketAddr,
    tasks: Tasks,
    dir: tempfile::TempDir,
}

/// Pages of two, so that lists have several.
const PAGE: usize = 2;

async fn answer(State(objects): State<Arc<Mutex<Objects>>>, uri: Uri) -> axum::response::Response {
    let mut objects = objects.lock().unwrap();
    let (path, query) = (
        uri.path().to_owned(),
        uri.query().unwrap_or_default().to_owned(),
    );
    objects.asked.push(format!("{path}?{query}"));
    if objects.forbidden.contains(&path) {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
            "reason": "Forbidden", "message": format!("{path} is forbidden")});
        return (StatusCode::FORBIDDEN, axum::Json(status)).into_response();
    }
    if let Some(text) = objects.texts.get(&path) {
        return text.clone().into_response();
    }
    let from: usize = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("continue="))
        .filter(|token| !token.is_empty())
        .map_or(0, |token| token.parse().unwrap());
    let all = objects.lists.get(&path).cloned().unwrap_or_default();
    let page: Vec<Value> = all.iter().skip(from).take(PAGE).cloned().collect();
    let next = from + page.len();
    let next = if next < all.len() {
        next.to_string()
    } else {
        String::new()
    };
    axum::Json(json!({"metadata": {"continue": next}, "items": page})).into_response()
}

const APPS: &str = "/apis/apps/v1/namespaces/kube-system";
const CORE: &str = "/api/v1/namespaces/kube-system";

fn labels(component: &str) -> Value {
    json!({"app.kubernetes.io/instance": "terway", "app.kubernetes.io/component": component})
}

fn deployment(component: &str) -> Value {
    json!({"metadata": {"name": format!("terway-{component}"), "labels": labels(component)},
        "spec": {"replicas": 1}, "status": {"readyReplicas": 1}})
}

fn pod(component: &str, node: &str) -> Value {
    json!({"metadata": {"name": format!("terway-{component}-{node}"), "labels": labels(component)},
        "spec": {"nodeName": node}, "status": {"phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}]}})
}

fn node(name: &str, reason: &str) -> Value {
    let status = if reason == "TerwayReady" {
        "True"
    } else {
        "False"
    };
    json!({"metadata": {"name": name}, "status": {"conditions": [
        {"type": "TerwayReady", "status": status, "reason": reason, "message": "as told"}]}})
}

impl Server {
    /// A healthy installation of three nodes.
    async fn start() -> Self {
        let objects = Objects {
            lists: [
                (
                    format!("{APPS}/deployments"),
                    vec![
                        deployment("gateway"),
                        deployment("controlplane"),
                        deployment("relay"),
                    ],
                ),
                (
                    format!("{APPS}/daemonsets"),
                    vec![
                        json!({"metadata": {"name": "terway-node", "labels": labels("node")},
                    "status": {"desiredNumberScheduled": 3, "numberReady": 3}}),
                    ],
                ),
                (
                    format!("{CORE}/pods"),
                    vec![
                        pod("node", "a"),
                        pod("node", "b"),
                        pod("node", "c"),
                        pod("gateway", "a"),
                    ],
                ),
                (
                    "/api/v1/nodes".to_owned(),
                    ["a", "b", "c"].map(|n| node(n, "TerwayReady")).to_vec(),
                ),
            ]
            .into(),
            texts: [(
                format!("{CORE}/pods/http:terway-gateway-a:7202/proxy/metrics"),
                "terway_gateway_credentials_usable{source=\"credentials.dir\"} 1\n".to_owned(),
            )]
            .into(),
            ..Objects::default()
        };
        let objects = Arc::new(Mutex::new(objects));
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&objects));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = Tasks::new(Drain::new());
        let stopping = tasks.stopping();
        tasks.spawn_fallible("api server", async move {
            axum::serve(listener, router)
                .with_graceful_shutdown(stopping.cancelled_owned())
                .await
        });
        Self {
            objects,
            address,
            tasks,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Objects)) {
        change(&mut self.objects.lock().unwrap());
    }

    fn kubeconfig(&self) -> PathBuf {
        let path = self.dir.path().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", self.address)}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
        });
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    async fn status(&self, more: &[&str]) -> Output {
        status(&self.kubeconfig(), more).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.drain().stop();
    }
}

async fn status(kubeconfig: &std::path::Path, more: &[&str]) -> Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_terwayctl"))
        .arg("status")
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(more)
        .output()
        .await
        .unwrap()
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[tokio::test]
async fn healthy_installation_ends_with_0_and_shows_all_pages() {
    let server = Server::start().await;

    let output = server.status(&[]).await;

    let said = said(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("deployment terway-relay: 1 of 1 ready"),
        "{said}"
    );
    assert!(said.contains("nodes: 3 of 3 can start pods"), "{said}");
    assert!(said.contains("has credentials (credentials.dir)"), "{said}");
    assert!(said.ends_with("\nhealthy\n"), "{said}");
}

#[tokio::test]
async fn fault_of_a_node_ends_with_1_and_is_named_with_what_to_do() {
    let server = Server::start().await;
    server.change(|objects| {
        let nodes = objects.lists.get_mut("/api/v1/nodes").unwrap();
        nodes[2] = node("c", "CloudForbidden");
    });

    let text = server.status(&[]).await;
    let json = server.status(&["--output", "json"]).await;

    assert_eq!(text.status.code(), Some(1), "{}", said(&text));
    let said = said(&text);
    assert!(
        said.contains("BAD  CloudForbidden: one node: c: as told"),
        "{said}"
    );
    assert!(said.contains("-> grant the RAM user or role"), "{said}");
    assert_eq!(json.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(report["healthy"], json!(false));
    let lines = report["lines"].as_array().unwrap();
    let line = lines
        .iter()
        .find(|line| line["name"] == "CloudForbidden")
        .unwrap();
    assert_eq!(
        (&line["area"], &line["level"]),
        (&json!("nodes"), &json!("bad"))
    );
}

#[tokio::test]
async fn what_the_account_may_not_see_is_said_and_the_rest_is_judged() {
    let server = Server::start().await;
    server.change(|objects| objects.forbidden.push("/api/v1/events".to_owned()));

    let output = server.status(&[]).await;

    let said = said(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("NotLookedAt: events of Nodes: 403 /api/v1/events is forbidden"),
        "{said}"
    );
}

#[tokio::test]
async fn account_that_sees_nothing_and_a_server_that_is_not_there_end_with_2() {
    let server = Server::start().await;
    server.change(|objects| objects.forbidden.push(format!("{APPS}/deployments")));
    let forbidden = server.status(&[]).await;
    let kubeconfig = server.kubeconfig();
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let config = std::fs::read_to_string(&kubeconfig).unwrap();
    let elsewhere = server.dir.path().join("elsewhere");
    std::fs::write(
        &elsewhere,
        config.replace(&server.address.to_string(), &gone.to_string()),
    )
    .unwrap();

    let unreachable = status(&elsewhere, &[]).await;
    let unreachable_json = status(&elsewhere, &["--output=json"]).await;
    let no_file = status(&server.dir.path().join("nothing"), &[]).await;

    for (output, name) in [
        (&forbidden, "ApiServerForbidden"),
        (&unreachable, "ApiServerUnreachable"),
        (&unreachable_json, "ApiServerUnreachable"),
        (&no_file, "NoKubeconfig"),
    ] {
        assert_eq!(output.status.code(), Some(2), "{}", said(output));
        assert!(said(output).contains(name), "{}", said(output));
    }
    let report: Value = serde_json::from_slice(&unreachable_json.stdout).unwrap();
    assert_eq!(report["error"]["name"], "ApiServerUnreachable");
}

#[tokio::test]
async fn namespace_without_a_release_ends_with_1() {
    let server = Server::start().await;

    let output = server.status(&["--namespace", "elsewhere"]).await;
    let other = server.status(&["--release", "other"]).await;

    for output in [output, other] {
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("NotInstalled"), "{}", said(&output));
    }
}
