//! What survives a restart of the agent: ENIs, bindings, rests and revocations, in one redb file.
//!
//! Invariant I9: a change is on disk before anybody is answered ([`Store::commit`] syncs). Values are JSON, so
//! that an older agent can read what a newer one wrote, and a person what either did.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use types::cloud::EniId;
use types::op::Generation;
use types::pod::AttachmentKey;
use types::time::Tick;

use crate::pool::{Binding, EniRecord};

const ENIS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("enis");
const BINDINGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("bindings");
const FREED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("freed");
const REVOKED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("revoked");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Layout of the file; a file of a higher one is refused.
const LAYOUT: u32 = 1;

/// The store can not be used, or a change is not known to be on disk.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another agent has the file open, or it can not be opened.
    #[error("open store {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What redb said.
        #[source]
        source: Box<redb::Error>,
    },
    /// A newer agent wrote the file.
    #[error("store {path} has layout {found}, this agent knows up to {LAYOUT}")]
    Layout {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: u32,
    },
    /// A record can not be read. The agent does not start: it must not hand out what it can not account for.
    #[error("record {key:?} of table {table} can not be read: {why}")]
    Record {
        /// Table.
        table: &'static str,
        /// Key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// The file system or redb refused.
    #[error("store")]
    Redb(#[source] Box<redb::Error>),
}

macro_rules! from_redb {
    ($($error:ty),+) => {$(
        impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Redb(Box::new(error.into()))
            }
        }
    )+};
}

from_redb!(
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError
);

/// One durable change.
#[derive(Debug, Clone)]
pub enum Change {
    /// The ENI and its addresses are as given.
    PutEni(Box<EniRecord>),
    /// The ENI is gone.
    DropEni(EniId),
    /// The binding is as given.
    PutBinding(Box<Binding>),
    /// The binding is gone.
    DropBinding(AttachmentKey),
    /// The address rests since then.
    PutFreed(IpAddr, Tick),
    /// The address rests no longer.
    DropFreed(IpAddr),
    /// The address was revoked under this generation.
    PutRevoked(IpAddr, Generation),
}

/// Everything that the store holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// ENIs.
    pub enis: Vec<EniRecord>,
    /// Bindings.
    pub bindings: Vec<Binding>,
    /// Resting addresses.
    pub freed: Vec<(IpAddr, Tick)>,
    /// Revoked addresses.
    pub revoked: Vec<(IpAddr, Generation)>,
}

/// See the module.
#[derive(Debug)]
pub struct Store {
    db: Database,
}

impl Store {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// [`StoreError::Open`] when another process has it, [`StoreError::Layout`] when it is too new.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let fail = |source: redb::Error| StoreError::Open {
            path: path.to_owned(),
            source: Box::new(source),
        };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|e| fail(e.into()))?;
        }
        let db = Database::create(path).map_err(|e| fail(e.into()))?;
        let txn = db.begin_write().map_err(|e| fail(e.into()))?;
        {
            for table in [ENIS, BINDINGS, FREED, REVOKED] {
                txn.open_table(table).map_err(|e| fail(e.into()))?;
            }
            let mut meta = txn.open_table(META).map_err(|e| fail(e.into()))?;
            let found = match meta.get("layout").map_err(|e| fail(e.into()))? {
                Some(value) => decode::<u32>("meta", "layout", value.value())?,
                None => 0,
            };
            if found > LAYOUT {
                return Err(StoreError::Layout {
                    path: path.to_owned(),
                    found,
                });
            }
            let text = LAYOUT.to_string();
            meta.insert("layout", text.as_bytes())
                .map_err(|e| fail(e.into()))?;
        }
        txn.commit().map_err(|e| fail(e.into()))?;
        Ok(Self { db })
    }

    /// Reads everything.
    ///
    /// # Errors
    /// [`StoreError::Record`] naming the record that can not be read.
    pub fn load(&self) -> Result<Contents, StoreError> {
        Ok(Contents {
            enis: self
                .values(ENIS, "enis")?
                .into_iter()
                .map(|(_, v)| v)
                .collect(),
            bindings: self
                .values(BINDINGS, "bindings")?
                .into_iter()
                .map(|(_, v)| v)
                .collect(),
            freed: addressed("freed", self.values(FREED, "freed")?)?,
            revoked: addressed("revoked", self.values(REVOKED, "revoked")?)?,
        })
    }

    fn values<T: DeserializeOwned>(
        &self,
        table: TableDefinition<'_, &'static str, &'static [u8]>,
        name: &'static str,
    ) -> Result<Vec<(String, T)>, StoreError> {
        let txn = self.db.begin_read()?;
        let table = txn.open_table(table)?;
        let mut all = Vec::new();
        for row in table.iter()? {
            let (key, value) = row?;
            let decoded = decode(name, key.value(), value.value())?;
            all.push((key.value().to_owned(), decoded));
        }
        Ok(all)
    }

    /// Writes all changes or none, and syncs.
    ///
    /// # Errors
    /// Any error leaves it open whether the changes are there: the caller must not go on with this store.
    pub fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        let txn = self.db.begin_write()?;
        {
            let mut enis = txn.open_table(ENIS)?;
            let mut bindings = txn.open_table(BINDINGS)?;
            let mut freed = txn.open_table(FREED)?;
            let mut revoked = txn.open_table(REVOKED)?;
            for change in changes {
                match change {
                    Change::PutEni(record) => {
                        enis.insert(record.eni.as_str(), encode(&**record)?.as_slice())?;
                    }
                    Change::DropEni(eni) => {
                        enis.remove(eni.as_str())?;
                    }
                    Change::PutBinding(binding) => {
                        let key = binding.attachment.to_string();
                        bindings.insert(key.as_str(), encode(&**binding)?.as_slice())?;
                    }
                    Change::DropBinding(attachment) => {
                        bindings.remove(attachment.to_string().as_str())?;
                    }
                    Change::PutFreed(ip, at) => {
                        freed.insert(ip.to_string().as_str(), encode(at)?.as_slice())?;
                    }
                    Change::DropFreed(ip) => {
                        freed.remove(ip.to_string().as_str())?;
                    }
                    Change::PutRevoked(ip, generation) => {
                        revoked.insert(ip.to_string().as_str(), encode(generation)?.as_slice())?;
                    }
                }
            }
        }
        txn.commit()?;
        Ok(())
    }
}

fn addressed<T>(
    table: &'static str,
    rows: Vec<(String, T)>,
) -> Result<Vec<(IpAddr, T)>, StoreError> {
    rows.into_iter()
        .map(|(key, value)| match key.parse() {
            Ok(ip) => Ok((ip, value)),
            Err(_) => Err(StoreError::Record {
                table,
                key,
                why: "not an address".to_owned(),
            }),
        })
        .collect()
}

fn decode<T: DeserializeOwned>(
    table: &'static str,
    key: &str,
    value: &[u8],
) -> Result<T, StoreError> {
    serde_json::from_slice(value).map_err(|e| StoreError::Record {
        table,
        key: key.to_owned(),
        why: e.to_string(),
    })
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|e| StoreError::Record {
        table: "(new)",
        key: String::new(),
        why: e.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::op::Seq;

    fn binding(sandbox: &str) -> Binding {
        Binding {
            attachment: AttachmentKey::new(sandbox, "eth0").unwrap(),
            pod: types::pod::PodKey::new("default", "a"),
            pod_uid: "u".into(),
            netns: "/run/netns/a".into(),
            host_link: "cali1".into(),
            mtu: 1500,
            eni: "eni-1".parse().unwrap(),
            ipv4: "10.0.0.5".parse().unwrap(),
            ipv6: Some("2001:db8::5".parse().unwrap()),
            boot_id: "b".into(),
            whole: false,
        }
    }

    // I9: what was committed is there after a restart.
    #[test]
    fn committed_changes_are_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.redb");
        let store = Store::open(&path).unwrap();
        let ip = "10.0.0.9".parse().unwrap();
        store
            .commit(&[
                Change::PutBinding(Box::new(binding("s1"))),
                Change::PutBinding(Box::new(binding("s2"))),
                Change::DropBinding(AttachmentKey::new("s2", "eth0").unwrap()),
                Change::PutFreed(ip, Tick(5)),
                Change::PutRevoked(ip, Seq(6)),
            ])
            .unwrap();
        drop(store);

        let contents = Store::open(&path).unwrap().load().unwrap();

        assert_eq!(contents.bindings, [binding("s1")]);
        assert_eq!(contents.freed, [(ip, Tick(5))]);
        assert_eq!(contents.revoked, [(ip, Seq(6))]);
    }

    #[test]
    fn second_agent_on_the_same_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.redb");
        let _first = Store::open(&path).unwrap();

        let err = Store::open(&path).unwrap_err();

        assert!(err.to_string().contains("agent.redb"), "{err}");
    }
}
