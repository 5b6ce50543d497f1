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
    /// It is done after others had a turn.
    Yield,
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
            Some(Fault::Yield) => {
                tokio::task::yield_now().await;
                self.kv.txn(txn).await
            }
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
