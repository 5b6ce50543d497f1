//! Names of the keys, and who may stand behind them.
//!
//! `own/<shard>`, `head/<shard>`, `log/<shard>/<seq>`, `snap/<shard>/<gen>/<i>`, `snapmeta/<shard>`,
//! `mem/<replica>`, `map` and `index/<key>`, all below one prefix. Numbers have a fixed width, so
//! that the order of keys is the order of numbers and ranges of puts and deletes never overlap.

use types::op::{Seq, ShardId};

use crate::log::kv::prefix_end;
use crate::log::{IndexKey, ReplicaId};

/// Names keys below one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

/// A prefix that no key can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a key prefix: it must begin and end with '/' and hold printable ASCII only")]
pub struct InvalidPrefix(String);

impl Keys {
    /// Keys below `prefix`, such as `/ipam/v1/cn-hangzhou/`.
    pub fn new(prefix: &str) -> Result<Self, InvalidPrefix> {
        let fine = prefix.starts_with('/')
            && prefix.ends_with('/')
            && prefix.len() <= 128
            && prefix.bytes().all(|b| b.is_ascii_graphic());
        if !fine {
            return Err(InvalidPrefix(prefix.chars().take(80).collect()));
        }
        Ok(Self {
            prefix: prefix.to_owned(),
        })
    }

    /// Keys of a region, at the usual place.
    pub fn region(region: &types::cloud::RegionId) -> Self {
        Self {
            prefix: format!("/ipam/v1/{region}/"),
        }
    }

    /// Who owns a shard.
    pub fn own(&self, shard: &ShardId) -> String {
        format!("{}own/{shard}", self.prefix)
    }

    /// What all owner keys begin with.
    pub fn own_all(&self) -> String {
        format!("{}own/", self.prefix)
    }

    /// The newest record of a shard.
    pub fn head(&self, shard: &ShardId) -> String {
        format!("{}head/{shard}", self.prefix)
    }

    /// The batch whose last record is `last`.
    pub fn log(&self, shard: &ShardId, last: Seq) -> String {
        format!("{}log/{shard}/{:016x}", self.prefix, last.0)
    }

    /// What all batches of a shard begin with.
    pub fn log_all(&self, shard: &ShardId) -> String {
        format!("{}log/{shard}/", self.prefix)
    }

    /// Which snapshot counts.
    pub fn snapmeta(&self, shard: &ShardId) -> String {
        format!("{}snapmeta/{shard}", self.prefix)
    }

    /// A piece of a snapshot.
    pub fn snap(&self, shard: &ShardId, generation: u64, chunk: u32) -> String {
        format!("{}snap/{shard}/{generation:016x}/{chunk:08x}", self.prefix)
    }

    /// What all pieces of all snapshots of a shard begin with.
    pub fn snap_all(&self, shard: &ShardId) -> String {
        format!("{}snap/{shard}/", self.prefix)
    }

    /// The key after all pieces of a generation.
    pub fn snap_end(&self, shard: &ShardId, generation: u64) -> String {
        prefix_end(&format!("{}snap/{shard}/{generation:016x}/", self.prefix))
    }

    /// A live replica.
    pub fn member(&self, replica: &ReplicaId) -> String {
        format!("{}mem/{replica}", self.prefix)
    }

    /// What all live replicas begin with.
    pub fn member_all(&self) -> String {
        format!("{}mem/", self.prefix)
    }

    /// The shard map.
    pub fn map(&self) -> String {
        format!("{}map", self.prefix)
    }

    /// An index key.
    pub fn index(&self, key: &IndexKey) -> String {
        format!("{}index/{key}", self.prefix)
    }

    /// What all index keys begin with.
    pub fn index_all(&self) -> String {
        format!("{}index/", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_keys_sort_like_numbers() {
        let keys = Keys::new("/t/").unwrap();
        let shard = "vsw-a.0".parse().unwrap();

        assert!(keys.log(&shard, Seq(9)) < keys.log(&shard, Seq(10)));
        assert!(keys.log(&shard, Seq(0xff)) < keys.log(&shard, Seq(0x100)));
    }

    #[test]
    fn keys_of_shard_1_and_shard_10_do_not_mix() {
        let keys = Keys::new("/t/").unwrap();
        let ten = "vsw-a.10".parse().unwrap();
        let one = "vsw-a.1".parse().unwrap();

        assert!(!keys.log(&ten, Seq(1)).starts_with(&keys.log_all(&one)));
    }

    #[test]
    fn prefix_without_slash_at_the_end_is_refused() {
        assert!(Keys::new("/ipam").is_err());
        assert!(Keys::new("ipam/").is_err());
        assert!(Keys::new("/ip am/").is_err());
    }
}
