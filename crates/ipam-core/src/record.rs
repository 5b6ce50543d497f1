//! What a shard's log says, and how it is written as bytes.
//!
//! A record has no number in itself: its sequence number is its position in the log, from 1, and is
//! given to [`crate::shard::Shard::apply`]. Checksums are the log's affair. A record that sets a deadline
//! carries the time it was made at, so that the next owner's clock starts no earlier.

use serde::{Deserialize, Serialize};
use types::address::MacAddr;
use types::cloud::{EniId, InstanceId, SecurityGroupId};
use types::op::Seq;
use types::time::Tick;

use crate::eni::EniKey;
use crate::slot::SlotSet;

/// First byte of an encoded record that every version reads.
pub const FORMAT: u8 = 1;

/// First byte of a record that was not there in the first version. Such records are written when they are
/// needed alone, so that a log without them is still read by an older one, which refuses the others by this number.
///
/// A reader accepts these two numbers, each with its own records; a change that older readers can not read takes the
/// next.
pub const FORMAT_WHOLE: u8 = 2;

/// Longest encoded record that is accepted, in bytes.
///
/// Reason: a typical one has 10-80; the largest, an intent for 50 scattered addresses of both families
/// with five security groups, stays below 1 KiB; a `Revoke` of everything stays below 4 KiB.
pub const MAX_RECORD_LEN: usize = 16 * 1024;

/// One step of a shard. The order of variants and fields is the format: append, never reorder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// An ENI shall be created, filled with `slots` and attached. Opens `BringUp`; its number names
    /// the ENI and the operation. Its quota index is taken in the same transaction.
    EniIntent {
        /// For whom.
        instance: InstanceId,
        /// Which of the instance's ENI places it takes.
        quota_index: u32,
        /// IPv4 slot of the primary address; among `slots`.
        primary: u32,
        /// All slots it shall have.
        slots: SlotSet,
        /// Kept, because a repeat of the create call must ask for the same.
        security_groups: Vec<SecurityGroupId>,
    },
    /// The cloud has created the ENI with `present` on it.
    EniCreated {
        /// Which.
        eni: EniKey,
        /// The cloud's id.
        id: EniId,
        /// Its hardware address.
        #[serde(with = "mac_bytes")]
        mac: MacAddr,
        /// Those of its slots that are on it by the cloud's word.
        present: SlotSet,
    },
    /// The ENI is attached to its instance.
    EniAttached {
        /// Which.
        eni: EniKey,
        /// When this was learnt.
        at: Tick,
    },
    /// Further addresses shall be put on an attached ENI. Opens `Assign`.
    AssignIntent {
        /// Which ENI.
        eni: EniKey,
        /// Which slots.
        slots: SlotSet,
    },
    /// Addresses of a `BringUp` or `Assign` are on the ENI by the cloud's word.
    Assigned {
        /// The operation.
        op: Seq,
        /// Which of its slots.
        slots: SlotSet,
        /// When this was learnt.
        at: Tick,
    },
    /// The cloud has refused addresses of a `BringUp` or `Assign`, and has none of them on the ENI.
    /// Before the ENI exists this drops the whole operation.
    Aborted {
        /// The operation.
        op: Seq,
        /// Those that are free again.
        slots: SlotSet,
        /// Those that somebody else has.
        conflict: Option<Conflict>,
    },
    /// The node of the ENI may use the slots. The number of this record is their generation.
    Held {
        /// Which ENI.
        eni: EniKey,
        /// Which slots.
        slots: SlotSet,
    },
    /// The node is asked to give slots back. The number of this record is the revoke id.
    Revoke {
        /// Which ENI.
        eni: EniKey,
        /// Which slots.
        slots: SlotSet,
    },
    /// The node has answered a `Revoke`, after making its answer durable.
    RevokeAcked {
        /// Which `Revoke`.
        revoke: Seq,
        /// It will not use these under any generation below `revoke`.
        accepted: SlotSet,
        /// It uses these, and keeps them.
        refused: SlotSet,
    },
    /// It is proved that the instance is gone: it uses nothing any more.
    NodeGone {
        /// Which instance.
        instance: InstanceId,
    },
    /// Addresses shall be taken off an attached ENI. Opens `Unassign`.
    UnassignIntent {
        /// Which ENI.
        eni: EniKey,
        /// Which slots.
        slots: SlotSet,
    },
    /// Addresses of an `Unassign` are off the ENI by the cloud's word, and start to cool.
    Unassigned {
        /// The operation.
        op: Seq,
        /// Which of its slots.
        slots: SlotSet,
        /// When this was learnt.
        at: Tick,
        /// How long they cool, in milliseconds.
        cooldown_ms: u64,
    },
    /// The ENI shall be detached, then deleted. Opens `Remove`.
    DetachIntent {
        /// Which ENI.
        eni: EniKey,
    },
    /// The ENI is attached to nothing by the cloud's word, and shall be deleted. Opens `Remove` unless
    /// `DetachIntent` did; ends a `BringUp` that can not go on.
    DeleteIntent {
        /// Which ENI.
        eni: EniKey,
    },
    /// The ENI is deleted by the cloud's word. Its slots start to cool, its quota index is free.
    EniGone {
        /// Which ENI.
        eni: EniKey,
        /// When this was learnt.
        at: Tick,
        /// How long its slots cool, in milliseconds.
        cooldown_ms: u64,
    },
    /// The cloud does not know an attached ENI that we have not deleted.
    EniLost {
        /// Which ENI.
        eni: EniKey,
    },
    /// Free addresses turned out to be somebody else's.
    Foreign {
        /// Which slots.
        slots: SlotSet,
        /// When this was learnt.
        at: Tick,
        /// How long they are left alone, in milliseconds.
        ttl_ms: u64,
    },
    /// Time has reached `at`. Cooling, foreign and quarantined slots whose time is up become free.
    Tick {
        /// The hybrid time.
        at: Tick,
    },
    /// As `EniIntent`, for an ENI that one pod gets for itself: it never serves pods that share.
    WholeEniIntent {
        /// For whom.
        instance: InstanceId,
        /// Which of the instance's ENI places it takes.
        quota_index: u32,
        /// IPv4 slot of the primary address; among `slots`.
        primary: u32,
        /// All slots it shall have: one of each family.
        slots: SlotSet,
        /// Kept, because a repeat of the create call must ask for the same.
        security_groups: Vec<SecurityGroupId>,
    },
    /// It is proved that the node uses nothing on the ENI any more: its Node object is gone, and the cloud has the
    /// ENI attached to nothing.
    EniDetached {
        /// Which.
        eni: EniKey,
    },
}

/// Addresses that the cloud says are somebody else's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// Which slots.
    pub slots: SlotSet,
    /// When this was learnt.
    pub at: Tick,
    /// How long they are left alone, in milliseconds.
    pub ttl_ms: u64,
}

/// Why bytes are not a record. The shard must not be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No bytes, or more than [`MAX_RECORD_LEN`].
    #[error("a record can not have {0} bytes")]
    Length(usize),
    /// Written by a version we do not know.
    #[error("record format {0} is not known")]
    Format(u8),
    /// Not a record, or bytes left over.
    #[error("malformed record")]
    Malformed,
}

/// Why a record can not be written: it is longer than [`MAX_RECORD_LEN`]. The plan that made it is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record is too long to be written")]
pub struct EncodeError;

impl Record {
    /// Writes the record.
    ///
    /// # Errors
    /// [`EncodeError`] when it is too long.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let bytes = postcard::to_extend(self, vec![self.format()]).map_err(|_| EncodeError)?;
        if bytes.len() > MAX_RECORD_LEN {
            return Err(EncodeError);
        }
        Ok(bytes)
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are not exactly one record.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_RECORD_LEN {
            return Err(DecodeError::Length(bytes.len()));
        }
        let (format, body) = bytes.split_first().ok_or(DecodeError::Length(0))?;
        if !matches!(*format, FORMAT | FORMAT_WHOLE) {
            return Err(DecodeError::Format(*format));
        }
        match postcard::take_from_bytes::<Self>(body) {
            Ok((record, [])) if record.format() == *format => Ok(record),
            Ok(_) | Err(_) => Err(DecodeError::Malformed),
        }
    }

    /// The number that it is written under: that of the oldest version that knows it.
    fn format(&self) -> u8 {
        match self {
            Self::WholeEniIntent { .. } | Self::EniDetached { .. } => FORMAT_WHOLE,
            Self::EniIntent { .. }
            | Self::EniCreated { .. }
            | Self::EniAttached { .. }
            | Self::AssignIntent { .. }
            | Self::Assigned { .. }
            | Self::Aborted { .. }
            | Self::Held { .. }
            | Self::Revoke { .. }
            | Self::RevokeAcked { .. }
            | Self::NodeGone { .. }
            | Self::UnassignIntent { .. }
            | Self::Unassigned { .. }
            | Self::DetachIntent { .. }
            | Self::DeleteIntent { .. }
            | Self::EniGone { .. }
            | Self::EniLost { .. }
            | Self::Foreign { .. }
            | Self::Tick { .. } => FORMAT,
        }
    }

    /// Name as people read it in logs and spans.
    pub fn name(&self) -> &'static str {
        match self {
            Self::EniIntent { .. } => "eni-intent",
            Self::EniCreated { .. } => "eni-created",
            Self::EniAttached { .. } => "eni-attached",
            Self::AssignIntent { .. } => "assign-intent",
            Self::Assigned { .. } => "assigned",
            Self::Aborted { .. } => "aborted",
            Self::Held { .. } => "held",
            Self::Revoke { .. } => "revoke",
            Self::RevokeAcked { .. } => "revoke-acked",
            Self::NodeGone { .. } => "node-gone",
            Self::UnassignIntent { .. } => "unassign-intent",
            Self::Unassigned { .. } => "unassigned",
            Self::DetachIntent { .. } => "detach-intent",
            Self::DeleteIntent { .. } => "delete-intent",
            Self::EniGone { .. } => "eni-gone",
            Self::EniLost { .. } => "eni-lost",
            Self::Foreign { .. } => "foreign",
            Self::Tick { .. } => "tick",
            Self::WholeEniIntent { .. } => "whole-eni-intent",
            Self::EniDetached { .. } => "eni-detached",
        }
    }

    /// Whether a cloud call may follow from it: it must be durable before the call.
    pub fn is_intent(&self) -> bool {
        match self {
            Self::EniIntent { .. }
            | Self::WholeEniIntent { .. }
            | Self::AssignIntent { .. }
            | Self::UnassignIntent { .. }
            | Self::DetachIntent { .. }
            | Self::DeleteIntent { .. } => true,
            Self::EniCreated { .. }
            | Self::EniAttached { .. }
            | Self::Assigned { .. }
            | Self::Aborted { .. }
            | Self::Held { .. }
            | Self::Revoke { .. }
            | Self::RevokeAcked { .. }
            | Self::NodeGone { .. }
            | Self::Unassigned { .. }
            | Self::EniGone { .. }
            | Self::EniLost { .. }
            | Self::EniDetached { .. }
            | Self::Foreign { .. }
            | Self::Tick { .. } => false,
        }
    }
}

/// Six bytes instead of the text that people read.
mod mac_bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use types::address::MacAddr;

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature is serde's"
    )]
    pub(super) fn serialize<S: Serializer>(mac: &MacAddr, to: S) -> Result<S::Ok, S::Error> {
        mac.0.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<MacAddr, D::Error> {
        <[u8; 6]>::deserialize(from).map(MacAddr)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use types::address::Family;

    use super::*;
    use crate::slot::Slot;

    fn v4(range: std::ops::Range<u32>) -> SlotSet {
        range
            .map(|index| Slot {
                family: Family::V4,
                index,
            })
            .collect()
    }

    fn dual(range: std::ops::Range<u32>) -> SlotSet {
        let v6 = range.clone().map(|index| Slot {
            family: Family::V6,
            index: index + 9,
        });
        v4(range).iter().chain(v6).collect()
    }

    /// One record of each kind, in the order of the format.
    fn samples() -> Vec<Record> {
        let at = Tick(1_800_000_000_000);
        vec![
            Record::EniIntent {
                instance: "i-bp1a".parse().unwrap(),
                quota_index: 2,
                primary: 7,
                slots: dual(7..17),
                security_groups: vec!["sg-bp1a".parse().unwrap()],
            },
            Record::EniCreated {
                eni: Seq(300),
                id: "eni-bp1a".parse().unwrap(),
                mac: "00:16:3e:01:02:03".parse().unwrap(),
                present: dual(7..17),
            },
            Record::EniAttached { eni: Seq(300), at },
            Record::AssignIntent {
                eni: Seq(300),
                slots: v4(20..22),
            },
            Record::Assigned {
                op: Seq(304),
                slots: v4(20..22),
                at,
            },
            Record::Aborted {
                op: Seq(304),
                slots: v4(20..21),
                conflict: Some(Conflict {
                    slots: v4(21..22),
                    at,
                    ttl_ms: 3_600_000,
                }),
            },
            Record::Held {
                eni: Seq(300),
                slots: v4(7..17),
            },
            Record::Revoke {
                eni: Seq(300),
                slots: v4(8..9),
            },
            Record::RevokeAcked {
                revoke: Seq(308),
                accepted: v4(8..9),
                refused: v4(9..10),
            },
            Record::NodeGone {
                instance: "i-bp1a".parse().unwrap(),
            },
            Record::UnassignIntent {
                eni: Seq(300),
                slots: v4(8..9),
            },
            Record::Unassigned {
                op: Seq(311),
                slots: v4(8..9),
                at,
                cooldown_ms: 60_000,
            },
            Record::DetachIntent { eni: Seq(300) },
            Record::DeleteIntent { eni: Seq(300) },
            Record::EniGone {
                eni: Seq(300),
                at,
                cooldown_ms: 60_000,
            },
            Record::EniLost { eni: Seq(300) },
            Record::Foreign {
                slots: v4(1..3),
                at,
                ttl_ms: 3_600_000,
            },
            Record::Tick { at },
            Record::WholeEniIntent {
                instance: "i-bp1a".parse().unwrap(),
                quota_index: 2,
                primary: 7,
                slots: dual(7..17),
                security_groups: vec!["sg-bp1a".parse().unwrap()],
            },
            Record::EniDetached { eni: Seq(300) },
        ]
    }

    fn hex(bytes: &[u8]) -> String {
        use std::fmt::Write;
        bytes.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
    }

    // The bytes are in people's stores: a line that changes needs a new format number and a reader of the old one.
    #[test]
    fn records_keep_their_bytes() {
        let lines: Vec<String> = samples()
            .iter()
            .map(|record| format!("{} {}", record.name(), hex(&record.encode().unwrap())))
            .collect();

        assert_eq!(
            lines.join("\n"),
            include_str!("record/golden.txt").trim_end()
        );
    }

    #[test]
    fn records_round_trip() {
        for record in samples() {
            assert_eq!(Record::decode(&record.encode().unwrap()), Ok(record));
        }
    }

    #[test]
    fn typical_record_takes_no_more_than_80_bytes() {
        for record in samples() {
            let len = record.encode().unwrap().len();

            assert!(len <= 80, "{} has {len} bytes", record.name());
        }
    }

    #[test]
    fn record_of_another_format_is_refused_by_its_number() {
        let mut bytes = Record::Tick { at: Tick(1) }.encode().unwrap();
        bytes[0] = 9;

        assert_eq!(Record::decode(&bytes), Err(DecodeError::Format(9)));
        assert_eq!(Record::decode(&[]), Err(DecodeError::Length(0)));
    }

    #[test]
    fn record_under_the_number_of_another_version_is_refused() {
        for record in samples() {
            let mut bytes = record.encode().unwrap();
            bytes[0] = if bytes[0] == FORMAT {
                FORMAT_WHOLE
            } else {
                FORMAT
            };

            assert_eq!(Record::decode(&bytes), Err(DecodeError::Malformed));
        }
    }

    #[test]
    fn record_with_bytes_left_over_is_refused() {
        let mut bytes = Record::Tick { at: Tick(1) }.encode().unwrap();
        bytes.push(0);

        assert_eq!(Record::decode(&bytes), Err(DecodeError::Malformed));
    }

    proptest! {
        #[test]
        fn bytes_that_are_no_record_are_refused_or_mean_what_they_say(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = FORMAT;
            }
            if let Ok(record) = Record::decode(&bytes) {
                prop_assert_eq!(Record::decode(&record.encode().unwrap()).unwrap(), record);
            }
        }
    }
}
