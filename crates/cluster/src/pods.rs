//! The pods of one node, as a picture that changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_api::manifest::Pod;
use tokio::sync::watch;
use types::pod::PodKey;

/// All pods of the node by key, at one moment.
pub type PodSet = BTreeMap<PodKey, Arc<Pod>>;

/// Reads the latest picture; cheap to clone.
#[derive(Debug, Clone)]
pub struct Pods {
    latest: watch::Receiver<Arc<PodSet>>,
}

/// The end that a source holds.
#[derive(Debug)]
pub struct PodsWriter {
    latest: watch::Sender<Arc<PodSet>>,
}

/// Makes both ends; the picture is empty until the source publishes.
pub fn channel() -> (PodsWriter, Pods) {
    let (tx, rx) = watch::channel(Arc::new(PodSet::new()));
    (PodsWriter { latest: tx }, Pods { latest: rx })
}

impl PodsWriter {
    /// Replaces the picture; readers are told only when it differs.
    pub fn publish(&self, set: PodSet) {
        self.latest.send_if_modified(|old| {
            let changed = **old != set;
            if changed {
                *old = Arc::new(set);
            }
            changed
        });
    }
}

impl Pods {
    /// The latest picture.
    pub fn snapshot(&self) -> Arc<PodSet> {
        Arc::clone(&self.latest.borrow())
    }

    /// Waits until the picture changed since this handle last saw it; `false` when the source is gone.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn changed(&mut self) -> bool {
        self.latest.changed().await.is_ok()
    }

    /// The pod, waiting up to `patience` for it to appear.
    pub async fn wait_for(&self, key: &PodKey, patience: Duration) -> Option<Arc<Pod>> {
        let mut latest = self.latest.clone();
        let found = tokio::time::timeout(patience, latest.wait_for(|set| set.contains_key(key)));
        match found.await {
            Ok(Ok(set)) => set.get(key).cloned(),
            Ok(Err(_)) | Err(_) => None,
        }
    }
}
