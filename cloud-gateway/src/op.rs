//! Each operation once: keys, tokens, epochs, and what runs or ran under which key.
//!
//! An operation is named by (authority, shard, sequence). Calls with the same name join the one that runs; a
//! finished one answers from memory; a call of an older owner of the shard is refused. Memory is lost at a restart,
//! which is safe: the verbs read back before they repeat, and tokens do not depend on memory.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ecs_api::sign::encode::hex;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::failure::Failure;
use crate::fence::Fence;
use crate::metrics::Metrics;

/// Bytes of a token, which is written with two hexadecimal digits for each; the cloud takes 64 characters.
const TOKEN_BYTES: usize = 24;
/// Shards whose epochs are remembered. Reason: an account has some thousands at most; bounds the memory that a
/// caller can make us use.
const MAX_SHARDS: usize = 65_536;

/// A shard of one IPAM deployment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ShardKey {
    /// The deployment.
    pub authority: String,
    /// The shard within it.
    pub shard: String,
}

/// Names an operation. The owner's epoch says who asks, not what is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpKey {
    /// Whose.
    pub shard: ShardKey,
    /// Number of the record in the shard's log that started it.
    pub sequence: u64,
    /// The asking owner's epoch.
    pub epoch: u64,
}

impl OpKey {
    /// The `ClientToken` of one step: the same for every owner of the shard that repeats it.
    pub fn client_token(&self, step: &str) -> String {
        let mut hash = Sha256::new();
        // Lengths go in front, so that no two keys give the same bytes.
        for part in [&self.shard.authority, &self.shard.shard, step] {
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(part.as_bytes());
        }
        hash.update(self.sequence.to_be_bytes());
        let digest = hash.finalize();
        hex(digest.get(..TOKEN_BYTES).unwrap_or(&digest))
    }

    fn id(&self) -> OpId {
        (self.shard.clone(), self.sequence)
    }
}

type OpId = (ShardKey, u64);

/// How an operation ended.
pub type Ended<T> = Result<T, Failure>;

struct Running<T> {
    fingerprint: [u8; 32],
    fence: Arc<Fence>,
    result: watch::Receiver<Option<Ended<T>>>,
}

struct State<T> {
    epochs: HashMap<ShardKey, u64>,
    running: HashMap<OpId, Running<T>>,
    finished: HashMap<OpId, ([u8; 32], T)>,
    order: VecDeque<OpId>,
}

/// What runs, what ended, and which epochs were seen.
pub struct Registry<T> {
    state: Mutex<State<T>>,
    max_running: usize,
    max_finished: usize,
    metrics: Arc<Metrics>,
}

impl<T> std::fmt::Debug for Registry<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("max_running", &self.max_running)
            .field("max_finished", &self.max_finished)
            .finish_non_exhaustive()
    }
}

/// What a call with a key has to do.
#[derive(Debug)]
pub enum Entry<T> {
    /// Run the operation.
    Run(Slot<T>),
    /// Another call runs it: wait for its end. A closed channel means that it died.
    Join(watch::Receiver<Option<Ended<T>>>),
    /// It ended well before.
    Done(T),
}

/// The right and the duty to run an operation. Dropped without [`Slot::finish`] it ends as if it had never begun,
/// and those who wait look again.
pub struct Slot<T> {
    registry: Arc<Registry<T>>,
    id: OpId,
    fingerprint: [u8; 32],
    fence: Arc<Fence>,
    result: watch::Sender<Option<Ended<T>>>,
    ended: Option<T>,
}

impl<T> std::fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl<T> Slot<T> {
    /// Tells the operation when its owner may send no more.
    pub fn fence(&self) -> Arc<Fence> {
        Arc::clone(&self.fence)
    }

    /// Where the end can be awaited.
    pub fn subscribe(&self) -> watch::Receiver<Option<Ended<T>>> {
        self.result.subscribe()
    }
}

impl<T: Clone> Slot<T> {
    /// Ends the operation. Only a good end is remembered: a failed one may be tried again.
    pub fn finish(mut self, ended: Ended<T>) {
        self.ended = ended.as_ref().ok().cloned();
        self.result.send_replace(Some(ended));
    }
}

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        let mut state = self.registry.lock();
        state.running.remove(&self.id);
        self.registry.metrics.running(state.running.len());
        if let Some(ended) = self.ended.take() {
            state.order.push_back(self.id.clone());
            state
                .finished
                .insert(self.id.clone(), (self.fingerprint, ended));
            while state.finished.len() > self.registry.max_finished {
                let Some(oldest) = state.order.pop_front() else {
                    break;
                };
                state.finished.remove(&oldest);
            }
        }
    }
}

impl<T: Clone> Registry<T> {
    /// Nothing runs, nothing ended. At most `max_running` operations run at a time, the last `max_finished` are
    /// remembered.
    pub fn new(max_running: usize, max_finished: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                epochs: HashMap::new(),
                running: HashMap::new(),
                finished: HashMap::new(),
                order: VecDeque::new(),
            }),
            max_running,
            max_finished,
            metrics,
        })
    }

    /// A call with `op` has come. `fingerprint` is the hash of what it asks for.
    ///
    /// # Errors
    /// [`Failure::EpochStale`], [`Failure::Invalid`] for a key that was used for something else,
    /// [`Failure::Overloaded`].
    pub fn enter(self: &Arc<Self>, op: &OpKey, fingerprint: [u8; 32]) -> Result<Entry<T>, Failure> {
        let mut state = self.lock();
        if let Some(running) = state.running.get(&op.id()) {
            running.fence.adopt(op.epoch);
        }
        raise_epoch(&mut state, &op.shard, op.epoch)?;
        let reused = || Failure::Invalid {
            what: format!(
                "operation {} of shard {} was asked for with other parameters before",
                op.sequence, op.shard.shard
            ),
        };
        if let Some((known, ended)) = state.finished.get(&op.id()) {
            self.metrics.joined();
            return (*known == fingerprint)
                .then(|| Entry::Done(ended.clone()))
                .ok_or_else(reused);
        }
        if let Some(running) = state.running.get(&op.id()) {
            self.metrics.joined();
            return (running.fingerprint == fingerprint)
                .then(|| Entry::Join(running.result.clone()))
                .ok_or_else(reused);
        }
        if state.running.len() >= self.max_running {
            return Err(Failure::Overloaded {
                what: format!("{} operations are running", state.running.len()),
                retry_after: Duration::from_secs(1),
            });
        }
        let fence = Fence::new(&op.shard.shard, op.epoch);
        let (result, receiver) = watch::channel(None);
        state.running.insert(
            op.id(),
            Running {
                fingerprint,
                fence: Arc::clone(&fence),
                result: receiver,
            },
        );
        self.metrics.running(state.running.len());
        drop(state);
        Ok(Entry::Run(Slot {
            registry: Arc::clone(self),
            id: op.id(),
            fingerprint,
            fence,
            result,
            ended: None,
        }))
    }

    /// A new owner of the shard announces itself: older ones send nothing from now on. Answers which of their
    /// operations have sent something already and are still being watched.
    ///
    /// # Errors
    /// [`Failure::EpochStale`] when a still newer owner was seen.
    pub fn fence(&self, shard: &ShardKey, epoch: u64) -> Result<Vec<u64>, Failure> {
        let mut state = self.lock();
        raise_epoch(&mut state, shard, epoch)?;
        let mut on_wire: Vec<_> = state
            .running
            .iter()
            .filter(|((of, _), running)| {
                of == shard && running.fence.epoch() < epoch && running.fence.was_sent()
            })
            .map(|((_, sequence), _)| *sequence)
            .collect();
        on_wire.sort_unstable();
        Ok(on_wire)
    }
}

impl<T> Registry<T> {
    /// What runs, and which epochs were seen: for people.
    pub fn dump(&self) -> serde_json::Value {
        let state = self.lock();
        let running: Vec<_> = state
            .running
            .iter()
            .map(|((shard, sequence), running)| {
                serde_json::json!({
                    "authority": shard.authority,
                    "shard": shard.shard,
                    "sequence": sequence,
                    "epoch": running.fence.epoch(),
                    "sent": running.fence.was_sent(),
                    "fenced": running.fence.is_raised(),
                })
            })
            .collect();
        let epochs: Vec<_> = state
            .epochs
            .iter()
            .map(|(shard, epoch)| {
                serde_json::json!({
                    "authority": shard.authority,
                    "shard": shard.shard,
                    "epoch": epoch,
                })
            })
            .collect();
        serde_json::json!({
            "running": running,
            "epochs": epochs,
            "remembered": state.finished.len(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn raise_epoch<T>(state: &mut State<T>, shard: &ShardKey, epoch: u64) -> Result<(), Failure> {
    let known = state.epochs.get(shard).copied();
    match known {
        Some(seen) if epoch < seen => {
            return Err(Failure::EpochStale {
                shard: shard.shard.clone(),
                epoch,
                seen,
            });
        }
        Some(seen) if epoch == seen => return Ok(()),
        None if state.epochs.len() >= MAX_SHARDS => {
            return Err(Failure::Overloaded {
                what: format!("{MAX_SHARDS} shards are known"),
                retry_after: Duration::from_mins(1),
            });
        }
        Some(_) | None => {
            state.epochs.insert(shard.clone(), epoch);
        }
    }
    for ((of, _), running) in &state.running {
        if of == shard && running.fence.epoch() < epoch {
            running.fence.raise(epoch);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
