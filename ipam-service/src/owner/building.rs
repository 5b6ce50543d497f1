//! A batch in the making: proposals decided one after the other on a copy of the shard.

use bytes::Bytes;
use ipam_core::record::Record;
use ipam_core::shard::{PlaceChange, Shard};
use tokio::sync::oneshot;
use tracing::Span;
use types::op::Seq;

use super::{Committed, Decide, ProposeError};
use crate::log::{IndexChange, IndexKey};

/// Where an answer goes.
pub(super) type Reply = oneshot::Sender<Result<Committed, ProposeError>>;

/// What somebody asks for.
pub(super) struct Proposal {
    pub(super) decide: Decide,
    pub(super) reply: Reply,
    pub(super) span: Span,
}

/// A batch in the making.
pub(super) struct Building {
    pub(super) scratch: Shard,
    pub(super) first: Seq,
    pub(super) records: Vec<Record>,
    pub(super) encoded: Vec<Bytes>,
    pub(super) bytes: usize,
    pub(super) index: IndexChange,
    pub(super) waiting: Vec<Waiting>,
}

/// Who waits for the batch, and which of its records are theirs.
pub(super) struct Waiting {
    pub(super) reply: Reply,
    pub(super) span: Span,
    pub(super) from: usize,
    pub(super) to: usize,
}

impl Building {
    pub(super) fn on(scratch: Shard) -> Self {
        Self {
            first: scratch.next_seq(),
            scratch,
            records: Vec::new(),
            encoded: Vec::new(),
            bytes: 0,
            index: IndexChange::default(),
            waiting: Vec::new(),
        }
    }

    pub(super) fn after(batch: &Self) -> Self {
        Self::on(batch.scratch.clone())
    }

    pub(super) fn propose(&mut self, records: &[Record], reply: Reply, span: Span) {
        let from = self.records.len();
        match self.add(records) {
            Ok(()) => {
                let to = self.records.len();
                self.waiting.push(Waiting {
                    reply,
                    span,
                    from,
                    to,
                });
            }
            // Whoever asked may have gone away.
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Adds all records or none.
    pub(super) fn add(&mut self, records: &[Record]) -> Result<(), ProposeError> {
        let before = if records.len() > 1 {
            Some(self.scratch.clone())
        } else {
            None
        };
        let (count, bytes, index) = (self.records.len(), self.bytes, self.index.clone());
        for record in records {
            if let Err(error) = self.add_one(record) {
                if let Some(before) = before {
                    self.scratch = before;
                }
                self.records.truncate(count);
                self.encoded.truncate(count);
                self.bytes = bytes;
                self.index = index;
                return Err(error);
            }
        }
        Ok(())
    }

    fn add_one(&mut self, record: &Record) -> Result<(), ProposeError> {
        let encoded = record
            .encode()
            .map_err(|e| ProposeError::Invalid(e.to_string()))?;
        let seq = self.scratch.next_seq();
        let place = self.scratch.place_change(record);
        self.scratch
            .apply(seq, record)
            .map_err(ProposeError::Stale)?;
        match place {
            Some(PlaceChange::Take(place)) => {
                let key = IndexKey::eni(&place.instance, place.index);
                self.index.create.push((key, seq));
            }
            Some(PlaceChange::Free(place)) => {
                self.index
                    .delete
                    .push(IndexKey::eni(&place.instance, place.index));
            }
            None => {}
        }
        self.bytes = self.bytes.saturating_add(encoded.len());
        self.encoded.push(Bytes::from(encoded));
        self.records.push(record.clone());
        Ok(())
    }

    pub(super) fn answer_all(self, answer: impl Fn(Seq) -> Result<Committed, ProposeError>) {
        for waiting in self.waiting {
            // Whoever asked may have gone away.
            drop(waiting.reply.send(answer(self.first)));
        }
    }

    pub(super) fn fail(self, error: &ProposeError) {
        self.answer_all(|_| Err(error.clone()));
    }
}
