//! The doors of the agent: decode, call, encode.

mod convert;

use std::collections::BTreeSet;
use std::sync::Arc;

use cluster::object::Phase;
use mesh::causes;
use mesh::status::Refusal;
use proto::node::v1::cni_server::Cni;
use proto::node::v1::inspect_server::Inspect;
use proto::node::v1::{
    AddRequest, AddResponse, CheckRequest, CheckResponse, DelRequest, DelResponse, DumpNodeRequest,
    DumpNodeResponse, GcRequest, GcResponse, StatusRequest, StatusResponse,
};
use proto::types::v1::Reason;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};
use tracing::Instrument as _;
use types::cloud::InstanceId;

use crate::announcer::Announcer;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::pods::{PodError, Pods};
use crate::standing::Situation;
use crate::target::Targets;
use crate::uplinks::Uplinks;

/// The CNI plug-in's door.
#[derive(Debug, Clone)]
pub struct CniDoor {
    /// What does the work.
    pub pods: Pods,
    /// For STATUS.
    pub ledger: Ledger,
    /// Whether ipam was ever reached, for STATUS.
    pub targets: Targets,
    /// Counts and durations.
    pub metrics: Arc<Metrics>,
    /// Whether the node takes new pods.
    pub phase: watch::Receiver<Phase>,
    /// What pods are told through their objects.
    pub announcer: Announcer,
}

/// What a pod is told on a node that leaves.
const LEAVING: &str = "this node takes no new pods: the network plug-in is being uninstalled";

impl CniDoor {
    /// Refuses on a node that leaves.
    fn serves(&self) -> Result<(), Status> {
        if *self.phase.borrow() == Phase::Serve {
            return Ok(());
        }
        let reason = Reason::NotReady.as_str_name();
        Err(Refusal::new(Code::Unavailable, reason, LEAVING).into())
    }

    /// The error in words, and, where no address came, what ipam says about that.
    fn words(&self, error: &PodError) -> String {
        let mut words = vec![causes::text(error)];
        if matches!(error, PodError::NoAddress { .. }) {
            let faults = Situation::of_ipam(self.targets.ipam()).faults();
            words.extend(faults.iter().map(ToString::to_string));
        }
        words.join("; ")
    }
}

#[tonic::async_trait]
impl Cni for CniDoor {
    async fn add(&self, request: Request<AddRequest>) -> Result<Response<AddResponse>, Status> {
        let add = convert::add_pod(request.into_inner())?;
        let (pod, uid) = (add.pod.clone(), add.pod_uid.clone());
        if let Err(refused) = self.serves() {
            self.announcer.failed(&pod, &uid, LEAVING.to_owned());
            return Err(refused);
        }
        let span = tracing::info_span!("agent.add", k8s.pod.name = %add.pod);
        let begun = Instant::now();
        let timer = self.metrics.add_started();
        let added = self.pods.add(add).instrument(span).await;
        timer.finish(added.is_ok());
        let added = match added {
            Ok(added) => {
                self.announcer.added(&added.binding, begun.elapsed());
                added
            }
            Err(error) => {
                let words = self.words(&error);
                self.announcer.failed(&pod, &uid, words.clone());
                return Err(convert::status_in(&error, words));
            }
        };
        let response = convert::add_response(&added);
        mesh::crash_point!("agent.add.before_reply");
        Ok(Response::new(response))
    }

    async fn del(&self, request: Request<DelRequest>) -> Result<Response<DelResponse>, Status> {
        let request = request.into_inner();
        let attachment = convert::attachment(request.attachment)?;
        let pod = request.pod.and_then(convert::named_pod);
        let span = tracing::info_span!("agent.del", k8s.sandbox = %attachment);
        self.pods
            .del(&attachment, pod.as_ref())
            .instrument(span)
            .await
            .map_err(|e| convert::status(&e))?;
        Ok(Response::new(DelResponse {}))
    }

    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        let request = request.into_inner();
        let attachment = convert::attachment(request.attachment)?;
        let expected = convert::addresses("expected_ips", &request.expected_ips)?;
        self.pods
            .check(&attachment, &expected)
            .await
            .map_err(|e| convert::status(&e))?;
        Ok(Response::new(CheckResponse {}))
    }

    async fn gc(&self, request: Request<GcRequest>) -> Result<Response<GcResponse>, Status> {
        let mut valid = BTreeSet::new();
        for attachment in request.into_inner().valid {
            valid.insert(convert::attachment(Some(attachment))?);
        }
        let freed = self
            .pods
            .gc(&valid)
            .await
            .map_err(|e| convert::status(&e))?;
        Ok(Response::new(GcResponse { freed }))
    }

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        self.serves()?;
        let free = self.ledger.view().free();
        // With an address in hand the node serves, whoever else is down; without one it needs ipam.
        if free == 0 && !self.targets.connected() {
            let why = "no address is free and no ipam replica is reached";
            let reason = Reason::NotReady.as_str_name();
            return Err(Refusal::new(Code::Unavailable, reason, why).into());
        }
        Ok(Response::new(StatusResponse {
            free_addresses: free,
        }))
    }
}

/// The operator's door.
#[derive(Debug, Clone)]
pub struct InspectDoor {
    /// The node's name.
    pub node_name: String,
    /// The instance.
    pub instance: InstanceId,
    /// The present boot.
    pub boot_id: String,
    /// Addresses and bindings.
    pub ledger: Ledger,
    /// Links of ENIs.
    pub uplinks: Uplinks,
    /// What was asked of ipam.
    pub targets: Targets,
}

#[tonic::async_trait]
impl Inspect for InspectDoor {
    async fn dump_node(
        &self,
        _request: Request<DumpNodeRequest>,
    ) -> Result<Response<DumpNodeResponse>, Status> {
        let view = self.ledger.view();
        let enis = view
            .enis
            .values()
            .map(|e| convert::node_eni(e, self.uplinks.state(&e.record.eni)));
        Ok(Response::new(DumpNodeResponse {
            node_name: self.node_name.clone(),
            instance_id: self.instance.to_string(),
            boot_id: self.boot_id.clone(),
            enis: enis.collect(),
            bindings: view.bindings.values().map(convert::binding).collect(),
            pods_known: self.targets.pods_known(),
            target: self.targets.total(),
        }))
    }
}
