//! The one writer of the node's addresses: memory and disk change here and nowhere else.
//!
//! Requests queue; one commit carries all that queued while the last one ran, then everybody is answered. Readers
//! watch a [`View`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use types::address::Stack;
use types::cloud::EniId;
use types::op::{Generation, ShardId};
use types::pod::AttachmentKey;
use types::time::Tick;

use crate::pool::{BindRequest, Binding, Empty, EniRecord, Holding, Pool};
use crate::store::{Change, Contents, Store, StoreError};

/// Requests that may wait; more are refused.
const QUEUE: usize = 1024;
/// Requests that one commit carries at most.
const BATCH: usize = 256;

/// The ledger did not do as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The ledger has stopped: its store failed, or the agent is going down. Nothing is known of the request.
    #[error("the agent's store is not available")]
    Stopped,
    /// No address is free.
    #[error(transparent)]
    Empty(#[from] Empty),
}

/// What readers see: one moment of the pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Families of the cluster.
    pub ipv6: bool,
    /// What each shard's addresses amount to.
    pub holdings: BTreeMap<ShardId, Holding>,
    /// Every ENI, whether its link is ready, and its bound addresses.
    pub enis: BTreeMap<EniId, EniView>,
    /// Every binding.
    pub bindings: BTreeMap<AttachmentKey, Binding>,
    /// When resting addresses may be used again; those in the past have rested.
    pub rest_ends: BTreeSet<Tick>,
}

/// One ENI of a [`View`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniView {
    /// The ENI.
    pub record: EniRecord,
    /// Its link is there and configured.
    pub ready: bool,
    /// Addresses bound to sandboxes.
    pub bound: Vec<IpAddr>,
}

impl View {
    /// How long after `now` the next resting address may be used; `None` when none rests.
    pub fn rests_for(&self, now: Tick) -> Option<Duration> {
        let later = (Bound::Excluded(now), Bound::Unbounded);
        self.rest_ends.range(later).next().map(|at| at.since(now))
    }

    /// Pods bound on shared ENIs.
    pub fn used(&self) -> u32 {
        let shared = self.bindings.values().filter(|b| !b.whole).count();
        u32::try_from(shared).unwrap_or(u32::MAX)
    }

    /// Pods that could be bound on ready ENIs, resting addresses included.
    pub fn free(&self) -> u32 {
        self.holdings
            .values()
            .map(|h| h.ready.saturating_sub(h.bound))
            .sum()
    }
}

type Reply<T> = oneshot::Sender<T>;

enum Request {
    Bind(Box<BindRequest>, Tick, Reply<Result<Binding, Empty>>),
    Unbind(AttachmentKey, Tick, Reply<Option<Binding>>),
    Attach(Box<EniRecord>, Reply<()>),
    Grant(EniId, BTreeMap<IpAddr, Generation>, Reply<()>),
    Revoke(
        EniId,
        BTreeMap<IpAddr, Generation>,
        Reply<(Vec<IpAddr>, Vec<IpAddr>)>,
    ),
    Remove(EniId, Reply<Option<EniRecord>>),
    Ready(EniId, bool, Reply<()>),
    SetStack(Stack, Reply<()>),
}

/// Sends requests; cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<Arc<View>>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Request")
    }
}

/// The writing side; [`Writer::run`] blocks a thread until all senders are gone or the store fails.
#[derive(Debug)]
pub struct Writer {
    store: Store,
    pool: Pool,
    requests: mpsc::Receiver<Request>,
    view: watch::Sender<Arc<View>>,
}

/// Loads the store and makes both sides.
///
/// # Errors
/// [`StoreError`] when the store can not be read.
pub fn open(store: Store, mut pool: Pool) -> Result<(Ledger, Writer), StoreError> {
    let Contents {
        enis,
        bindings,
        freed,
        revoked,
    } = store.load()?;
    for (ip, generation) in revoked {
        pool.insert_revocation(ip, generation);
    }
    for record in enis {
        pool.attach(record);
    }
    for (ip, at) in freed {
        pool.insert_freed(ip, at);
    }
    for binding in bindings {
        pool.insert(binding);
    }
    let (requests_tx, requests) = mpsc::channel(QUEUE);
    let (view_tx, view) = watch::channel(Arc::new(view_of(&pool)));
    Ok((
        Ledger {
            requests: requests_tx,
            view,
        },
        Writer {
            store,
            pool,
            requests,
            view: view_tx,
        },
    ))
}

impl Ledger {
    async fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> Request) -> Result<T, LedgerError> {
        let (tx, rx) = oneshot::channel();
        self.requests
            .send(make(tx))
            .await
            .map_err(|_| LedgerError::Stopped)?;
        rx.await.map_err(|_| LedgerError::Stopped)
    }

    /// Binds a free pair of addresses, durably. The same attachment gets the same answer.
    pub async fn bind(&self, request: BindRequest, now: Tick) -> Result<Binding, LedgerError> {
        Ok(self
            .ask(|tx| Request::Bind(Box::new(request), now, tx))
            .await??)
    }

    /// Frees the attachment's addresses, durably; `None` when it had none.
    pub async fn unbind(
        &self,
        attachment: AttachmentKey,
        now: Tick,
    ) -> Result<Option<Binding>, LedgerError> {
        self.ask(|tx| Request::Unbind(attachment, now, tx)).await
    }

    /// Takes an ENI in, durably.
    pub async fn attach(&self, record: EniRecord) -> Result<(), LedgerError> {
        self.ask(|tx| Request::Attach(Box::new(record), tx)).await
    }

    /// Takes further addresses in, durably.
    pub async fn grant(
        &self,
        eni: EniId,
        addresses: BTreeMap<IpAddr, Generation>,
    ) -> Result<(), LedgerError> {
        self.ask(|tx| Request::Grant(eni, addresses, tx)).await
    }

    /// Gives addresses back, durably: (given back, kept).
    pub async fn revoke(
        &self,
        eni: EniId,
        addresses: BTreeMap<IpAddr, Generation>,
    ) -> Result<(Vec<IpAddr>, Vec<IpAddr>), LedgerError> {
        self.ask(|tx| Request::Revoke(eni, addresses, tx)).await
    }

    /// Forgets an ENI, durably; `None` when it is unknown or in use.
    pub async fn remove(&self, eni: EniId) -> Result<Option<EniRecord>, LedgerError> {
        self.ask(|tx| Request::Remove(eni, tx)).await
    }

    /// Marks the ENI's link as there and configured, or not.
    pub async fn set_ready(&self, eni: EniId, ready: bool) -> Result<(), LedgerError> {
        self.ask(|tx| Request::Ready(eni, ready, tx)).await
    }

    /// Sets the families that pods get.
    pub async fn set_stack(&self, stack: Stack) -> Result<(), LedgerError> {
        self.ask(|tx| Request::SetStack(stack, tx)).await
    }

    /// The latest moment.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// A handle to wait for changes.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }
}

impl Writer {
    /// Serves requests until all senders are gone.
    ///
    /// # Errors
    /// [`StoreError`] when a commit failed: nobody was answered, and memory may be ahead of the disk, so the process
    /// must end and load the store anew.
    pub fn run(mut self) -> Result<(), StoreError> {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            batch.clear();
            if self.requests.blocking_recv_many(&mut batch, BATCH) == 0 {
                return Ok(());
            }
            let mut changes = Vec::new();
            let mut answers: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
            for request in batch.drain(..) {
                answers.push(self.apply(request, &mut changes));
            }
            if !changes.is_empty() {
                self.store.commit(&changes)?;
            }
            self.publish();
            for answer in answers {
                answer();
            }
        }
    }

    /// Wakes readers only when what they see has changed: an ADD that waits asks again at every change, and its own
    /// failed attempt must not be one.
    fn publish(&self) {
        let now = view_of(&self.pool);
        self.view.send_if_modified(|old| {
            let changed = **old != now;
            if changed {
                *old = Arc::new(now);
            }
            changed
        });
    }

    fn apply(&mut self, request: Request, changes: &mut Vec<Change>) -> Box<dyn FnOnce() + Send> {
        match request {
            Request::Bind(request, now, tx) => {
                let bound = self.pool.bind(&request, now);
                if let Ok((binding, true)) = &bound {
                    changes.push(Change::PutBinding(Box::new(binding.clone())));
                    changes.extend(binding.addresses().map(Change::DropFreed));
                }
                answer(tx, bound.map(|(binding, _)| binding))
            }
            Request::Unbind(attachment, now, tx) => {
                let gone = self.pool.unbind(&attachment, now);
                if let Some(binding) = &gone {
                    changes.push(Change::DropBinding(attachment));
                    changes.extend(binding.addresses().map(|ip| Change::PutFreed(ip, now)));
                }
                answer(tx, gone)
            }
            Request::Attach(record, tx) => {
                let eni = record.eni.clone();
                if self.pool.attach(*record) {
                    self.keep(&eni, changes);
                }
                answer(tx, ())
            }
            Request::Grant(eni, addresses, tx) => {
                if self.pool.grant(&eni, addresses) {
                    self.keep(&eni, changes);
                }
                answer(tx, ())
            }
            Request::Revoke(eni, addresses, tx) => {
                let (accepted, refused) = self.pool.revoke(&eni, &addresses);
                for ip in &accepted {
                    changes.push(Change::DropFreed(*ip));
                    if let Some(generation) = self.pool.revocations().get(ip) {
                        changes.push(Change::PutRevoked(*ip, *generation));
                    }
                }
                self.keep(&eni, changes);
                answer(tx, (accepted, refused))
            }
            Request::Remove(eni, tx) => {
                let gone = self.pool.remove(&eni);
                if gone.is_some() {
                    changes.push(Change::DropEni(eni));
                }
                answer(tx, gone)
            }
            Request::Ready(eni, ready, tx) => {
                self.pool.set_ready(&eni, ready);
                answer(tx, ())
            }
            Request::SetStack(stack, tx) => {
                self.pool.set_stack(stack);
                answer(tx, ())
            }
        }
    }

    fn keep(&self, eni: &EniId, changes: &mut Vec<Change>) {
        if let Some((record, _)) = self.pool.eni(eni) {
            changes.push(Change::PutEni(Box::new(record.clone())));
        }
    }
}

fn answer<T: Send + 'static>(tx: Reply<T>, value: T) -> Box<dyn FnOnce() + Send> {
    // Whoever asked may have gone; the change stands all the same.
    Box::new(move || drop(tx.send(value)))
}

fn view_of(pool: &Pool) -> View {
    View {
        ipv6: pool.stack().has_v6(),
        holdings: pool.holdings(),
        enis: pool
            .enis()
            .map(|(record, ready)| {
                let bound = pool.bound_on(&record.eni);
                (
                    record.eni.clone(),
                    EniView {
                        record: record.clone(),
                        ready,
                        bound,
                    },
                )
            })
            .collect(),
        bindings: pool
            .bindings()
            .map(|b| (b.attachment.clone(), b.clone()))
            .collect(),
        rest_ends: pool.rest_ends(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_that_has_rested_wakes_nobody() {
        let view = View {
            rest_ends: [Tick(5), Tick(90)].into(),
            ..View::default()
        };

        assert_eq!(view.rests_for(Tick(5)), Some(Duration::from_millis(85)));
        assert_eq!(view.rests_for(Tick(90)), None);
    }

    #[tokio::test]
    async fn failed_bind_wakes_nobody_who_watches() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("agent.redb")).unwrap();
        let (ledger, writer) = open(store, Pool::new(Stack::Dual, Duration::ZERO)).unwrap();
        let running = tokio::task::spawn_blocking(move || writer.run());
        let mut watching = ledger.watch();
        watching.borrow_and_update();

        let refused = ledger.bind(request(), Tick(1)).await;

        assert_eq!(refused.unwrap_err(), LedgerError::Empty(Empty));
        assert!(!watching.has_changed().unwrap());
        drop(ledger);
        running.await.unwrap().unwrap();
    }

    fn request() -> BindRequest {
        BindRequest {
            attachment: AttachmentKey::new("s", "eth0").unwrap(),
            pod: types::pod::PodKey::new("default", "a"),
            pod_uid: String::new(),
            netns: "/run/netns/x".to_owned(),
            host_link: "cali0".to_owned(),
            mtu: 1500,
            boot_id: "b".to_owned(),
            whole: false,
        }
    }
}
