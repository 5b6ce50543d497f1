//! The one writer of a shard: decides on committed state, appends, and only then lets anybody see.
//!
//! Everything that was asked for while the last append was on its way goes into the next one (group commit). What a
//! proposal decides on already holds the effects of those before it in the same batch, on a copy; the copy becomes
//! the shard when the store says that the batch is durable, and is thrown away otherwise (I9). An append whose
//! answer was lost is settled before anything else is done. Somebody else's claim ends the task.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ipam_core::record::Record;
use ipam_core::shard::Shard;
use ipam_core::shard::apply::ApplyError;
use ipam_core::spec::ShardSpec;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::Span;
use types::op::{Epoch, Seq, ShardId};
use types::time::Tick;

use crate::log::{Claim, IndexHolder, IndexKey, Replica};

mod building;
pub mod writer;

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
        let command = Command::Propose {
            decide,
            reply,
            span: Span::current(),
        };
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
        if self
            .commands
            .send(Command::HandOver { to, reply })
            .await
            .is_ok()
        {
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
        Some(snapshot) => {
            Shard::restore(spec, &snapshot.state).map_err(|e| LoadError::Snapshot {
                upto: snapshot.upto,
                why: e.to_string(),
            })?
        }
        None => Shard::new(spec),
    };
    for record in &claim.tail {
        let fail = |why: String| LoadError::Record {
            seq: record.seq,
            why,
        };
        let decoded = Record::decode(&record.data).map_err(|e| fail(e.to_string()))?;
        shard
            .apply(record.seq, &decoded)
            .map_err(|e| fail(e.to_string()))?;
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
