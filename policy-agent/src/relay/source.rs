//! The state of the cluster as frames, and the newest changes.
//!
//! What all streams share is held once: each object encoded, the whole state as a row of frames (made when a stream
//! begins and the last row is too old), and a log of the newest frames. A stream is a place in the log. It has no
//! queue: one whose place falls out of the log is cut off and begins anew.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use cluster::documents::Change;
use policy_core::object::ObjectKey;
use prost::Message as _;
use tokio::sync::watch;

use crate::relay::wire;

/// Bounds of a source, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest frame; a single larger change still makes a frame of its own.
    pub frame: usize,
    /// How much of the newest changes is kept for streams that lag.
    pub log: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame: 256 << 10,
            log: 16 << 20,
        }
    }
}

/// So many frames are quickly sent: a state that is this old is not made anew for them.
const FEW: u64 = 64;

/// A place in the log that is no longer there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream fell behind the changes that are kept")]
pub struct TooSlow;

/// The state of the cluster for streams. Clones share it.
#[derive(Debug, Clone)]
pub struct Source {
    state: Arc<Mutex<State>>,
    /// Sequence of the newest frame, and whether all is there.
    head: Arc<watch::Sender<Head>>,
    limits: Limits,
}

/// How far a source is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Head {
    /// Sequence of the newest frame.
    pub sequence: u64,
    /// The state is whole: it may be sent.
    pub synced: bool,
}

/// The whole state at one moment.
#[derive(Debug)]
pub struct Base {
    /// Of the newest change in it.
    pub sequence: u64,
    /// The frames: the last one says `synced` and carries the sequence, those before it carry 0.
    pub frames: Vec<Bytes>,
}

#[derive(Debug)]
struct State {
    objects: HashMap<ObjectKey, Bytes>,
    base: Option<Arc<Base>>,
    /// Frames with consecutive sequences, the newest last.
    log: VecDeque<Bytes>,
    log_bytes: usize,
    head: Head,
    seen_at_ms: u64,
}

impl Source {
    /// A source with nothing in it. Sequences begin above the present time in microseconds, so that they grow across
    /// restarts.
    pub fn new(limits: Limits) -> Self {
        let head = Head {
            sequence: mesh::clock::wall_ms().saturating_mul(1_000),
            synced: false,
        };
        Self {
            state: Arc::new(Mutex::new(State {
                objects: HashMap::new(),
                base: None,
                log: VecDeque::new(),
                log_bytes: 0,
                head,
                seen_at_ms: 0,
            })),
            head: Arc::new(watch::Sender::new(head)),
            limits,
        }
    }

    /// Takes changes that belong together, from one publisher, and says the sequence after which an agent has all of them. Changes that
    /// change nothing make no frame. `seen_at_ms` is when the watcher saw the newest of them, in milliseconds since
    /// the epoch; 0 when unknown.
    pub fn publish(&self, changes: &[Change], seen_at_ms: u64) -> u64 {
        // Reading documents takes longer than noting them: not under the lock.
        let encoded: Vec<(ObjectKey, bool, Bytes)> = changes
            .iter()
            .filter_map(|change| {
                let (key, message) = wire::encode(change)?;
                let there = matches!(change, Change::Upsert(_));
                Some((key, there, Bytes::from(message.encode_to_vec())))
            })
            .collect();
        let mut state = self.lock();
        let mut fresh = Vec::with_capacity(encoded.len());
        for (key, there, bytes) in encoded {
            let differs = if there {
                state.objects.insert(key, bytes.clone()).as_ref() != Some(&bytes)
            } else {
                state.objects.remove(&key).is_some()
            };
            if differs {
                fresh.push(bytes);
            }
        }
        state.seen_at_ms = state.seen_at_ms.max(seen_at_ms);
        for frame in pieces(fresh, self.limits.frame) {
            state.append(frame, seen_at_ms, self.limits.log);
        }
        let head = state.head;
        drop(state);
        self.announce(head);
        head.sequence
    }

    /// Says that all objects have been published once: streams that wait begin now.
    pub fn set_synced(&self) {
        let mut state = self.lock();
        state.head.synced = true;
        let head = state.head;
        drop(state);
        self.announce(head);
    }

    /// How far the source is.
    pub fn head(&self) -> Head {
        *self.head.borrow()
    }

    /// Follows [`Source::head`].
    pub fn watch(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    /// How many objects there are.
    pub fn objects(&self) -> usize {
        self.lock().objects.len()
    }

    /// The whole state, from which a stream goes on by [`Source::after`] with its sequence. Shared by all streams
    /// that begin while the log reaches back to it.
    pub fn base(&self) -> Arc<Base> {
        let mut state = self.lock();
        if let Some(base) = &state.base
            && state.is_young(base.sequence)
        {
            return Arc::clone(base);
        }
        let base = Arc::new(state.snapshot(self.limits.frame));
        state.base = Some(Arc::clone(&base));
        base
    }

    /// The frame that follows the one with this sequence; nothing when that is the newest.
    ///
    /// # Errors
    /// [`TooSlow`] when it is no longer in the log.
    pub fn after(&self, sequence: u64) -> Result<Option<Bytes>, TooSlow> {
        let state = self.lock();
        if !state.reaches(sequence) {
            return Err(TooSlow);
        }
        let Some(back) = state.head.sequence.checked_sub(sequence) else {
            return Err(TooSlow);
        };
        let place = usize::try_from(back)
            .ok()
            .and_then(|back| state.log.len().checked_sub(back));
        Ok(place.and_then(|place| state.log.get(place)).cloned())
    }

    /// Whether a stream at this place can still go on.
    pub fn reaches(&self, sequence: u64) -> bool {
        self.lock().reaches(sequence)
    }

    fn announce(&self, head: Head) {
        self.head.send_if_modified(|old| {
            // Two publishers may come here in either order.
            let newer = head.sequence > old.sequence || (head.synced && !old.synced);
            if newer {
                old.sequence = old.sequence.max(head.sequence);
                old.synced |= head.synced;
            }
            newer
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No step in here leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn append(&mut self, changes: Vec<Bytes>, seen_at_ms: u64, log_max: usize) {
        self.head.sequence = self.head.sequence.saturating_add(1);
        let frame = wire::frame(self.head.sequence, true, changes, seen_at_ms);
        self.log_bytes += frame.len();
        self.log.push_back(frame);
        // The newest frame stays whatever its size: streams that are up to date must get it.
        while self.log_bytes > log_max && self.log.len() > 1 {
            let Some(old) = self.log.pop_front() else {
                break;
            };
            self.log_bytes -= old.len();
        }
    }

    /// Whether the frame after this one, if there is one, is in the log.
    fn reaches(&self, sequence: u64) -> bool {
        let kept = u64::try_from(self.log.len()).unwrap_or(u64::MAX);
        sequence >= self.head.sequence.saturating_sub(kept)
    }

    /// Whether a stream that begins with a state of this sequence has time to read it.
    fn is_young(&self, sequence: u64) -> bool {
        let behind = self.head.sequence.saturating_sub(sequence);
        let kept = u64::try_from(self.log.len()).unwrap_or(u64::MAX);
        self.reaches(sequence) && (behind <= FEW || behind <= kept / 2)
    }

    fn snapshot(&self, frame_max: usize) -> Base {
        let sequence = self.head.sequence;
        let mut pieces = pieces(self.objects.values().cloned(), frame_max);
        let last = pieces.pop().unwrap_or_default();
        let mut frames: Vec<Bytes> = pieces
            .into_iter()
            .map(|changes| wire::frame(0, false, changes, self.seen_at_ms))
            .collect();
        frames.push(wire::frame(sequence, true, last, self.seen_at_ms));
        Base { sequence, frames }
    }
}

/// Cuts a row of encoded changes into rows that fit into a frame.
fn pieces(changes: impl IntoIterator<Item = Bytes>, frame_max: usize) -> Vec<Vec<Bytes>> {
    let mut pieces: Vec<Vec<Bytes>> = Vec::new();
    let mut room = 0;
    for change in changes {
        match pieces.last_mut() {
            Some(piece) if change.len() <= room => {
                room -= change.len();
                piece.push(change);
            }
            Some(_) | None => {
                room = frame_max.saturating_sub(change.len());
                pieces.push(vec![change]);
            }
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use cluster::documents::DocumentKey;
    use proto::policy::v1::WatchFrame;
    use serde_json::json;

    use super::*;

    fn namespace(name: &str, label: &str) -> Change {
        Change::Upsert(json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"l": label}},
        }))
    }

    fn gone(name: &str) -> Change {
        Change::Delete(DocumentKey {
            api_version: "v1".to_owned(),
            kind: "Namespace".to_owned(),
            namespace: String::new(),
            name: name.to_owned(),
        })
    }

    fn read(frame: &Bytes) -> WatchFrame {
        WatchFrame::decode(frame.clone()).unwrap()
    }

    #[test]
    fn change_that_changes_nothing_makes_no_frame() {
        let source = Source::new(Limits::default());
        let first = source.publish(&[namespace("a", "x")], 1);

        assert_eq!(source.publish(&[namespace("a", "x")], 2), first);
        assert_eq!(source.publish(&[gone("b")], 3), first);
        assert_eq!(source.publish(&[namespace("a", "y")], 4), first + 1);
        assert_eq!(source.publish(&[gone("a")], 5), first + 2);
        assert_eq!(source.objects(), 0);
    }

    #[test]
    fn only_the_last_frame_of_the_state_says_synced() {
        let source = Source::new(Limits {
            frame: 64,
            ..Limits::default()
        });
        let all: Vec<_> = (0..20).map(|n| namespace(&format!("n{n}"), "x")).collect();
        let sequence = source.publish(&all, 9);

        let base = source.base();

        let frames: Vec<_> = base.frames.iter().map(read).collect();
        let (last, rest) = frames.split_last().unwrap();
        assert!(rest.len() > 2 && rest.iter().all(|f| !f.synced && f.sequence == 0));
        assert!(last.synced && last.sequence == sequence && last.seen_at_ms == 9);
        assert_eq!(frames.iter().map(|f| f.changes.len()).sum::<usize>(), 20);
    }

    #[test]
    fn state_of_an_empty_cluster_is_one_synced_frame() {
        let base = Source::new(Limits::default()).base();

        assert_eq!(base.frames.len(), 1);
        assert!(read(&base.frames[0]).synced);
    }

    #[test]
    fn stream_follows_the_frames_of_the_log_one_by_one() {
        let source = Source::new(Limits::default());
        let start = source.base().sequence;
        source.publish(&[namespace("a", "x")], 0);
        source.publish(&[namespace("b", "x")], 0);

        let first = source.after(start).unwrap().unwrap();
        let second = source.after(start + 1).unwrap().unwrap();

        assert_eq!(read(&first).sequence, start + 1);
        assert_eq!(read(&second).sequence, start + 2);
        assert_eq!(source.after(start + 2), Ok(None));
        assert_eq!(source.after(start + 3), Err(TooSlow));
    }

    #[test]
    fn stream_that_falls_out_of_the_log_is_too_slow() {
        let source = Source::new(Limits {
            log: 200,
            ..Limits::default()
        });
        let start = source.base().sequence;
        for n in 0..50 {
            source.publish(&[namespace("a", &n.to_string())], 0);
        }

        assert_eq!(source.after(start), Err(TooSlow));
        let again = source.base();
        assert_eq!(again.sequence, start + 50);
        assert_eq!(source.after(again.sequence), Ok(None));
    }

    #[test]
    fn streams_that_begin_soon_after_each_other_share_the_state() {
        let source = Source::new(Limits::default());
        source.publish(&[namespace("a", "x")], 0);
        let first = source.base();
        source.publish(&[namespace("b", "x")], 0);

        let second = source.base();

        assert!(Arc::ptr_eq(&first, &second));
        assert!(source.after(second.sequence).unwrap().is_some());
    }
}
