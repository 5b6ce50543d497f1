//! The service on the wire: decode, work, encode.
//!
//! An operation runs as a task of its own: a caller that goes away does not stop it half way, and callers with the
//! same key share it.

pub mod convert;

use std::sync::Arc;
use std::time::Duration;

use ecs_api::action::Action;
use ecs_api::model::eni::{DescribeNetworkInterfaces, Eni};
use mesh::tasks::Tasks;
use proto::cloud::v1 as wire;
use proto::cloud::v1::cloud_server::Cloud;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::api::convert::{DescribeEnis, Work};
use crate::call::Terms;
use crate::describe::Reader;
use crate::eni::{Outcome, Verbs};
use crate::facts::Facts;
use crate::failure::{Failure, Subject};
use crate::limits::Class;
use crate::metrics::Metrics;
use crate::op::{Ended, Entry, Registry, Slot};

/// Time kept back from the caller's deadline, so that the answer still reaches it.
const MARGIN: Duration = Duration::from_millis(200);
/// How often a call looks again when the operation that it joined ended in the name of an older owner.
const MAX_JOINS: u32 = 8;

/// How long operations and reads may take.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// For callers that name no deadline, and the longest that any operation may take.
    pub op_timeout: Duration,
    /// The same for reads.
    pub read_timeout: Duration,
}

/// The gRPC service.
#[derive(Debug, Clone)]
pub struct Api {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    verbs: Verbs,
    reader: Reader,
    facts: Facts,
    ops: Arc<Registry<Outcome>>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    settings: Settings,
}

/// The parts of the service.
#[derive(Debug)]
pub struct Parts {
    /// The verbs on ENIs.
    pub verbs: Verbs,
    /// Merged reads.
    pub reader: Reader,
    /// Instances, types, vSwitches.
    pub facts: Facts,
    /// What runs and what ended.
    pub ops: Arc<Registry<Outcome>>,
    /// Where operations run.
    pub tasks: Tasks,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl Api {
    /// Puts the parts together.
    pub fn new(parts: Parts, settings: Settings) -> Self {
        let Parts {
            verbs,
            reader,
            facts,
            ops,
            tasks,
            metrics,
        } = parts;
        Self {
            inner: Arc::new(Inner {
                verbs,
                reader,
                facts,
                ops,
                tasks,
                metrics,
                settings,
            }),
        }
    }

    /// The status that tells a failure, which is counted.
    fn status(&self, failure: &Failure) -> Status {
        self.inner.metrics.fault(failure.reason());
        failure.to_status()
    }

    /// Runs, joins or remembers the operation.
    async fn perform(&self, work: Work, deadline: Instant) -> Result<Outcome, Failure> {
        let fingerprint = work.verb.fingerprint();
        let mut last = None;
        for _ in 0..MAX_JOINS {
            let mut ended = match self.inner.ops.enter(&work.op, fingerprint)? {
                Entry::Done(outcome) => return Ok(outcome),
                Entry::Join(ended) => ended,
                Entry::Run(slot) => self.spawn(slot, &work, deadline),
            };
            match wait(&mut ended, deadline).await? {
                // The operation ran in the name of an older owner. This caller's epoch is checked anew.
                Some(Err(Failure::EpochStale { epoch, .. })) if epoch < work.op.epoch => {}
                // It died; there is no answer to share.
                None => {}
                Some(ended) => return ended,
            }
            last = Some(work.op.sequence);
        }
        Err(Failure::OutcomeUnknown {
            what: format!("operation {last:?} ended without an answer again and again"),
        })
    }

    fn spawn(
        &self,
        slot: Slot<Outcome>,
        work: &Work,
        deadline: Instant,
    ) -> watch::Receiver<Option<Ended<Outcome>>> {
        let ended = slot.subscribe();
        let inner = Arc::clone(&self.inner);
        let work = work.clone();
        let terms = Terms {
            class: work.class,
            deadline,
            fence: Some(slot.fence()),
        };
        self.inner.tasks.spawn_once("operation", async move {
            let outcome = Box::pin(inner.verbs.reach(&work.op, &work.verb, &terms)).await;
            if let Err(failure) = &outcome {
                tracing::info!(
                    shard = work.op.shard.shard,
                    sequence = work.op.sequence,
                    reason = failure.reason().as_str_name(),
                    %failure,
                    "operation failed"
                );
            }
            slot.finish(outcome);
        });
        ended
    }

    async fn mutate<T>(
        &self,
        request: Request<T>,
        decode: impl FnOnce(T) -> Result<Work, Failure>,
    ) -> Result<Outcome, Status> {
        let deadline = deadline_of(&request, self.inner.settings.op_timeout);
        let work = decode(request.into_inner()).map_err(|failure| self.status(&failure))?;
        self.perform(work, deadline)
            .await
            .map_err(|failure| self.status(&failure))
    }

    fn read_terms<T>(&self, request: &Request<T>, class: Class) -> Terms {
        let longest = self.inner.settings.read_timeout;
        Terms::read(class, deadline_of(request, longest))
    }

    async fn describe(&self, wanted: DescribeEnis, terms: &Terms) -> Result<Vec<Eni>, Failure> {
        let filter = DescribeNetworkInterfaces {
            instance: wanted.instance.clone(),
            vswitch: wanted.vswitch.clone(),
            tags: wanted.tags.clone(),
            ..DescribeNetworkInterfaces::default()
        };
        let enis = if wanted.ids.is_empty() {
            self.inner.reader.list(&filter, terms).await
        } else {
            let rows = self.inner.reader.read(&wanted.ids, terms).await;
            rows.map(|rows| {
                let matching = rows.into_values().filter(|eni| wanted.matches(eni));
                matching.collect()
            })
        };
        let action = Action::DescribeNetworkInterfaces;
        enis.map_err(|error| Failure::of_call(action, &error, &Subject::default()))
    }
}

/// When to have answered: before the caller stops waiting, and within `longest`.
fn deadline_of<T>(request: &Request<T>, longest: Duration) -> Instant {
    let now = Instant::now();
    let ours = now + longest;
    mesh::server::deadline(request).map_or(ours, |theirs| {
        let left = theirs.saturating_duration_since(now);
        // Of a very short deadline half is kept back, else the margin.
        ours.min(now + left.saturating_sub(MARGIN).max(left / 2))
    })
}

/// Waits for the end of an operation. `None`: it died.
async fn wait(
    ended: &mut watch::Receiver<Option<Ended<Outcome>>>,
    deadline: Instant,
) -> Result<Option<Ended<Outcome>>, Failure> {
    // The operation itself ends at its deadline; the little more lets its own words through.
    match tokio::time::timeout_at(deadline + MARGIN / 2, ended.wait_for(Option::is_some)).await {
        Ok(Ok(ended)) => Ok(ended.clone()),
        Ok(Err(_)) => Ok(None),
        Err(_) => Err(Failure::OutcomeUnknown {
            what: "the operation is still under way".to_owned(),
        }),
    }
}

#[tonic::async_trait]
impl Cloud for Api {
    async fn create_eni(
        &self,
        request: Request<wire::CreateEniRequest>,
    ) -> Result<Response<wire::CreateEniResponse>, Status> {
        let outcome = self.mutate(request, convert::to_create).await?;
        Ok(Response::new(wire::CreateEniResponse {
            eni: outcome.eni.as_deref().map(convert::from_eni),
            request_id: convert::first_id(&outcome),
        }))
    }

    async fn attach_eni(
        &self,
        request: Request<wire::AttachEniRequest>,
    ) -> Result<Response<wire::AttachEniResponse>, Status> {
        let outcome = self.mutate(request, convert::to_attach).await?;
        Ok(Response::new(wire::AttachEniResponse {
            eni: outcome.eni.as_deref().map(convert::from_eni),
            request_id: convert::first_id(&outcome),
        }))
    }

    async fn detach_eni(
        &self,
        request: Request<wire::DetachEniRequest>,
    ) -> Result<Response<wire::DetachEniResponse>, Status> {
        let outcome = self.mutate(request, convert::to_detach).await?;
        Ok(Response::new(wire::DetachEniResponse {
            request_id: convert::first_id(&outcome),
        }))
    }

    async fn delete_eni(
        &self,
        request: Request<wire::DeleteEniRequest>,
    ) -> Result<Response<wire::DeleteEniResponse>, Status> {
        let outcome = self.mutate(request, convert::to_delete).await?;
        Ok(Response::new(wire::DeleteEniResponse {
            request_id: convert::first_id(&outcome),
        }))
    }

    async fn assign_addresses(
        &self,
        request: Request<wire::AssignAddressesRequest>,
    ) -> Result<Response<wire::AssignAddressesResponse>, Status> {
        let outcome = self.mutate(request, convert::to_assign).await?;
        Ok(Response::new(wire::AssignAddressesResponse {
            eni: outcome.eni.as_deref().map(convert::from_eni),
            request_ids: outcome.request_ids,
        }))
    }

    async fn unassign_addresses(
        &self,
        request: Request<wire::UnassignAddressesRequest>,
    ) -> Result<Response<wire::UnassignAddressesResponse>, Status> {
        let outcome = self.mutate(request, convert::to_unassign).await?;
        Ok(Response::new(wire::UnassignAddressesResponse {
            eni: outcome.eni.as_deref().map(convert::from_eni),
            request_ids: outcome.request_ids,
        }))
    }

    async fn describe_enis(
        &self,
        request: Request<wire::DescribeEnisRequest>,
    ) -> Result<Response<wire::DescribeEnisResponse>, Status> {
        let terms = self.read_terms(&request, Class::Reconcile);
        let wanted = convert::to_describe(request.into_inner());
        let found = async {
            let wanted = wanted?;
            let terms = Terms {
                class: wanted.class,
                ..terms
            };
            self.describe(wanted, &terms).await
        };
        let enis = found.await.map_err(|failure| self.status(&failure))?;
        Ok(Response::new(wire::DescribeEnisResponse {
            enis: enis.iter().map(convert::from_eni).collect(),
        }))
    }

    async fn describe_instances(
        &self,
        request: Request<wire::DescribeInstancesRequest>,
    ) -> Result<Response<wire::DescribeInstancesResponse>, Status> {
        // A node's session waits for it.
        let terms = self.read_terms(&request, Class::Refill);
        let found = async {
            let ids = convert::to_instance_ids(&request.into_inner().instance_ids)?;
            self.inner.facts.instances(&ids, &terms).await
        };
        let instances = found.await.map_err(|failure| self.status(&failure))?;
        Ok(Response::new(wire::DescribeInstancesResponse {
            instances: instances.iter().map(convert::from_instance).collect(),
        }))
    }

    async fn describe_v_switches(
        &self,
        request: Request<wire::DescribeVSwitchesRequest>,
    ) -> Result<Response<wire::DescribeVSwitchesResponse>, Status> {
        let terms = self.read_terms(&request, Class::Refill);
        let found = async {
            let ids = convert::to_vswitch_ids(&request.into_inner().vswitch_ids)?;
            self.inner.facts.vswitches(&ids, &terms).await
        };
        let vswitches = found.await.map_err(|failure| self.status(&failure))?;
        Ok(Response::new(wire::DescribeVSwitchesResponse {
            vswitches: vswitches.iter().map(convert::from_vswitch).collect(),
        }))
    }

    async fn fence(
        &self,
        request: Request<wire::FenceRequest>,
    ) -> Result<Response<wire::FenceResponse>, Status> {
        let on_wire = convert::to_fence(request.into_inner())
            .and_then(|(shard, epoch)| self.inner.ops.fence(&shard, epoch));
        Ok(Response::new(wire::FenceResponse {
            in_flight: on_wire.map_err(|failure| self.status(&failure))?,
        }))
    }
}
