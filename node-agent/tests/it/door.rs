//! A policy-agent that does as told and remembers what it was asked.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh::authz;
use mesh::drain::Drain;
use mesh::metrics::Registry;
use mesh::server::rpc_metrics::RpcMetrics;
use mesh::server::{Bound, Params};
use mesh::status::{NOT_READY, Refusal};
use mesh::tasks::Tasks;
use node_agent::ledger::Ledger;
use proto::policy::v1::gate_server::{Gate, GateServer};
use proto::policy::v1::{
    ReadyRequest, ReadyResponse, ReleaseRequest, ReleaseResponse, RestoreRequest, RestoreResponse,
};
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};

/// What the door does with `Ready` and `Release`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Answers.
    Willing,
    /// Says no.
    Unwilling,
    /// Says nothing.
    Mute,
}

/// What the door was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Sandbox, host link and addresses.
    Ready(String, String, Vec<String>),
    /// Sandbox, and whether its addresses were still bound.
    Release(String, bool),
    /// Sandboxes.
    Restore(Vec<String>),
}

/// See the module. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    mood: Arc<Mutex<Mood>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    ledger: Ledger,
}

/// A door that is served.
pub(crate) struct Serving {
    tasks: Tasks,
}

impl Serving {
    /// Ends the process that the door plays.
    pub(crate) async fn end(self) {
        self.tasks.drain().stop();
        assert!(self.tasks.wait(Duration::from_secs(20)).await);
    }
}

impl Door {
    pub(crate) fn new(ledger: &Ledger) -> Self {
        Self {
            mood: Arc::new(Mutex::new(Mood::Willing)),
            asked: Arc::default(),
            ledger: ledger.clone(),
        }
    }

    pub(crate) fn serve(&self, socket: &Path) -> Serving {
        let tasks = Tasks::new(Drain::new());
        let routes = Routes::new(GateServer::new(self.clone()));
        let metrics = RpcMetrics::register(&Registry::new());
        let bound = Bound::unix(socket, Params::default()).unwrap();
        bound.serve(routes, authz::TABLE, &metrics, &tasks);
        Serving { tasks }
    }

    pub(crate) fn be(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn note(&self, asked: Asked) {
        self.asked.lock().unwrap().push(asked);
    }

    async fn answer<T>(&self, answer: T) -> Result<Response<T>, Status> {
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Willing => Ok(Response::new(answer)),
            Mood::Unwilling => {
                let refusal = Refusal::new(Code::Unavailable, NOT_READY, "the kernel says no");
                Err(refusal.into())
            }
            Mood::Mute => std::future::pending().await,
        }
    }
}

#[tonic::async_trait]
impl Gate for Door {
    async fn ready(
        &self,
        request: Request<ReadyRequest>,
    ) -> Result<Response<ReadyResponse>, Status> {
        let pod = request.into_inner().pod.unwrap();
        self.note(Asked::Ready(
            pod.attachment.unwrap().sandbox_id,
            pod.host_link,
            pod.ips,
        ));
        self.answer(ReadyResponse { generation: 1 }).await
    }

    async fn release(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseResponse>, Status> {
        let sandbox = request.into_inner().attachment.unwrap().sandbox_id;
        let view = self.ledger.view();
        let bound = view.bindings.keys().any(|key| key.sandbox == sandbox);
        self.note(Asked::Release(sandbox, bound));
        self.answer(ReleaseResponse {}).await
    }

    async fn restore(
        &self,
        request: Request<RestoreRequest>,
    ) -> Result<Response<RestoreResponse>, Status> {
        let pods = request.into_inner().pods.into_iter();
        let sandboxes = pods.map(|pod| pod.attachment.unwrap().sandbox_id);
        self.note(Asked::Restore(sandboxes.collect()));
        Ok(Response::new(RestoreResponse {}))
    }
}
