//! What people may see of a replica.

use std::sync::Arc;

use mesh::status::Refusal;
use proto::ipam::v1 as wire;
use proto::types::v1::Reason;
use tonic::{Code, Status};
use types::op::ShardId;

use crate::owned::Owned;
use crate::replica::Replica;

/// The shards that were asked for; all that are owned here if none was named.
///
/// # Errors
/// A status with `REASON_NOT_OWNER` naming the first one that is not owned here.
pub fn select(replica: &Replica, asked: &[ShardId]) -> Result<Vec<Arc<Owned>>, Status> {
    if asked.is_empty() {
        return Ok(replica.all());
    }
    asked
        .iter()
        .map(|id| {
            replica.owned(id).ok_or_else(|| {
                let text = format!("shard {id} is not owned by {}", replica.id());
                Refusal::new(
                    Code::FailedPrecondition,
                    Reason::NotOwner.as_str_name(),
                    text,
                )
                .with("shard", id.to_string())
                .with("owner", replica.owner_of(id).unwrap_or_default())
                .into_status()
            })
        })
        .collect()
}

/// The replica as it sees itself.
pub fn describe(replica: &Replica, store: &str, sessions: u32) -> wire::GetReplicaResponse {
    wire::GetReplicaResponse {
        replica: replica.id().to_string(),
        store: store.to_owned(),
        owned_shards: replica
            .all()
            .iter()
            .map(|owned| owned.id().to_string())
            .collect(),
        sessions,
    }
}
