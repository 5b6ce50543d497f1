//! Which Node object is which instance, as the API server tells it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use cluster::documents::{Batch, Change, Documents};
use k8s_api::provider;
use mesh::health::Condition;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::kubernetes::Kubernetes;
use crate::metrics::Metrics;

/// Nodes by name and by instance.
#[derive(Debug, Default)]
pub struct Picture {
    /// All nodes were read once.
    pub synced: bool,
    by_name: HashMap<Box<str>, Known>,
    names_of: HashMap<Arc<str>, BTreeSet<Box<str>>>,
}

#[derive(Debug)]
struct Known {
    uid: Box<str>,
    instance: Option<Arc<str>>,
}

impl Picture {
    /// The instance of the Node of this name.
    pub fn instance_of(&self, name: &str) -> Option<&str> {
        self.by_name.get(name)?.instance.as_deref()
    }

    /// The uid of the Node of this name.
    pub fn uid_of(&self, name: &str) -> Option<&str> {
        Some(&self.by_name.get(name)?.uid)
    }

    /// The Node of this instance; the first by name where somebody made two.
    pub fn name_of(&self, instance: &str) -> Option<&str> {
        let names = self.names_of.get(instance)?;
        names.first().map(AsRef::as_ref)
    }

    /// Whether a Node of this instance is there.
    pub fn has(&self, instance: &str) -> bool {
        self.names_of.contains_key(instance)
    }

    /// All instances.
    pub fn instances(&self) -> impl Iterator<Item = &str> {
        self.names_of.keys().map(AsRef::as_ref)
    }

    fn put(&mut self, name: &str, uid: &str, instance: Option<&str>) {
        self.forget(name);
        let instance: Option<Arc<str>> = instance.map(Into::into);
        if let Some(instance) = &instance {
            let names = self.names_of.entry(Arc::clone(instance)).or_default();
            names.insert(name.into());
        }
        let uid = uid.into();
        self.by_name.insert(name.into(), Known { uid, instance });
    }

    fn forget(&mut self, name: &str) {
        let Some(instance) = self.by_name.remove(name).and_then(|known| known.instance) else {
            return;
        };
        if let Some(names) = self.names_of.get_mut(&instance) {
            names.remove(name);
            if names.is_empty() {
                self.names_of.remove(&instance);
            }
        }
    }

    fn apply(&mut self, batch: Batch) {
        for change in batch.changes {
            match change {
                Change::Upsert(node) => {
                    let text = |pointer: &str| node.pointer(pointer).and_then(Value::as_str);
                    let instance = text("/spec/providerID").and_then(provider::instance_of);
                    let uid = text("/metadata/uid").unwrap_or_default();
                    if let Some(name) = text("/metadata/name") {
                        self.put(name, uid, instance);
                    }
                }
                Change::Delete(key) => self.forget(&key.name),
            }
        }
        self.synced |= batch.synced;
    }
}

/// Follows Node objects. Clones share the picture.
#[derive(Debug, Clone)]
pub struct Nodes {
    picture: Arc<watch::Sender<Picture>>,
}

impl Nodes {
    /// Knows nothing yet.
    pub fn new() -> Self {
        Self {
            picture: Arc::new(watch::Sender::new(Picture::default())),
        }
    }

    /// The picture now. Do not hold it across an await.
    pub fn now(&self) -> watch::Ref<'_, Picture> {
        self.picture.borrow()
    }

    /// Tells of changes.
    pub fn changes(&self) -> watch::Receiver<Picture> {
        self.picture.subscribe()
    }

    /// Follows until `drain` is cancelled.
    pub async fn run(
        self,
        kubernetes: Kubernetes,
        ready: Condition,
        metrics: Metrics,
        drain: CancellationToken,
    ) {
        let (source, documents) = kubernetes.server().documents(is_node);
        let mut health = source.health();
        let complain = async {
            loop {
                if !self.now().synced {
                    let why = health.borrow_and_update().complaint();
                    ready.unmet(why.as_deref().unwrap_or("nodes are being read"));
                }
                if health.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            () = source.run(drain.clone()) => {}
            () = self.read(documents, &ready, &metrics) => {}
            () = complain => {}
        }
        // The source ends with the drain.
        drain.cancelled().await;
    }

    async fn read(&self, mut documents: Documents, ready: &Condition, metrics: &Metrics) {
        while let Some(batch) = documents.next().await {
            self.take(batch);
            let now = self.now();
            metrics
                .nodes
                .set(i64::try_from(now.names_of.len()).unwrap_or(i64::MAX));
            if now.synced {
                ready.met();
            }
        }
    }

    fn take(&self, batch: Batch) {
        self.picture.send_modify(|picture| picture.apply(batch));
    }
}

impl Default for Nodes {
    fn default() -> Self {
        Self::new()
    }
}

fn is_node(version: &str, kind: &str) -> bool {
    version == "v1" && kind == "Node"
}

#[cfg(test)]
mod tests {
    use cluster::documents::DocumentKey;
    use serde_json::json;

    use super::*;

    fn node(name: &str, provider: Option<&str>) -> Change {
        Change::Upsert(
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": format!("uid-{name}")},
            "spec": provider.map_or(json!({}), |id| json!({"providerID": id}))}),
        )
    }

    fn gone(name: &str) -> Change {
        Change::Delete(DocumentKey {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            namespace: String::new(),
            name: name.to_owned(),
        })
    }

    fn after(changes: Vec<Change>) -> Picture {
        let mut picture = Picture::default();
        for (change, number) in changes.into_iter().zip(1..) {
            picture.apply(Batch {
                number,
                synced: true,
                changes: vec![change],
            });
        }
        picture
    }

    #[test]
    fn node_is_known_by_the_instance_of_its_provider_id() {
        let picture = after(vec![node("a", Some("cn-x.i-1")), node("b", None)]);

        assert_eq!(picture.instance_of("a"), Some("i-1"));
        assert_eq!(picture.name_of("i-1"), Some("a"));
        assert_eq!(picture.instance_of("b"), None);
        assert_eq!(picture.uid_of("b"), Some("uid-b"));
    }

    #[test]
    fn node_that_gets_its_provider_id_later_is_known_then() {
        let picture = after(vec![node("a", None), node("a", Some("cn-x.i-1"))]);

        assert!(picture.has("i-1"));
    }

    #[test]
    fn name_taken_by_another_instance_leaves_the_first_one_without_a_node() {
        let picture = after(vec![
            node("a", Some("cn-x.i-1")),
            node("a", Some("cn-x.i-2")),
        ]);

        assert!(!picture.has("i-1"));
        assert_eq!(picture.name_of("i-2"), Some("a"));
    }

    #[test]
    fn instance_with_two_nodes_is_there_until_both_are_gone() {
        let two = || vec![node("a", Some("x.i-1")), node("b", Some("x.i-1"))];

        let mut one_gone = two();
        one_gone.push(gone("a"));
        assert_eq!(after(one_gone).name_of("i-1"), Some("b"));
        let mut both_gone = two();
        both_gone.extend([gone("a"), gone("b")]);
        let picture = after(both_gone);
        assert!(!picture.has("i-1") && picture.names_of.is_empty());
    }
}
