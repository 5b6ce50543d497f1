//! A node-agent on a unix socket that keeps what it is asked and answers as it is told.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use proto::node::v1::cni_server::{Cni, CniServer};
use proto::node::v1::{
    AddRequest, AddResponse, CheckRequest, CheckResponse, DelRequest, DelResponse, GcRequest,
    GcResponse, Interface, IpConfig, RouteConfig, StatusRequest, StatusResponse,
};
use tokio::sync::oneshot;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// What was asked, and how the next call is answered.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) add: Option<AddRequest>,
    pub(crate) del: Option<DelRequest>,
    pub(crate) check: Option<CheckRequest>,
    pub(crate) gc: Option<GcRequest>,
    pub(crate) traceparent: Option<String>,
    pub(crate) timeout: Option<String>,
    refusal: Option<Status>,
    dies: bool,
}

#[derive(Clone)]
struct Door(Arc<Mutex<Seen>>);

/// Stops when dropped.
pub(crate) struct Agent {
    seen: Arc<Mutex<Seen>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Agent {
    pub(crate) fn start(folder: &Path) -> Self {
        let socket = folder.join("agent.sock");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (stop, stopped) = oneshot::channel::<()>();
        // Bound before the thread starts: the plug-in may come at once.
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let door = Door(Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async move {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
                let served = tonic::transport::Server::builder()
                    .add_service(CniServer::new(door))
                    .serve_with_incoming(incoming);
                tokio::select! {
                    result = served => result.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self {
            seen,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Refuses all further calls with a reason of ours.
    pub(crate) fn refuse(&self, code: Code, reason: &str, facts: &[(&str, &str)]) {
        let facts: HashMap<String, String> = facts
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let details = ErrorDetails::with_error_info(reason, "terway", facts);
        let status = Status::with_error_details(code, "as the test wants", details);
        self.seen.lock().unwrap().refusal = Some(status);
    }

    /// Takes calls and never answers: the connection breaks instead.
    pub(crate) fn die_on_call(&self) {
        self.seen.lock().unwrap().dies = true;
    }

    pub(crate) fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().unwrap())
    }
}

/// The answer that every ADD gets.
pub(crate) fn added(netns: &str) -> AddResponse {
    let interface = |name: &str, mac: &str, sandbox: &str| Interface {
        name: name.to_owned(),
        mac: mac.to_owned(),
        mtu: 1500,
        sandbox: sandbox.to_owned(),
    };
    let ip = |address: &str, gateway: &str| IpConfig {
        address: address.to_owned(),
        gateway: gateway.to_owned(),
        interface: 1,
    };
    let route = |dst: &str, gw: &str| RouteConfig {
        dst: dst.to_owned(),
        gw: gw.to_owned(),
    };
    AddResponse {
        interfaces: vec![
            interface("cali0d7763386da", "02:00:00:00:00:01", ""),
            interface("eth0", "02:00:00:00:00:02", netns),
        ],
        ips: vec![
            ip("10.9.0.5/32", "169.254.1.1"),
            ip("fd09::5/128", "fe80::1"),
        ],
        routes: vec![route("0.0.0.0/0", "169.254.1.1"), route("::/0", "fe80::1")],
    }
}

impl Door {
    async fn answer<Q, A>(
        &self,
        request: Request<Q>,
        note: impl FnOnce(&mut Seen, Q) -> A,
    ) -> Result<Response<A>, Status> {
        let dies = {
            let mut seen = self.0.lock().unwrap();
            let text = |key: &str| {
                let value = request.metadata().get(key)?;
                Some(value.to_str().unwrap().to_owned())
            };
            (seen.traceparent, seen.timeout) = (text("traceparent"), text("grpc-timeout"));
            let answer = note(&mut seen, request.into_inner());
            if let Some(status) = &seen.refusal {
                return Err(status.clone());
            }
            if !seen.dies {
                return Ok(Response::new(answer));
            }
            seen.dies
        };
        assert!(!dies, "the agent dies, as the test wants");
        std::future::pending().await
    }
}

#[tonic::async_trait]
impl Cni for Door {
    async fn add(&self, request: Request<AddRequest>) -> Result<Response<AddResponse>, Status> {
        self.answer(request, |seen, message| {
            let response = added(&message.netns);
            seen.add = Some(message);
            response
        })
        .await
    }

    async fn del(&self, request: Request<DelRequest>) -> Result<Response<DelResponse>, Status> {
        self.answer(request, |seen, message| {
            seen.del = Some(message);
            DelResponse {}
        })
        .await
    }

    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        self.answer(request, |seen, message| {
            seen.check = Some(message);
            CheckResponse {}
        })
        .await
    }

    async fn gc(&self, request: Request<GcRequest>) -> Result<Response<GcResponse>, Status> {
        self.answer(request, |seen, message| {
            seen.gc = Some(message);
            GcResponse { freed: 2 }
        })
        .await
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        self.answer(request, |_, _| StatusResponse { free_addresses: 7 })
            .await
    }
}
