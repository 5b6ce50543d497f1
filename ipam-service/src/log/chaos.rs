//! A store that loses answers and more, on request: for tests of everything that stands on [`Kv`].

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::log::SessionId;
use crate::log::kv::{Kv, KvError, Txn, TxnReply};

/// What happens to one transaction that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is done; the caller does not learn it.
    LoseAnswer,
    /// It is not done, and the caller does not learn that either.
    LoseRequest,
    /// The caller gets no answer; it is done by [`Chaos::deliver_late`] (a request that was stuck in
    /// the network).
    Late,
    /// It is done twice; the caller gets the answer to the second.
    Twice,
    /// It is not done, and the caller is told so.
    Refuse,
}

/// Passes transactions on to another store, with faults.
pub struct Chaos {
    kv: Arc<dyn Kv>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Fate of the next writes, in order. None: nothing happens.
    next: VecDeque<Option<Fault>>,
    late: Vec<Txn>,
}

impl fmt::Debug for Chaos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chaos")
            .field("kv", &self.kv)
            .finish_non_exhaustive()
    }
}

impl Chaos {
    /// Around `kv`, without a fault yet.
    pub fn new(kv: Arc<dyn Kv>) -> Self {
        Self {
            kv,
            state: Mutex::default(),
        }
    }

    /// The next write that has no fate yet gets this one.
    pub fn next_write(&self, fault: Fault) {
        self.state().next.push_back(Some(fault));
    }

    /// The next write that has no fate yet passes unharmed.
    pub fn pass_write(&self) {
        self.state().next.push_back(None);
    }

    /// Does now what was held back by [`Fault::Late`]. Nobody learns the answers but the caller.
    pub async fn deliver_late(&self) -> Vec<Result<TxnReply, KvError>> {
        let late = std::mem::take(&mut self.state().late);
        let mut answers = Vec::new();
        for txn in late {
            answers.push(self.kv.txn(txn).await);
        }
        answers
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A queue of faults is whole whatever a panicking holder did.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lost() -> KvError {
    KvError::Unknown("lost on request".to_owned())
}

#[async_trait]
impl Kv for Chaos {
    async fn txn(&self, txn: Txn) -> Result<TxnReply, KvError> {
        txn.check()?;
        let fault = if txn.writes() {
            self.state().next.pop_front().flatten()
        } else {
            None
        };
        match fault {
            None => self.kv.txn(txn).await,
            Some(Fault::LoseAnswer) => self.kv.txn(txn).await.and_then(|_| Err(lost())),
            Some(Fault::LoseRequest) => Err(lost()),
            Some(Fault::Late) => {
                self.state().late.push(txn);
                Err(lost())
            }
            Some(Fault::Twice) => match self.kv.txn(txn.clone()).await {
                Ok(_) => self.kv.txn(txn).await,
                Err(err) => Err(err),
            },
            Some(Fault::Refuse) => Err(KvError::Unavailable("refused on request".to_owned())),
        }
    }

    async fn open_session(&self, ttl: Duration) -> Result<SessionId, KvError> {
        self.kv.open_session(ttl).await
    }

    async fn renew_session(&self, session: SessionId) -> Result<(), KvError> {
        self.kv.renew_session(session).await
    }

    async fn close_session(&self, session: SessionId) -> Result<(), KvError> {
        self.kv.close_session(session).await
    }

    fn kind(&self) -> &'static str {
        self.kv.kind()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::log::keys::Keys;
    use crate::log::memory::MemoryKv;
    use crate::log::shards::KvLog;
    use crate::log::{AppendError, Batch, Fence, Replica, ShardLog};

    async fn claimed() -> (Arc<Chaos>, KvLog, Fence) {
        let chaos = Arc::new(Chaos::new(Arc::new(MemoryKv::new())));
        let log = KvLog::new(Arc::<Chaos>::clone(&chaos), Keys::new("/test/").unwrap());
        let me = Replica {
            id: "ipam-0".parse().unwrap(),
            address: "ipam-0:7301".to_owned(),
            session: chaos.open_session(Duration::from_secs(8)).await.unwrap(),
        };
        let claim = log.claim(&"vsw-a.0".parse().unwrap(), &me).await.unwrap();
        (chaos, log, claim.fence)
    }

    fn batch() -> Batch {
        Batch::new(vec![Bytes::from_static(b"a")])
    }

    // I4: a request that the network delivers twice.
    #[tokio::test]
    async fn append_that_is_delivered_twice_is_one() {
        let (chaos, log, fence) = claimed().await;
        chaos.next_write(Fault::Twice);

        let head = log.append(&fence, &batch()).await.unwrap();

        assert_eq!(head.seq.0, 1);
        assert_eq!(log.read(&fence.shard).await.unwrap().tail.len(), 1);
    }

    #[tokio::test]
    async fn refused_write_may_be_tried_again_with_the_same_fence() {
        let (chaos, log, fence) = claimed().await;
        chaos.next_write(Fault::Refuse);
        let batch = batch();

        let refused = log.append(&fence, &batch).await;
        let again = log.append(&fence, &batch).await;

        assert!(
            matches!(refused, Err(AppendError::Unavailable(_))),
            "{refused:?}"
        );
        assert_eq!(again.unwrap().seq.0, 1);
    }

    #[tokio::test]
    async fn fault_waits_for_the_write_it_is_meant_for() {
        let (chaos, log, mut fence) = claimed().await;
        chaos.pass_write();
        chaos.next_write(Fault::LoseAnswer);

        fence.head = log.append(&fence, &batch()).await.unwrap();
        let lost = log.append(&fence, &batch()).await;

        assert!(matches!(lost, Err(AppendError::Unknown(_))), "{lost:?}");
    }
}
