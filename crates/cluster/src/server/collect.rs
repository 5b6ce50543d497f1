//! Puts together what followers tell: ordered batches of a whole cluster, or the picture of one node.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use k8s_api::manifest;
use tokio::sync::mpsc;
use types::pod::PodKey;

use crate::documents::{BATCH_MAX, Batch, Change, DocumentKey};
use crate::pods::{PodSet, PodsWriter};
use crate::server::follow::Told;

/// Makes batches.
#[derive(Debug)]
pub(super) struct Batches {
    told: mpsc::Receiver<Told>,
    out: mpsc::Sender<Batch>,
    /// Followers that have not told their whole yet.
    missing: BTreeSet<usize>,
    number: u64,
    /// A batch has said that all is there.
    synced: bool,
    changes: Vec<Change>,
    keys: HashSet<DocumentKey>,
}

/// Nobody reads any more.
#[derive(Debug)]
struct Unread;

impl Batches {
    pub(super) fn new(
        followers: usize,
        told: mpsc::Receiver<Told>,
        out: mpsc::Sender<Batch>,
    ) -> Self {
        Self {
            told,
            out,
            missing: (0..followers).collect(),
            number: 0,
            synced: false,
            changes: Vec::new(),
            keys: HashSet::new(),
        }
    }

    /// Until nobody tells or nobody reads.
    pub(super) async fn run(mut self) {
        let mut fresh = Vec::new();
        while self.told.recv_many(&mut fresh, BATCH_MAX).await > 0 {
            for told in fresh.drain(..) {
                if self.take(told).await.is_err() {
                    return;
                }
            }
            if self.send().await.is_err() {
                return;
            }
        }
    }

    async fn take(&mut self, told: Told) -> Result<(), Unread> {
        match told {
            Told::Whole(number) => {
                self.missing.remove(&number);
            }
            Told::Change(change) => {
                let key = match &change {
                    Change::Upsert(document) => DocumentKey::of(document),
                    Change::Delete(key) => key.clone(),
                };
                if self.keys.contains(&key) {
                    self.send().await?;
                }
                self.keys.insert(key);
                self.changes.push(change);
            }
        }
        Ok(())
    }

    /// Sends what there is, if that is anything.
    async fn send(&mut self) -> Result<(), Unread> {
        let synced = self.missing.is_empty();
        if self.changes.is_empty() && synced == self.synced {
            return Ok(());
        }
        self.synced = synced;
        self.number = self.number.saturating_add(1);
        self.keys.clear();
        let batch = Batch {
            number: self.number,
            synced,
            changes: std::mem::take(&mut self.changes),
        };
        self.out.send(batch).await.map_err(|_| Unread)
    }
}

/// Makes the picture of one node.
#[derive(Debug)]
pub(super) struct Picture {
    told: mpsc::Receiver<Told>,
    writer: PodsWriter,
    set: PodSet,
    /// All pods have been told once: before that nobody is shown anything.
    whole: bool,
}

impl Picture {
    pub(super) fn new(told: mpsc::Receiver<Told>, writer: PodsWriter) -> Self {
        Self {
            told,
            writer,
            set: PodSet::new(),
            whole: false,
        }
    }

    /// Until nobody tells.
    pub(super) async fn run(mut self) {
        let mut fresh = Vec::new();
        while self.told.recv_many(&mut fresh, BATCH_MAX).await > 0 {
            fresh.drain(..).for_each(|told| self.take(told));
            if self.whole {
                self.writer.publish(self.set.clone());
            }
        }
    }

    fn take(&mut self, told: Told) {
        match told {
            Told::Whole(_) => self.whole = true,
            Told::Change(Change::Upsert(document)) => match manifest::pod(document) {
                Ok(pod) => drop(self.set.insert(pod.key.clone(), Arc::new(pod))),
                // The server lets nothing pass that has no name.
                Err(error) => tracing::warn!(%error, "pod passed over"),
            },
            Told::Change(Change::Delete(key)) => {
                self.set.remove(&PodKey::new(key.namespace, key.name));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn put(name: &str) -> Told {
        Told::Change(Change::Upsert(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "n"},
        })))
    }

    fn gone(name: &str) -> Told {
        Told::Change(Change::Delete(DocumentKey {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            namespace: "n".to_owned(),
            name: name.to_owned(),
        }))
    }

    /// The batches that come of what two followers tell.
    async fn batches(told: Vec<Told>) -> Vec<(u64, bool, usize)> {
        let (tell, receiver) = mpsc::channel(64);
        let (out, mut read) = mpsc::channel(64);
        for told in told {
            tell.send(told).await.unwrap();
        }
        drop(tell);
        Batches::new(2, receiver, out).run().await;
        let mut found = Vec::new();
        while let Some(batch) = read.recv().await {
            found.push((batch.number, batch.synced, batch.changes.len()));
        }
        found
    }

    #[tokio::test]
    async fn all_is_there_when_every_follower_has_told_its_whole() {
        let one = batches(vec![put("a"), Told::Whole(0)]).await;
        let both = batches(vec![put("a"), Told::Whole(0), put("b"), Told::Whole(1)]).await;
        let none = batches(vec![Told::Whole(0), Told::Whole(1), Told::Whole(1)]).await;

        assert_eq!(one, [(1, false, 1)]);
        assert_eq!(both, [(1, true, 2)]);
        assert_eq!(none, [(1, true, 0)]);
    }

    #[tokio::test]
    async fn object_is_in_a_batch_once() {
        let found = batches(vec![put("a"), gone("a"), put("a"), put("b")]).await;

        assert_eq!(found, [(1, false, 1), (2, false, 1), (3, false, 2)]);
    }

    #[tokio::test]
    async fn picture_shows_nothing_before_it_is_whole() {
        let (tell, receiver) = mpsc::channel(64);
        let (writer, mut pods) = crate::pods::channel();
        let run = Picture::new(receiver, writer).run();
        let read = async {
            tell.send(put("a")).await.unwrap();
            tell.send(put("b")).await.unwrap();
            tell.send(gone("a")).await.unwrap();
            tokio::task::yield_now().await;
            let before = pods.snapshot().len();
            tell.send(Told::Whole(0)).await.unwrap();
            assert!(pods.changed().await);
            let after: Vec<PodKey> = pods.snapshot().keys().cloned().collect();
            drop(tell);
            (before, after)
        };

        let ((), (before, after)) = tokio::join!(run, read);

        assert_eq!(before, 0);
        assert_eq!(after, [PodKey::new("n", "b")]);
    }
}
