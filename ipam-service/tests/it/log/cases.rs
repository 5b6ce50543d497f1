//! The cases. Each says in its name what is done and what must come of it.

use bytes::Bytes;
use ipam_service::log::kv::{Op, Txn};
use ipam_service::log::{
    AppendError, Batch, Claim, ClaimError, Fence, HandOverError, Head, IndexChange, IndexKey,
    LogRecord, MAX_INDEX_KEYS, MAX_REQUEST_BYTES, Outcome, ReadError, Replica,
    SNAPSHOT_CHUNK_BYTES, ShardLog,
};
use types::op::{Seq, ShardId};

use super::fixture::LogFixture;

mod claims;
mod histories;
mod indexes;
mod snapshots;
mod writes;

pub(crate) use claims::*;
pub(crate) use histories::*;
pub(crate) use indexes::*;
pub(crate) use snapshots::*;
pub(crate) use writes::*;

fn shard() -> ShardId {
    "vsw-a.1".parse().unwrap()
}

fn other_shard() -> ShardId {
    "vsw-a.10".parse().unwrap()
}

fn batch(records: &[&str]) -> Batch {
    Batch::new(
        records
            .iter()
            .map(|r| Bytes::copy_from_slice(r.as_bytes()))
            .collect(),
    )
}

fn key(text: &str) -> IndexKey {
    text.parse().unwrap()
}

/// A claimed shard and its owner.
async fn claimed(fixture: &dyn LogFixture) -> (Replica, Fence) {
    let me = fixture.replica("ipam-0").await;
    let claim = fixture.log().claim(&shard(), &me).await.unwrap();
    (me, claim.fence)
}

/// Appends and goes on from there.
async fn append(fixture: &dyn LogFixture, fence: &mut Fence, records: &[&str]) -> Batch {
    let batch = batch(records);
    fence.head = fixture.log().append(fence, &batch).await.unwrap();
    batch
}

/// Numbers and texts of what is stored behind the snapshot.
async fn stored(fixture: &dyn LogFixture, shard: &ShardId) -> Vec<(u64, String)> {
    texts(&fixture.log().read(shard).await.unwrap().tail)
}

fn texts(records: &[LogRecord]) -> Vec<(u64, String)> {
    records
        .iter()
        .map(|r| (r.seq.0, String::from_utf8(r.data.to_vec()).unwrap()))
        .collect()
}

fn numbered(from: u64, records: &[&str]) -> Vec<(u64, String)> {
    (from..)
        .zip(records)
        .map(|(seq, text)| (seq, (*text).to_owned()))
        .collect()
}

/// Bytes that do not compress, always the same.
fn noise(len: usize) -> Bytes {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    Bytes::from(bytes)
}

/// Writes past the log, as damage would.
async fn plant(fixture: &dyn LogFixture, op: Op) {
    let txn = Txn {
        then: vec![op],
        ..Txn::default()
    };
    fixture.bare().txn(txn).await.unwrap();
}

async fn value(fixture: &dyn LogFixture, key: &str) -> Bytes {
    let read = Txn::read(vec![Op::Get(key.to_owned())]);
    fixture.bare().txn(read).await.unwrap().reads[0][0]
        .value
        .clone()
}

fn put(key: String, value: Bytes) -> Op {
    Op::Put {
        key,
        value,
        session: None,
    }
}
