//! The durable log of a shard: one writer, fenced by its epoch.
//!
//! A shard is a deterministic state machine. What it decided stands here as a log of opaque records,
//! a snapshot of the state up to one of them, and a head that says which record is the newest. Every
//! write compares the owner and the head, so a writer that was replaced can change nothing,
//! whatever it believes (I1). Leases, clocks and watches only decide how fast somebody else takes over.
//!
//! [`ShardLog`] is what owners use; [`shards::KvLog`] is its one implementation. It stands on
//! [`kv::Kv`], an ordered key space with revisions and compare-and-write transactions, of which there
//! are three: [`memory`], [`redb`] and [`etcd`]. The conformance suite runs the same cases on all of them.
//!
//! How an owner writes:
//!
//! 1. [`ShardLog::claim`] gives a [`Claim`]: a [`Fence`], the snapshot, and the records after it.
//! 2. [`ShardLog::append`] with the fence; on success put the answered [`Head`] into `fence.head`.
//! 3. [`AppendError::Unknown`]: nothing is answered to anybody; call [`ShardLog::resolve`] until it
//!    says [`Outcome::Committed`] or [`Outcome::NotCommitted`]. Both are final and carry the new head.
//! 4. [`AppendError::Fenced`]: step down. Somebody else owns the shard.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use types::cloud::InstanceId;
use types::op::{Epoch, Seq, ShardId};

pub mod batch;
pub mod chaos;
pub mod etcd;
pub mod keys;
pub mod kv;
pub mod memory;
pub mod redb;
pub mod shards;

/// Operations that one transaction may have; a batch has two, each index key one more.
///
/// Reason: etcd refuses more by default (`--max-txn-ops`).
pub const MAX_TXN_OPS: usize = 128;

/// Index keys that one append can create and delete together.
pub const MAX_INDEX_KEYS: usize = MAX_TXN_OPS - 2;

/// Size of one transaction in bytes, keys and values and framing.
///
/// Reason: etcd refuses more by default (`--max-request-bytes`, 1.5 MiB).
pub const MAX_REQUEST_BYTES: usize = 1_572_864;

/// Up to this many bytes of records an owner should put into one batch; leaves room below
/// [`MAX_REQUEST_BYTES`] for framing and index keys.
pub const BATCH_TARGET_BYTES: usize = 1_048_576;

/// Size of one piece of a snapshot as stored, in bytes.
pub const SNAPSHOT_CHUNK_BYTES: usize = 262_144;

/// Places here at which a debug build can be made to die; those around claim, append and snapshot
/// belong to the owner that calls them.
pub const CRASH_POINTS: &[&str] = &["ipam.snapshot.before_pieces", "ipam.transfer.before_commit"];

/// A log that several tasks share.
pub type SharedLog = Arc<dyn ShardLog>;

/// The name of an ipam replica, such as `ipam-0`: 1 to 64 of letters, digits, `-`, `_`, `.`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReplicaId(Box<str>);

/// Text that is not a replica's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a replica name: 1 to 64 of letters, digits, '-', '_', '.' are")]
pub struct InvalidReplicaId(String);

impl ReplicaId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ReplicaId {
    type Err = InvalidReplicaId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let letters = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if text.is_empty() || text.len() > 64 || !text.bytes().all(letters) {
            return Err(InvalidReplicaId(text.chars().take(80).collect()));
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for ReplicaId {
    type Error = InvalidReplicaId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ReplicaId> for String {
    fn from(id: ReplicaId) -> Self {
        id.0.into()
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A session of a replica with the store. What it owns is given up when the session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(pub i64);

/// A replica as it stands in owner keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Replica {
    /// Its name.
    pub id: ReplicaId,
    /// `host:port` at which nodes reach it.
    pub address: String,
    /// Its session; a new life has a new one.
    pub session: SessionId,
}

/// The newest state of a log, as its writer knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Number of the newest record; 0 while there is none.
    pub seq: Seq,
    /// Revision of the store that wrote the head; 0 while there is none. The next write compares it.
    pub revision: u64,
    /// Checksum over all batches so far.
    pub chain: u32,
    /// The newest batch.
    pub batch: BatchId,
}

/// The right to write to a shard, as long as nobody else claims it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The shard.
    pub shard: ShardId,
    /// The claim; every later claim has a higher one.
    pub epoch: Epoch,
    /// The head on which the next write builds. The owner replaces it after each success.
    pub head: Head,
}

/// Names one batch for ever; a batch that is sent twice is appended once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct BatchId(pub [u8; 16]);

impl BatchId {
    /// A new random one.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().into_bytes())
    }
}

impl fmt::Debug for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Records that are committed together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its name.
    pub id: BatchId,
    /// The records, opaque here; the first gets number `fence.head.seq + 1`. Not empty.
    pub records: Vec<Bytes>,
}

impl Batch {
    /// A batch with a new random name.
    pub fn new(records: Vec<Bytes>) -> Self {
        Self {
            id: BatchId::random(),
            records,
        }
    }
}

/// A record as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Its number.
    pub seq: Seq,
    /// What the owner wrote.
    pub data: Bytes,
}

/// The state of a shard up to one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The last record that is part of it.
    pub upto: Seq,
    /// What the owner wrote.
    pub state: Bytes,
}

/// What a new owner gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its right to write, with the head.
    pub fence: Fence,
    /// The newest snapshot.
    pub snapshot: Option<Snapshot>,
    /// The records after the snapshot up to the head, in order, none missing.
    pub tail: Vec<LogRecord>,
}

/// What a reader without rights gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Who owns the shard now.
    pub owner: Option<Owner>,
    /// The head.
    pub head: Head,
    /// The newest snapshot.
    pub snapshot: Option<Snapshot>,
    /// The records after the snapshot up to the head.
    pub tail: Vec<LogRecord>,
}

/// The owner of a shard as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Who.
    pub replica: Replica,
    /// Its claim.
    pub epoch: Epoch,
}

/// A name that only one shard can hold, across all shards of the store.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IndexKey(Box<str>);

/// Text that cannot be an index key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an index key: 1 to 512 printable ASCII characters without blanks are")]
pub struct InvalidIndexKey(String);

impl IndexKey {
    /// Slot `index` of an instance's ENI quota.
    pub fn eni(instance: &InstanceId, index: u32) -> Self {
        Self(format!("eni/{instance}/{index}").into())
    }

    /// What all quota slots of an instance begin with.
    pub fn eni_prefix(instance: &InstanceId) -> String {
        format!("eni/{instance}/")
    }

    /// The slot, if this is one of an ENI quota.
    pub fn eni_index(&self) -> Option<u32> {
        let (_, index) = self.0.strip_prefix("eni/")?.rsplit_once('/')?;
        index.parse().ok()
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IndexKey {
    type Err = InvalidIndexKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.len() > 512 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(InvalidIndexKey(text.chars().take(80).collect()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for IndexKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IndexKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who holds an index key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexHolder {
    /// The shard.
    pub shard: ShardId,
    /// The record of that shard that took it.
    pub op: Seq,
}

/// An index key and its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// The key.
    pub key: IndexKey,
    /// Who holds it.
    pub holder: IndexHolder,
}

/// Index keys that change together with a batch. All must succeed or nothing is written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IndexChange {
    /// Keys to take, each with the record that takes it. They must be free.
    pub create: Vec<(IndexKey, Seq)>,
    /// Keys of this shard to give back. One that is already free is no error.
    pub delete: Vec<IndexKey>,
}

impl IndexChange {
    /// Takes one key for `op`.
    pub fn take(key: IndexKey, op: Seq) -> Self {
        Self {
            create: vec![(key, op)],
            delete: Vec::new(),
        }
    }

    /// Gives one key back.
    pub fn give_back(key: IndexKey) -> Self {
        Self {
            create: Vec::new(),
            delete: vec![key],
        }
    }
}

/// What became of a batch whose answer was lost. Final in both cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the log. The head to go on from.
    Committed(Head),
    /// It is not in the log, and no copy of it that is still under way can get there any more. The
    /// head to go on from; the same batch may be appended again.
    NotCommitted(Head),
}

/// Why a shard could not be claimed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Another replica owns it; wait until it is free.
    #[error("owned by {} since epoch {}", .0.replica.id, .0.epoch)]
    Owned(Owner),
    /// The claimer's session has ended: open a new one.
    #[error("the session of the claiming replica has ended")]
    SessionEnded,
    /// What is stored cannot be trusted. Do not claim again; a person must look.
    #[error("the stored log is damaged: {0}")]
    Corrupt(String),
    /// The answer was lost; the shard may be ours. Claiming again settles it.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// The store refused or could not be reached; nothing was done. Try later.
    #[error("store unavailable: {0}")]
    Unavailable(String),
}

/// Why a write of an owner failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Somebody else writes to the shard, or the claim was given up: step down.
    #[error("fenced: the shard has another owner or another head")]
    Fenced,
    /// An index key is taken; nothing of the batch was written. Plan again with another key.
    #[error("index key {key} is held by {} op {}", .holder.shard, .holder.op)]
    Conflict {
        /// The first key that is taken.
        key: IndexKey,
        /// Who has it.
        holder: IndexHolder,
    },
    /// Over [`MAX_TXN_OPS`] or [`MAX_REQUEST_BYTES`]; nothing was sent. Split it.
    #[error("too large: {what} is {is}, at most {most} are possible")]
    TooLarge {
        /// `operations` or `bytes`.
        what: &'static str,
        /// How many there are.
        is: usize,
        /// How many are possible.
        most: usize,
    },
    /// Never right, whatever the state of the store: a mistake of the caller. Nothing was sent.
    #[error("not a valid write: {0}")]
    Invalid(String),
    /// Sent, but the answer was lost: call [`ShardLog::resolve`].
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// Nothing was written; the same call may be made again later.
    #[error("store unavailable: {0}")]
    Unavailable(String),
}

/// Why a planned hand-over failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandOverError {
    /// The shard was not ours any more.
    #[error("fenced: the shard has another owner")]
    Fenced,
    /// The session of the new owner has ended; the shard is still ours.
    #[error("the session of the new owner has ended")]
    TargetGone,
    /// The answer was lost. Write nothing more with this fence; claiming again settles it.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// Nothing was done; the shard is still ours.
    #[error("store unavailable: {0}")]
    Unavailable(String),
}

/// Why a read failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// What is stored cannot be trusted.
    #[error("the stored log is damaged: {0}")]
    Corrupt(String),
    /// Try later.
    #[error("store unavailable: {0}")]
    Unavailable(String),
}

/// The log of all shards of one store.
#[async_trait]
pub trait ShardLog: Send + Sync + fmt::Debug {
    /// Takes a shard that nobody owns, or that `me.id` owned (in an earlier life too), and reads it.
    ///
    /// Every claim has a higher epoch than those before, and ends the rights of the fence before it.
    async fn claim(&self, shard: &ShardId, me: &Replica) -> Result<Claim, ClaimError>;

    /// Appends a batch after `fence.head`. Durable when it answers (I9).
    ///
    /// The batch that is already the newest is not appended again: its head is the answer.
    async fn append(&self, fence: &Fence, batch: &Batch) -> Result<Head, AppendError> {
        self.append_with_index(fence, batch, &IndexChange::default())
            .await
    }

    /// Appends a batch and changes index keys in the same transaction. A batch with index keys
    /// should carry only what belongs to them, so that one conflict fails nobody else.
    async fn append_with_index(
        &self,
        fence: &Fence,
        batch: &Batch,
        index: &IndexChange,
    ) -> Result<Head, AppendError>;

    /// Settles what became of the batch that followed `fence.head` and whose answer was lost.
    ///
    /// It may fail with [`AppendError::Unknown`] itself; then call it again with the same fence.
    async fn resolve(&self, fence: &Fence, batch: BatchId) -> Result<Outcome, AppendError>;

    /// Stores the state up to record `upto` and deletes the log up to there. Leaves the head alone.
    ///
    /// Repeating it is harmless, so an unknown outcome needs no `resolve`. One that is not newer than
    /// the stored snapshot changes nothing.
    async fn snapshot(&self, fence: &Fence, upto: Seq, state: Bytes) -> Result<(), AppendError>;

    /// Makes `to` the owner, in one step and with a new epoch. `to` claims it to begin.
    async fn transfer(&self, fence: &Fence, to: &Replica) -> Result<(), HandOverError>;

    /// Gives the shard up; anybody may claim it at once.
    async fn release(&self, fence: &Fence) -> Result<(), HandOverError>;

    /// Reads a shard without claiming it; sees every write that was answered before.
    async fn read(&self, shard: &ShardId) -> Result<Stored, ReadError>;

    /// Index keys that begin with `prefix`, in order; see [`IndexKey::eni_prefix`].
    async fn list_index(&self, prefix: &str) -> Result<Vec<IndexEntry>, ReadError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replica_id_with_slash_is_refused() {
        assert!("ipam/0".parse::<ReplicaId>().is_err());
        assert!("".parse::<ReplicaId>().is_err());
        assert_eq!("ipam-0".parse::<ReplicaId>().unwrap().as_str(), "ipam-0");
    }

    #[test]
    fn eni_index_key_gives_its_slot_back() {
        let instance: InstanceId = "i-1".parse().unwrap();

        let key = IndexKey::eni(&instance, 3);

        assert_eq!(key.as_str(), "eni/i-1/3");
        assert_eq!(key.eni_index(), Some(3));
        assert_eq!("fix/a/3".parse::<IndexKey>().unwrap().eni_index(), None);
    }

    #[test]
    fn index_key_with_a_blank_is_refused() {
        assert!("a b".parse::<IndexKey>().is_err());
        assert!("x".repeat(513).parse::<IndexKey>().is_err());
    }
}
