//! A control plane that only issues, and a metadata service that only signs.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, put};
use mesh::authz::TABLE;
use mesh::ca::{Authority, Issued, Leaf};
use mesh::clock;
use mesh::drain::Drain;
use mesh::identity::Identity;
use mesh::metrics::Registry;
use mesh::server::rpc_metrics::RpcMetrics;
use mesh::server::{Address, Bound, Params};
use mesh::tasks::Tasks;
use mesh::tls::{TlsConfig, TlsMaterial};
use proto::control::v1::certificates_server::{Certificates, CertificatesServer};
use proto::control::v1::{IssueRequest, IssueResponse};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

/// Life of authorities and of the server's own certificate.
const LONG: Duration = Duration::from_hours(48);

struct State {
    authority: Authority,
    next: Authority,
    /// Who gets a certificate now.
    gives: Identity,
    life: Duration,
    refusals: u32,
    asked: Vec<IssueRequest>,
}

/// The control plane.
pub(crate) struct Issuer {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    server: Identity,
    material: TlsMaterial,
    dir: tempfile::TempDir,
    tasks: Tasks,
}

struct Door(Arc<Mutex<State>>);

#[async_trait::async_trait]
impl Certificates for Door {
    async fn issue(
        &self,
        request: Request<IssueRequest>,
    ) -> Result<Response<IssueResponse>, Status> {
        let mut state = self.0.lock().unwrap();
        let request = request.into_inner();
        state.asked.push(request.clone());
        if state.refusals > 0 {
            state.refusals -= 1;
            return Err(Status::permission_denied("as told"));
        }
        let now = clock::wall();
        let leaf = Leaf::new(&state.gives, state.life).valid(now, now + state.life);
        let signed = state.authority.sign(&request.csr, &leaf);
        let certificate_chain =
            signed.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(IssueResponse {
            certificate_chain,
            trust_bundle: state.authority.certificate().to_owned(),
            not_after_ms: 0,
        }))
    }
}

impl Issuer {
    /// One whose own certificate names `server`, and that issues for `life`.
    pub(crate) async fn start(server: Identity, life: Duration) -> Self {
        mesh::tls::install_provider();
        let state = State {
            authority: Authority::new(LONG).unwrap(),
            next: Authority::new(LONG).unwrap(),
            gives: Identity::gateway("g-1"),
            life,
            refusals: 0,
            asked: Vec::new(),
        };
        let dir = tempfile::tempdir().unwrap();
        own_certificate(&state.authority, &server)
            .write(dir.path())
            .unwrap();
        let material = TlsMaterial::load(&TlsConfig::in_dir(dir.path())).unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let bound = Bound::tcp(any, material.clone(), Params::default())
            .await
            .unwrap();
        let bound = bound.with_strangers();
        let Address::Tcp(address) = *bound.address() else {
            panic!("not TCP")
        };
        let state = Arc::new(Mutex::new(state));
        let tasks = Tasks::new(Drain::new());
        let routes = Routes::new(CertificatesServer::new(Door(Arc::clone(&state))));
        bound.serve(
            routes,
            TABLE,
            &RpcMetrics::register(&Registry::new()),
            &tasks,
        );
        Self {
            state,
            address,
            server,
            material,
            dir,
            tasks,
        }
    }

    pub(crate) fn target(&self) -> String {
        self.address.to_string()
    }

    /// Its authority's certificate, PEM.
    pub(crate) fn bundle(&self) -> String {
        self.state
            .lock()
            .unwrap()
            .authority
            .certificate()
            .to_owned()
    }

    /// The certificate of the authority that it will have after [`Issuer::rotate`].
    pub(crate) fn next_authority(&self) -> String {
        self.state.lock().unwrap().next.certificate().to_owned()
    }

    /// From now on everything comes from the next authority, its own certificate too.
    pub(crate) fn rotate(&mut self) {
        let mut state = self.state.lock().unwrap();
        let next = std::mem::replace(&mut state.next, Authority::new(LONG).unwrap());
        state.authority = next;
        own_certificate(&state.authority, &self.server)
            .write(self.dir.path())
            .unwrap();
        assert!(self.material.reload_now().unwrap());
    }

    /// Refuses the next so many.
    pub(crate) fn refuse(&self, count: u32) {
        self.state.lock().unwrap().refusals = count;
    }

    /// Whom it gives certificates to.
    pub(crate) fn gives(&self) -> Identity {
        self.state.lock().unwrap().gives.clone()
    }

    pub(crate) fn give(&self, identity: Identity) {
        self.state.lock().unwrap().gives = identity;
    }

    /// Tokens that it was shown, refused ones too.
    pub(crate) fn tokens(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state
            .asked
            .iter()
            .map(|asked| asked.token.clone())
            .collect()
    }

    /// Documents that it was shown; those with a signature that does not fit are marked.
    pub(crate) fn documents(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let shown = |asked: &IssueRequest| {
            let document = asked.instance_document.clone();
            let is_signed = asked.instance_signature == signature(&document);
            if is_signed {
                document
            } else {
                format!("{document}, not signed")
            }
        };
        state.asked.iter().map(shown).collect()
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.tasks.drain().stop();
    }
}

fn own_certificate(authority: &Authority, server: &Identity) -> Issued {
    authority.issue(&Leaf::new(server, LONG)).unwrap()
}

/// Stands for a signature; of nothing it is nothing.
fn signature(document: &str) -> String {
    if document.is_empty() {
        return String::new();
    }
    format!("signature of {} bytes", document.len())
}

/// A metadata service in token mode.
pub(crate) struct Metadata {
    address: SocketAddr,
    document: String,
    tasks: Tasks,
}

impl Metadata {
    pub(crate) async fn start(instance: &str) -> Self {
        let document = format!("{{\"zone-id\":\"cn-hangzhou-i\",\"instance-id\":\"{instance}\"}}");
        let item = |text: String| {
            get(move |headers: HeaderMap| async move {
                let shown = headers.get("X-aliyun-ecs-metadata-token");
                if shown.is_some_and(|token| token == "metadata-token") {
                    (StatusCode::OK, text)
                } else {
                    (StatusCode::UNAUTHORIZED, String::new())
                }
            })
        };
        let identity = "/latest/dynamic/instance-identity";
        let router = Router::new()
            .route("/latest/api/token", put(|| async { "metadata-token" }))
            .route(&format!("{identity}/document"), item(document.clone()))
            .route(&format!("{identity}/pkcs7"), item(signature(&document)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = Tasks::new(Drain::new());
        let stopping = tasks.stopping();
        tasks.spawn_fallible("metadata", async move {
            axum::serve(listener, router)
                .with_graceful_shutdown(stopping.cancelled_owned())
                .await
        });
        Self {
            address,
            document,
            tasks,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn document(&self) -> String {
        self.document.clone()
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        self.tasks.drain().stop();
    }
}
