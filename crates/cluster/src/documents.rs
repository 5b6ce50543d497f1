//! All documents of the kinds asked for, as changes.
//!
//! The reader is waited for: the channel is short, and a look at the folder that finds much is told in several
//! batches. Of two documents that name the same object the one in the file that sorts last counts.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::files::{Files, FolderError};

/// Changes in one batch, at most.
pub const BATCH_MAX: usize = 1_024;
/// Batches that wait for the reader, at most.
const DEPTH: usize = 4;

/// Whether the reader wants documents of this `apiVersion` and `kind`.
pub type Wanted = fn(api_version: &str, kind: &str) -> bool;

/// Which object a document is about. Fields that the document does not have are empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DocumentKey {
    /// `apiVersion`.
    pub api_version: String,
    /// `kind`.
    pub kind: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl DocumentKey {
    /// The key of a document.
    pub fn of(document: &Value) -> Self {
        let text = |pointer: &str| {
            let found = document.pointer(pointer).and_then(Value::as_str);
            found.unwrap_or_default().to_owned()
        };
        Self {
            api_version: text("/apiVersion"),
            kind: text("/kind"),
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
        }
    }
}

/// What happened to one object.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The document is now so.
    Upsert(Value),
    /// There is no document any more.
    Delete(DocumentKey),
}

/// Changes that were found together.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Grows by one with each batch, from 1.
    pub number: u64,
    /// With this batch the reader has everything that was there at the first look.
    pub synced: bool,
    /// Changes; each object at most once. Empty only in the batch that says for the first time that all is there.
    pub changes: Vec<Change>,
}

/// The reader's end.
#[derive(Debug)]
pub struct Documents {
    batches: mpsc::Receiver<Batch>,
}

impl Documents {
    /// The next batch; `None` when the source is gone.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Batch> {
        self.batches.recv().await
    }
}

/// Both ends of a stream of batches.
pub(crate) fn channel() -> (mpsc::Sender<Batch>, Documents) {
    let (out, batches) = mpsc::channel(DEPTH);
    (out, Documents { batches })
}

/// A document until it was told.
#[derive(Debug)]
struct Entry {
    key: Arc<DocumentKey>,
    hash: u64,
    /// Taken out when it is told: what was told is not kept.
    value: Option<Value>,
}

/// Watches a folder for documents.
#[derive(Debug)]
pub struct DocumentSource {
    files: Files<Entry>,
    wanted: Wanted,
    told: HashMap<Arc<DocumentKey>, u64>,
    number: u64,
    synced: bool,
    out: mpsc::Sender<Batch>,
}

impl DocumentSource {
    /// Opens the folder; the first look is taken by [`DocumentSource::run`].
    ///
    /// # Errors
    /// [`FolderError`] when the folder is not there or can not be watched.
    pub fn open(path: &Path, wanted: Wanted) -> Result<(Self, Documents), FolderError> {
        let (out, documents) = channel();
        let source = Self {
            files: Files::open(path, take)?,
            wanted,
            told: HashMap::new(),
            number: 0,
            synced: false,
            out,
        };
        Ok((source, documents))
    }

    /// Follows the folder until `drain` is cancelled or nobody reads any more.
    pub async fn run(mut self, drain: CancellationToken) {
        loop {
            let changes = self.look();
            let told = tokio::select! {
                biased;
                () = drain.cancelled() => return,
                told = self.tell(changes) => told,
            };
            if !told {
                // The reader is gone for good; who reads ends with the same drain.
                drain.cancelled().await;
                return;
            }
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                () = self.files.changed() => {}
            }
        }
    }

    /// What differs from what was told, `None` when the folder could not be read.
    fn look(&mut self) -> Option<Vec<Change>> {
        if !self.files.look() {
            return None;
        }
        let mut again = BTreeSet::new();
        let mut changes = self.compare(&mut again);
        if !again.is_empty() {
            // A document came out from behind another one of the same name, and was not kept.
            for path in &again {
                self.files.forget(path);
            }
            self.files.look();
            changes.extend(self.compare(&mut again));
        }
        Some(changes)
    }

    fn compare(&mut self, again: &mut BTreeSet<PathBuf>) -> Vec<Change> {
        let wanted = self.wanted;
        let mut winners: HashMap<Arc<DocumentKey>, (&Path, &mut Entry)> = HashMap::new();
        for (path, entry) in self.files.documents_mut() {
            if wanted(&entry.key.api_version, &entry.key.kind) {
                winners.insert(Arc::clone(&entry.key), (path, entry));
            } else {
                entry.value = None;
            }
        }
        let mut changes = Vec::new();
        self.told.retain(|key, _| {
            let stays = winners.contains_key(key);
            if !stays {
                changes.push(Change::Delete(DocumentKey::clone(key)));
            }
            stays
        });
        // In the order of their keys, so that two looks at the same folder tell the same.
        let mut winners: Vec<_> = winners.into_iter().collect();
        winners.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (key, (path, entry)) in winners {
            if self.told.get(&key) == Some(&entry.hash) {
                entry.value = None;
                continue;
            }
            match entry.value.take() {
                Some(value) => {
                    self.told.insert(key, entry.hash);
                    changes.push(Change::Upsert(value));
                }
                None => {
                    again.insert(path.to_owned());
                }
            }
        }
        changes
    }

    /// False when nobody reads.
    async fn tell(&mut self, changes: Option<Vec<Change>>) -> bool {
        let Some(mut rest) = changes else {
            return true;
        };
        if rest.is_empty() && self.synced {
            return true;
        }
        loop {
            let next = rest.split_off(rest.len().min(BATCH_MAX));
            let last = next.is_empty();
            self.synced |= last;
            self.number = self.number.saturating_add(1);
            let batch = Batch {
                number: self.number,
                synced: self.synced,
                changes: rest,
            };
            if self.out.send(batch).await.is_err() {
                return false;
            }
            if last {
                return true;
            }
            rest = next;
        }
    }
}

fn take(document: Value) -> Result<Option<Entry>, String> {
    let key = Arc::new(DocumentKey::of(&document));
    if key.name.is_empty() {
        return Err(format!("a document of kind {} has no name", key.kind));
    }
    let mut hash = DefaultHasher::new();
    document.to_string().hash(&mut hash);
    Ok(Some(Entry {
        key,
        hash: hash.finish(),
        value: Some(document),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything(_: &str, _: &str) -> bool {
        true
    }

    fn pods(_: &str, kind: &str) -> bool {
        kind == "Pod"
    }

    fn document(kind: &str, name: &str, label: &str) -> String {
        format!(
            "apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}, labels: {{l: {label}}}}}\n"
        )
    }

    fn write(dir: &Path, file: &str, text: &str) {
        std::fs::write(dir.join(file), text).unwrap();
    }

    fn source(dir: &Path, wanted: Wanted) -> (DocumentSource, Documents) {
        DocumentSource::open(dir, wanted).unwrap()
    }

    /// Runs the source until `read` is done; long before the first minute is over.
    async fn with_source<T>(source: DocumentSource, read: impl Future<Output = T>) -> T {
        let drain = CancellationToken::new();
        let limit = std::time::Duration::from_mins(1);
        let read = async {
            let read = tokio::time::timeout(limit, read).await;
            drain.cancel();
            read
        };
        tokio::join!(source.run(drain.clone()), read).1.unwrap()
    }

    fn names(changes: &[Change]) -> Vec<String> {
        let name = |change: &Change| match change {
            Change::Upsert(value) => format!("+{}", DocumentKey::of(value).name),
            Change::Delete(key) => format!("-{}", key.name),
        };
        changes.iter().map(name).collect()
    }

    #[tokio::test]
    async fn documents_of_kinds_nobody_asked_for_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let two = format!(
            "{}---\n{}",
            document("Pod", "a", "x"),
            document("Node", "b", "x")
        );
        write(dir.path(), "p.yaml", &two);
        let (mut source, _documents) = source(dir.path(), pods);

        assert_eq!(names(&source.look().unwrap()), ["+a"]);
    }

    #[tokio::test]
    async fn second_look_tells_only_what_changed() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.yaml", &document("Pod", "a", "x"));
        write(dir.path(), "b.yaml", &document("Pod", "b", "x"));
        write(dir.path(), "c.yaml", &document("Pod", "c", "x"));
        let (mut source, _documents) = source(dir.path(), everything);
        assert_eq!(names(&source.look().unwrap()), ["+a", "+b", "+c"]);

        write(dir.path(), "b.yaml", &document("Pod", "b", "y"));
        std::fs::remove_file(dir.path().join("c.yaml")).unwrap();

        assert_eq!(names(&source.look().unwrap()), ["-c", "+b"]);
        assert!(source.look().unwrap().is_empty());
    }

    #[tokio::test]
    async fn broken_file_keeps_what_it_said_before() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.yaml", &document("Pod", "a", "x"));
        let (mut source, _documents) = source(dir.path(), everything);
        source.look().unwrap();

        write(dir.path(), "a.yaml", "kind: [");

        assert!(source.look().unwrap().is_empty());
    }

    #[tokio::test]
    async fn object_in_two_files_is_as_the_last_file_says_until_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "1.yaml", &document("Pod", "a", "first"));
        let (mut source, _documents) = source(dir.path(), everything);
        let label = |changes: Option<Vec<Change>>| match changes.unwrap().as_slice() {
            [Change::Upsert(value)] => value["metadata"]["labels"]["l"].clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(label(source.look()), "first");

        write(dir.path(), "2.yaml", &document("Pod", "a", "second"));
        assert_eq!(label(source.look()), "second");
        std::fs::remove_file(dir.path().join("2.yaml")).unwrap();

        assert_eq!(label(source.look()), "first");
    }

    #[tokio::test]
    async fn folder_without_documents_is_synced_by_an_empty_batch() {
        let dir = tempfile::tempdir().unwrap();
        let (source, mut documents) = source(dir.path(), everything);

        let batch = with_source(source, documents.next()).await;

        let expected = Batch {
            number: 1,
            synced: true,
            changes: Vec::new(),
        };
        assert_eq!(batch, Some(expected));
    }

    #[tokio::test]
    async fn first_look_is_synced_with_its_last_batch() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..=BATCH_MAX {
            let name = format!("p{n}");
            write(
                dir.path(),
                &format!("{name}.yaml"),
                &document("Pod", &name, "x"),
            );
        }
        let (source, mut documents) = source(dir.path(), everything);

        let (first, second) = with_source(source, async {
            let first = documents.next().await.unwrap();
            let second = documents.next().await.unwrap();
            (first, second)
        })
        .await;

        assert_eq!(
            (first.number, first.synced, first.changes.len()),
            (1, false, BATCH_MAX)
        );
        assert_eq!(
            (second.number, second.synced, second.changes.len()),
            (2, true, 1)
        );
    }

    #[tokio::test]
    async fn document_that_is_written_later_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let (source, mut documents) = source(dir.path(), everything);

        let batch = with_source(source, async {
            documents.next().await.unwrap();
            write(dir.path(), "a.yaml", &document("Pod", "a", "x"));
            documents.next().await.unwrap()
        })
        .await;

        assert_eq!(names(&batch.changes), ["+a"]);
    }
}
