//! The gate: a pod starts when its policy is in the kernel, and its addresses are free when the kernel has nothing
//! of it.
//!
//! The list of attachments is written down beside the kernel's work, and both are awaited. When the process dies in
//! between, the caller was not answered and asks again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh::tasks::Tasks;
use tokio::sync::watch;
use tokio::time::Instant;
use types::pod::AttachmentKey;

use crate::attachments::{Attached, Attachments, AttachmentsError};
use crate::enforcer::{Handle, Unready};
use crate::metrics::Metrics;
use crate::revoker::{self, RevokeError};

/// Whether policy is in force at this node.
#[derive(Debug, Clone)]
pub enum State {
    /// Not yet, and why.
    Starting(String),
    /// Off by configuration: pods start without policy.
    Off(String),
    /// It should be on and can not be: pods do not start.
    Refused(String),
    /// On.
    On(Handle),
}

/// How long calls wait.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// When the caller names no deadline.
    pub longest: Duration,
    /// For a pod's object.
    pub unknown: Duration,
}

/// Why the gate does not answer as asked.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// Policy is not in force here, and is not off either.
    #[error("{0}")]
    NotReady(String),
    /// The pod's policy is not in force.
    #[error(transparent)]
    Unready(#[from] Unready),
    /// The list could not be written.
    #[error(transparent)]
    List(#[from] AttachmentsError),
    /// Conntrack may still hold flows of the attachment.
    #[error(transparent)]
    Revoke(#[from] RevokeError),
    /// The thread that writes the list is lost.
    #[error("the list of attachments is lost")]
    Lost,
}

/// The gate. Clones share it.
#[derive(Clone)]
pub struct Gate {
    list: Arc<Mutex<Attachments>>,
    /// Held while the list changes and the enforcer is told: both see the same order.
    turn: Arc<tokio::sync::Mutex<()>>,
    state: Arc<watch::Sender<State>>,
    revoker: revoker::Handle,
    waits: Waits,
    metrics: Metrics,
    tasks: Tasks,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl Gate {
    /// A gate over this list, that waits until policy is in force.
    pub fn new(
        list: Attachments,
        revoker: revoker::Handle,
        waits: Waits,
        metrics: Metrics,
        tasks: Tasks,
    ) -> Self {
        let starting = State::Starting("policy is not in force yet".to_owned());
        Self {
            list: Arc::new(Mutex::new(list)),
            turn: Arc::default(),
            state: Arc::new(watch::Sender::new(starting)),
            revoker,
            waits,
            metrics,
            tasks,
        }
    }

    /// Attachments known now.
    pub fn known(&self) -> Vec<Attached> {
        self.lock(|list| list.iter().cloned().collect())
    }

    /// Says what is in force. For all states but [`State::On`].
    pub fn set_state(&self, state: State) {
        self.state.send_replace(state);
    }

    /// Makes the state [`State::On`], with what `start` makes of the attachments that are known. None comes or goes
    /// meanwhile.
    ///
    /// # Errors
    /// What `start` says.
    pub async fn enforce<E>(
        &self,
        start: impl FnOnce(Vec<Attached>) -> Result<Handle, E>,
    ) -> Result<Handle, E> {
        let _turn = self.turn.lock().await;
        let handle = start(self.known())?;
        self.set_state(State::On(handle.clone()));
        Ok(handle)
    }

    /// Whether policy is in force.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Waits until the pod's policy is in force, and says after which transaction. 0 when policy is off.
    ///
    /// # Errors
    /// [`GateError`], at the latest at `deadline`, or after the configured wait without one.
    pub async fn ready(&self, pod: Attached, deadline: Option<Instant>) -> Result<u64, GateError> {
        let started = Instant::now();
        let longest = started + self.waits.longest;
        let until = deadline.map_or(longest, |d| d.min(longest));
        let handle = match self.until_begun(until).await {
            State::On(handle) => handle,
            State::Off(_) => {
                // Should policy be switched on, the links are known.
                let _turn = self.turn.lock().await;
                self.change(move |list| list.insert(pod)).await?;
                return Ok(0);
            }
            State::Starting(why) | State::Refused(why) => return Err(GateError::NotReady(why)),
        };
        let asked = {
            let _turn = self.turn.lock().await;
            let attached = pod.clone();
            let over = self.change(move |list| list.insert(attached)).await?;
            let over = over.into_iter().map(|a| a.attachment).collect();
            handle
                .ready(pod, over, until, started + self.waits.unknown)
                .await?
        };
        let answer = asked.answer().await;
        self.metrics.gated(started.elapsed());
        Ok(answer?)
    }

    /// Ends an attachment: its elements and its conntrack entries are gone when this returns.
    ///
    /// # Errors
    /// [`GateError`]; the attachment is then known still, and the call can be repeated.
    pub async fn release(&self, attachment: &AttachmentKey) -> Result<(), GateError> {
        let Some(attached) = self.lock(|list| list.get(attachment).cloned()) else {
            // Unknown, released before, or followed by a successor under the same link.
            return Ok(());
        };
        match self.state() {
            State::On(handle) => {
                let asked = {
                    let _turn = self.turn.lock().await;
                    handle.release(vec![attachment.clone()]).await?
                };
                asked.answer().await?;
                self.revoker.forget(self.left_by(&[attached])).await?;
            }
            State::Off(_) => {}
            State::Starting(why) | State::Refused(why) => return Err(GateError::NotReady(why)),
        }
        let _turn = self.turn.lock().await;
        let attachment = attachment.clone();
        self.change(move |list| list.remove(&attachment)).await?;
        Ok(())
    }

    /// Makes the list exactly this one. Those who are not on it any more are gone from the kernel when this returns.
    ///
    /// # Errors
    /// [`GateError`].
    pub async fn restore(&self, pods: Vec<Attached>) -> Result<(), GateError> {
        let (asked, left) = {
            let _turn = self.turn.lock().await;
            let there = pods.clone();
            let over = self.change(move |list| list.restore(there)).await?;
            // Whoever starts the enforcer later reads the list.
            let State::On(handle) = self.state() else {
                return Ok(());
            };
            let left = self.left_by(&over);
            let over = over.into_iter().map(|a| a.attachment).collect();
            (handle.restore(pods, over).await?, left)
        };
        asked.answer().await?;
        self.revoker.forget(left).await?;
        Ok(())
    }

    /// Addresses that nobody on the list has once these are gone.
    fn left_by(&self, gone: &[Attached]) -> BTreeSet<IpAddr> {
        let mut left: BTreeSet<IpAddr> = gone.iter().flat_map(|a| a.ips.iter().copied()).collect();
        self.lock(|list| {
            for other in list.iter() {
                if !gone.iter().any(|g| g.attachment == other.attachment) {
                    left.retain(|ip| !other.ips.contains(ip));
                }
            }
        });
        left
    }

    /// The state, once it is no longer starting or the time is over.
    async fn until_begun(&self, until: Instant) -> State {
        let mut state = self.state.subscribe();
        let begun = state.wait_for(|state| !matches!(state, State::Starting(_)));
        match tokio::time::timeout_at(until, begun).await {
            Ok(Ok(state)) => state.clone(),
            Ok(Err(_)) | Err(_) => self.state(),
        }
    }

    /// Changes the list on a thread that may wait for the disk.
    async fn change<T, F>(&self, change: F) -> Result<T, GateError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Attachments) -> Result<T, AttachmentsError> + Send + 'static,
    {
        let list = Arc::clone(&self.list);
        let work = move || change(&mut list.lock().unwrap_or_else(PoisonError::into_inner));
        let changed = self.tasks.spawn_blocking(work).await;
        Ok(changed.map_err(|_| GateError::Lost)??)
    }

    fn lock<T>(&self, read: impl FnOnce(&Attachments) -> T) -> T {
        // A change that panicked has left the list as it was.
        read(&self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
