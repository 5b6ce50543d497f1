//! Reads what a source tells, and holds it to what every source promises.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cluster::documents::{Batch, Change, DocumentKey, Documents};
use cluster::pods::{PodSet, Pods};
use futures::future::BoxFuture;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// Longest time for anything, on a machine that is busy.
pub(crate) const LIMIT: Duration = Duration::from_mins(2);

/// Runs a source until told to end.
pub(crate) type Run = Box<dyn FnOnce(CancellationToken) -> BoxFuture<'static, ()>>;

/// Runs a source until `read` is done.
pub(crate) async fn while_running<T>(run: Run, read: impl Future<Output = T>) -> T {
    let drain = CancellationToken::new();
    let read = async {
        let read = tokio::time::timeout(LIMIT, read).await;
        drain.cancel();
        read
    };
    let ((), read) = tokio::join!(run(drain.clone()), read);
    read.expect("in time")
}

/// What a reader of documents knows.
#[derive(Debug)]
pub(crate) struct Reader {
    documents: Documents,
    /// The objects, as told.
    pub(crate) state: BTreeMap<DocumentKey, Value>,
    /// Number of the last batch.
    pub(crate) number: u64,
    /// All that was there has been told.
    pub(crate) synced: bool,
    /// Changes, as many as were told.
    pub(crate) changes: usize,
}

impl Reader {
    pub(crate) fn new(documents: Documents) -> Self {
        Self {
            documents,
            state: BTreeMap::new(),
            number: 0,
            synced: false,
            changes: 0,
        }
    }

    /// Takes the next batch.
    pub(crate) async fn next(&mut self) -> Batch {
        let batch = self.documents.next().await.expect("the source runs");
        assert_eq!(batch.number, self.number + 1, "batches are numbered");
        assert!(batch.synced || !self.synced, "what is synced stays so");
        assert!(
            !batch.changes.is_empty() || (batch.synced && !self.synced),
            "a batch without changes says for the first time that all is there"
        );
        self.number = batch.number;
        self.synced = batch.synced;
        self.changes += batch.changes.len();
        let mut keys = BTreeSet::new();
        for change in &batch.changes {
            let key = match change {
                Change::Upsert(document) => DocumentKey::of(document),
                Change::Delete(key) => key.clone(),
            };
            match change {
                Change::Upsert(document) => {
                    let old = self.state.insert(key.clone(), document.clone());
                    assert_ne!(old.as_ref(), Some(document), "what is told is news");
                }
                Change::Delete(_) => {
                    assert!(self.state.remove(&key).is_some(), "{key:?} was there");
                }
            }
            assert!(keys.insert(key), "an object is in a batch once");
        }
        batch
    }

    /// Takes batches until this holds.
    pub(crate) async fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            self.next().await;
        }
    }

    /// Takes batches until all that was there has been told.
    pub(crate) async fn synced(&mut self) {
        self.until(|reader| reader.synced).await;
    }

    /// Names of all objects.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.state.keys().map(|key| key.name.as_str()).collect()
    }

    /// A label of the object with this name.
    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        let (_, document) = self.state.iter().find(|(key, _)| key.name == name)?;
        document.pointer("/metadata/labels/l")?.as_str()
    }

    /// Whether there is a batch that nobody waited for.
    pub(crate) fn is_silent(&mut self) -> bool {
        let next = self.documents.next();
        futures::FutureExt::now_or_never(next).is_none()
    }
}

/// Waits until the picture is so.
pub(crate) async fn picture(pods: &mut Pods, holds: impl Fn(&PodSet) -> bool) {
    while !holds(&pods.snapshot()) {
        assert!(pods.changed().await, "the source runs");
    }
}
