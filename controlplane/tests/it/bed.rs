//! An API server with what the chart puts there, and control planes that run with what the chart gives them.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use cluster::server::Server;
use http::Request;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use mesh::ca::Request as CertificateRequest;
use mesh::client::{Channel, Params};
use mesh::identity::IdentityKind;
use mesh::tls::verify::Expect;
use mesh::tls::{TlsConfig, TlsMaterial, Trust};
use proto::control::v1::certificates_client::CertificatesClient;
use proto::control::v1::{IssueRequest, IssueResponse};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tonic::Status;

use crate::bare::{Admin, Bare};
use crate::reader::LIMIT;

const BINARY: &str = env!("CARGO_BIN_EXE_controlplane");
/// What the chart makes of a set of values that has a start-up taint.
const CHART: &str = include_str!("../../../helm/tests/golden/eni-config.yaml");
/// Where it is installed.
pub(crate) const NAMESPACE: &str = "kube-system";

/// The API server, and requests to it.
pub(crate) struct Bed {
    pub(crate) bare: Bare,
    pub(crate) admin: Admin,
    pub(crate) client: kube::Client,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) cluster: String,
    audience: String,
    config: PathBuf,
}

impl Bed {
    pub(crate) async fn start(programs: (PathBuf, PathBuf)) -> Self {
        let bare = Bare::start(programs).await;
        let admin = bare.admin().await;
        let server = Server::connect(Some(&bare.kubeconfig("admin"))).await;
        let dir = tempfile::tempdir().unwrap();
        let mut toml = None;
        let wanted = [
            "ServiceAccount",
            "ClusterRole",
            "ClusterRoleBinding",
            "Role",
            "RoleBinding",
            "ConfigMap",
            "Secret",
            "Lease",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
        ];
        for object in objects() {
            let kind = object["kind"].as_str().unwrap();
            let name = object["metadata"]["name"].as_str().unwrap();
            if name == "terway-controlplane" && kind == "ConfigMap" {
                let text = object["data"]["controlplane.toml"].as_str().unwrap();
                toml = Some(text.to_owned());
            }
            // Hooks are made when the release goes.
            let hook = object
                .pointer("/metadata/annotations/helm.sh~1hook")
                .is_some();
            if wanted.contains(&kind) && !hook {
                admin.put(&object).await;
            }
        }
        let toml = toml.expect("the chart configures no control plane");
        let table: toml::Table = toml.parse().unwrap();
        let word = |section: &str, key: &str| table[section][key].as_str().unwrap().to_owned();
        let config = dir.path().join("controlplane.toml");
        std::fs::write(&config, &toml).unwrap();
        Self {
            client: server.unwrap().client(),
            bare,
            admin,
            cluster: word("cluster", "id"),
            audience: word("certificates", "audience"),
            config,
            dir,
        }
    }

    pub(crate) fn audience(&self) -> &str {
        &self.audience
    }

    /// A Node with an instance and our start-up taint beside another one.
    pub(crate) async fn node(&self, name: &str, instance: &str) {
        self.admin
            .put(&json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "spec": {
                    "providerID": format!("cn-hangzhou.{instance}"),
                    "taints": [
                        {"key": "node.terway.local/not-ready", "effect": "NoSchedule"},
                        {"key": "somebody.else", "effect": "NoSchedule"},
                    ],
                },
            }))
            .await;
    }

    /// A pod on a node; gives its uid.
    pub(crate) async fn pod(&self, name: &str, node: &str, account: &str) -> String {
        self.put_pod(name, node, account, json!({}), &["c"]).await
    }

    /// The pod of the DaemonSet on a node.
    pub(crate) async fn agents(&self, name: &str, node: &str) -> String {
        let labels = json!({
            "app.kubernetes.io/name": "terway",
            "app.kubernetes.io/instance": "terway",
            "app.kubernetes.io/component": "node",
        });
        let containers = ["node-agent", "policy-agent"];
        self.put_pod(name, node, "terway-node", labels, &containers)
            .await
    }

    async fn put_pod(
        &self,
        name: &str,
        node: &str,
        account: &str,
        labels: Value,
        containers: &[&str],
    ) -> String {
        let containers: Vec<Value> = containers
            .iter()
            .map(|name| json!({"name": name, "image": "i"}))
            .collect();
        self.admin
            .put(&json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
                "spec": {"nodeName": node, "serviceAccountName": account, "containers": containers},
            }))
            .await;
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}");
        self.get(&path).await["metadata"]["uid"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    pub(crate) async fn delete_pod(&self, name: &str) {
        let metadata = json!({"name": name, "namespace": NAMESPACE});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata});
        self.admin.delete(&pod).await;
    }

    /// Reads an object.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let request = Request::get(path).body(Vec::new()).unwrap();
        self.client.request(request).await.unwrap()
    }

    pub(crate) async fn config_map(&self, name: &str) -> ConfigMap {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        maps.get(name).await.unwrap()
    }

    /// Waits until a ConfigMap has what is wanted.
    pub(crate) async fn config_map_until(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&ConfigMap) -> bool,
    ) -> ConfigMap {
        until(what, async || {
            let map = self.config_map(name).await;
            wanted(&map).then_some(map)
        })
        .await
    }

    /// The same for a ConfigMap's data, while something is said again and again.
    pub(crate) async fn config_map_until_saying(
        &self,
        name: &str,
        mut say: impl AsyncFnMut(),
        wanted: impl Fn(&BTreeMap<String, String>) -> bool,
    ) {
        until(name, async || {
            say().await;
            let data = self.config_map(name).await.data.unwrap_or_default();
            wanted(&data).then_some(())
        })
        .await;
    }

    /// A client with the rights that the chart gives to an account.
    pub(crate) async fn client_of(&self, account: &str) -> kube::Client {
        let kubeconfig = self.kubeconfig_of(account).await;
        Server::connect(Some(&kubeconfig)).await.unwrap().client()
    }

    /// A token of an account for an audience, bound to a pod (name, uid) if there is one.
    pub(crate) async fn token(
        &self,
        account: &str,
        audience: &str,
        pod: Option<(&str, &str)>,
    ) -> String {
        let bound = pod.map(
            |(name, uid)| json!({"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid}),
        );
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": [audience], "expirationSeconds": 3600, "boundObjectRef": bound},
        });
        let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token");
        let request = Request::post(path)
            .header("content-type", "application/json")
            .body(request.to_string().into_bytes())
            .unwrap();
        let answer: Value = self.client.request(request).await.unwrap();
        answer["status"]["token"].as_str().unwrap().to_owned()
    }

    /// A kubeconfig with the rights that the chart gives to an account.
    async fn kubeconfig_of(&self, account: &str) -> PathBuf {
        let token = self
            .token(account, "https://kubernetes.default.svc", None)
            .await;
        let theirs = self.bare.kubeconfig("admin");
        let text = std::fs::read_to_string(theirs).unwrap();
        let file = self.dir.path().join(format!("{account}.kubeconfig"));
        std::fs::write(
            &file,
            text.replace("token: admin", &format!("token: {token}")),
        )
        .unwrap();
        file
    }

    fn command(&self, kubeconfig: &Path, sets: &[String]) -> Command {
        let mut command = Command::new(BINARY);
        command
            .arg("--config")
            .arg(&self.config)
            .arg("--set")
            .arg(format!("cluster.kubeconfig={}", kubeconfig.display()))
            .args(["--set", "service.telemetry.log_format=text"])
            .args(["--set", "service.admin.listen=127.0.0.1:0"])
            .kill_on_drop(true);
        for set in sets {
            command.args(["--set", set]);
        }
        command
    }

    /// A replica that serves, with more settings; waits for nothing.
    pub(crate) async fn replica(&self, name: &str, sets: &[&str]) -> Replica {
        let tls = self.dir.path().join(format!("tls-{name}"));
        let log = self.dir.path().join(format!("{name}.log"));
        let [grpc, health] = free_ports();
        let mut all = vec![
            format!("leader.name={name}"),
            "leader.lease_ms=3000".to_owned(),
            "leader.renew_ms=500".to_owned(),
            format!("listen.grpc=127.0.0.1:{grpc}"),
            format!("service.health.listen=127.0.0.1:{health}"),
            format!("tls.ca={}", tls.join("ca.crt").display()),
            format!("tls.cert={}", tls.join("tls.crt").display()),
            format!("tls.key={}", tls.join("tls.key").display()),
        ];
        if !sets.iter().any(|set| set.starts_with("ipam.replicas")) {
            all.push("ipam.replicas=[\"127.0.0.1:1\"]".to_owned());
        }
        all.extend(sets.iter().map(|set| (*set).to_owned()));
        let kubeconfig = self.kubeconfig_of("terway-controlplane").await;
        let file = std::fs::File::create(&log).unwrap();
        let child = self
            .command(&kubeconfig, &all)
            .stderr(file)
            .spawn()
            .unwrap();
        Replica {
            child,
            log,
            tls: TlsConfig::in_dir(&tls),
            grpc: format!("127.0.0.1:{grpc}"),
            health: format!("127.0.0.1:{health}"),
        }
    }

    /// Runs the uninstallation's process to its end, with the rights of its Job.
    pub(crate) async fn uninstall(&self, timeout: Duration) -> Output {
        for object in objects() {
            let hook = object
                .pointer("/metadata/annotations/helm.sh~1hook")
                .is_some();
            if hook && object["kind"] != "Job" {
                self.admin.put(&object).await;
            }
        }
        let kubeconfig = self.kubeconfig_of("terway-uninstall").await;
        let sets = [
            "mode=uninstall".to_owned(),
            "service.health.listen=127.0.0.1:0".to_owned(),
            format!("uninstall.timeout_ms={}", timeout.as_millis()),
        ];
        let mut command = self.command(&kubeconfig, &sets);
        let running = command.stderr(Stdio::piped()).output();
        tokio::time::timeout(LIMIT, running).await.unwrap().unwrap()
    }
}

/// What the chart makes.
fn objects() -> Vec<Value> {
    let all = serde_saphyr::from_multiple::<Value>(CHART).unwrap();
    all.into_iter().filter(|object| !object.is_null()).collect()
}

fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: Vec<_> = (0..N)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    std::array::from_fn(|n| listeners[n].local_addr().unwrap().port())
}

/// Asks again until there is an answer.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let answer = tokio::time::timeout(LIMIT, asking).await;
    answer.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// A process that serves.
pub(crate) struct Replica {
    child: Child,
    log: PathBuf,
    pub(crate) tls: TlsConfig,
    pub(crate) grpc: String,
    health: String,
}

impl Replica {
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    async fn page(&self, path: &str) -> Option<(bool, String)> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(&self.health).await.ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: h\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some((answer.contains(" 200 OK\r\n"), answer))
    }

    pub(crate) async fn ready(&mut self) {
        let ready = async {
            loop {
                if let Some((true, _)) = self.page("/readyz").await {
                    return;
                }
                let ended = self.child.try_wait().unwrap();
                assert!(ended.is_none(), "it ended: {}", self.log());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        if tokio::time::timeout(LIMIT, ready).await.is_err() {
            let why = self.page("/readyz").await;
            panic!("not ready: {why:?}: {}", self.log());
        }
    }

    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.page("/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line?.trim().parse().ok()
    }

    pub(crate) async fn leads(&self) -> bool {
        self.metric("terway_controlplane_leads").await == Some(1.0)
    }

    /// Ends it at once.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Asks it to end, and waits.
    pub(crate) async fn end(mut self) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGTERM).unwrap();
        let ended = tokio::time::timeout(LIMIT, self.child.wait()).await;
        assert!(ended.unwrap().unwrap().success(), "{}", self.log());
    }

    /// A channel without a certificate.
    pub(crate) fn anonymous(&self) -> Channel {
        let expect = Expect::Kind(IdentityKind::Controller);
        let trust = Trust::new(self.tls.ca.clone());
        Channel::anonymous(&self.grpc, trust, expect, &Params::default()).unwrap()
    }

    /// A channel with one.
    pub(crate) fn with(&self, tls: &TlsMaterial) -> Channel {
        let expect = Expect::Kind(IdentityKind::Controller);
        Channel::tcp(&self.grpc, tls.clone(), expect, &Params::default()).unwrap()
    }

    pub(crate) async fn issue(&self, request: IssueRequest) -> Result<IssueResponse, Status> {
        let mut client = CertificatesClient::new(self.anonymous());
        Ok(client.issue(request).await?.into_inner())
    }

    /// Gets a certificate as the container `certificate` of a pod does.
    pub(crate) async fn certificate(&self, bed: &Bed, token: String, name: &str) -> TlsMaterial {
        let request = CertificateRequest::new().unwrap();
        let issued = self
            .issue(IssueRequest {
                csr: request.der,
                token,
                ..IssueRequest::default()
            })
            .await
            .unwrap();
        let written = mesh::ca::Issued {
            ca: issued.trust_bundle,
            certificate: issued.certificate_chain,
            key: request.key,
        };
        let dir = bed.dir.path().join(name);
        written.write(&dir).unwrap();
        TlsMaterial::load(&TlsConfig::in_dir(&dir)).unwrap()
    }
}
