//! The key space under the log: ordered keys, revisions, sessions, compare-and-write transactions.
//!
//! The meaning is that of etcd (Source: etcd API reference, "KV API guarantees" and "Transaction"):
//! every transaction that writes has a revision higher than all before; a key knows the revision that
//! created it and the one that changed it last; keys put under a session go away with it.

use std::fmt;
use std::ops::Bound;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::log::{MAX_REQUEST_BYTES, MAX_TXN_OPS, SessionId};

pub(in crate::log) mod cells;

/// Counted per operation and comparison on top of key and value: tags, lengths, numbers.
///
/// Reason: etcd counts the encoded request; its encoding of one operation stays below this.
const OP_OVERHEAD_BYTES: usize = 64;

/// A condition of a transaction. Revisions of a key that does not exist are 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key was last changed at this revision.
    ModRevision(String, u64),
    /// The key was created at this revision; 0: it does not exist.
    CreateRevision(String, u64),
}

/// One step of a transaction. Ranges include `from` and exclude `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Reads one key.
    Get(String),
    /// Reads keys in order.
    Range {
        /// First key.
        from: String,
        /// Key after the last.
        to: String,
    },
    /// Writes one key.
    Put {
        /// The key.
        key: String,
        /// Its value.
        value: Bytes,
        /// Goes away with this session, if any.
        session: Option<SessionId>,
    },
    /// Deletes one key, if it is there.
    Delete(String),
    /// Deletes keys.
    DeleteRange {
        /// First key.
        from: String,
        /// Key after the last.
        to: String,
    },
}

/// `if all of when then these else those`, in one step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// Conditions; all must hold. None: always.
    pub when: Vec<Compare>,
    /// Done if they hold.
    pub then: Vec<Op>,
    /// Done if they do not.
    pub otherwise: Vec<Op>,
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Bytes,
    /// Revision that created it.
    pub create_revision: u64,
    /// Revision that changed it last.
    pub mod_revision: u64,
}

/// The answer to a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnReply {
    /// Whether the conditions held.
    pub succeeded: bool,
    /// Revision of the store; if something was written, the one that wrote it.
    pub revision: u64,
    /// What each `Get` and `Range` of the branch found, in their order.
    pub reads: Vec<Vec<KeyValue>>,
}

/// Why a call to the store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// Over a limit; nothing was sent.
    #[error("too large: {what} is {is}, at most {most} are possible")]
    TooLarge {
        /// `operations` or `bytes`.
        what: &'static str,
        /// How many there are.
        is: usize,
        /// How many are possible.
        most: usize,
    },
    /// A transaction that the store never takes, such as one that writes a key twice.
    #[error("not a valid transaction: {0}")]
    Invalid(String),
    /// A put names a session that has ended; nothing was written.
    #[error("the session has ended")]
    SessionEnded,
    /// Sent, but the answer was lost: it may have happened, or may still happen.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// Nothing was done.
    #[error("unavailable: {0}")]
    Unavailable(String),
}

/// A store of keys.
#[async_trait]
pub trait Kv: Send + Sync + fmt::Debug {
    /// Runs a transaction. Durable when it answers (I9). Reads see every write answered before.
    ///
    /// One without writes never fails with [`KvError::Unknown`].
    async fn txn(&self, txn: Txn) -> Result<TxnReply, KvError>;

    /// Opens a session. It ends `ttl` after its last renewal at the earliest, where time counts at
    /// all: embedded stores end it when their process ends.
    async fn open_session(&self, ttl: Duration) -> Result<SessionId, KvError>;

    /// Renews a session; [`KvError::SessionEnded`] if it has ended.
    async fn renew_session(&self, session: SessionId) -> Result<(), KvError>;

    /// Ends a session; its keys go away. One that has ended is no error.
    async fn close_session(&self, session: SessionId) -> Result<(), KvError>;

    /// `memory`, `redb` or `etcd`.
    fn kind(&self) -> &'static str;
}

impl Compare {
    /// The key that is compared.
    pub fn key(&self) -> &str {
        match self {
            Self::ModRevision(key, _) | Self::CreateRevision(key, _) => key,
        }
    }
}

impl Op {
    /// A read of all keys that begin with `prefix`.
    pub fn prefix(prefix: &str) -> Self {
        Self::Range {
            from: prefix.to_owned(),
            to: prefix_end(prefix),
        }
    }

    /// Whether it changes anything.
    pub fn writes(&self) -> bool {
        match self {
            Self::Get(_) | Self::Range { .. } => false,
            Self::Put { .. } | Self::Delete(_) | Self::DeleteRange { .. } => true,
        }
    }

    fn size(&self) -> usize {
        OP_OVERHEAD_BYTES.saturating_add(match self {
            Self::Get(key) | Self::Delete(key) => key.len(),
            Self::Range { from, to } | Self::DeleteRange { from, to } => from.len() + to.len(),
            Self::Put { key, value, .. } => key.len().saturating_add(value.len()),
        })
    }
}

impl Txn {
    /// A transaction that only reads.
    pub fn read(ops: Vec<Op>) -> Self {
        Self {
            then: ops,
            ..Self::default()
        }
    }

    /// Whether any branch changes anything.
    pub fn writes(&self) -> bool {
        self.then.iter().chain(&self.otherwise).any(Op::writes)
    }

    /// Size as counted against [`MAX_REQUEST_BYTES`].
    pub fn size(&self) -> usize {
        let compares: usize = self
            .when
            .iter()
            .map(|c| OP_OVERHEAD_BYTES.saturating_add(c.key().len()))
            .sum();
        let ops: usize = self.then.iter().chain(&self.otherwise).map(Op::size).sum();
        OP_OVERHEAD_BYTES + compares + ops
    }

    /// Refuses what any store would refuse, so that all stores refuse the same.
    ///
    /// Every store calls it first. Rules (Source: etcd, `--max-txn-ops`, `--max-request-bytes`,
    /// "duplicate key given in txn request").
    pub fn check(&self) -> Result<(), KvError> {
        let operations = self
            .when
            .len()
            .max(self.then.len())
            .max(self.otherwise.len());
        if operations > MAX_TXN_OPS {
            return Err(KvError::TooLarge {
                what: "operations",
                is: operations,
                most: MAX_TXN_OPS,
            });
        }
        let bytes = self.size();
        if bytes > MAX_REQUEST_BYTES {
            return Err(KvError::TooLarge {
                what: "bytes",
                is: bytes,
                most: MAX_REQUEST_BYTES,
            });
        }
        check_branch(&self.then)?;
        check_branch(&self.otherwise)
    }
}

fn check_branch(ops: &[Op]) -> Result<(), KvError> {
    let mut puts = std::collections::BTreeSet::new();
    for op in ops {
        if let Op::Put { key, .. } = op
            && !puts.insert(key.as_str())
        {
            return Err(KvError::Invalid(format!("{key} is put twice")));
        }
    }
    for op in ops {
        let hit = match op {
            Op::Delete(key) => puts.get(key.as_str()).copied(),
            Op::DeleteRange { from, to } if from < to => {
                let range = (Bound::Included(from.as_str()), Bound::Excluded(to.as_str()));
                puts.range::<str, _>(range).next().copied()
            }
            Op::Get(_) | Op::Range { .. } | Op::Put { .. } | Op::DeleteRange { .. } => None,
        };
        if let Some(key) = hit {
            return Err(KvError::Invalid(format!("{key} is put and deleted")));
        }
    }
    Ok(())
}

/// The first key after all that begin with `prefix`. Keys are ASCII, so `~` + 1 follows all of them.
pub fn prefix_end(prefix: &str) -> String {
    format!("{prefix}\u{7f}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, len: usize) -> Op {
        Op::Put {
            key: key.to_owned(),
            value: Bytes::from(vec![0; len]),
            session: None,
        }
    }

    #[test]
    fn txn_with_129_operations_is_refused() {
        let ops = |n: usize| Txn {
            then: (0..n).map(|i| put(&format!("k{i}"), 1)).collect(),
            ..Txn::default()
        };

        assert_eq!(ops(128).check(), Ok(()));
        assert!(matches!(
            ops(129).check(),
            Err(KvError::TooLarge {
                what: "operations",
                is: 129,
                most: 128
            })
        ));
    }

    #[test]
    fn txn_of_more_than_one_and_a_half_mebibyte_is_refused() {
        let of = |len| Txn {
            then: vec![put("k", len)],
            ..Txn::default()
        };

        assert_eq!(of(MAX_REQUEST_BYTES - 129).check(), Ok(()));
        assert!(of(MAX_REQUEST_BYTES - 128).check().is_err());
    }

    #[test]
    fn txn_that_puts_and_deletes_one_key_is_refused() {
        let txn = |op| Txn {
            then: vec![put("b", 1), op],
            ..Txn::default()
        };

        assert!(txn(put("b", 2)).check().is_err());
        assert!(txn(Op::Delete("b".to_owned())).check().is_err());
        let range = |from: &str, to: &str| Op::DeleteRange {
            from: from.to_owned(),
            to: to.to_owned(),
        };
        assert!(txn(range("a", "c")).check().is_err());
        assert_eq!(txn(range("a", "b")).check(), Ok(()));
    }

    #[test]
    fn prefix_end_lies_after_every_key_of_the_prefix() {
        assert!(prefix_end("a/").as_str() > "a/~~~");
        assert!(prefix_end("a/").as_str() < "a0");
    }
}
