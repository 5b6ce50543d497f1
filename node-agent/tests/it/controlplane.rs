//! A control plane that remembers what nodes say, behind mTLS.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cluster::reports::Reports;
use mesh::authz;
use mesh::ca::{Authority, Leaf};
use mesh::client::{Channel, Params as ClientParams};
use mesh::drain::Drain;
use mesh::identity::{Identity, IdentityKind};
use mesh::metrics::Registry;
use mesh::server::rpc_metrics::RpcMetrics;
use mesh::server::{Bound, Params};
use mesh::tasks::Tasks;
use mesh::tls::verify::Expect;
use mesh::tls::{TlsConfig, TlsMaterial};
use proto::control::v1::node_reports_server::{NodeReports, NodeReportsServer};
use proto::control::v1::{
    AnnotatePodRequest, AnnotatePodResponse, PostEventRequest, PostEventResponse,
    ReportNodeRequest, ReportNodeResponse,
};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

const DAY: Duration = Duration::from_hours(24);

/// What nodes said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) nodes: Vec<ReportNodeRequest>,
    pub(crate) annotations: Vec<AnnotatePodRequest>,
    pub(crate) events: Vec<PostEventRequest>,
}

/// See the module. Clones share what was said.
#[derive(Debug, Clone, Default)]
pub(crate) struct ControlPlane {
    said: Arc<Mutex<Said>>,
}

/// One that is served, with who may speak to it.
pub(crate) struct Serving {
    pub(crate) plane: ControlPlane,
    pub(crate) node: TlsMaterial,
    pub(crate) tasks: Tasks,
    address: SocketAddr,
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Serving {
    /// With certificates, and nobody who answers yet.
    pub(crate) fn prepare() -> Self {
        mesh::tls::install_provider();
        let authority = Authority::new(DAY).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = free.local_addr().unwrap();
        Self {
            plane: ControlPlane::default(),
            node: TlsMaterial::load(&tls(&authority, &dir, &Identity::node("c1", "i-1"))).unwrap(),
            tasks: Tasks::new(Drain::new()),
            address,
            dir,
            authority,
        }
    }

    /// Answers from now on.
    pub(crate) async fn serve(&self) {
        let config = tls(&self.authority, &self.dir, &Identity::controller("c1"));
        let tls = TlsMaterial::load(&config).unwrap();
        let bound = Bound::tcp(self.address, tls, Params::default());
        let routes = Routes::new(NodeReportsServer::new(self.plane.clone()));
        let metrics = RpcMetrics::register(&Registry::new());
        let bound = bound.await.unwrap();
        bound.serve(routes, authz::TABLE, &metrics, &self.tasks);
    }

    /// A node's way to it.
    pub(crate) fn reports(&self, registry: &Registry) -> Reports {
        let expect = Expect::Kind(IdentityKind::Controller);
        let target = self.address.to_string();
        let params = ClientParams::default();
        let channel = Channel::tcp(&target, self.node.clone(), expect, &params).unwrap();
        let reports = Reports::new("node-agent", registry);
        let speaking = reports.clone().run(channel, self.tasks.stopping());
        self.tasks.spawn("reports", speaking);
        reports
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.tasks.drain().start("end");
        self.tasks.drain().stop();
    }
}

fn tls(authority: &Authority, dir: &tempfile::TempDir, identity: &Identity) -> TlsConfig {
    let at = dir
        .path()
        .join(identity.to_string().replace(['/', ':'], "_"));
    let issued = authority.issue(&Leaf::new(identity, DAY)).unwrap();
    issued.write(&at).unwrap();
    TlsConfig::in_dir(&at)
}

impl ControlPlane {
    pub(crate) fn said<T>(&self, look: impl FnOnce(&Said) -> T) -> T {
        look(&self.said.lock().unwrap())
    }

    /// The last word of the node.
    pub(crate) fn node(&self) -> ReportNodeRequest {
        self.said(|said| said.nodes.last().cloned().unwrap_or_default())
    }

    fn note(&self, note: impl FnOnce(&mut Said)) {
        note(&mut self.said.lock().unwrap());
    }
}

#[tonic::async_trait]
impl NodeReports for ControlPlane {
    async fn report_node(
        &self,
        request: Request<ReportNodeRequest>,
    ) -> Result<Response<ReportNodeResponse>, Status> {
        self.note(|said| said.nodes.push(request.into_inner()));
        Ok(Response::new(ReportNodeResponse {}))
    }

    async fn annotate_pod(
        &self,
        request: Request<AnnotatePodRequest>,
    ) -> Result<Response<AnnotatePodResponse>, Status> {
        let request = request.into_inner();
        if request.name == "unknown" {
            return Err(Status::not_found("no such pod"));
        }
        self.note(|said| said.annotations.push(request));
        Ok(Response::new(AnnotatePodResponse {}))
    }

    async fn post_event(
        &self,
        request: Request<PostEventRequest>,
    ) -> Result<Response<PostEventResponse>, Status> {
        self.note(|said| said.events.push(request.into_inner()));
        Ok(Response::new(PostEventResponse {}))
    }
}
