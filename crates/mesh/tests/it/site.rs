//! A certificate authority, servers and clients for one test.

use std::net::SocketAddr;
use std::time::Duration;

use mesh::authz::{Row, Table};
use mesh::ca::{Authority, Issued, Leaf};
use mesh::client::{self, Channel};
use mesh::drain::Drain;
use mesh::identity::CallerKind::{LocalRoot, Mesh};
use mesh::identity::{Identity, IdentityKind};
use mesh::metrics::Registry;
use mesh::server::rpc_metrics::RpcMetrics;
use mesh::server::{self, Address, Bound};
use mesh::tasks::Tasks;
use mesh::tls::verify::Expect;
use mesh::tls::{TlsConfig, TlsMaterial};
use tempfile::TempDir;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

pub(crate) const DAY: Duration = Duration::from_hours(24);

/// Longest wait for anything in these tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Methods that exist in these tests only.
pub(crate) const DOOR: Table = &[
    Row {
        method: "/test.v1.Door/Knock",
        callers: &[Mesh(IdentityKind::Node), LocalRoot],
    },
    Row {
        method: "/test.v1.Door/Panic",
        callers: &[Mesh(IdentityKind::Node)],
    },
    Row {
        method: "/test.v1.Door/Hang",
        callers: &[Mesh(IdentityKind::Node)],
    },
    Row {
        method: "/test.v1.Door/Stream",
        callers: &[Mesh(IdentityKind::Node)],
    },
    Row {
        method: "/test.v1.Door/PanicInStream",
        callers: &[Mesh(IdentityKind::Node)],
    },
];

pub(crate) struct Site {
    pub(crate) authority: Authority,
    pub(crate) dir: TempDir,
}

impl Site {
    pub(crate) fn new() -> Self {
        mesh::tls::install_provider();
        Self {
            authority: Authority::new(DAY).unwrap(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn issue(&self, leaf: &Leaf) -> Issued {
        self.authority.issue(leaf).unwrap()
    }

    pub(crate) fn write(&self, name: &str, issued: &Issued) -> TlsConfig {
        let dir = self.dir.path().join(name);
        issued.write(&dir).unwrap();
        TlsConfig::in_dir(&dir)
    }

    pub(crate) fn material(&self, identity: &Identity) -> TlsMaterial {
        let name = identity.to_string().replace(['/', ':'], "_");
        let config = self.write(&name, &self.issue(&Leaf::new(identity, DAY)));
        TlsMaterial::load(&config).unwrap()
    }

    pub(crate) fn channel(
        &self,
        to: SocketAddr,
        caller: &Identity,
        expect: IdentityKind,
    ) -> Channel {
        channel(to, self.material(caller), expect)
    }
}

pub(crate) fn channel(to: SocketAddr, material: TlsMaterial, expect: IdentityKind) -> Channel {
    let params = client::Params::default();
    Channel::tcp(&to.to_string(), material, Expect::Kind(expect), &params).unwrap()
}

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) tasks: Tasks,
    pub(crate) registry: Registry,
    pub(crate) rpc: RpcMetrics,
}

pub(crate) async fn start(material: TlsMaterial, table: Table, params: server::Params) -> Running {
    let any = "127.0.0.1:0".parse().unwrap();
    serve(Bound::tcp(any, material, params).await.unwrap(), table)
}

/// A server that also lets in who has no certificate.
pub(crate) async fn start_open(material: TlsMaterial, table: Table) -> Running {
    let any = "127.0.0.1:0".parse().unwrap();
    let bound = Bound::tcp(any, material, server::Params::default()).await;
    serve(bound.unwrap().with_strangers(), table)
}

fn serve(bound: Bound, table: Table) -> Running {
    let Address::Tcp(address) = *bound.address() else {
        panic!("not TCP")
    };
    let (tasks, registry) = (Tasks::new(Drain::new()), Registry::new());
    let rpc = RpcMetrics::register(&registry);
    bound.serve(routes(), table, &rpc, &tasks);
    Running {
        address,
        tasks,
        registry,
        rpc,
    }
}

/// Answers every method with an empty message, but for the odd ones of [`DOOR`].
fn routes() -> Routes {
    Routes::from(axum::Router::new().fallback(answer))
}

async fn answer(request: axum::extract::Request) -> http::Response<axum::body::Body> {
    let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
    let request = request.map(Body::new);
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<(), ()>::default());
    let response = match method.as_str() {
        "Stream" | "PanicInStream" => {
            let panics = method == "PanicInStream";
            let open = tower::service_fn(move |_: Request<()>| async move {
                let rest = futures::stream::poll_fn(move |_| {
                    assert!(!panics, "as asked");
                    std::task::Poll::<Option<Result<(), Status>>>::Pending
                });
                let first = futures::stream::iter([Ok(())]);
                Ok::<_, Status>(Response::new(futures::StreamExt::chain(first, rest)))
            });
            grpc.server_streaming(Opened(open), request).await
        }
        _ => {
            let one = tower::service_fn(move |request: Request<()>| one(method.clone(), request));
            grpc.unary(one, request).await
        }
    };
    response.map(axum::body::Body::new)
}

async fn one(method: String, request: Request<()>) -> Result<Response<()>, Status> {
    match method.as_str() {
        "Panic" => panic!("as asked"),
        "Hang" => std::future::pending().await,
        _ => {}
    }
    let mut response = Response::new(());
    let caller = server::caller(&request)?.to_string();
    response
        .metadata_mut()
        .insert("caller", caller.parse().unwrap());
    if let Some(here) = mesh::telemetry::current_traceparent() {
        response
            .metadata_mut()
            .insert("seen-traceparent", here.parse().unwrap());
    }
    if server::deadline(&request).is_some() {
        response
            .metadata_mut()
            .insert("has-deadline", "yes".parse().unwrap());
    }
    Ok(response)
}

/// Lets a function open a server stream.
struct Opened<F>(F);

impl<F, S> tonic::server::ServerStreamingService<()> for Opened<F>
where
    F: tower::Service<Request<()>, Response = Response<S>, Error = Status>,
    S: futures::Stream<Item = Result<(), Status>>,
{
    type Response = ();
    type ResponseStream = S;
    type Future = F::Future;

    fn call(&mut self, request: Request<()>) -> F::Future {
        self.0.call(request)
    }
}

/// Calls a method with an empty message and expects an empty one.
pub(crate) async fn call(channel: &Channel, method: &str) -> Result<Response<()>, Status> {
    call_with(channel, method, Request::new(())).await
}

pub(crate) async fn call_with(
    channel: &Channel,
    method: &str,
    request: Request<()>,
) -> Result<Response<()>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await?;
    let path = http::uri::PathAndQuery::try_from(method).unwrap();
    let call = grpc.unary(request, path, ProstCodec::<(), ()>::default());
    tokio::time::timeout(PATIENCE, call)
        .await
        .expect("no answer at all")
}

pub(crate) async fn open(channel: &Channel, method: &str) -> Result<tonic::Streaming<()>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await?;
    let path = http::uri::PathAndQuery::try_from(method).unwrap();
    let call = grpc.server_streaming(Request::new(()), path, ProstCodec::<(), ()>::default());
    let opened = tokio::time::timeout(PATIENCE, call)
        .await
        .expect("no answer at all")?;
    Ok(opened.into_inner())
}
