//! The task that writes: decide, append, show.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ipam_core::clock::OwnerClock;
use ipam_core::record::Record;
use ipam_core::shard::Shard;
use mesh::backoff::Backoff;
use mesh::telemetry::traceparent_of;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, warn};
use types::op::Seq;
use types::time::Tick;

use super::building::{Building, Proposal};
use super::{Command, Committed, Ended, Handle, Limits, ProposeError, Queue, View};
use crate::log::{
    AppendError, BATCH_TARGET_BYTES, Batch, BatchId, Fence, HandOverError, Head, MAX_INDEX_KEYS,
    Outcome, Replica, SharedLog,
};
use crate::metrics::Metrics;
use crate::traces::Traces;

/// The writer of one shard; see [`crate::owner`].
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
        let (publish, view) = watch::channel(View {
            shard: Arc::clone(&current),
            epoch,
        });
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
        (
            owner,
            handle,
            Queue {
                commands: queue,
                ended,
            },
        )
    }

    /// Serves until the shard is somebody else's or `stop` is cancelled.
    pub async fn run(mut self, queue: Queue, stop: CancellationToken) -> Ended {
        let Queue {
            mut commands,
            ended,
        } = queue;
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
        self.clock.read(
            Tick(mesh::clock::wall_ms()),
            self.started.elapsed(),
            pending,
        )
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
                Command::Propose {
                    decide,
                    reply,
                    span,
                } => {
                    let now = self.now();
                    let proposal = Proposal {
                        decide,
                        reply,
                        span,
                    };
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
    fn decide(&self, batch: &mut Building, proposal: Proposal, now: Tick) -> Option<Building> {
        let Proposal {
            decide,
            reply,
            span,
        } = proposal;
        let records = decide(&batch.scratch, now);
        let takes = records.iter().any(|record| {
            matches!(
                record,
                Record::EniIntent { .. } | Record::WholeEniIntent { .. }
            )
        });
        if takes && !batch.records.is_empty() {
            // Decided on the state after this batch, which is committed first and alone in between.
            let mut alone = Building::after(batch);
            alone.propose(&records, reply, span);
            return Some(alone);
        }
        batch.propose(&records, reply, span);
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
                Ok(Committed {
                    first: view.shard.next_seq().max(waiting),
                    records: Vec::new(),
                    view: view.clone(),
                })
            });
            return Next::Go;
        }
        if batch.first != self.current.next_seq() {
            // The batch before it was not written.
            batch.fail(&ProposeError::Unavailable(
                "an earlier batch was not written".to_owned(),
            ));
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
        let Building {
            scratch,
            first,
            records,
            waiting,
            ..
        } = batch;
        for waiting in &waiting {
            let Some(traceparent) = traceparent_of(&waiting.span) else {
                continue;
            };
            let from = first
                .0
                .saturating_add(u64::try_from(waiting.from).unwrap_or(u64::MAX));
            let own = records.get(waiting.from..waiting.to).unwrap_or_default();
            for (seq, record) in (from..).zip(own) {
                self.traces.note(Seq(seq), record, &traceparent);
            }
        }
        for record in &records {
            crash_after(record);
        }
        self.current = Arc::new(scratch);
        let view = View {
            shard: Arc::clone(&self.current),
            epoch: self.fence.epoch,
        };
        // Fails only without a receiver, and the handle keeps one.
        self.publish.send_replace(view.clone());
        for waiting in waiting {
            let own = records
                .get(waiting.from..waiting.to)
                .unwrap_or_default()
                .to_vec();
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

    async fn write(
        &mut self,
        building: &Building,
        stop: &CancellationToken,
    ) -> Result<Head, WriteError> {
        mesh::crash_point!("ipam.append.before_commit");
        let begun = Instant::now();
        let batch = Batch::new(building.encoded.clone());
        let mut backoff = Backoff::default();
        loop {
            let appended = timeout(
                self.limits.store_call,
                self.log
                    .append_with_index(&self.fence, &batch, &building.index),
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
                    return Err(WriteError::Refused(ProposeError::PlaceTaken {
                        key,
                        holder,
                    }));
                }
                Err(error @ (AppendError::TooLarge { .. } | AppendError::Invalid(_))) => {
                    warn!(shard = %self.fence.shard, %error, "a batch can not be written");
                    return Err(WriteError::Refused(ProposeError::Invalid(
                        error.to_string(),
                    )));
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
        batch: BatchId,
        stop: &CancellationToken,
        backoff: &mut Backoff,
    ) -> Result<Outcome, WriteError> {
        loop {
            let resolved =
                timeout(self.limits.store_call, self.log.resolve(&self.fence, batch)).await;
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
        match timeout(
            self.limits.store_call,
            self.log.snapshot(&self.fence, upto, state),
        )
        .await
        {
            Ok(Ok(())) => {
                mesh::crash_point!("ipam.snapshot.after_commit");
                self.snapshot_at = upto;
            }
            Ok(Err(AppendError::Fenced)) => {
                self.metrics.fenced.inc();
                return Next::End(Ended::Fenced);
            }
            Ok(Err(error)) => {
                warn!(shard = %self.fence.shard, %error, "a snapshot was not written");
            }
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
            // It is or may be somebody else's: writing on would be wrong, claiming again settles it.
            Ok(Err(HandOverError::Fenced | HandOverError::Unknown(_))) | Err(_) => {
                Next::End(Ended::Fenced)
            }
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
        | Record::WholeEniIntent { .. }
        | Record::EniDetached { .. }
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
