//! Places for ENIs on an instance: an index across shards, so that two shards never take the same one (I10).
//!
//! The index key is taken in the transaction of the intent and given back in that of the ENI's end; see
//! [`crate::owner`]. Here is only the look at what is free.

use std::collections::BTreeSet;

use types::cloud::InstanceId;
use types::quota::EniQuota;

use crate::log::{IndexKey, ReadError, ShardLog};

/// Places of an instance that no shard has taken, lowest first.
///
/// # Errors
/// [`ReadError`] when the store can not say.
pub async fn free_places(
    log: &dyn ShardLog,
    instance: &InstanceId,
    quota: &EniQuota,
) -> Result<Vec<u32>, ReadError> {
    let taken: BTreeSet<u32> = log
        .list_index(&IndexKey::eni_prefix(instance))
        .await?
        .iter()
        .filter_map(|entry| entry.key.eni_index())
        .collect();
    Ok((0..quota.secondary_enis())
        .filter(|place| !taken.contains(place))
        .collect())
}
