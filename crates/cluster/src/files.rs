//! A folder of manifests and what its files say.
//!
//! Every `*.yaml`, `*.yml` and `*.json` file may hold several documents. A file that can not be read keeps what it
//! said last and is named once in the log. Changes are seen by inotify and, should a notification be lost, by a full
//! look every few seconds.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use inotify::{EventStream, Inotify, WatchMask};
use serde_json::Value;
use tokio::time::{Instant, Interval};

/// Time between full looks.
const FULL_LOOK: Duration = Duration::from_secs(5);
/// Largest manifest that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// A file whose looks are younger than this is read even if they are the same: clocks of file systems are coarse.
const SETTLED: Duration = Duration::from_secs(2);

/// The folder can not be a source.
#[derive(Debug, thiserror::Error)]
#[error("manifest folder {path}")]
pub struct FolderError {
    /// The folder.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: std::io::Error,
}

/// Takes one document: what it is to the reader, nothing when it is none of the reader's, or why it is wrong. A wrong
/// document makes its whole file wrong.
pub type Take<T> = fn(Value) -> Result<Option<T>, String>;

/// The files of a folder, each with what it said last.
pub struct Files<T> {
    path: PathBuf,
    take: Take<T>,
    notify: EventStream<[u8; 4096]>,
    every: Interval,
    hashes: RandomState,
    known: BTreeMap<PathBuf, FileState<T>>,
}

impl<T> std::fmt::Debug for Files<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files")
            .field("path", &self.path)
            .field("files", &self.known.len())
            .finish_non_exhaustive()
    }
}

/// The looks of a file: what tells whether it is still the one that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

#[derive(Debug)]
struct FileState<T> {
    documents: Vec<T>,
    /// The looks, and since when it has them.
    stamp: Option<(Stamp, Instant)>,
    /// It was read when it had had these looks for a while: the next change gives it others.
    settled: bool,
    text: Option<u64>,
    complained: bool,
}

impl<T> Default for FileState<T> {
    fn default() -> Self {
        Self {
            documents: Vec::new(),
            stamp: None,
            settled: false,
            text: None,
            complained: false,
        }
    }
}

impl<T> FileState<T> {
    /// The text of the file, or nothing when it can not have changed since it was read.
    fn read(&mut self, path: &Path) -> std::io::Result<Option<Vec<u8>>> {
        let metadata = std::fs::metadata(path)?;
        let stamp = Stamp {
            inode: metadata.ino(),
            bytes: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        let since = match self.stamp {
            Some((known, _)) if known == stamp && self.settled => return Ok(None),
            Some((known, since)) if known == stamp => since,
            Some(_) | None => Instant::now(),
        };
        self.stamp = Some((stamp, since));
        self.settled = since.elapsed() > SETTLED;
        if metadata.len() > MAX_FILE {
            return Err(std::io::Error::other("larger than 4 MiB"));
        }
        std::fs::read(path).map(Some)
    }
}

impl<T> Files<T> {
    /// Watches the folder; nothing is read before the first [`Files::look`].
    ///
    /// # Errors
    /// [`FolderError`] when the folder is not there or can not be watched.
    pub fn open(path: &Path, take: Take<T>) -> Result<Self, FolderError> {
        let fail = |source: std::io::Error| FolderError {
            path: path.to_owned(),
            source,
        };
        std::fs::read_dir(path).map_err(fail)?;
        let inotify = Inotify::init().map_err(fail)?;
        let changes = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE;
        inotify.watches().add(path, changes).map_err(fail)?;
        let notify = inotify.into_event_stream([0; 4096]).map_err(fail)?;
        let mut every = tokio::time::interval(FULL_LOOK);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Ok(Self {
            path: path.to_owned(),
            take,
            notify,
            every,
            hashes: RandomState::new(),
            known: BTreeMap::new(),
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until the folder may have changed.
    ///
    /// # Cancel safety
    /// Cancel-safe: a notification that is lost is made up for by the periodic look.
    pub async fn changed(&mut self) {
        tokio::select! {
            biased;
            // The event only says that something changed; the look says what.
            event = self.notify.next() => if !matches!(event, Some(Ok(_))) {
                tracing::warn!("a change notification was lost; looking periodically");
                self.every.tick().await;
            },
            _ = self.every.tick() => {}
        }
        // Whatever is already known is seen by the same look.
        while let Some(Some(Ok(_))) = self.notify.next().now_or_never() {}
    }

    /// Reads what has changed. False: the folder itself could not be read, and everything stays as it was.
    pub fn look(&mut self) -> bool {
        let paths = match list(&self.path) {
            Ok(paths) => paths,
            Err(error) => {
                // Losing the folder for a moment must not look like the end of everything in it.
                tracing::warn!(path = %self.path.display(), %error, "manifest folder unreadable");
                return false;
            }
        };
        // Both are sorted: what is no longer listed goes.
        self.known
            .retain(|path, _| paths.binary_search(path).is_ok());
        for path in paths {
            let state = self.known.entry(path.clone()).or_default();
            match state.read(&path) {
                Ok(None) => {}
                Ok(Some(text)) => {
                    let hash = self.hashes.hash_one(&text);
                    if state.text.replace(hash) != Some(hash) {
                        keep(&path, state, parse(&text, self.take));
                    }
                }
                // Deleted since it was listed: gone, as if it had never been on the list.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.known.remove(&path);
                }
                Err(error) => {
                    state.settled = false;
                    complain(&path, state, &error.to_string());
                }
            }
        }
        true
    }

    /// Everything that the files say, by file name and then by place in the file.
    pub fn documents(&self) -> impl Iterator<Item = &T> {
        self.known.values().flat_map(|file| &file.documents)
    }

    /// As [`Files::documents`], with the file of each, to take parts out.
    pub fn documents_mut(&mut self) -> impl Iterator<Item = (&Path, &mut T)> {
        self.known.iter_mut().flat_map(|(path, file)| {
            let path = path.as_path();
            file.documents.iter_mut().map(move |one| (path, one))
        })
    }

    /// Makes the next look read a file again even if it has not changed.
    pub fn forget(&mut self, path: &Path) {
        if let Some(state) = self.known.get_mut(path) {
            state.settled = false;
            state.text = None;
        }
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

fn list(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        if matches!(
            path.extension().and_then(|e| e.to_str()),
            Some("yaml" | "yml" | "json")
        ) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn parse<T>(text: &[u8], take: Take<T>) -> Result<Vec<T>, String> {
    let text = std::str::from_utf8(text).map_err(|e| e.to_string())?;
    let values: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|e| e.to_string())?;
    let mut documents = Vec::new();
    for value in values {
        if value.is_null() {
            continue;
        }
        if value.get("kind").and_then(Value::as_str).is_none() {
            return Err("a document has no kind".to_owned());
        }
        documents.extend(take(value)?);
    }
    Ok(documents)
}

fn keep<T>(path: &Path, state: &mut FileState<T>, parsed: Result<Vec<T>, String>) {
    state.complained = false;
    match parsed {
        Ok(documents) => state.documents = documents,
        Err(why) => complain(path, state, &why),
    }
}

fn complain<T>(path: &Path, state: &mut FileState<T>, why: &str) {
    if !state.complained {
        state.complained = true;
        tracing::warn!(path = %path.display(), why, "manifest not read; its last state stays");
    }
}
