//! A real API server with an etcd, and nothing else of Kubernetes.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cluster::server::Server;
use http::{Method, Request};
use mesh::ca::Authority;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::reader::LIMIT;

/// Release whose binaries the test bed keeps.
const CACHE: &str = "terway-mesh/kubernetes-v1.34.4";

/// Where a program is, looked for where people and the test bed put it.
fn find(program: &str) -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let mut folders: Vec<PathBuf> = [folder("TERWAY_KUBERNETES"), folder("KUBEBUILDER_ASSETS")]
        .into_iter()
        .flatten()
        .collect();
    folders.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    let cache = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
    folders.extend(cache.map(|cache| cache.join(CACHE)));
    let files = folders.into_iter().map(|folder| folder.join(program));
    files.into_iter().find(|file| file.is_file())
}

/// The programs of a bare API server: `kube-apiserver` and `etcd`. Nothing where they are missing, which is said
/// loudly, and on CI's machine ends the test.
#[expect(
    clippy::print_stdout,
    reason = "who runs the tests is told what was not tested"
)]
pub(crate) fn programs() -> Option<(PathBuf, PathBuf)> {
    let found = find("kube-apiserver").zip(find("etcd"));
    if found.is_none() {
        let why = "no kube-apiserver and etcd in TERWAY_KUBERNETES, KUBEBUILDER_ASSETS, PATH or the cache folder";
        assert!(std::env::var_os("CI").is_none(), "{why}");
        println!("SKIPPED, and nothing is proved by this: {why}");
    }
    found
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Bare {
    program: PathBuf,
    dir: tempfile::TempDir,
    etcd_port: u16,
    port: u16,
    _etcd: Child,
    server: Option<Child>,
}

impl Bare {
    /// Starts both, and waits until the server is ready.
    pub(crate) async fn start((program, etcd): (PathBuf, PathBuf)) -> Self {
        mesh::tls::install_provider();
        let dir = tempfile::tempdir().unwrap();
        let [etcd_port, peer_port, port] = free_ports();
        let url = |port| format!("http://127.0.0.1:{port}");
        let etcd = Command::new(etcd)
            .arg("--data-dir")
            .arg(dir.path().join("etcd"))
            .args(["--listen-client-urls", &url(etcd_port)])
            .args(["--advertise-client-urls", &url(etcd_port)])
            .args(["--listen-peer-urls", &url(peer_port)])
            .args(["--initial-advertise-peer-urls", &url(peer_port)])
            .args(["--initial-cluster", &format!("default={}", url(peer_port))])
            .arg("--unsafe-no-fsync")
            .stdout(Stdio::null())
            .stderr(log(dir.path(), "etcd"))
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        // Its key signs tokens of service accounts; nobody asks for one.
        drop(Authority::init(&dir.path().join("ca"), Duration::from_hours(1)).unwrap());
        let users = "admin,admin,1,system:masters\nnobody,nobody,2,\n";
        std::fs::write(dir.path().join("tokens"), users).unwrap();
        let mut bare = Self {
            program,
            dir,
            etcd_port,
            port,
            _etcd: etcd,
            server: None,
        };
        bare.go_on().await;
        bare
    }

    /// Starts the server again.
    pub(crate) async fn go_on(&mut self) {
        let dir = self.dir.path();
        let path = |name: &str| dir.join(name).display().to_string();
        let server = Command::new(&self.program)
            .arg(format!(
                "--etcd-servers=http://127.0.0.1:{}",
                self.etcd_port
            ))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .arg(format!("--secure-port={}", self.port))
            .arg(format!("--cert-dir={}", path("tls")))
            .arg(format!("--token-auth-file={}", path("tokens")))
            .arg(format!("--service-account-key-file={}", path("ca/ca.crt")))
            .arg(format!(
                "--service-account-signing-key-file={}",
                path("ca/ca.key")
            ))
            .args([
                "--service-account-issuer=https://kubernetes.default.svc",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--authorization-mode=RBAC",
                "--disable-admission-plugins=ServiceAccount,Priority",
                "--endpoint-reconciler-type=none",
                "--allow-privileged=true",
            ])
            .stdout(Stdio::null())
            .stderr(log(dir, "kube-apiserver"))
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.server = Some(server);
        let ready = async {
            loop {
                // The certificate is written by the server, once.
                if let Ok(server) = Server::connect(Some(&self.kubeconfig("admin"))).await {
                    let request = Request::get("/readyz").body(Vec::new()).unwrap();
                    if server
                        .client()
                        .request_text(request)
                        .await
                        .is_ok_and(|text| text == "ok")
                    {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        if tokio::time::timeout(LIMIT, ready).await.is_err() {
            let log = std::fs::read_to_string(self.dir.path().join("kube-apiserver.log")).unwrap();
            panic!(
                "the API server is not ready: {}",
                &log[log.len().saturating_sub(4_000)..]
            );
        }
    }

    /// Ends the server.
    pub(crate) async fn stop(&mut self) {
        self.server.take().unwrap().kill().await.unwrap();
    }

    /// A kubeconfig file of a user: `admin`, or `nobody`, who may do nothing.
    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        let dir = self.dir.path();
        let file = dir.join(format!("{user}.kubeconfig"));
        let text = format!(
            "apiVersion: v1\nkind: Config\n\
             clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{}', \
             certificate-authority: '{}'}}}}]\n\
             users: [{{name: u, user: {{token: {user}}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n",
            self.port,
            dir.join("tls/apiserver.crt").display(),
        );
        std::fs::write(&file, text).unwrap();
        file
    }

    /// For requests of the test.
    pub(crate) async fn admin(&self) -> Admin {
        let server = Server::connect(Some(&self.kubeconfig("admin")))
            .await
            .unwrap();
        Admin(server.client())
    }
}

fn log(dir: &Path, name: &str) -> Stdio {
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join(format!("{name}.log")));
    Stdio::from(file.unwrap())
}

fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: Vec<_> = (0..N)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    std::array::from_fn(|n| listeners[n].local_addr().unwrap().port())
}

/// Changes objects.
pub(crate) struct Admin(kube::Client);

impl Admin {
    async fn send(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: &Value,
    ) -> Result<Value, kube::Error> {
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, kind)
            .body(body)
            .unwrap();
        self.0.request(request).await
    }

    /// Creates or changes an object so that it is so.
    pub(crate) async fn put(&self, object: &Value) {
        let path = path_of(object);
        let apply = "application/apply-patch+yaml";
        let whole = format!("{path}?fieldManager=test&force=true");
        self.send(Method::PATCH, &whole, apply, object)
            .await
            .unwrap();
        if let Some(status) = object.get("status") {
            let merge = "application/merge-patch+json";
            let only = json!({"status": status});
            let part = format!("{path}/status");
            self.send(Method::PATCH, &part, merge, &only).await.unwrap();
        }
    }

    /// Deletes an object at once.
    pub(crate) async fn delete(&self, object: &Value) {
        let path = format!("{}?gracePeriodSeconds=0", path_of(object));
        let json = "application/json";
        self.send(Method::DELETE, &path, json, &Value::Null)
            .await
            .unwrap();
    }

    /// Deletes all objects of a collection.
    pub(crate) async fn clear(&self, collection: &str) {
        let path = format!("{collection}?gracePeriodSeconds=0");
        let json = "application/json";
        self.send(Method::DELETE, &path, json, &Value::Null)
            .await
            .unwrap();
    }

    /// Makes Calico's GlobalNetworkPolicy known, and waits until it is served.
    pub(crate) async fn define_calico(&self) {
        self.put(&json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "globalnetworkpolicies.crd.projectcalico.org"},
            "spec": {
                "group": "crd.projectcalico.org", "scope": "Cluster",
                "names": {"plural": "globalnetworkpolicies", "kind": "GlobalNetworkPolicy"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                    "type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
            },
        }))
        .await;
        let served = async {
            let path = "/apis/crd.projectcalico.org/v1/globalnetworkpolicies";
            while self
                .send(Method::GET, path, "", &Value::Null)
                .await
                .is_err()
            {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(LIMIT, served).await.unwrap();
    }
}

fn path_of(object: &Value) -> String {
    let word = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let version = word("/apiVersion").unwrap();
    let plural = match word("/kind").unwrap() {
        kind if kind.ends_with("Policy") => kind.to_lowercase().replace("policy", "policies"),
        kind => kind.to_lowercase() + "s",
    };
    let root = if version.contains('/') { "apis" } else { "api" };
    let namespace = word("/metadata/namespace").map(|n| format!("/namespaces/{n}"));
    let namespace = namespace.unwrap_or_default();
    let name = word("/metadata/name").unwrap();
    format!("/{root}/{version}{namespace}/{plural}/{name}")
}
