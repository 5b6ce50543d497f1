//! Instances whose Node object is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use mesh::authz::TABLE;
use mesh::drain::Drain;
use mesh::metrics::Registry;
use mesh::server::rpc_metrics::RpcMetrics;
use mesh::server::{Bound, Params};
use mesh::tasks::Tasks;
use proto::ipam::v1::nodes_server::{Nodes, NodesServer};
use proto::ipam::v1::{NodeGoneRequest, NodeGoneResponse};
use serde_json::json;
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::bed::{Bed, Replica, until};

/// An ipam that holds ENIs of `i-2` for the first two times that it is asked.
#[derive(Debug, Clone, Default)]
struct Ipam {
    asked: Arc<AtomicU32>,
    of_others: Arc<AtomicU32>,
}

#[tonic::async_trait]
impl Nodes for Ipam {
    async fn node_gone(
        &self,
        request: Request<NodeGoneRequest>,
    ) -> Result<Response<NodeGoneResponse>, Status> {
        let request = request.into_inner();
        if request.instance_id != "i-2" || request.cluster != "c1a2b3" {
            self.of_others.fetch_add(1, Ordering::SeqCst);
        }
        let before = self.asked.fetch_add(1, Ordering::SeqCst);
        let done = before >= 2;
        Ok(Response::new(NodeGoneResponse {
            done,
            enis: u32::from(!done),
            waits_for: "the instance i-2 still exists".to_owned(),
        }))
    }
}

pub(crate) async fn instance_of_a_vanished_node_is_declared_until_it_is_done(
    bed: &Bed,
    listener: TcpListener,
    replicas: [&Replica; 2],
) {
    let uid = bed.pod("terway-ipam-0", "n1", "terway-ipam").await;
    let bound = Some(("terway-ipam-0", uid.as_str()));
    let token = bed.token("terway-ipam", bed.audience(), bound).await;
    let tls = replicas[0].certificate(bed, token, "ipam").await;
    let ipam = Ipam::default();
    let (tasks, registry) = (Tasks::new(Drain::new()), Registry::new());
    let bound = Bound::from_listener(listener, tls, Params::default()).unwrap();
    let rpc = RpcMetrics::register(&registry);
    bound.serve(
        Routes::new(NodesServer::new(ipam.clone())),
        TABLE,
        &rpc,
        &tasks,
    );
    let remembers = |instances: &'static str| {
        move |map: &k8s_openapi::api::core::v1::ConfigMap| {
            let data = map.data.clone().unwrap_or_default();
            data.get("instances").is_some_and(|now| now == instances)
        }
    };
    bed.config_map_until(
        "terway-instances",
        "both are remembered",
        remembers("i-1\ni-2\n"),
    )
    .await;

    bed.delete_pod("agents-n2").await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}});
    bed.admin.delete(&node).await;

    until("it is declared", async || {
        (ipam.asked.load(Ordering::SeqCst) > 0).then_some(())
    })
    .await;
    bed.config_map_until("terway-instances", "it is done", remembers("i-1\n"))
        .await;
    assert_eq!(
        ipam.asked.load(Ordering::SeqCst),
        4,
        "only who leads asks, until it is done, and once more"
    );
    assert_eq!(
        ipam.of_others.load(Ordering::SeqCst),
        0,
        "a node that is there was declared"
    );
    bed.delete_pod("terway-ipam-0").await;
    tasks.drain().stop();
}
