//! A store in one file: the default for one replica on one machine.
//!
//! The file lock is the lease: one process has it, so sessions end with the process, and whatever an
//! earlier process owned is free at the next opening. The revision counter is in the file, so epochs
//! grow over restarts. Every transaction that writes is synced before it answers (I9).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition};

use crate::log::SessionId;
use crate::log::kv::cells::{Cells, apply};
use crate::log::kv::{KeyValue, Kv, KvError, Op, Txn, TxnReply};

/// Key → create revision, mod revision, session (0: none), value.
const CELLS: TableDefinition<'_, &str, (u64, u64, i64, &[u8])> = TableDefinition::new("cells");
/// Counters by name: `format`, `revision`, `session`.
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");

/// Meaning of the tables above; a file with another one is refused.
const FORMAT: u64 = 1;

/// Why a store's file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{0} is in use by another process: the embedded store serves one replica")]
    InUse(PathBuf),
    /// The file has a format that this build does not know.
    #[error("{path} has format {found}, this build knows {FORMAT}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u64,
    },
    /// It cannot be read or written.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the store said.
        why: String,
    },
}

/// Keys in one file.
#[derive(Debug)]
pub struct RedbKv {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    db: Database,
    /// Sessions of this process. Those of earlier ones ended with their process.
    open: Mutex<BTreeSet<SessionId>>,
}

impl RedbKv {
    /// Opens or creates the file, and frees what an earlier process owned.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let file_error = |why: String| OpenError::File {
            path: path.to_owned(),
            why,
        };
        let db = match Database::create(path) {
            Ok(db) => db,
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
                return Err(OpenError::InUse(path.to_owned()));
            }
            Err(err) => return Err(file_error(err.to_string())),
        };
        let found = prepare(&db).map_err(|err| file_error(err.to_string()))?;
        if found != FORMAT {
            return Err(OpenError::Format {
                path: path.to_owned(),
                found,
            });
        }
        Ok(Self {
            shared: Arc::new(Shared {
                db,
                open: Mutex::default(),
            }),
        })
    }

    /// Runs on a thread that may wait for the disk.
    async fn blocking<T, F>(&self, work: F) -> Result<T, KvError>
    where
        T: Send + 'static,
        F: FnOnce(&Shared) -> Result<T, KvError> + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        match tokio::task::spawn_blocking(move || work(&shared)).await {
            Ok(result) => result,
            // The thread may have died after the commit.
            Err(err) => Err(KvError::Unknown(format!("store thread: {err}"))),
        }
    }
}

/// Makes the tables, checks the format, and removes keys of sessions of earlier processes.
fn prepare(db: &Database) -> Result<u64, redb::Error> {
    let write = db.begin_write()?;
    let format;
    {
        let mut counters = write.open_table(COUNTERS)?;
        let mut cells = write.open_table(CELLS)?;
        let stored = counters.get("format")?.map(|v| v.value());
        format = stored.unwrap_or(FORMAT);
        if format != FORMAT {
            return Ok(format);
        }
        counters.insert("format", FORMAT)?;
        cells.retain(|_, (_, _, session, _)| session == 0)?;
        let revision = counters.get("revision")?.map_or(0, |v| v.value());
        counters.insert("revision", revision.saturating_add(1))?;
    }
    write.commit()?;
    Ok(format)
}

struct Opened<'txn>(Table<'txn, &'static str, (u64, u64, i64, &'static [u8])>);

fn cell(key: &str, value: (u64, u64, i64, &[u8])) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value.3),
        create_revision: value.0,
        mod_revision: value.1,
    }
}

impl Cells for Opened<'_> {
    fn get(&self, key: &str) -> Result<Option<KeyValue>, KvError> {
        let found = self.0.get(key).map_err(nothing_done)?;
        Ok(found.map(|found| cell(key, found.value())))
    }

    fn range(&self, from: &str, to: &str) -> Result<Vec<KeyValue>, KvError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let mut cells = Vec::new();
        for found in self.0.range(from..to).map_err(nothing_done)? {
            let (key, value) = found.map_err(nothing_done)?;
            cells.push(cell(key.value(), value.value()));
        }
        Ok(cells)
    }

    fn put(&mut self, cell: KeyValue, session: Option<SessionId>) -> Result<(), KvError> {
        let value = (
            cell.create_revision,
            cell.mod_revision,
            session.map_or(0, |s| s.0),
            &*cell.value,
        );
        self.0
            .insert(cell.key.as_str(), value)
            .map_err(nothing_done)?;
        Ok(())
    }

    fn delete(&mut self, key: &str) -> Result<bool, KvError> {
        Ok(self.0.remove(key).map_err(nothing_done)?.is_some())
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, BTreeSet<SessionId>> {
        // A set of numbers is whole whatever a panicking holder did.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn txn(&self, txn: Txn) -> Result<TxnReply, KvError> {
        let mut write = self.db.begin_write().map_err(nothing_done)?;
        write
            .set_durability(Durability::Immediate)
            .map_err(nothing_done)?;
        let reply = {
            let mut counters = write.open_table(COUNTERS).map_err(nothing_done)?;
            let mut cells = Opened(write.open_table(CELLS).map_err(nothing_done)?);
            let revision = revision(&counters)?;
            let open = self.open().clone();
            let reply = apply(&mut cells, txn, revision, |s| open.contains(&s))?;
            if reply.revision == revision {
                // Nothing changed: no need to wait for the disk. Dropping the transaction undoes it.
                return Ok(reply);
            }
            counters
                .insert("revision", reply.revision)
                .map_err(nothing_done)?;
            reply
        };
        // From here on it may be on the disk although we get an error.
        write
            .commit()
            .map_err(|err| KvError::Unknown(err.to_string()))?;
        Ok(reply)
    }

    /// Reads do not wait for a writer.
    fn read(&self, txn: &Txn) -> Result<TxnReply, KvError> {
        let read = self.db.begin_read().map_err(nothing_done)?;
        let counters = read.open_table(COUNTERS).map_err(nothing_done)?;
        let cells = read.open_table(CELLS).map_err(nothing_done)?;
        let mut reads = Vec::new();
        for op in &txn.then {
            let (from, to) = match op {
                Op::Get(key) => (key.clone(), format!("{key}\0")),
                Op::Range { from, to } => (from.clone(), to.clone()),
                Op::Put { .. } | Op::Delete(_) | Op::DeleteRange { .. } => continue,
            };
            let mut found = Vec::new();
            if from < to {
                for item in cells
                    .range(from.as_str()..to.as_str())
                    .map_err(nothing_done)?
                {
                    let (key, value) = item.map_err(nothing_done)?;
                    found.push(cell(key.value(), value.value()));
                }
            }
            reads.push(found);
        }
        Ok(TxnReply {
            succeeded: true,
            revision: revision(&counters)?,
            reads,
        })
    }

    fn new_session(&self) -> Result<SessionId, KvError> {
        let write = self.db.begin_write().map_err(nothing_done)?;
        let next = {
            let mut counters = write.open_table(COUNTERS).map_err(nothing_done)?;
            let last = counters
                .get("session")
                .map_err(nothing_done)?
                .map_or(0, |v| v.value());
            let next = last.saturating_add(1);
            counters.insert("session", next).map_err(nothing_done)?;
            next
        };
        write.commit().map_err(nothing_done)?;
        let session = i64::try_from(next)
            .map(SessionId)
            .map_err(|_| KvError::Unavailable("session numbers are used up".to_owned()))?;
        self.open().insert(session);
        Ok(session)
    }

    fn end_session(&self, session: SessionId) -> Result<(), KvError> {
        if !self.open().remove(&session) {
            return Ok(());
        }
        let write = self.db.begin_write().map_err(nothing_done)?;
        {
            let mut cells = write.open_table(CELLS).map_err(nothing_done)?;
            cells
                .retain(|_, (_, _, of, _)| of != session.0)
                .map_err(nothing_done)?;
            let mut counters = write.open_table(COUNTERS).map_err(nothing_done)?;
            let next = revision(&counters)?.saturating_add(1);
            counters.insert("revision", next).map_err(nothing_done)?;
        }
        write
            .commit()
            .map_err(|err| KvError::Unknown(err.to_string()))
    }
}

fn revision(counters: &impl ReadableTable<&'static str, u64>) -> Result<u64, KvError> {
    let found = counters.get("revision").map_err(nothing_done)?;
    Ok(found.map_or(0, |v| v.value()))
}

/// An error before the commit: the transaction is undone when it is dropped.
fn nothing_done(err: impl std::fmt::Display) -> KvError {
    KvError::Unavailable(err.to_string())
}

#[async_trait]
impl Kv for RedbKv {
    async fn txn(&self, txn: Txn) -> Result<TxnReply, KvError> {
        txn.check()?;
        let only_reads = !txn.writes() && txn.when.is_empty();
        self.blocking(move |shared| {
            if only_reads {
                shared.read(&txn)
            } else {
                shared.txn(txn)
            }
        })
        .await
    }

    async fn open_session(&self, _ttl: Duration) -> Result<SessionId, KvError> {
        self.blocking(Shared::new_session).await
    }

    async fn renew_session(&self, session: SessionId) -> Result<(), KvError> {
        if self.shared.open().contains(&session) {
            Ok(())
        } else {
            Err(KvError::SessionEnded)
        }
    }

    async fn close_session(&self, session: SessionId) -> Result<(), KvError> {
        self.blocking(move |shared| shared.end_session(session))
            .await
    }

    fn kind(&self) -> &'static str {
        "redb"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, session: Option<SessionId>) -> Txn {
        Txn {
            then: vec![Op::Put {
                key: key.to_owned(),
                value: Bytes::from_static(b"v"),
                session,
            }],
            ..Txn::default()
        }
    }

    // R: two replicas on one embedded store.
    #[tokio::test]
    async fn second_opening_of_the_same_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipam.redb");
        let _first = RedbKv::open(&path).unwrap();

        let err = RedbKv::open(&path).unwrap_err();

        assert!(matches!(err, OpenError::InUse(p) if p == path));
    }

    #[tokio::test]
    async fn reopening_frees_session_keys_and_keeps_the_rest_and_the_revision() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipam.redb");
        let first = RedbKv::open(&path).unwrap();
        let session = first.open_session(Duration::from_secs(8)).await.unwrap();
        first.txn(put("stays", None)).await.unwrap();
        let before = first
            .txn(put("goes", Some(session)))
            .await
            .unwrap()
            .revision;
        drop(first);

        let second = RedbKv::open(&path).unwrap();
        let reply = second.txn(Txn::read(vec![Op::prefix("")])).await.unwrap();

        let keys: Vec<_> = reply.reads[0].iter().map(|kv| kv.key.as_str()).collect();
        assert_eq!(keys, ["stays"]);
        assert!(reply.revision > before);
        assert_eq!(
            second.renew_session(session).await,
            Err(KvError::SessionEnded)
        );
        assert_ne!(
            second.open_session(Duration::from_secs(8)).await.unwrap(),
            session
        );
    }

    #[test]
    fn file_that_is_no_store_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipam.redb");
        std::fs::write(&path, vec![7; 4096]).unwrap();

        let err = RedbKv::open(&path).unwrap_err();

        assert!(err.to_string().contains("ipam.redb"), "{err}");
    }
}
