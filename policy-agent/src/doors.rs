//! The doors of the agent, on its unix socket: decode, call, encode.

mod convert;
mod inspect;

use std::time::Duration;

use mesh::tasks::Tasks;
use proto::policy::v1::gate_server::Gate as GateService;
use proto::policy::v1::policies_server::Policies;
use proto::policy::v1::{
    DeniedRequest, DeniedResponse, DiffRequest, DiffResponse, ExplainRequest, ExplainResponse,
    ReadyRequest, ReadyResponse, ReleaseRequest, ReleaseResponse, RestoreRequest, RestoreResponse,
    ShowPodRequest, ShowPodResponse, StatusRequest, StatusResponse, TraceEvent, TraceRequest,
};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use crate::denied::Denied;
use crate::enforcer::port::OpenRules;
use crate::gate::Gate;
use crate::revoker;
use crate::trace;

/// An answer that says why must reach the caller before its own deadline ends the call.
const MARGIN: Duration = Duration::from_millis(50);

/// The door of node-agent.
#[derive(Debug, Clone)]
pub struct GateDoor {
    /// What does the work.
    pub gate: Gate,
}

#[tonic::async_trait]
impl GateService for GateDoor {
    async fn ready(
        &self,
        request: Request<ReadyRequest>,
    ) -> Result<Response<ReadyResponse>, Status> {
        let deadline = mesh::server::deadline(&request)
            .map(|at| at.checked_sub(MARGIN).unwrap_or_else(Instant::now));
        let pod = convert::attached("pod", request.into_inner().pod)?;
        let span = tracing::info_span!("policy.ready", k8s.pod.name = %pod.pod);
        let ready = self.gate.ready(pod, deadline).instrument(span).await;
        let generation = ready.map_err(|e| convert::gate_status(&e))?;
        Ok(Response::new(ReadyResponse { generation }))
    }

    async fn release(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseResponse>, Status> {
        let attachment = convert::attachment(request.into_inner().attachment)?;
        let span = tracing::info_span!("policy.release", k8s.sandbox = %attachment);
        let released = self.gate.release(&attachment).instrument(span).await;
        released.map_err(|e| convert::gate_status(&e))?;
        Ok(Response::new(ReleaseResponse {}))
    }

    async fn restore(
        &self,
        request: Request<RestoreRequest>,
    ) -> Result<Response<RestoreResponse>, Status> {
        let mut pods = Vec::new();
        for (place, pod) in request.into_inner().pods.into_iter().enumerate() {
            pods.push(convert::attached(&format!("pods[{place}]"), Some(pod))?);
        }
        let restored = self.gate.restore(pods).await;
        restored.map_err(|e| convert::gate_status(&e))?;
        Ok(Response::new(RestoreResponse {}))
    }
}

/// The door of people.
#[derive(Clone)]
pub struct PoliciesDoor {
    /// Whether policy is on.
    pub gate: Gate,
    /// What was cut.
    pub revoker: revoker::Handle,
    /// Newest denied flows.
    pub denied: Denied,
    /// Reads the kernel.
    pub rules: OpenRules,
    /// Follows packets.
    pub tracer: trace::Tracer,
    /// For work that blocks.
    pub tasks: Tasks,
}

impl std::fmt::Debug for PoliciesDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoliciesDoor").finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl Policies for PoliciesDoor {
    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(inspect::status(self).await?))
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainResponse>, Status> {
        let answer = inspect::explain(self, &request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn show_pod(
        &self,
        request: Request<ShowPodRequest>,
    ) -> Result<Response<ShowPodResponse>, Status> {
        let ShowPodRequest { namespace, name } = request.into_inner();
        let answer = inspect::show_pod(self, namespace, name).await?;
        Ok(Response::new(answer))
    }

    async fn diff(&self, _request: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        let lines = inspect::diff(self).await?;
        Ok(Response::new(DiffResponse { lines }))
    }

    type TraceStream = ReceiverStream<Result<TraceEvent, Status>>;

    async fn trace(
        &self,
        request: Request<TraceRequest>,
    ) -> Result<Response<Self::TraceStream>, Status> {
        let stream = inspect::trace(self, &request.into_inner()).await?;
        Ok(Response::new(stream))
    }

    async fn denied(
        &self,
        request: Request<DeniedRequest>,
    ) -> Result<Response<DeniedResponse>, Status> {
        let limit = match request.into_inner().limit {
            0 => 100,
            limit => usize::try_from(limit).unwrap_or(usize::MAX),
        };
        let flows = inspect::denied(self, limit).await?;
        Ok(Response::new(DeniedResponse { flows }))
    }
}
