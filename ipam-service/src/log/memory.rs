//! A store in memory: for tests, and for several replicas in one process.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::log::SessionId;
use crate::log::kv::cells::{Cells, apply};
use crate::log::kv::{KeyValue, Kv, KvError, Txn, TxnReply};

/// Keys in memory. Nothing survives the process.
///
/// Sessions have no clock here: they end by [`Kv::close_session`], which a test calls for a replica
/// that it wants to be dead.
#[derive(Debug, Default)]
pub struct MemoryKv {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    table: Table,
    open: BTreeSet<SessionId>,
    sessions: i64,
}

#[derive(Debug, Default)]
struct Table(BTreeMap<String, (KeyValue, Option<SessionId>)>);

impl Cells for Table {
    fn get(&self, key: &str) -> Result<Option<KeyValue>, KvError> {
        Ok(self.0.get(key).map(|(cell, _)| cell.clone()))
    }

    fn range(&self, from: &str, to: &str) -> Result<Vec<KeyValue>, KvError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let range = self
            .0
            .range::<str, _>((Bound::Included(from), Bound::Excluded(to)));
        Ok(range.map(|(_, (cell, _))| cell.clone()).collect())
    }

    fn put(&mut self, cell: KeyValue, session: Option<SessionId>) -> Result<(), KvError> {
        self.0.insert(cell.key.clone(), (cell, session));
        Ok(())
    }

    fn delete(&mut self, key: &str) -> Result<bool, KvError> {
        Ok(self.0.remove(key).is_some())
    }
}

impl MemoryKv {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing below panics half-way through a change, so the state is whole either way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Kv for MemoryKv {
    async fn txn(&self, txn: Txn) -> Result<TxnReply, KvError> {
        txn.check()?;
        let mut state = self.state();
        let state = &mut *state;
        let open = &state.open;
        let reply = apply(&mut state.table, txn, state.revision, |s| open.contains(&s))?;
        state.revision = reply.revision;
        Ok(reply)
    }

    async fn open_session(&self, _ttl: Duration) -> Result<SessionId, KvError> {
        let mut state = self.state();
        state.sessions = state.sessions.saturating_add(1);
        let session = SessionId(state.sessions);
        state.open.insert(session);
        Ok(session)
    }

    async fn renew_session(&self, session: SessionId) -> Result<(), KvError> {
        if self.state().open.contains(&session) {
            Ok(())
        } else {
            Err(KvError::SessionEnded)
        }
    }

    async fn close_session(&self, session: SessionId) -> Result<(), KvError> {
        let mut state = self.state();
        if state.open.remove(&session) {
            state.table.0.retain(|_, (_, of)| *of != Some(session));
            state.revision = state.revision.saturating_add(1);
        }
        Ok(())
    }

    fn kind(&self) -> &'static str {
        "memory"
    }
}
