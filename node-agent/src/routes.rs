//! Which shards serve this node, best first, and who owns them: one stream from any replica.

use proto::ipam::v1::routing_client::RoutingClient;
use proto::ipam::v1::{RouteUpdate, WatchRoutesRequest};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use types::cloud::{ClusterId, InstanceId};

use crate::dial::{Dial, pauses};
use crate::target::{Route, Targets};

/// Longest silence between two attempts, in milliseconds.
const MAX_PAUSE_MS: u64 = 5_000;

/// Asks the replicas in turn.
#[derive(Debug)]
pub struct Routes {
    /// Makes channels with our identity.
    pub dial: Dial,
    /// `host:port` of replicas; any of them answers.
    pub replicas: Vec<String>,
    /// Our cluster.
    pub cluster: ClusterId,
    /// Our instance.
    pub instance: InstanceId,
    /// Where the latest picture goes.
    pub latest: watch::Sender<Vec<Route>>,
    /// What people are told of it.
    pub targets: Targets,
}

impl Routes {
    /// Follows the routes until `drain` is cancelled.
    pub async fn run(self, drain: CancellationToken) {
        let mut backoff = pauses(100, MAX_PAUSE_MS);
        loop {
            for replica in &self.replicas {
                let followed = tokio::select! {
                    biased;
                    () = drain.cancelled() => return,
                    followed = self.follow(replica) => followed,
                };
                match followed {
                    Ok(()) => backoff.reset(),
                    Err(status) => {
                        let why = format!("{replica}: {}", status.message());
                        let reason = mesh::status::reason(&status);
                        self.targets.note_trouble(reason, why);
                        tracing::debug!(
                            replica,
                            error = status.message(),
                            "no routes from replica"
                        );
                    }
                }
            }
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                () = tokio::time::sleep(backoff.next_wait()) => {}
            }
        }
    }

    async fn follow(&self, replica: &str) -> Result<(), tonic::Status> {
        let channel = self.dial.stream(replica)?;
        let request = WatchRoutesRequest {
            cluster: self.cluster.to_string(),
            instance_id: self.instance.to_string(),
        };
        let mut updates = RoutingClient::new(channel)
            .watch_routes(request)
            .await?
            .into_inner();
        while let Some(update) = updates.message().await? {
            self.publish(update);
        }
        Ok(())
    }

    fn publish(&self, update: RouteUpdate) {
        let mut routes = Vec::with_capacity(update.routes.len());
        for route in update.routes {
            match route.shard.parse() {
                Ok(shard) => routes.push(Route {
                    shard,
                    owner: route.owner_address,
                }),
                Err(error) => tracing::warn!(%error, "route passed over"),
            }
        }
        let shards = routes.iter().map(|route| route.shard.clone());
        self.targets.set_shards(shards.collect());
        self.latest.send_if_modified(|old| {
            let changed = *old != routes;
            if changed {
                tracing::info!(version = update.version, shards = routes.len(), "routes");
                *old = routes;
            }
            changed
        });
    }
}
