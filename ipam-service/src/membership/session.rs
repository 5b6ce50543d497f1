//! The session of this replica: opened, renewed, and believed only for a while.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::log::kv::{Kv, KvError};
use crate::log::{Replica, ReplicaId, SessionId};

/// The present session.
#[derive(Debug)]
pub struct Session {
    id: ReplicaId,
    address: String,
    stop_after: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    session: SessionId,
    /// When the last renewal that was answered had been sent.
    ///
    /// Reason: the store counts from some moment after it; counting from the answer would believe
    /// longer than the store does.
    sent: Instant,
}

impl Session {
    /// Opens one.
    pub async fn open(
        kv: &dyn Kv,
        id: ReplicaId,
        address: String,
        ttl: Duration,
        stop_after: Duration,
    ) -> Result<Self, KvError> {
        let sent = Instant::now();
        let session = kv.open_session(ttl).await?;
        Ok(Self {
            id,
            address,
            stop_after,
            state: Mutex::new(State { session, sent }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Two plain values: whole whatever a panicking holder did.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This replica with its present session.
    pub fn me(&self) -> Replica {
        Replica {
            id: self.id.clone(),
            address: self.address.clone(),
            session: self.state().session,
        }
    }

    /// Whether, at `now`, the store was heard of lately.
    pub fn is_live(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.state().sent) < self.stop_after
    }

    /// Renews it. After [`KvError::SessionEnded`] everything owned is lost; see [`Session::reopen`].
    pub async fn renew(&self, kv: &dyn Kv) -> Result<(), KvError> {
        let session = self.state().session;
        let sent = Instant::now();
        kv.renew_session(session).await?;
        self.renewed(session, sent);
        Ok(())
    }

    /// Opens a new one in place of one that ended.
    pub async fn reopen(&self, kv: &dyn Kv, ttl: Duration) -> Result<(), KvError> {
        let sent = Instant::now();
        let session = kv.open_session(ttl).await?;
        *self.state() = State { session, sent };
        Ok(())
    }

    fn renewed(&self, session: SessionId, sent: Instant) {
        let mut state = self.state();
        if state.session == session {
            state.sent = state.sent.max(sent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::memory::MemoryKv;

    async fn open(kv: &MemoryKv) -> Session {
        let times = (Duration::from_secs(8), Duration::from_secs(6));
        Session::open(kv, "a".parse().unwrap(), "a:1".to_owned(), times.0, times.1)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn session_that_is_not_renewed_is_not_believed_after_six_seconds() {
        let before = Instant::now();
        let session = open(&MemoryKv::new()).await;
        let after = Instant::now();

        assert!(session.is_live(before + Duration::from_millis(5_999)));
        assert!(!session.is_live(after + Duration::from_secs(6)));
    }

    #[tokio::test]
    async fn renewed_session_is_believed_from_the_sending_on() {
        let kv = MemoryKv::new();
        let session = open(&kv).await;
        let before = session.state().sent;

        session.renew(&kv).await.unwrap();

        let sent = session.state().sent;
        assert!(sent > before);
        assert!(session.is_live(before + Duration::from_secs(6)));
    }

    #[tokio::test]
    async fn ended_session_is_replaced_by_another() {
        let kv = MemoryKv::new();
        let session = open(&kv).await;
        let before = session.me().session;
        kv.close_session(before).await.unwrap();

        assert_eq!(session.renew(&kv).await, Err(KvError::SessionEnded));
        session.reopen(&kv, Duration::from_secs(8)).await.unwrap();

        assert_ne!(session.me().session, before);
        assert_eq!(session.renew(&kv).await, Ok(()));
    }
}
