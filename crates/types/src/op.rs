//! Shards, epochs, operations: the identifiers by which work is done exactly once.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cloud::{InvalidId, VSwitchId};

/// A shard: block `index` of a vSwitch. Written `vsw-abc.0`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShardId {
    /// The vSwitch whose space is divided.
    pub vswitch: VSwitchId,
    /// Which aligned block of it, from 0.
    pub index: u32,
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.vswitch, self.index)
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ShardId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |why| InvalidId {
            kind: "shard id",
            text: text.chars().take(80).collect(),
            why,
        };
        let (vswitch, index) = text
            .rsplit_once('.')
            .ok_or_else(|| invalid("no '.' in it"))?;
        let index = index
            .parse()
            .map_err(|_| invalid("no number after the last '.'"))?;
        Ok(Self {
            vswitch: vswitch.parse()?,
            index,
        })
    }
}

impl TryFrom<String> for ShardId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ShardId> for String {
    fn from(id: ShardId) -> Self {
        id.to_string()
    }
}

/// Grows with each owner of a shard: the revision of the store at which it claimed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

/// Number of a record in a shard's log, from 1. An op and a grant are named by the record that started them.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct Seq(pub u64);

impl Seq {
    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Sequence number of the `Held` record under which an address was granted. Higher wins.
pub type Generation = Seq;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_id_round_trips() {
        let id: ShardId = "vsw-bp1abc.12".parse().unwrap();

        assert_eq!((id.vswitch.as_str(), id.index), ("vsw-bp1abc", 12));
        assert_eq!(id.to_string(), "vsw-bp1abc.12");
    }

    #[test]
    fn shard_id_without_index_is_refused() {
        assert!("vsw-bp1abc".parse::<ShardId>().is_err());
        assert!("vsw-bp1abc.x".parse::<ShardId>().is_err());
    }
}
