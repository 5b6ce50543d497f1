//! A shard as bytes, and back.

use std::collections::BTreeSet;

use types::address::Family;

use super::{Shard, State};
use crate::eni::EniKey;
use crate::spec::ShardSpec;

/// First byte of a snapshot that every version reads.
const FORMAT: u8 = 1;

/// First byte of a snapshot behind which the keys of ENIs stand that are one pod's alone. A shard without any is
/// written under [`FORMAT`].
const FORMAT_WHOLE: u8 = 2;

/// Why bytes are not a snapshot of a shard. The shard must not be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Written by a version we do not know, or empty.
    #[error("snapshot format is not known")]
    Format,
    /// Not a snapshot, or bytes left over.
    #[error("malformed snapshot")]
    Malformed,
    /// Of a shard with other blocks: the vSwitch or the shard size changed.
    #[error("snapshot is of a shard with other blocks")]
    OtherSpec,
}

impl Shard {
    /// Writes the whole state. Fixed order: equal shards give equal bytes.
    ///
    /// # Errors
    /// Does not fail for a shard that was made by [`Shard::new`] and [`Shard::apply`].
    pub fn snapshot(&self) -> Result<Vec<u8>, RestoreError> {
        let spec = identity(&self.spec);
        let bytes = if self.wholes.is_empty() {
            postcard::to_extend(&(spec, &self.state), vec![FORMAT])
        } else {
            postcard::to_extend(&(spec, &self.state, &self.wholes), vec![FORMAT_WHOLE])
        };
        bytes.map_err(|_| RestoreError::Malformed)
    }

    /// Reads a snapshot of the shard with this spec; the records after [`Shard::last_seq`] are to be
    /// applied next.
    ///
    /// # Errors
    /// [`RestoreError`] when the bytes are not a snapshot of this shard.
    pub fn restore(spec: ShardSpec, bytes: &[u8]) -> Result<Self, RestoreError> {
        let (format, body) = bytes.split_first().ok_or(RestoreError::Format)?;
        if !matches!(*format, FORMAT | FORMAT_WHOLE) {
            return Err(RestoreError::Format);
        }
        let ((of, state), rest): ((String, State), &[u8]) =
            postcard::take_from_bytes(body).map_err(|_| RestoreError::Malformed)?;
        let (wholes, rest): (BTreeSet<EniKey>, &[u8]) = if *format == FORMAT_WHOLE {
            postcard::take_from_bytes(rest).map_err(|_| RestoreError::Malformed)?
        } else {
            (BTreeSet::new(), rest)
        };
        if !rest.is_empty() || !wholes.iter().all(|key| state.enis.contains_key(key)) {
            return Err(RestoreError::Malformed);
        }
        let fits = |count: usize, family| u32::try_from(count) == Ok(spec.slot_count(family));
        if of != identity(&spec)
            || !fits(state.v4.len(), Family::V4)
            || !fits(state.v6.len(), Family::V6)
        {
            return Err(RestoreError::OtherSpec);
        }
        Ok(Self {
            spec,
            state,
            wholes,
        })
    }
}

/// Names the shard and its blocks.
fn identity(spec: &ShardSpec) -> String {
    let v6 = spec.v6_block().map(|v6| v6.to_string()).unwrap_or_default();
    format!("{} {} {v6}", spec.id(), spec.v4_block())
}
