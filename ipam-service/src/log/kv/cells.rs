//! Transactions on a table of our own: what the embedded stores share.

use crate::log::SessionId;
use crate::log::kv::{Compare, KeyValue, KvError, Op, Txn, TxnReply};

/// A table that holds keys; its changes become visible and durable together, later.
pub(in crate::log) trait Cells {
    /// One key.
    fn get(&self, key: &str) -> Result<Option<KeyValue>, KvError>;
    /// Keys in order, from `from` until before `to`.
    fn range(&self, from: &str, to: &str) -> Result<Vec<KeyValue>, KvError>;
    /// Writes a key.
    fn put(&mut self, cell: KeyValue, session: Option<SessionId>) -> Result<(), KvError>;
    /// Deletes a key; false if it was not there.
    fn delete(&mut self, key: &str) -> Result<bool, KvError>;
}

/// Runs a checked transaction on a store that stands at `revision`.
///
/// If the answer's revision is higher than that, something was changed.
pub(in crate::log) fn apply<C: Cells>(
    cells: &mut C,
    txn: Txn,
    revision: u64,
    is_open: impl Fn(SessionId) -> bool,
) -> Result<TxnReply, KvError> {
    let mut succeeded = true;
    for compare in &txn.when {
        succeeded = succeeded && holds(cells, compare)?;
    }
    let branch = if succeeded { txn.then } else { txn.otherwise };
    for op in &branch {
        if let Op::Put {
            session: Some(session),
            ..
        } = op
            && !is_open(*session)
        {
            return Err(KvError::SessionEnded);
        }
    }
    let next = revision.saturating_add(1);
    let mut changed = false;
    let mut reads = Vec::new();
    for op in branch {
        match op {
            Op::Get(key) => reads.push(cells.get(&key)?.into_iter().collect()),
            Op::Range { from, to } => reads.push(cells.range(&from, &to)?),
            Op::Put {
                key,
                value,
                session,
            } => {
                let create_revision = cells.get(&key)?.map_or(next, |old| old.create_revision);
                let cell = KeyValue {
                    key,
                    value,
                    create_revision,
                    mod_revision: next,
                };
                cells.put(cell, session)?;
                changed = true;
            }
            Op::Delete(key) => changed |= cells.delete(&key)?,
            Op::DeleteRange { from, to } => {
                for cell in cells.range(&from, &to)? {
                    changed |= cells.delete(&cell.key)?;
                }
            }
        }
    }
    Ok(TxnReply {
        succeeded,
        revision: if changed { next } else { revision },
        reads,
    })
}

fn holds<C: Cells>(cells: &C, compare: &Compare) -> Result<bool, KvError> {
    let cell = cells.get(compare.key())?;
    Ok(match compare {
        Compare::ModRevision(_, wanted) => cell.map_or(0, |c| c.mod_revision) == *wanted,
        Compare::CreateRevision(_, wanted) => cell.map_or(0, |c| c.create_revision) == *wanted,
    })
}
