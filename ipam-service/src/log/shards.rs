//! The log of shards on any key space: claims, appends, snapshots as compare-and-write transactions.
//!
//! Every write compares the owner key's revision (the epoch) and, where it moves the log, the head's.
//! An append that is under way while somebody claims either lands before the claim's revision, and
//! then the claimer reads it, or fails its comparison.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use types::op::{Epoch, Seq, ShardId};

use crate::log::batch;
use crate::log::keys::Keys;
use crate::log::kv::{Compare, KeyValue, Kv, KvError, Op, Txn, TxnReply};
use crate::log::{
    AppendError, Batch, BatchId, Claim, ClaimError, Fence, HandOverError, Head, IndexChange,
    IndexEntry, IndexHolder, IndexKey, Outcome, Owner, ReadError, Replica, ShardLog, Stored,
};

pub mod image;

/// [`ShardLog`] on a [`Kv`].
#[derive(Debug, Clone)]
pub struct KvLog {
    kv: Arc<dyn Kv>,
    keys: Keys,
}

impl KvLog {
    /// The log whose keys stand below `keys` in `kv`.
    pub fn new(kv: Arc<dyn Kv>, keys: Keys) -> Self {
        Self { kv, keys }
    }

    fn owned(&self, fence: &Fence) -> Compare {
        Compare::ModRevision(self.keys.own(&fence.shard), fence.epoch.0)
    }

    fn head_is(&self, fence: &Fence) -> Compare {
        Compare::ModRevision(self.keys.head(&fence.shard), fence.head.revision)
    }

    /// Reads of a whole shard, in the order that [`image::Image::from_reads`] expects.
    fn image_reads(&self, shard: &ShardId) -> Vec<Op> {
        vec![
            Op::Get(self.keys.own(shard)),
            Op::Get(self.keys.head(shard)),
            Op::Get(self.keys.snapmeta(shard)),
            Op::prefix(&self.keys.snap_all(shard)),
            Op::prefix(&self.keys.log_all(shard)),
        ]
    }

    /// Takes the owner key if `guard` holds, and reads the shard in the same transaction.
    async fn take(
        &self,
        shard: &ShardId,
        me: &Replica,
        guard: Compare,
    ) -> Result<TxnReply, ClaimError> {
        let mut then = vec![Op::Put {
            key: self.keys.own(shard),
            value: encode_owner(me)?,
            session: Some(me.session),
        }];
        then.extend(self.image_reads(shard));
        let txn = Txn {
            when: vec![guard],
            then,
            otherwise: vec![Op::Get(self.keys.own(shard))],
        };
        self.kv.txn(txn).await.map_err(claim_error)
    }

    /// Who holds the keys that are to be deleted: their revisions, in order, without absent ones.
    async fn held(
        &self,
        fence: &Fence,
        delete: &[IndexKey],
    ) -> Result<Vec<(String, u64)>, AppendError> {
        if delete.is_empty() {
            return Ok(Vec::new());
        }
        let reads = delete.iter().map(|k| Op::Get(self.keys.index(k))).collect();
        let reply = self.kv.txn(Txn::read(reads)).await.map_err(append_error)?;
        let mut held = Vec::new();
        for (key, found) in delete.iter().zip(&reply.reads) {
            let Some(found) = found.first() else { continue };
            let holder = decode_holder(found).map_err(AppendError::Unavailable)?;
            if holder.shard != fence.shard {
                return Err(AppendError::Conflict {
                    key: key.clone(),
                    holder,
                });
            }
            held.push((found.key.clone(), found.mod_revision));
        }
        Ok(held)
    }

    async fn pieces_first(
        &self,
        fence: &Fence,
        generation: u64,
        pieces: &[Bytes],
    ) -> Result<(), AppendError> {
        for (number, group) in pieces.chunks(image::PIECES_PER_TXN).enumerate() {
            let mut then = Vec::new();
            for (offset, piece) in group.iter().enumerate() {
                let chunk = number
                    .saturating_mul(image::PIECES_PER_TXN)
                    .saturating_add(offset);
                then.push(self.put_piece(&fence.shard, generation, chunk, piece)?);
            }
            let txn = Txn {
                when: vec![self.owned(fence)],
                then,
                otherwise: Vec::new(),
            };
            mesh::crash_point!("ipam.snapshot.before_pieces");
            let reply = self.kv.txn(txn).await.map_err(append_error)?;
            if !reply.succeeded {
                return Err(AppendError::Fenced);
            }
        }
        Ok(())
    }

    fn put_piece(
        &self,
        shard: &ShardId,
        generation: u64,
        chunk: usize,
        piece: &Bytes,
    ) -> Result<Op, AppendError> {
        let chunk = u32::try_from(chunk)
            .map_err(|_| AppendError::Invalid("a snapshot of more than 2^32 pieces".to_owned()))?;
        Ok(Op::Put {
            key: self.keys.snap(shard, generation, chunk),
            value: piece.clone(),
            session: None,
        })
    }

    /// Changes the owner key under the fence.
    async fn change_owner(&self, fence: &Fence, op: Op) -> Result<(), HandOverError> {
        let txn = Txn {
            when: vec![self.owned(fence)],
            then: vec![op],
            otherwise: Vec::new(),
        };
        let reply = self.kv.txn(txn).await.map_err(|err| match err {
            KvError::SessionEnded => HandOverError::TargetGone,
            KvError::Unknown(why) => HandOverError::Unknown(why),
            KvError::Unavailable(why) => HandOverError::Unavailable(why),
            KvError::TooLarge { .. } | KvError::Invalid(_) => {
                HandOverError::Unavailable(err.to_string())
            }
        })?;
        if reply.succeeded {
            Ok(())
        } else {
            Err(HandOverError::Fenced)
        }
    }
}

#[async_trait]
impl ShardLog for KvLog {
    async fn claim(&self, shard: &ShardId, me: &Replica) -> Result<Claim, ClaimError> {
        let own = self.keys.own(shard);
        let mut reply = self
            .take(shard, me, Compare::CreateRevision(own.clone(), 0))
            .await?;
        if !reply.succeeded {
            let owner = read_owner(first(&reply, 0)).map_err(ClaimError::Corrupt)?;
            match owner {
                // Ours, by an answer that was lost or from an earlier life: a new claim all the same,
                // so that the fence that went with the old one is worth nothing.
                Some(owner) if owner.replica.id == me.id => {
                    let guard = Compare::ModRevision(own, owner.epoch.0);
                    reply = self.take(shard, me, guard).await?;
                }
                Some(owner) => return Err(ClaimError::Owned(owner)),
                None => {}
            }
        }
        if !reply.succeeded {
            return Err(
                match read_owner(first(&reply, 0)).map_err(ClaimError::Corrupt)? {
                    Some(owner) => ClaimError::Owned(owner),
                    None => ClaimError::Unavailable("the owner changed meanwhile".to_owned()),
                },
            );
        }
        let epoch = Epoch(reply.revision);
        match image::Image::from_reads(&reply.reads) {
            Ok(image) => Ok(Claim {
                fence: Fence {
                    shard: shard.clone(),
                    epoch,
                    head: image.head,
                },
                snapshot: image.snapshot,
                tail: image.tail,
            }),
            Err(why) => {
                // Nobody can serve it; leaving it without an owner is what makes that visible.
                let fence = Fence {
                    shard: shard.clone(),
                    epoch,
                    head: Head::default(),
                };
                if let Err(err) = self.release(&fence).await {
                    tracing::warn!(%shard, error = %err, "damaged shard stays claimed");
                }
                Err(ClaimError::Corrupt(why))
            }
        }
    }

    async fn append_with_index(
        &self,
        fence: &Fence,
        batch: &Batch,
        index: &IndexChange,
    ) -> Result<Head, AppendError> {
        if batch.records.is_empty() {
            return Err(AppendError::Invalid("a batch without records".to_owned()));
        }
        let (bytes, after) = batch::encode(batch, fence.epoch, &fence.head)
            .ok_or_else(|| AppendError::Invalid("a record of 4 GiB or more".to_owned()))?;
        let held = self.held(fence, &index.delete).await?;

        let mut when = vec![self.owned(fence), self.head_is(fence)];
        let mut then = vec![
            Op::Put {
                key: self.keys.log(&fence.shard, after.seq),
                value: bytes,
                session: None,
            },
            Op::Put {
                key: self.keys.head(&fence.shard),
                value: batch::encode_head(&after),
                session: None,
            },
        ];
        let mut otherwise = vec![
            Op::Get(self.keys.own(&fence.shard)),
            Op::Get(self.keys.head(&fence.shard)),
        ];
        for (key, op) in &index.create {
            let holder = IndexHolder {
                shard: fence.shard.clone(),
                op: *op,
            };
            let key = self.keys.index(key);
            when.push(Compare::CreateRevision(key.clone(), 0));
            otherwise.push(Op::Get(key.clone()));
            then.push(Op::Put {
                key,
                value: encode_holder(&holder)?,
                session: None,
            });
        }
        for (key, revision) in held {
            when.push(Compare::ModRevision(key.clone(), revision));
            then.push(Op::Delete(key));
        }
        let txn = Txn {
            when,
            then,
            otherwise,
        };
        let reply = self.kv.txn(txn).await.map_err(append_error)?;
        if reply.succeeded {
            Ok(Head {
                revision: reply.revision,
                ..after
            })
        } else {
            refused(fence, batch.id, index, &reply)
        }
    }

    async fn resolve(&self, fence: &Fence, batch: BatchId) -> Result<Outcome, AppendError> {
        // Writing the same head again moves its revision, so that a copy of the batch that is still
        // under way fails its comparison: "not committed" is final.
        let seal = Txn {
            when: vec![self.owned(fence), self.head_is(fence)],
            then: vec![Op::Put {
                key: self.keys.head(&fence.shard),
                value: batch::encode_head(&fence.head),
                session: None,
            }],
            otherwise: vec![
                Op::Get(self.keys.own(&fence.shard)),
                Op::Get(self.keys.head(&fence.shard)),
            ],
        };
        let reply = self.kv.txn(seal).await.map_err(append_error)?;
        if reply.succeeded {
            return Ok(Outcome::NotCommitted(Head {
                revision: reply.revision,
                ..fence.head
            }));
        }
        let ours = first(&reply, 0).is_some_and(|kv| kv.mod_revision == fence.epoch.0);
        if !ours {
            return Err(AppendError::Fenced);
        }
        let head = read_head(first(&reply, 1)).map_err(AppendError::Unavailable)?;
        if head.batch == batch && head.seq > fence.head.seq {
            Ok(Outcome::Committed(head))
        } else if head.seq == fence.head.seq && head.batch == fence.head.batch {
            // An earlier seal of ours, whose answer was lost.
            Ok(Outcome::NotCommitted(head))
        } else {
            Err(AppendError::Fenced)
        }
    }

    async fn snapshot(&self, fence: &Fence, upto: Seq, state: Bytes) -> Result<(), AppendError> {
        if upto > fence.head.seq {
            return Err(AppendError::Invalid(format!(
                "a snapshot up to {upto}, but the head is {}",
                fence.head.seq
            )));
        }
        let meta_key = self.keys.snapmeta(&fence.shard);
        let found = self
            .kv
            .txn(Txn::read(vec![Op::Get(meta_key.clone())]))
            .await
            .map_err(append_error)?;
        let (old, revision) = match first(&found, 0) {
            None => (None, 0),
            Some(kv) => (
                Some(
                    image::decode_meta(&kv.value)
                        .map_err(|e| AppendError::Unavailable(e.to_string()))?,
                ),
                kv.mod_revision,
            ),
        };
        if old.as_ref().map_or(Seq(0), |old| old.upto) >= upto {
            return Ok(());
        }
        let generation = old.map_or(1, |old| old.generation.saturating_add(1));
        let (meta, pieces) =
            image::encode_snapshot(generation, upto, &state).map_err(AppendError::Invalid)?;

        let last_group =
            pieces.len().saturating_sub(1) / image::PIECES_PER_TXN * image::PIECES_PER_TXN;
        let (early, last) = pieces.split_at(last_group);
        self.pieces_first(fence, generation, early).await?;
        let shard = &fence.shard;
        let mut then = Vec::new();
        for (offset, piece) in last.iter().enumerate() {
            then.push(self.put_piece(
                shard,
                generation,
                last_group.saturating_add(offset),
                piece,
            )?);
        }
        then.push(Op::Put {
            key: meta_key.clone(),
            value: image::encode_meta(&meta),
            session: None,
        });
        then.push(Op::DeleteRange {
            from: self.keys.log(shard, Seq(0)),
            to: self.keys.log(shard, upto.next()),
        });
        then.push(Op::DeleteRange {
            from: self.keys.snap_all(shard),
            to: self.keys.snap(shard, generation, 0),
        });
        // Pieces that an earlier try left behind.
        then.push(Op::DeleteRange {
            from: self.keys.snap(shard, generation, meta.chunks),
            to: self.keys.snap_end(shard, generation),
        });
        let txn = Txn {
            when: vec![self.owned(fence), Compare::ModRevision(meta_key, revision)],
            then,
            otherwise: Vec::new(),
        };
        let reply = self.kv.txn(txn).await.map_err(append_error)?;
        if reply.succeeded {
            Ok(())
        } else {
            Err(AppendError::Fenced)
        }
    }

    async fn transfer(&self, fence: &Fence, to: &Replica) -> Result<(), HandOverError> {
        let value = encode_owner(to).map_err(|err| HandOverError::Unavailable(err.to_string()))?;
        mesh::crash_point!("ipam.transfer.before_commit");
        self.change_owner(
            fence,
            Op::Put {
                key: self.keys.own(&fence.shard),
                value,
                session: Some(to.session),
            },
        )
        .await
    }

    async fn release(&self, fence: &Fence) -> Result<(), HandOverError> {
        self.change_owner(fence, Op::Delete(self.keys.own(&fence.shard)))
            .await
    }

    async fn read(&self, shard: &ShardId) -> Result<Stored, ReadError> {
        let reply = self
            .kv
            .txn(Txn::read(self.image_reads(shard)))
            .await
            .map_err(|err| ReadError::Unavailable(err.to_string()))?;
        let owner = read_owner(first(&reply, 0)).map_err(ReadError::Corrupt)?;
        let image = image::Image::from_reads(&reply.reads).map_err(ReadError::Corrupt)?;
        Ok(Stored {
            owner,
            head: image.head,
            snapshot: image.snapshot,
            tail: image.tail,
        })
    }

    async fn list_index(&self, prefix: &str) -> Result<Vec<IndexEntry>, ReadError> {
        let all = self.keys.index_all();
        let reply = self
            .kv
            .txn(Txn::read(vec![Op::prefix(&format!("{all}{prefix}"))]))
            .await
            .map_err(|err| ReadError::Unavailable(err.to_string()))?;
        let mut entries = Vec::new();
        for found in reply.reads.into_iter().flatten() {
            let name = found.key.strip_prefix(&all).unwrap_or_default();
            let key = name
                .parse()
                .map_err(|err: crate::log::InvalidIndexKey| ReadError::Corrupt(err.to_string()))?;
            let holder = decode_holder(&found).map_err(ReadError::Corrupt)?;
            entries.push(IndexEntry { key, holder });
        }
        Ok(entries)
    }
}

/// Why an append's comparison failed, or that it had been done before.
fn refused(
    fence: &Fence,
    batch: BatchId,
    index: &IndexChange,
    reply: &TxnReply,
) -> Result<Head, AppendError> {
    let mut reads = reply.reads.iter().map(|found| found.first());
    let own = reads.next().flatten();
    let head = reads.next().flatten();
    let ours = own.is_some_and(|kv| kv.mod_revision == fence.epoch.0);
    if !ours {
        return Err(AppendError::Fenced);
    }
    let head = read_head(head).map_err(AppendError::Unavailable)?;
    if head.revision != fence.head.revision {
        return if head.batch == batch && head.seq > fence.head.seq {
            Ok(head)
        } else {
            Err(AppendError::Fenced)
        };
    }
    for ((key, _), found) in index.create.iter().zip(reads) {
        if let Some(found) = found {
            return Err(AppendError::Conflict {
                key: key.clone(),
                holder: decode_holder(found).map_err(AppendError::Unavailable)?,
            });
        }
    }
    Err(AppendError::Unavailable(
        "an index key changed while it was being deleted".to_owned(),
    ))
}

fn first(reply: &TxnReply, read: usize) -> Option<&KeyValue> {
    reply.reads.get(read).and_then(|found| found.first())
}

fn encode_owner(replica: &Replica) -> Result<Bytes, ClaimError> {
    serde_json::to_vec(replica)
        .map(Bytes::from)
        .map_err(|err| ClaimError::Unavailable(format!("owner cannot be written: {err}")))
}

/// The owner in an owner key. Readable as text, so that people can look at it with `etcdctl`.
pub(crate) fn read_owner(found: Option<&KeyValue>) -> Result<Option<Owner>, String> {
    let Some(found) = found else { return Ok(None) };
    let replica = serde_json::from_slice(&found.value)
        .map_err(|err| format!("{} cannot be read: {err}", found.key))?;
    Ok(Some(Owner {
        replica,
        epoch: Epoch(found.mod_revision),
    }))
}

fn read_head(found: Option<&KeyValue>) -> Result<Head, String> {
    match found {
        None => Ok(Head::default()),
        Some(found) => batch::decode_head(&found.value, found.mod_revision)
            .map_err(|err| format!("{}: {err}", found.key)),
    }
}

fn encode_holder(holder: &IndexHolder) -> Result<Bytes, AppendError> {
    serde_json::to_vec(holder)
        .map(Bytes::from)
        .map_err(|err| AppendError::Invalid(format!("index value cannot be written: {err}")))
}

fn decode_holder(found: &KeyValue) -> Result<IndexHolder, String> {
    serde_json::from_slice(&found.value)
        .map_err(|err| format!("{} cannot be read: {err}", found.key))
}

fn append_error(err: KvError) -> AppendError {
    match err {
        KvError::TooLarge { what, is, most } => AppendError::TooLarge { what, is, most },
        KvError::Invalid(why) => AppendError::Invalid(why),
        KvError::SessionEnded => AppendError::Fenced,
        KvError::Unknown(why) => AppendError::Unknown(why),
        KvError::Unavailable(why) => AppendError::Unavailable(why),
    }
}

fn claim_error(err: KvError) -> ClaimError {
    match err {
        KvError::SessionEnded => ClaimError::SessionEnded,
        KvError::Unknown(why) => ClaimError::Unknown(why),
        KvError::Unavailable(why) => ClaimError::Unavailable(why),
        KvError::TooLarge { .. } | KvError::Invalid(_) => ClaimError::Unavailable(err.to_string()),
    }
}
