//! What is stored of one shard, checked and put together: head, snapshot, tail.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use types::op::Seq;

use crate::log::batch::{self, Damage};
use crate::log::kv::KeyValue;
use crate::log::{Head, LogRecord, SNAPSHOT_CHUNK_BYTES, Snapshot};

/// Pieces of a snapshot written in one transaction: 1 MiB, below the limit of 1.5 MiB.
pub(super) const PIECES_PER_TXN: usize = 4;

/// A state may have so many bytes.
///
/// Reason: a shard of 4,096 addresses has at most some hundred KiB; this stops a damaged length from
/// taking the memory.
const MAX_STATE_BYTES: usize = 256 * 1024 * 1024;

/// Compression level: the usual one; a snapshot is rare and small.
const LEVEL: i32 = 3;

const META_VERSION: u8 = 1;
const META_BYTES: usize = 1 + 8 + 4 + 8 + 8 + 4 + 4;

/// Which snapshot counts and how to check it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meta {
    /// Grows with each snapshot; part of the names of its pieces.
    pub(super) generation: u64,
    /// Number of pieces.
    pub(super) chunks: u32,
    /// The last record in it.
    pub(super) upto: Seq,
    /// Bytes of the state before it was compressed.
    state_len: u64,
    /// crc32c of the compressed state.
    crc: u32,
}

/// A shard as stored.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) head: Head,
    pub(super) snapshot: Option<Snapshot>,
    pub(super) tail: Vec<LogRecord>,
}

/// Compresses a state and cuts it into pieces.
pub(super) fn encode_snapshot(
    generation: u64,
    upto: Seq,
    state: &[u8],
) -> Result<(Meta, Vec<Bytes>), String> {
    if state.len() > MAX_STATE_BYTES {
        return Err(format!(
            "a state of {} bytes, at most {MAX_STATE_BYTES}",
            state.len()
        ));
    }
    let packed = zstd::bulk::compress(state, LEVEL).map_err(|err| format!("zstd: {err}"))?;
    let packed = Bytes::from(packed);
    let mut pieces = Vec::new();
    let mut rest = packed.clone();
    while !rest.is_empty() {
        pieces.push(rest.split_to(rest.len().min(SNAPSHOT_CHUNK_BYTES)));
    }
    let meta = Meta {
        generation,
        chunks: u32::try_from(pieces.len()).map_err(|_| "too many pieces".to_owned())?,
        upto,
        state_len: u64::try_from(state.len()).map_err(|_| "too long".to_owned())?,
        crc: crc32c::crc32c(&packed),
    };
    Ok((meta, pieces))
}

/// Version, generation, pieces, upto, length, crc of the state, crc of these bytes.
pub(super) fn encode_meta(meta: &Meta) -> Bytes {
    let mut out = BytesMut::with_capacity(META_BYTES);
    out.put_u8(META_VERSION);
    out.put_u64_le(meta.generation);
    out.put_u32_le(meta.chunks);
    out.put_u64_le(meta.upto.0);
    out.put_u64_le(meta.state_len);
    out.put_u32_le(meta.crc);
    let crc = crc32c::crc32c(&out);
    out.put_u32_le(crc);
    out.freeze()
}

/// Reads what [`encode_meta`] wrote.
pub(super) fn decode_meta(bytes: &Bytes) -> Result<Meta, Damage> {
    if bytes.len() != META_BYTES {
        return Err(Damage::Length);
    }
    let mut body = bytes.clone();
    let version = body.get_u8();
    let meta = Meta {
        generation: body.get_u64_le(),
        chunks: body.get_u32_le(),
        upto: Seq(body.get_u64_le()),
        state_len: body.get_u64_le(),
        crc: body.get_u32_le(),
    };
    let found = body.get_u32_le();
    let computed = crc32c::crc32c(&bytes[..META_BYTES - 4]);
    if found != computed {
        return Err(Damage::Checksum { found, computed });
    }
    if version != META_VERSION {
        return Err(Damage::Version(version));
    }
    Ok(meta)
}

impl Image {
    /// From reads of the owner (not looked at), the head, the meta, all pieces, all batches.
    ///
    /// The error says what is damaged; there is no way on from it without a person.
    pub(super) fn from_reads(reads: &[Vec<KeyValue>]) -> Result<Self, String> {
        let [_own, head, meta, pieces, batches] = reads else {
            return Err(format!("{} reads where 5 were asked for", reads.len()));
        };
        let head = match head.first() {
            None => None,
            Some(kv) => Some(batch::decode_head(&kv.value, kv.mod_revision).map_err(at(kv))?),
        };
        let snapshot = match meta.first() {
            None => None,
            Some(kv) => {
                let meta = decode_meta(&kv.value).map_err(at(kv))?;
                Some(unpack(&meta, pieces)?)
            }
        };
        let head = match (head, &snapshot) {
            (Some(head), _) => head,
            (None, None) => Head::default(),
            (None, Some(snapshot)) => {
                return Err(format!("a snapshot up to {}, but no head", snapshot.upto));
            }
        };
        let upto = snapshot.as_ref().map_or(Seq(0), |s| s.upto);
        let tail = tail(&head, upto, batches)?;
        Ok(Self {
            head,
            snapshot,
            tail,
        })
    }
}

fn at(kv: &KeyValue) -> impl Fn(Damage) -> String + '_ {
    move |damage| format!("{}: {damage}", kv.key)
}

/// Puts the pieces of the generation in `meta` together. Pieces of others are strays, no damage.
fn unpack(meta: &Meta, pieces: &[KeyValue]) -> Result<Snapshot, String> {
    let part = format!("/{:016x}/", meta.generation);
    let chunks = usize::try_from(meta.chunks).map_err(|_| "too many pieces".to_owned())?;
    let mut packed = BytesMut::new();
    let mut found = 0_usize;
    for piece in pieces
        .iter()
        .filter(|kv| kv.key.contains(&part))
        .take(chunks)
    {
        packed.put_slice(&piece.value);
        found = found.saturating_add(1);
    }
    if found != chunks {
        return Err(format!("the snapshot has {found} of {chunks} pieces"));
    }
    let computed = crc32c::crc32c(&packed);
    if computed != meta.crc {
        return Err(format!(
            "the snapshot's checksum is {:08x}, its bytes give {computed:08x}",
            meta.crc
        ));
    }
    let len = usize::try_from(meta.state_len)
        .ok()
        .filter(|len| *len <= MAX_STATE_BYTES)
        .ok_or_else(|| format!("a state of {} bytes", meta.state_len))?;
    let state = zstd::bulk::decompress(&packed, len).map_err(|err| format!("zstd: {err}"))?;
    if state.len() != len {
        return Err(format!("the state has {} of {len} bytes", state.len()));
    }
    Ok(Snapshot {
        upto: meta.upto,
        state: Bytes::from(state),
    })
}

/// The records after `upto`, none missing, up to the head. Batches up to `upto` are strays of a
/// snapshot and are passed over.
fn tail(head: &Head, upto: Seq, batches: &[KeyValue]) -> Result<Vec<LogRecord>, String> {
    let mut records: Vec<LogRecord> = Vec::new();
    let mut chain = None;
    let mut newest = upto;
    for kv in batches {
        let batch = batch::decode(&kv.value).map_err(at(kv))?;
        let named = kv
            .key
            .rsplit('/')
            .next()
            .and_then(|n| u64::from_str_radix(n, 16).ok());
        if named != Some(batch.last.0) {
            return Err(format!("{} holds the batch up to {}", kv.key, batch.last));
        }
        if batch.last <= upto {
            continue;
        }
        let starts = batch.records.first().map(|r| r.seq);
        // Only the first one may reach back behind the snapshot.
        let follows = match chain {
            None => starts.is_some_and(|s| s <= upto.next()),
            Some(before) => starts == Some(newest.next()) && batch.chain_before == before,
        };
        if !follows {
            return Err(format!("{} does not follow record {newest}", kv.key));
        }
        chain = Some(batch.chain_after);
        newest = batch.last;
        records.extend(batch.records.into_iter().filter(|r| r.seq > upto));
    }
    if newest != head.seq {
        return Err(format!(
            "the log ends at {newest}, the head says {}",
            head.seq
        ));
    }
    if chain.is_some_and(|chain| chain != head.chain) {
        return Err("the chain of the log differs from the head's".to_owned());
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Batch;
    use types::op::Epoch;

    fn kv(key: String, value: Bytes) -> KeyValue {
        KeyValue {
            key,
            value,
            create_revision: 1,
            mod_revision: 1,
        }
    }

    /// Batches of one, two and three records: numbers 1, 2..=3, 4..=6.
    fn log() -> (Head, Vec<KeyValue>) {
        let mut head = Head::default();
        let mut stored = Vec::new();
        for n in 1..=3_u8 {
            let records = (0..n).map(|i| Bytes::from(vec![n, i])).collect();
            let (bytes, after) = batch::encode(&Batch::new(records), Epoch(1), &head).unwrap();
            head = after;
            stored.push(kv(format!("/log/{:016x}", head.seq.0), bytes));
        }
        (head, stored)
    }

    fn seqs(records: &[LogRecord]) -> Vec<u64> {
        records.iter().map(|r| r.seq.0).collect()
    }

    #[test]
    fn tail_without_snapshot_is_everything() {
        let (head, stored) = log();

        assert_eq!(
            seqs(&tail(&head, Seq(0), &stored).unwrap()),
            [1, 2, 3, 4, 5, 6]
        );
    }

    #[test]
    fn tail_passes_over_strays_of_the_snapshot() {
        let (head, stored) = log();

        assert_eq!(seqs(&tail(&head, Seq(3), &stored).unwrap()), [4, 5, 6]);
    }

    #[test]
    fn tail_from_inside_a_batch_has_the_rest_of_it() {
        let (head, stored) = log();

        assert_eq!(
            seqs(&tail(&head, Seq(2), &stored[1..]).unwrap()),
            [3, 4, 5, 6]
        );
    }

    #[test]
    fn tail_with_a_batch_missing_is_damage() {
        let (head, mut stored) = log();
        stored.remove(1);

        assert!(tail(&head, Seq(0), &stored).is_err());
    }

    #[test]
    fn tail_that_ends_before_the_head_is_damage() {
        let (head, mut stored) = log();
        stored.pop();

        assert!(
            tail(&head, Seq(0), &stored)
                .unwrap_err()
                .contains("ends at 3")
        );
    }

    #[test]
    fn tail_with_a_foreign_batch_in_it_is_damage() {
        let (head, mut stored) = log();
        let other = Head {
            seq: Seq(1),
            chain: 77,
            ..Head::default()
        };
        let records = vec![Bytes::new(), Bytes::new()];
        let (bytes, _) = batch::encode(&Batch::new(records), Epoch(1), &other).unwrap();
        stored[1].value = bytes;

        assert!(
            tail(&head, Seq(0), &stored)
                .unwrap_err()
                .contains("does not follow")
        );
    }

    #[test]
    fn snapshot_of_nothing_round_trips() {
        let (meta, pieces) = encode_snapshot(1, Seq(4), b"").unwrap();
        let pieces: Vec<_> = pieces
            .into_iter()
            .enumerate()
            .map(|(i, p)| kv(format!("/snap/{:016x}/{i:08x}", 1), p))
            .collect();

        assert_eq!(decode_meta(&encode_meta(&meta)), Ok(meta.clone()));
        assert_eq!(unpack(&meta, &pieces).unwrap().state, Bytes::new());
    }

    #[test]
    fn snapshot_with_a_piece_missing_is_damage() {
        let (meta, _) = encode_snapshot(1, Seq(4), b"abc").unwrap();

        assert!(unpack(&meta, &[]).unwrap_err().contains("0 of 1 pieces"));
    }
}
