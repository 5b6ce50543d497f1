//! The gRPC doors: decode, call, encode. Who may knock at all stands in `mesh::authz`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use mesh::identity::Identity;
use mesh::status::Refusal;
use mesh::tasks::Tasks;
use proto::ipam::v1 as wire;
use proto::ipam::v1::admin_server::{Admin, AdminServer};
use proto::ipam::v1::node_ipam_server::{NodeIpam, NodeIpamServer};
use proto::ipam::v1::nodes_server::{Nodes, NodesServer};
use proto::ipam::v1::routing_server::{Routing, RoutingServer};
use proto::types::v1::Reason;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::info;
use types::cloud::{ClusterId, InstanceId};
use types::op::ShardId;

use crate::convert;
use crate::facts::{Facts, FactsError, NodeFacts};
use crate::gone::GoneNodes;
use crate::replica::Replica;
use crate::routing::Router;
use crate::session::registry::Registry;
use crate::session::{self, Session, SessionEnd};
use crate::{admin, metrics::Metrics};

/// How long a node may take to say who it is.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// Routes that wait for a node to take them.
const ROUTE_QUEUE: usize = 4;

/// Shards that wait for a person to take them.
const DUMP_QUEUE: usize = 4;

/// When a caller may come back after an overload or an outage.
const COME_BACK: Duration = Duration::from_secs(1);

/// What the doors lead to.
#[derive(Debug, Clone)]
pub struct Api {
    /// The shards of this replica.
    pub replica: Replica,
    /// Facts of nodes.
    pub facts: Arc<Facts>,
    /// Routes for nodes.
    pub router: Router,
    /// Open sessions.
    pub registry: Registry,
    /// Takes back what nodes had that are gone.
    pub gone: GoneNodes,
    /// Whose nodes are served.
    pub cluster: ClusterId,
    /// `memory`, `redb` or `etcd`.
    pub store: &'static str,
    /// Commands that may wait for one node.
    pub session_queue: usize,
    /// Where sessions run.
    pub tasks: Tasks,
    /// Counters.
    pub metrics: Metrics,
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Api {
    /// All services on one port.
    pub fn routes(self) -> Routes {
        Routes::new(NodeIpamServer::new(self.clone()))
            .add_service(RoutingServer::new(self.clone()))
            .add_service(NodesServer::new(self.clone()))
            .add_service(AdminServer::new(self))
    }

    async fn facts(&self, instance: &InstanceId) -> Result<Arc<NodeFacts>, Status> {
        self.facts.of(instance).await.map_err(|error| match error {
            FactsError::Unknown(instance) => {
                let text = format!("the cloud knows no instance {instance}");
                Refusal::new(Code::NotFound, Reason::NodeUnknown.as_str_name(), text)
                    .with("id", instance.to_string())
                    .into_status()
            }
            FactsError::Cloud(error) => {
                let text = format!("facts of the instance can not be had: {error}");
                Refusal::new(
                    Code::Unavailable,
                    Reason::CloudUnavailable.as_str_name(),
                    text,
                )
                .retry_after(error.retry_after().unwrap_or(COME_BACK))
                .into_status()
            }
        })
    }

    fn serve(
        &self,
        facts: Arc<NodeFacts>,
        place: session::registry::Place,
        messages: Streaming<wire::NodeMessage>,
    ) -> Out<wire::NodeCommand> {
        let (out, commands) = mpsc::channel(self.session_queue);
        let session = Session::new(
            self.replica.clone(),
            Arc::clone(&facts),
            place.id,
            out.clone(),
        );
        let draining = self.tasks.drain().draining().clone();
        let stopping = self.tasks.stopping();
        self.tasks.spawn_once("session", async move {
            info!(instance = %facts.instance, session = place.id, "a node's session begins");
            let run = session.run(messages, place.replaced.clone(), draining);
            let end = tokio::select! {
                end = run => end,
                () = stopping.cancelled() => SessionEnd::Draining,
            };
            info!(instance = %facts.instance, session = place.id, ?end, "a node's session ends");
            if let Some(status) = session::status_of(&end) {
                // A node that is gone or slow does not take it.
                drop(out.try_send(Err(status)));
            }
        });
        Box::pin(ReceiverStream::new(commands))
    }
}

#[tonic::async_trait]
impl NodeIpam for Api {
    type SessionStream = Out<wire::NodeCommand>;

    async fn session(
        &self,
        request: Request<Streaming<wire::NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let identity = mesh::server::peer(&request)?.clone();
        let mut messages = request.into_inner();
        let first = tokio::time::timeout(HELLO_WITHIN, messages.next())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came in time"))?;
        let hello = match first {
            Some(Ok(wire::NodeMessage {
                body: Some(wire::node_message::Body::Hello(hello)),
                ..
            })) => hello,
            Some(Ok(_)) => {
                let why = "the first message must be a hello";
                return Err(Refusal::bad_field("body", why).into_status());
            }
            Some(Err(status)) => return Err(status),
            None => return Err(Status::cancelled("the stream ended before a hello")),
        };
        let instance = session::check_hello(&identity, &hello, &self.cluster).inspect_err(|status| {
            self.metrics.sessions_refused.inc();
            info!(%identity, instance = hello.instance_id, why = status.message(), "a session was refused");
        })?;
        if !self.replica.is_live() {
            return Err(convert::unavailable(
                "the replica has lost its store; open a session elsewhere",
            ));
        }
        let facts = self.facts(&instance).await?;
        let place = self.registry.enter(&instance).map_err(|full| {
            self.metrics.sessions_refused.inc();
            Refusal::new(
                Code::ResourceExhausted,
                Reason::Overloaded.as_str_name(),
                full.to_string(),
            )
            .retry_after(COME_BACK)
            .into_status()
        })?;
        Ok(Response::new(self.serve(facts, place, messages)))
    }
}

#[tonic::async_trait]
impl Routing for Api {
    type WatchRoutesStream = Out<wire::RouteUpdate>;

    async fn watch_routes(
        &self,
        request: Request<wire::WatchRoutesRequest>,
    ) -> Result<Response<Self::WatchRoutesStream>, Status> {
        let identity = mesh::server::peer(&request)?;
        let asked = request.get_ref();
        let instance = match identity {
            Identity::Node { .. } => {
                convert::own_instance(identity, &asked.cluster, &asked.instance_id, &self.cluster)?
            }
            // Services and people may look at the routes of any node of the cluster.
            Identity::Ipam { .. }
            | Identity::Gateway { .. }
            | Identity::Controller { .. }
            | Identity::Relay { .. }
            | Identity::Admin { .. }
            | Identity::Etcd { .. } => {
                if asked.cluster != self.cluster.as_str() {
                    let why = format!("{:?} is not served here", asked.cluster);
                    return Err(Refusal::bad_field("cluster", why).into_status());
                }
                asked
                    .instance_id
                    .parse()
                    .map_err(|e| Refusal::bad_field("instance_id", e))?
            }
        };
        let facts = self.facts(&instance).await?;
        let (out, updates) = mpsc::channel(ROUTE_QUEUE);
        let router = self.router.clone();
        let draining = self.tasks.drain().draining().clone();
        self.tasks.spawn_once("routes", async move {
            tokio::select! {
                () = draining.cancelled() => {}
                () = router.follow(&facts, &out) => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(updates))))
    }
}

#[tonic::async_trait]
impl Nodes for Api {
    async fn node_gone(
        &self,
        request: Request<wire::NodeGoneRequest>,
    ) -> Result<Response<wire::NodeGoneResponse>, Status> {
        let identity = mesh::server::peer(&request)?;
        let asked = request.get_ref();
        let instance =
            convert::of_controller(identity, &asked.cluster, &asked.instance_id, &self.cluster)?;
        if !self.replica.is_live() {
            return Err(convert::unavailable(
                "the replica has lost its store; ask another one",
            ));
        }
        let standing = self.gone.release(&instance).await.map_err(|error| {
            let text = format!("the cloud can not be asked about the node: {error}");
            Refusal::new(
                Code::Unavailable,
                Reason::CloudUnavailable.as_str_name(),
                text,
            )
            .retry_after(error.retry_after().unwrap_or(COME_BACK))
            .into_status()
        })?;
        Ok(Response::new(wire::NodeGoneResponse {
            done: standing.is_done(),
            enis: standing.enis,
            waits_for: standing.waits_for,
        }))
    }
}

#[tonic::async_trait]
impl Admin for Api {
    type DumpShardsStream = Out<wire::ShardDump>;

    async fn dump_shards(
        &self,
        request: Request<wire::DumpShardsRequest>,
    ) -> Result<Response<Self::DumpShardsStream>, Status> {
        let asked: Vec<ShardId> = request
            .into_inner()
            .shards
            .iter()
            .map(|text| text.parse().map_err(|e| Refusal::bad_field("shards", e)))
            .collect::<Result<_, _>>()?;
        let shards = admin::select(&self.replica, &asked)?;
        let (out, dumps) = mpsc::channel(DUMP_QUEUE);
        self.tasks.spawn_once("dump", async move {
            for owned in shards {
                let view = owned.handle.view();
                if out
                    .send(Ok(convert::shard_dump(&view.shard, view.epoch)))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(dumps))))
    }

    async fn get_replica(
        &self,
        _request: Request<wire::GetReplicaRequest>,
    ) -> Result<Response<wire::GetReplicaResponse>, Status> {
        let sessions = u32::try_from(self.registry.len()).unwrap_or(u32::MAX);
        Ok(Response::new(admin::describe(
            &self.replica,
            self.store,
            sessions,
        )))
    }
}
