//! Each operation once: keys, tokens, epochs, and what runs or ran under which key.
//!
//! An operation is named by (authority, shard, sequence). Calls with the same name join the one that runs; a
//! finished one answers from memory; a call of an older owner of the shard is refused. Memory is lost at a restart,
//! which is safe: the verbs read back before they repeat, and tokens do not depend on memory.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ecs_api::sign::encode::hex;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
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

/// Whether the owner that an operation works for may still send.
///
/// Reads go on after a fence: what is on the wire should still be seen to its end.
#[derive(Debug)]
pub struct Fence {
    shard: String,
    epoch: AtomicU64,
    seen: AtomicU64,
    raised: CancellationToken,
    sent: AtomicBool,
}

impl Fence {
    fn new(op: &OpKey) -> Arc<Self> {
        Arc::new(Self {
            shard: op.shard.shard.clone(),
            epoch: AtomicU64::new(op.epoch),
            seen: AtomicU64::new(op.epoch),
            raised: CancellationToken::new(),
            sent: AtomicBool::new(false),
        })
    }

    /// Resolves when a newer owner was seen.
    pub async fn raised(&self) {
        self.raised.cancelled().await;
    }

    /// Whether a newer owner was seen.
    pub fn is_raised(&self) -> bool {
        self.raised.is_cancelled()
    }

    /// Notes that a write left this process: from now on the operation counts as on the wire.
    pub fn note_sent(&self) {
        self.sent.store(true, Ordering::Relaxed);
    }

    /// Whether a write left this process.
    pub fn was_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }

    /// Shard, epoch of the operation, highest epoch seen.
    pub fn facts(&self) -> (String, u64, u64) {
        (
            self.shard.clone(),
            self.epoch.load(Ordering::Relaxed),
            self.seen.load(Ordering::Relaxed),
        )
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// A newer owner asks for the same operation: it goes on in the newer owner's name.
    fn adopt(&self, epoch: u64) {
        self.epoch.fetch_max(epoch, Ordering::Relaxed);
        self.seen.fetch_max(epoch, Ordering::Relaxed);
    }

    fn raise(&self, seen: u64) {
        self.seen.fetch_max(seen, Ordering::Relaxed);
        self.raised.cancel();
    }
}

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
        let fence = Fence::new(op);
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn op(sequence: u64, epoch: u64) -> OpKey {
        OpKey {
            shard: ShardKey {
                authority: "cluster-a".to_owned(),
                shard: "vsw-1.0".to_owned(),
            },
            sequence,
            epoch,
        }
    }

    fn registry(max_running: usize, max_finished: usize) -> Arc<Registry<u32>> {
        Registry::new(max_running, max_finished, Arc::new(Metrics::default()))
    }

    fn run(registry: &Arc<Registry<u32>>, op: &OpKey) -> Slot<u32> {
        let Entry::Run(slot) = registry.enter(op, [0; 32]).unwrap() else {
            panic!("runs or ran already");
        };
        slot
    }

    #[test]
    fn token_is_the_same_for_every_owner_of_the_shard() {
        assert_eq!(
            op(7, 1).client_token("create"),
            op(7, 2).client_token("create")
        );
    }

    #[test]
    fn token_differs_by_step_sequence_shard_and_authority() {
        let base = op(7, 1);
        let mut other_shard = base.clone();
        other_shard.shard.shard = "vsw-1.1".to_owned();
        let mut other_authority = base.clone();
        other_authority.shard.authority = "cluster-b".to_owned();

        let tokens = [
            base.client_token("create"),
            base.client_token("assign"),
            op(8, 1).client_token("create"),
            other_shard.client_token("create"),
            other_authority.client_token("create"),
        ];

        for (n, token) in tokens.iter().enumerate() {
            assert!(!tokens[n + 1..].contains(token), "{tokens:?}");
        }
    }

    proptest! {
        #[test]
        fn token_is_short_ascii_whatever_the_key(
            authority in ".*", shard in ".*", step in ".*", sequence: u64,
        ) {
            let op = OpKey { shard: ShardKey { authority, shard }, sequence, epoch: 0 };

            let token = op.client_token(&step);

            prop_assert!(token.len() <= 64 && token.bytes().all(|b| b.is_ascii_hexdigit()));
        }
    }

    #[test]
    fn call_with_the_key_of_a_running_operation_joins_it() {
        let registry = registry(10, 10);
        let slot = run(&registry, &op(1, 1));

        let second = registry.enter(&op(1, 1), [0; 32]).unwrap();
        slot.finish(Ok(5));

        let Entry::Join(result) = second else {
            panic!("{second:?}");
        };
        assert_eq!(*result.borrow(), Some(Ok(5)));
    }

    #[test]
    fn finished_operation_answers_without_running_again() {
        let registry = registry(10, 10);
        run(&registry, &op(1, 1)).finish(Ok(5));

        assert!(matches!(
            registry.enter(&op(1, 1), [0; 32]),
            Ok(Entry::Done(5))
        ));
    }

    #[test]
    fn failed_operation_may_be_tried_again() {
        let registry = registry(10, 10);
        run(&registry, &op(1, 1)).finish(Err(Failure::Unavailable {
            what: String::new(),
        }));

        assert!(matches!(
            registry.enter(&op(1, 1), [0; 32]),
            Ok(Entry::Run(_))
        ));
    }

    #[test]
    fn key_with_other_parameters_is_refused() {
        let registry = registry(10, 10);
        let slot = run(&registry, &op(1, 1));
        assert!(matches!(
            registry.enter(&op(1, 1), [1; 32]),
            Err(Failure::Invalid { .. })
        ));

        slot.finish(Ok(5));

        assert!(matches!(
            registry.enter(&op(1, 1), [1; 32]),
            Err(Failure::Invalid { .. })
        ));
    }

    // I: the second line of the fence: the work of older owners is dropped at the gateway.
    #[test]
    fn older_epoch_after_a_newer_one_is_stale() {
        let registry = registry(10, 10);
        run(&registry, &op(1, 5)).finish(Ok(1));

        let refused = registry.enter(&op(2, 4), [0; 32]);

        assert!(
            matches!(
                refused,
                Err(Failure::EpochStale {
                    epoch: 4,
                    seen: 5,
                    ..
                })
            ),
            "{refused:?}"
        );
    }

    #[test]
    fn fence_drops_the_queued_and_names_what_was_sent() {
        let registry = registry(10, 10);
        let queued = run(&registry, &op(1, 1));
        let sent = run(&registry, &op(2, 1));
        sent.fence().note_sent();

        let on_wire = registry.fence(&op(0, 0).shard, 2).unwrap();

        assert_eq!(on_wire, [2]);
        assert!(queued.fence().is_raised() && sent.fence().is_raised());
        assert!(registry.fence(&op(0, 0).shard, 1).is_err());
    }

    #[test]
    fn operation_that_the_new_owner_asks_for_too_goes_on() {
        let registry = registry(10, 10);
        let same = run(&registry, &op(1, 1));
        let other = run(&registry, &op(2, 1));

        assert!(matches!(
            registry.enter(&op(1, 2), [0; 32]),
            Ok(Entry::Join(_))
        ));

        assert!(!same.fence().is_raised());
        assert!(other.fence().is_raised());
    }

    #[test]
    fn operation_that_died_leaves_its_key_free() {
        let registry = registry(10, 10);
        let slot = run(&registry, &op(1, 1));
        let waiting = slot.subscribe();

        drop(slot);

        assert!(waiting.has_changed().is_err());
        assert!(matches!(
            registry.enter(&op(1, 1), [0; 32]),
            Ok(Entry::Run(_))
        ));
    }

    #[test]
    fn more_operations_than_may_run_are_shed() {
        let registry = registry(1, 10);
        let _slot = run(&registry, &op(1, 1));

        assert!(matches!(
            registry.enter(&op(2, 1), [0; 32]),
            Err(Failure::Overloaded { .. })
        ));
    }

    #[test]
    fn memory_of_finished_operations_is_bounded() {
        let registry = registry(10, 2);
        for sequence in 1..=3 {
            run(&registry, &op(sequence, 1)).finish(Ok(5));
        }

        assert!(matches!(
            registry.enter(&op(1, 1), [0; 32]),
            Ok(Entry::Run(_))
        ));
        assert!(matches!(
            registry.enter(&op(3, 1), [0; 32]),
            Ok(Entry::Done(5))
        ));
    }
}
