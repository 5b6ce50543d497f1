//! The one writer of a shard: decides on committed state, appends, and only then lets anybody see.
//!
//! Everything that was asked for while the last append was on its way goes into the next one (group commit). What a
//! proposal decides on already holds the effects of those before it in the same batch, on a copy; the copy becomes
//! the shard when the store says that the batch is durable, and is thrown away otherwise (I9). An append whose
//! answer was lost is settled before anything else is done. Somebody else's claim ends the task.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ipam_core::clock::OwnerClock;
use ipam_core::record::Record;
use ipam_core::shard::apply::ApplyError;
use ipam_core::shard::{PlaceChange, Shard};
use ipam_core::spec::ShardSpec;
use mesh::backoff::Backoff;
use mesh::telemetry::traceparent_of;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, info, warn};
use types::op::{Epoch, Seq, ShardId};
use types::time::Tick;

use crate::log::{
    AppendError, BATCH_TARGET_BYTES, Batch, Claim, Fence, HandOverError, Head, IndexChange,
    IndexHolder, IndexKey, MAX_INDEX_KEYS, Outcome, Replica, SharedLog,
};
use crate::metrics::Metrics;
use crate::traces::Traces;

/// Committed state of a shard. Readers keep it as long as they like.
#[derive(Debug, Clone)]
pub struct View {
    /// The state.
    pub shard: Arc<Shard>,
    /// The claim under which it was read or written.
    pub epoch: Epoch,
}

/// Says what to append, given the state with everything before it applied, and the time to write down.
pub type Decide = Box<dyn FnOnce(&Shard, Tick) -> Vec<Record> + Send>;

/// What became of a proposal.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Number of its first record; the next free number if it decided on none.
    pub first: Seq,
    /// Its records.
    pub records: Vec<Record>,
    /// The state after its batch.
    pub view: View,
}

impl Committed {
    /// Numbered records.
    pub fn numbered(&self) -> impl Iterator<Item = (Seq, &Record)> {
        (self.first.0..).map(Seq).zip(&self.records)
    }
}

/// Why nothing was appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This replica does not own the shard (any more); ask the next owner.
    #[error("the shard is not owned here")]
    NotOwner,
    /// The state moved on meanwhile: look again.
    #[error("the decision does not follow from the state: {0}")]
    Stale(#[source] ApplyError),
    /// Another shard holds this place on the instance: choose another one.
    #[error("{key} is held by {}", .holder.shard)]
    PlaceTaken {
        /// The place.
        key: IndexKey,
        /// Who has it.
        holder: IndexHolder,
    },
    /// The store is out of reach; nothing was written. Try later.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// Too much waits for this shard. Try later.
    #[error("the shard's queue is full")]
    Overloaded,
    /// The decision can never be written: a mistake of ours.
    #[error("the decision can not be written: {0}")]
    Invalid(String),
}

enum Command {
    Propose {
        decide: Decide,
        reply: oneshot::Sender<Result<Committed, ProposeError>>,
        span: Span,
    },
    HandOver {
        to: Option<Replica>,
        reply: oneshot::Sender<()>,
    },
}

/// The way to a shard that this replica owns.
#[derive(Clone)]
pub struct Handle {
    spec: Arc<ShardSpec>,
    epoch: Epoch,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<View>,
    ended: CancellationToken,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({}@{})", self.spec.id(), self.epoch)
    }
}

impl Handle {
    /// Which shard.
    pub fn id(&self) -> &ShardId {
        self.spec.id()
    }

    /// What it is made of.
    pub fn spec(&self) -> &Arc<ShardSpec> {
        &self.spec
    }

    /// The claim.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Committed state, as it changes.
    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Committed state now.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Cancelled when the shard is not owned here any more.
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Appends what `decide` says. Answers when it is durable; the current span is linked with the commit's.
    ///
    /// # Errors
    /// [`ProposeError`]; nothing was appended.
    ///
    /// # Cancel safety
    /// A proposal that was queued is carried out even if nobody waits for the answer.
    pub async fn propose(&self, decide: Decide) -> Result<Committed, ProposeError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Propose { decide, reply, span: Span::current() };
        match self.commands.try_send(command) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(ProposeError::Overloaded),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(ProposeError::NotOwner),
        }
        answer.await.unwrap_or(Err(ProposeError::NotOwner))
    }

    /// Makes `to` the owner, or nobody, once what is queued before is durable. Answers when it is over.
    pub async fn hand_over(&self, to: Option<Replica>) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::HandOver { to, reply }).await.is_ok() {
            // Dropped when the task ends by itself: over as well.
            drop(answer.await);
        }
    }
}

/// What an owner task is bound by.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Proposals that may wait.
    pub queue: usize,
    /// Records after which a snapshot is written.
    pub snapshot_every: u64,
    /// How long one call to the store may take.
    pub store_call: Duration,
    /// Time between two looks at the clock for deadlines.
    pub tick: Duration,
}

/// Why a claimed shard can not be served. A person must look.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The snapshot can not be read.
    #[error("snapshot up to record {upto}: {why}")]
    Snapshot {
        /// Its last record.
        upto: Seq,
        /// What is wrong.
        why: String,
    },
    /// A record can not be read, or does not follow from those before.
    #[error("record {seq}: {why}")]
    Record {
        /// Which.
        seq: Seq,
        /// What is wrong.
        why: String,
    },
}

/// Folds what a claim read into a shard.
///
/// # Errors
/// [`LoadError`] when it is not a log of this shard.
pub fn load(spec: ShardSpec, claim: &Claim) -> Result<Shard, LoadError> {
    let mut shard = match &claim.snapshot {
        Some(snapshot) => Shard::restore(spec, &snapshot.state)
            .map_err(|e| LoadError::Snapshot { upto: snapshot.upto, why: e.to_string() })?,
        None => Shard::new(spec),
    };
    for record in &claim.tail {
        let fail = |why: String| LoadError::Record { seq: record.seq, why };
        let decoded = Record::decode(&record.data).map_err(|e| fail(e.to_string()))?;
        shard.apply(record.seq, &decoded).map_err(|e| fail(e.to_string()))?;
    }
    Ok(shard)
}

/// Why an owner task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Somebody else owns the shard.
    Fenced,
    /// It was handed over or released as asked.
    HandedOver,
    /// The process stops.
    Stopped,
}

/// The writer; see the module.
#[derive(Debug)]
pub struct Owner {
    log: SharedLog,
    fence: Fence,
    current: Arc<Shard>,
    clock: OwnerClock,
    publish: watch::Sender<View>,
    limits: Limits,
    metrics: Metrics,
    traces: Arc<Traces>,
    snapshot_at: Seq,
    started: Instant,
}

/// A batch in the making.
struct Building {
    scratch: Shard,
    first: Seq,
    records: Vec<Record>,
    encoded: Vec<Bytes>,
    bytes: usize,
    index: IndexChange,
    waiting: Vec<Waiting>,
}

struct Waiting {
    reply: oneshot::Sender<Result<Committed, ProposeError>>,
    span: Span,
    from: usize,
    to: usize,
}

/// A decision that must be committed alone, since an index key of it may be taken.
struct Alone {
    decide: Decide,
    reply: oneshot::Sender<Result<Committed, ProposeError>>,
    span: Span,
}

enum Next {
    Go,
    End(Ended),
}

impl Owner {
    /// An owner of a loaded shard, its handle, and the queue to run it with.
    pub fn new(
        log: SharedLog,
        fence: Fence,
        shard: Shard,
        limits: Limits,
        metrics: Metrics,
        traces: Arc<Traces>,
    ) -> (Self, Handle, Queue) {
        let (commands, queue) = mpsc::channel(limits.queue.max(1));
        let current = Arc::new(shard);
        let epoch = fence.epoch;
        let (publish, view) = watch::channel(View { shard: Arc::clone(&current), epoch });
        let started = Instant::now();
        let handle = Handle {
            spec: Arc::new(current.spec().clone()),
            epoch,
            commands,
            view,
            ended: CancellationToken::new(),
        };
        let owner = Self {
            log,
            clock: OwnerClock::at_claim(current.tick(), Duration::ZERO),
            snapshot_at: current.last_seq(),
            fence,
            current,
            publish,
            limits,
            metrics,
            traces,
            started,
        };
        let ended = handle.ended.clone();
        (owner, handle, Queue { commands: queue, ended })
    }

    /// Serves until the shard is somebody else's or `stop` is cancelled.
    pub async fn run(mut self, queue: Queue, stop: CancellationToken) -> Ended {
        let Queue { mut commands, ended } = queue;
        let _guard = ended.drop_guard();
        let mut ticks = tokio::time::interval(self.limits.tick);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let next = tokio::select! {
                () = stop.cancelled() => Next::End(Ended::Stopped),
                _ = ticks.tick() => self.expire(&stop).await,
                command = commands.recv() => match command {
                    Some(command) => self.serve(command, &mut commands, &stop).await,
                    None => Next::End(Ended::Stopped),
                },
            };
            match next {
                Next::Go => {}
                Next::End(ended) => return ended,
            }
        }
    }

    fn now(&mut self) -> Tick {
        let pending = self.current.next_deadline().is_some();
        self.clock.read(Tick(mesh::clock::wall_ms()), self.started.elapsed(), pending)
    }

    /// Ends what is over by its deadline.
    async fn expire(&mut self, stop: &CancellationToken) -> Next {
        let Some(deadline) = self.current.next_deadline() else {
            return Next::Go;
        };
        let now = self.now();
        if let Some(skew) = self.clock.skew(Tick(mesh::clock::wall_ms())) {
            self.metrics.clock_skew(skew);
        }
        if deadline > now {
            return Next::Go;
        }
        let mut batch = self.building();
        if let Err(error) = batch.add(&[Record::Tick { at: now }]) {
            warn!(shard = %self.fence.shard, %error, "time can not be written");
            return Next::Go;
        }
        self.commit(batch, stop).await
    }

    async fn serve(
        &mut self,
        first: Command,
        commands: &mut mpsc::Receiver<Command>,
        stop: &CancellationToken,
    ) -> Next {
        let mut batch = self.building();
        let mut command = Some(first);
        while let Some(next) = command.take() {
            match next {
                Command::HandOver { to, reply } => {
                    if let Next::End(ended) = self.commit(batch, stop).await {
                        return Next::End(ended);
                    }
                    let next = self.hand_over(to).await;
                    drop(reply);
                    return next;
                }
                Command::Propose { decide, reply, span } => {
                    let now = self.now();
                    let proposal = Alone { decide, reply, span };
                    if let Some(alone) = self.decide(&mut batch, proposal, now) {
                        if let Next::End(ended) = self.commit(batch, stop).await {
                            return Next::End(ended);
                        }
                        return self.commit(alone, stop).await;
                    }
                }
            }
            if batch.bytes < BATCH_TARGET_BYTES && batch.index.delete.len() + 2 < MAX_INDEX_KEYS {
                command = commands.try_recv().ok();
            }
        }
        self.commit(batch, stop).await
    }

    /// Adds a proposal to the batch; answers a batch of its own if it has to be alone.
    fn decide(&self, batch: &mut Building, proposal: Alone, now: Tick) -> Option<Building> {
        let Alone { decide, reply, span } = proposal;
        let records = decide(&batch.scratch, now);
        let takes = records.iter().any(|record| matches!(record, Record::EniIntent { .. }));
        if takes && !batch.records.is_empty() {
            // Decided on the state after this batch, which is committed first and alone in between.
            let mut alone = Building::after(batch);
            alone.propose(records, reply, span);
            return Some(alone);
        }
        batch.propose(records, reply, span);
        if takes {
            let alone = std::mem::replace(batch, self.building());
            return Some(alone);
        }
        None
    }

    fn building(&self) -> Building {
        Building::on((*self.current).clone())
    }

    async fn commit(&mut self, batch: Building, stop: &CancellationToken) -> Next {
        if batch.records.is_empty() {
            let view = self.publish.borrow().clone();
            batch.answer_all(|waiting| {
                Ok(Committed { first: view.shard.next_seq().max(waiting), records: Vec::new(), view: view.clone() })
            });
            return Next::Go;
        }
        if batch.first != self.current.next_seq() {
            // The batch before it was not written.
            batch.fail(&ProposeError::Unavailable("an earlier batch was not written".to_owned()));
            return Next::Go;
        }
        let span = tracing::info_span!(
            "shard.commit",
            shard = %self.fence.shard,
            epoch = self.fence.epoch.0,
            seq = batch.first.0,
            records = batch.records.len(),
            bytes = batch.bytes,
        );
        for waiting in batch.waiting.iter().take(64) {
            mesh::telemetry::link(&span, &waiting.span);
        }
        let written = self.write(&batch, stop).instrument(span).await;
        match written {
            Ok(head) => {
                mesh::crash_point!("ipam.append.after_commit");
                self.fence.head = head;
                self.accept(batch);
                self.snapshot_if_due().await
            }
            Err(WriteError::Refused(error)) => {
                batch.fail(&error);
                Next::Go
            }
            Err(WriteError::Fenced) => {
                self.metrics.fenced.inc();
                info!(shard = %self.fence.shard, epoch = self.fence.epoch.0, "another replica owns the shard");
                batch.fail(&ProposeError::NotOwner);
                Next::End(Ended::Fenced)
            }
            // Nobody knows what became of the batch, so nobody is told anything; the next owner finds out.
            Err(WriteError::Stopped) => Next::End(Ended::Stopped),
        }
    }

    fn accept(&mut self, batch: Building) {
        let Building { scratch, first, records, waiting, .. } = batch;
        for waiting in &waiting {
            let Some(traceparent) = traceparent_of(&waiting.span) else { continue };
            let from = first.0.saturating_add(u64::try_from(waiting.from).unwrap_or(u64::MAX));
            let own = records.get(waiting.from..waiting.to).unwrap_or_default();
            for (seq, record) in (from..).zip(own) {
                self.traces.note(Seq(seq), record, &traceparent);
            }
        }
        for record in &records {
            crash_after(record);
        }
        self.current = Arc::new(scratch);
        let view = View { shard: Arc::clone(&self.current), epoch: self.fence.epoch };
        // Fails only without a receiver, and the handle keeps one.
        self.publish.send_replace(view.clone());
        for waiting in waiting {
            let own = records.get(waiting.from..waiting.to).unwrap_or_default().to_vec();
            let offset = u64::try_from(waiting.from).unwrap_or(u64::MAX);
            let answer = Committed {
                first: Seq(first.0.saturating_add(offset)),
                records: own,
                view: view.clone(),
            };
            // Whoever asked may have gone away; the record stands all the same.
            drop(waiting.reply.send(Ok(answer)));
        }
    }

    async fn write(&mut self, building: &Building, stop: &CancellationToken) -> Result<Head, WriteError> {
        mesh::crash_point!("ipam.append.before_commit");
        let begun = Instant::now();
        let batch = Batch::new(building.encoded.clone());
        let mut backoff = Backoff::default();
        loop {
            let appended = timeout(
                self.limits.store_call,
                self.log.append_with_index(&self.fence, &batch, &building.index),
            )
            .await
            .unwrap_or_else(|_| Err(AppendError::Unknown("no answer in time".to_owned())));
            match appended {
                Ok(head) => {
                    self.metrics.commit(begun.elapsed(), building.records.len());
                    return Ok(head);
                }
                Err(AppendError::Fenced) => return Err(WriteError::Fenced),
                Err(AppendError::Conflict { key, holder }) => {
                    return Err(WriteError::Refused(ProposeError::PlaceTaken { key, holder }));
                }
                Err(error @ (AppendError::TooLarge { .. } | AppendError::Invalid(_))) => {
                    warn!(shard = %self.fence.shard, %error, "a batch can not be written");
                    return Err(WriteError::Refused(ProposeError::Invalid(error.to_string())));
                }
                Err(AppendError::Unavailable(why)) => {
                    return Err(WriteError::Refused(ProposeError::Unavailable(why)));
                }
                Err(AppendError::Unknown(why)) => {
                    self.metrics.commit_unknown.inc();
                    warn!(shard = %self.fence.shard, why, "the outcome of an append is unknown");
                }
            }
            match self.settle(batch.id, stop, &mut backoff).await? {
                Outcome::Committed(head) => {
                    self.metrics.commit(begun.elapsed(), building.records.len());
                    return Ok(head);
                }
                Outcome::NotCommitted(head) => self.fence.head = head,
            }
        }
    }

    /// Finds out what became of a batch, for as long as it takes.
    async fn settle(
        &self,
        batch: crate::log::BatchId,
        stop: &CancellationToken,
        backoff: &mut Backoff,
    ) -> Result<Outcome, WriteError> {
        loop {
            let resolved = timeout(self.limits.store_call, self.log.resolve(&self.fence, batch)).await;
            match resolved {
                Ok(Ok(outcome)) => return Ok(outcome),
                Ok(Err(AppendError::Fenced)) => return Err(WriteError::Fenced),
                Ok(Err(error)) => {
                    warn!(shard = %self.fence.shard, %error, "an append can not be settled yet");
                }
                Err(_) => warn!(shard = %self.fence.shard, "the store does not answer"),
            }
            tokio::select! {
                () = stop.cancelled() => return Err(WriteError::Stopped),
                () = tokio::time::sleep(backoff.next_wait()) => {}
            }
        }
    }

    async fn snapshot_if_due(&mut self) -> Next {
        let upto = self.current.last_seq();
        if upto.0.saturating_sub(self.snapshot_at.0) < self.limits.snapshot_every {
            return Next::Go;
        }
        let state = match self.current.snapshot() {
            Ok(state) => Bytes::from(state),
            Err(error) => {
                warn!(shard = %self.fence.shard, %error, "a snapshot can not be made");
                return Next::Go;
            }
        };
        match timeout(self.limits.store_call, self.log.snapshot(&self.fence, upto, state)).await {
            Ok(Ok(())) => {
                mesh::crash_point!("ipam.snapshot.after_commit");
                self.snapshot_at = upto;
            }
            Ok(Err(AppendError::Fenced)) => {
                self.metrics.fenced.inc();
                return Next::End(Ended::Fenced);
            }
            Ok(Err(error)) => warn!(shard = %self.fence.shard, %error, "a snapshot was not written"),
            Err(_) => warn!(shard = %self.fence.shard, "a snapshot was not written in time"),
        }
        Next::Go
    }

    async fn hand_over(&mut self, to: Option<Replica>) -> Next {
        let done = timeout(self.limits.store_call, async {
            match &to {
                Some(to) => self.log.transfer(&self.fence, to).await,
                None => self.log.release(&self.fence).await,
            }
        })
        .await;
        match done {
            Ok(Ok(())) => {
                info!(shard = %self.fence.shard, to = ?to.map(|to| to.id), "the shard was handed over");
                Next::End(Ended::HandedOver)
            }
            // Still ours; membership asks again while it wants to.
            Ok(Err(error @ (HandOverError::TargetGone | HandOverError::Unavailable(_)))) => {
                warn!(shard = %self.fence.shard, %error, "the shard was not handed over");
                Next::Go
            }
            Ok(Err(HandOverError::Fenced)) => Next::End(Ended::Fenced),
            // It may be somebody else's: writing on would be wrong, claiming again settles it.
            Ok(Err(HandOverError::Unknown(_))) | Err(_) => Next::End(Ended::Fenced),
        }
    }
}

/// The places between a decision and what follows from it.
fn crash_after(record: &Record) {
    if record.is_intent() {
        mesh::crash_point!("ipam.intent.after_commit");
    }
    match record {
        Record::Held { .. } => mesh::crash_point!("ipam.held.after_commit"),
        Record::Revoke { .. } => mesh::crash_point!("ipam.revoke.after_commit"),
        Record::RevokeAcked { .. } => mesh::crash_point!("ipam.revoked.after_commit"),
        Record::EniGone { .. } => mesh::crash_point!("ipam.gone.after_commit"),
        Record::EniIntent { .. }
        | Record::EniCreated { .. }
        | Record::EniAttached { .. }
        | Record::AssignIntent { .. }
        | Record::Assigned { .. }
        | Record::Aborted { .. }
        | Record::NodeGone { .. }
        | Record::UnassignIntent { .. }
        | Record::Unassigned { .. }
        | Record::DetachIntent { .. }
        | Record::DeleteIntent { .. }
        | Record::EniLost { .. }
        | Record::Foreign { .. }
        | Record::Tick { .. } => {}
    }
}

enum WriteError {
    Refused(ProposeError),
    Fenced,
    Stopped,
}

/// The receiving end of a [`Handle`].
pub struct Queue {
    commands: mpsc::Receiver<Command>,
    ended: CancellationToken,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl Building {
    fn on(scratch: Shard) -> Self {
        Self {
            first: scratch.next_seq(),
            scratch,
            records: Vec::new(),
            encoded: Vec::new(),
            bytes: 0,
            index: IndexChange::default(),
            waiting: Vec::new(),
        }
    }

    fn after(batch: &Self) -> Self {
        Self::on(batch.scratch.clone())
    }

    fn propose(
        &mut self,
        records: Vec<Record>,
        reply: oneshot::Sender<Result<Committed, ProposeError>>,
        span: Span,
    ) {
        let from = self.records.len();
        match self.add(&records) {
            Ok(()) => {
                let to = self.records.len();
                self.waiting.push(Waiting { reply, span, from, to });
            }
            // Whoever asked may have gone away.
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Adds all records or none.
    fn add(&mut self, records: &[Record]) -> Result<(), ProposeError> {
        let before = if records.len() > 1 { Some(self.scratch.clone()) } else { None };
        let (count, bytes, index) = (self.records.len(), self.bytes, self.index.clone());
        for record in records {
            if let Err(error) = self.add_one(record) {
                if let Some(before) = before {
                    self.scratch = before;
                }
                self.records.truncate(count);
                self.encoded.truncate(count);
                self.bytes = bytes;
                self.index = index;
                return Err(error);
            }
        }
        Ok(())
    }

    fn add_one(&mut self, record: &Record) -> Result<(), ProposeError> {
        let encoded = record.encode().map_err(|e| ProposeError::Invalid(e.to_string()))?;
        let seq = self.scratch.next_seq();
        let place = self.scratch.place_change(record);
        self.scratch.apply(seq, record).map_err(ProposeError::Stale)?;
        match place {
            Some(PlaceChange::Take(place)) => {
                let key = IndexKey::eni(&place.instance, place.index);
                self.index.create.push((key, seq));
            }
            Some(PlaceChange::Free(place)) => {
                self.index.delete.push(IndexKey::eni(&place.instance, place.index));
            }
            None => {}
        }
        self.bytes = self.bytes.saturating_add(encoded.len());
        self.encoded.push(Bytes::from(encoded));
        self.records.push(record.clone());
        Ok(())
    }

    fn answer_all(self, answer: impl Fn(Seq) -> Result<Committed, ProposeError>) {
        for waiting in self.waiting {
            // Whoever asked may have gone away.
            drop(waiting.reply.send(answer(self.first)));
        }
    }

    fn fail(self, error: &ProposeError) {
        self.answer_all(|_| Err(error.clone()));
    }
}
