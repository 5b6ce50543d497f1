//! How a batch stands in the store: a header, the records with their lengths, a checksum.
//!
//! All numbers are little endian. The format version is the first byte, so that a later version can
//! be told apart before anything else is read.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | format version, [`VERSION`] |
//! | 16 | batch id |
//! | 8 | epoch of the writer |
//! | 8 | number of the first record |
//! | 4 | number of records |
//! | 4 | chain before this batch |
//! | 4 + n, each | length and bytes of a record |
//! | 4 | crc32c of all bytes before |
//!
//! So a batch costs 45 bytes and each record 4 bytes more than itself; the head beside it is 33 bytes
//! long and written with each batch.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use types::op::{Epoch, Seq};

use crate::log::{Batch, BatchId, Head, LogRecord};

/// The format that this build writes, and the only one it reads.
pub const VERSION: u8 = 1;

const HEADER_BYTES: usize = 1 + 16 + 8 + 8 + 4 + 4;
const HEAD_BYTES: usize = 1 + 8 + 4 + 16 + 4;
const CRC_BYTES: usize = 4;

/// A batch as read from the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBatch {
    /// Its name.
    pub id: BatchId,
    /// Who wrote it.
    pub epoch: Epoch,
    /// Number of its last record.
    pub last: Seq,
    /// Chain before it.
    pub chain_before: u32,
    /// Chain after it.
    pub chain_after: u32,
    /// Its records.
    pub records: Vec<LogRecord>,
}

/// Stored bytes that are not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Too short, or lengths that do not add up.
    #[error("cut off or of the wrong length")]
    Length,
    /// The checksum does not fit the bytes.
    #[error("checksum is {found:08x}, the bytes give {computed:08x}")]
    Checksum {
        /// As stored.
        found: u32,
        /// Over what is there.
        computed: u32,
    },
    /// Written by another version of this software.
    #[error("format version {0} is not known here")]
    Version(u8),
}

/// Size of a batch as stored, in bytes; the log adds a key, a head and the comparisons to it.
pub fn encoded_len(records: &[Bytes]) -> usize {
    let records: usize = records.iter().map(|r| r.len().saturating_add(4)).sum();
    records.saturating_add(HEADER_BYTES + CRC_BYTES)
}

/// A batch as it is to be stored after `head`, and the head after it (its revision is still that of
/// `head`). None if a length does not fit into its field.
pub fn encode(batch: &Batch, epoch: Epoch, head: &Head) -> Option<(Bytes, Head)> {
    let count = u32::try_from(batch.records.len()).ok()?;
    let mut out = BytesMut::with_capacity(encoded_len(&batch.records));
    out.put_u8(VERSION);
    out.put_slice(&batch.id.0);
    out.put_u64_le(epoch.0);
    out.put_u64_le(head.seq.next().0);
    out.put_u32_le(count);
    out.put_u32_le(head.chain);
    for record in &batch.records {
        out.put_u32_le(u32::try_from(record.len()).ok()?);
        out.put_slice(record);
    }
    let crc = crc32c::crc32c(&out);
    out.put_u32_le(crc);
    let bytes = out.freeze();
    let after = Head {
        seq: Seq(head.seq.0.checked_add(u64::from(count))?),
        revision: head.revision,
        chain: chain(head.chain, &bytes),
        batch: batch.id,
    };
    Some((bytes, after))
}

/// Reads a stored batch.
pub fn decode(bytes: &Bytes) -> Result<StoredBatch, Damage> {
    let mut body = checked(bytes, HEADER_BYTES)?;
    let version = body.get_u8();
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    let id = take_id(&mut body);
    let epoch = Epoch(body.get_u64_le());
    let first = body.get_u64_le();
    let count = body.get_u32_le();
    let chain_before = body.get_u32_le();
    let mut records = Vec::new();
    for offset in 0..u64::from(count) {
        if body.remaining() < 4 {
            return Err(Damage::Length);
        }
        let len = usize::try_from(body.get_u32_le()).map_err(|_| Damage::Length)?;
        if body.remaining() < len {
            return Err(Damage::Length);
        }
        records.push(LogRecord {
            seq: Seq(first.checked_add(offset).ok_or(Damage::Length)?),
            data: body.copy_to_bytes(len),
        });
    }
    let Some(last) = records.last().map(|r| r.seq) else {
        return Err(Damage::Length);
    };
    if body.has_remaining() {
        return Err(Damage::Length);
    }
    Ok(StoredBatch {
        id,
        epoch,
        last,
        chain_before,
        chain_after: chain(chain_before, bytes),
        records,
    })
}

/// The head as it is stored: version, seq, chain, batch id, checksum. The revision is the key's own.
pub fn encode_head(head: &Head) -> Bytes {
    let mut out = BytesMut::with_capacity(HEAD_BYTES);
    out.put_u8(VERSION);
    out.put_u64_le(head.seq.0);
    out.put_u32_le(head.chain);
    out.put_slice(&head.batch.0);
    let crc = crc32c::crc32c(&out);
    out.put_u32_le(crc);
    out.freeze()
}

/// Reads a head that was stored at `revision`.
pub fn decode_head(bytes: &Bytes, revision: u64) -> Result<Head, Damage> {
    let mut body = checked(bytes, HEAD_BYTES - CRC_BYTES)?;
    let version = body.get_u8();
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    let seq = Seq(body.get_u64_le());
    let chain = body.get_u32_le();
    let batch = take_id(&mut body);
    if body.has_remaining() {
        return Err(Damage::Length);
    }
    Ok(Head {
        seq,
        revision,
        chain,
        batch,
    })
}

/// Checks the checksum at the end and gives what stands before it, at least `least` bytes.
fn checked(bytes: &Bytes, least: usize) -> Result<Bytes, Damage> {
    let body_len = bytes
        .len()
        .checked_sub(CRC_BYTES)
        .filter(|len| *len >= least)
        .ok_or(Damage::Length)?;
    let mut stored = bytes.slice(body_len..);
    let found = stored.get_u32_le();
    let body = bytes.slice(..body_len);
    let computed = crc32c::crc32c(&body);
    if found == computed {
        Ok(body)
    } else {
        Err(Damage::Checksum { found, computed })
    }
}

fn take_id(body: &mut Bytes) -> BatchId {
    let mut id = [0; 16];
    body.copy_to_slice(&mut id);
    BatchId(id)
}

/// The checksum over everything so far and these bytes.
fn chain(before: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&before.to_le_bytes()), bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head() -> Head {
        Head {
            seq: Seq(7),
            revision: 3,
            chain: 0xabcd,
            batch: BatchId([9; 16]),
        }
    }

    // A change of this test means a change of the stored format: then VERSION must change as well.
    #[test]
    fn batch_of_version_1_has_these_bytes() {
        let batch = Batch {
            id: BatchId([0x11; 16]),
            records: vec![Bytes::from_static(b"ab"), Bytes::from_static(b"")],
        };

        let (bytes, after) = encode(&batch, Epoch(5), &head()).unwrap();

        let mut expected = vec![1];
        expected.extend([0x11; 16]);
        expected.extend([5, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([8, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([2, 0, 0, 0, 0xcd, 0xab, 0, 0]);
        expected.extend([2, 0, 0, 0, b'a', b'b', 0, 0, 0, 0]);
        let crc = crc32c::crc32c(&expected);
        expected.extend(crc.to_le_bytes());
        assert_eq!(bytes, expected);
        assert_eq!(after.seq, Seq(9));
        assert_eq!(bytes.len(), encoded_len(&batch.records));
    }

    #[test]
    fn batch_of_64_records_of_48_bytes_costs_53_bytes_a_record() {
        let records = vec![Bytes::from(vec![0; 48]); 64];

        let bytes = encoded_len(&records) + encode_head(&head()).len();

        assert_eq!((bytes, bytes / records.len()), (45 + 64 * 52 + 33, 53));
    }

    #[test]
    fn batch_of_unknown_version_is_refused() {
        let (bytes, _) = encode(&Batch::new(vec![Bytes::new()]), Epoch(1), &head()).unwrap();
        let mut body = bytes[..bytes.len() - 4].to_vec();
        body[0] = 2;
        let crc = crc32c::crc32c(&body);
        body.extend(crc.to_le_bytes());

        assert_eq!(decode(&Bytes::from(body)), Err(Damage::Version(2)));
    }

    #[test]
    fn head_round_trips_with_the_revision_of_its_key() {
        let stored = encode_head(&head());

        assert_eq!(
            decode_head(&stored, 42),
            Ok(Head {
                revision: 42,
                ..head()
            })
        );
    }

    proptest! {
        #[test]
        fn batch_round_trips(records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..20)) {
            let batch = Batch::new(records.into_iter().map(Bytes::from).collect());
            let (bytes, after) = encode(&batch, Epoch(5), &head()).unwrap();

            let back = decode(&bytes).unwrap();

            prop_assert_eq!(back.id, batch.id);
            prop_assert_eq!(back.epoch, Epoch(5));
            prop_assert_eq!(back.last, after.seq);
            prop_assert_eq!(back.chain_before, head().chain);
            prop_assert_eq!(back.chain_after, after.chain);
            let data: Vec<Bytes> = back.records.iter().map(|r| r.data.clone()).collect();
            prop_assert_eq!(data, batch.records);
            prop_assert_eq!(back.records[0].seq, Seq(8));
        }

        #[test]
        fn batch_with_one_changed_bit_is_refused(bit in 0_usize..8 * 60) {
            let batch = Batch::new(vec![Bytes::from_static(b"abcdefghijk")]);
            let (bytes, _) = encode(&batch, Epoch(5), &head()).unwrap();
            prop_assert_eq!(bytes.len(), 60);
            let mut bytes = bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);

            prop_assert!(decode(&Bytes::from(bytes)).is_err());
        }

        #[test]
        fn batch_that_is_cut_off_is_refused(len in 0_usize..60) {
            let batch = Batch::new(vec![Bytes::from_static(b"abcdefghijk")]);
            let (bytes, _) = encode(&batch, Epoch(5), &head()).unwrap();

            prop_assert!(decode(&bytes.slice(..len)).is_err());
        }
    }
}
