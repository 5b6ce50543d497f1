//! One object by its name, as a picture that changes: the node that we are on, the phase of the installation.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::documents::{Change, DocumentKey, DocumentSource, Documents, Wanted};
use crate::files::FolderError;

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The Node of this name.
    Node(String),
    /// A ConfigMap.
    ConfigMap {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl Which {
    fn is(&self, key: &DocumentKey) -> bool {
        match self {
            Self::Node(name) => key.kind == "Node" && key.name == *name,
            Self::ConfigMap { namespace, name } => {
                // A document written by hand may leave its namespace out.
                let here = key.namespace.is_empty() || key.namespace == *namespace;
                key.kind == "ConfigMap" && key.name == *name && here
            }
        }
    }
}

/// What is known of the object.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Seen {
    /// Nobody has answered yet.
    #[default]
    Unknown,
    /// There is none.
    Absent,
    /// It is so.
    There(Arc<Value>),
}

impl Seen {
    /// Text at a JSON pointer of the object; nothing without the object or the text.
    pub fn text(&self, pointer: &str) -> Option<&str> {
        match self {
            Self::There(value) => value.pointer(pointer).and_then(Value::as_str),
            Self::Unknown | Self::Absent => None,
        }
    }
}

/// What the installation asks of nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// Serve pods.
    #[default]
    Serve,
    /// Leave: no new pods, nothing idle, and in the end nothing at all.
    Leave,
}

impl Phase {
    /// What the ConfigMap of the phase says. Nobody leaves because of what is not there or not understood.
    pub fn of(seen: &Seen) -> Self {
        match seen.text("/data/phase") {
            Some("leave") => Self::Leave,
            Some(_) | None => Self::Serve,
        }
    }

    /// What holds from now on. When the ConfigMap is gone, so is the release, which takes nothing back: who was to
    /// leave does not serve again.
    #[must_use]
    pub fn after(self, seen: &Seen) -> Self {
        match seen {
            Seen::Unknown | Seen::Absent => self,
            Seen::There(_) => Self::of(seen),
        }
    }
}

/// Follows one object of a folder.
#[derive(Debug)]
pub struct FolderObject {
    source: DocumentSource,
    documents: Documents,
    which: Which,
    latest: watch::Sender<Seen>,
}

fn nodes(_: &str, kind: &str) -> bool {
    kind == "Node"
}

fn config_maps(_: &str, kind: &str) -> bool {
    kind == "ConfigMap"
}

impl FolderObject {
    /// Opens the folder.
    ///
    /// # Errors
    /// [`FolderError`] when the folder is not there or can not be watched.
    pub fn open(
        folder: &std::path::Path,
        which: Which,
    ) -> Result<(Self, watch::Receiver<Seen>), FolderError> {
        let wanted: Wanted = match which {
            Which::Node(_) => nodes,
            Which::ConfigMap { .. } => config_maps,
        };
        let (source, documents) = DocumentSource::open(folder, wanted)?;
        let (latest, seen) = watch::channel(Seen::Unknown);
        let this = Self {
            source,
            documents,
            which,
            latest,
        };
        Ok((this, seen))
    }

    /// Follows the folder until `drain` is cancelled.
    pub async fn run(self, drain: CancellationToken) {
        let Self {
            source,
            mut documents,
            which,
            latest,
        } = self;
        let mut picture = Picture::new(which, latest);
        let read = async {
            while let Some(batch) = documents.next().await {
                batch.changes.into_iter().for_each(|c| picture.take(c));
                picture.show(batch.synced);
            }
        };
        tokio::join!(source.run(drain), read);
    }
}

/// Makes the picture of one object out of changes.
#[derive(Debug)]
pub(crate) struct Picture {
    which: Which,
    now: Option<Arc<Value>>,
    latest: watch::Sender<Seen>,
}

impl Picture {
    pub(crate) const fn new(which: Which, latest: watch::Sender<Seen>) -> Self {
        Self {
            which,
            now: None,
            latest,
        }
    }

    pub(crate) fn take(&mut self, change: Change) {
        match change {
            Change::Upsert(value) if self.which.is(&DocumentKey::of(&value)) => {
                self.now = Some(Arc::new(value));
            }
            Change::Delete(key) if self.which.is(&key) => self.now = None,
            Change::Upsert(_) | Change::Delete(_) => {}
        }
    }

    /// Publishes; before all was told an object that is not there yet is not absent.
    pub(crate) fn show(&self, whole: bool) {
        let seen = match &self.now {
            Some(value) => Seen::There(Arc::clone(value)),
            None if whole => Seen::Absent,
            None => return,
        };
        self.latest.send_if_modified(|old| {
            let changed = *old != seen;
            if changed {
                *old = seen;
            }
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    const LIMIT: Duration = Duration::from_mins(1);

    fn phase(phase: &str) -> String {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: t-phase, namespace: n}}\ndata: {{phase: {phase}}}\n"
        )
    }

    #[tokio::test]
    async fn phase_follows_its_configmap_and_is_serve_without_one() {
        let dir = tempfile::tempdir().unwrap();
        let which = Which::ConfigMap {
            namespace: "n".to_owned(),
            name: "t-phase".to_owned(),
        };
        let (source, mut seen) = FolderObject::open(dir.path(), which).unwrap();
        let drain = CancellationToken::new();
        let read = async {
            let until = async |seen: &mut watch::Receiver<Seen>, phase: Phase| {
                let wait = seen.wait_for(|s| *s != Seen::Unknown && Phase::of(s) == phase);
                let found = tokio::time::timeout(LIMIT, wait).await.unwrap().unwrap();
                found.clone()
            };
            assert_eq!(until(&mut seen, Phase::Serve).await, Seen::Absent);
            let other = phase("leave").replace("t-phase", "other");
            std::fs::write(dir.path().join("o.yaml"), other).unwrap();
            std::fs::write(dir.path().join("p.yaml"), phase("leave")).unwrap();
            until(&mut seen, Phase::Leave).await;
            std::fs::write(dir.path().join("p.yaml"), phase("lunch")).unwrap();
            until(&mut seen, Phase::Serve).await;
            std::fs::remove_file(dir.path().join("p.yaml")).unwrap();
            let wait = seen.wait_for(|s| *s == Seen::Absent);
            tokio::time::timeout(LIMIT, wait).await.unwrap().unwrap();
            drain.cancel();
        };

        tokio::join!(source.run(drain.clone()), read);
    }

    #[test]
    fn object_is_not_absent_before_the_whole_was_told() {
        let (latest, seen) = watch::channel(Seen::Unknown);
        let picture = Picture::new(Which::Node("a".to_owned()), latest);

        picture.show(false);
        let before = seen.borrow().clone();
        picture.show(true);

        assert_eq!(before, Seen::Unknown);
        assert_eq!(*seen.borrow(), Seen::Absent);
    }

    #[test]
    fn phase_that_is_deleted_stays_what_it_was() {
        let there = |phase: &str| Seen::There(Arc::new(json!({"data": {"phase": phase}})));
        let leaving = Phase::default().after(&there("leave"));

        assert_eq!(leaving, Phase::Leave);
        assert_eq!(leaving.after(&Seen::Absent), Phase::Leave);
        assert_eq!(leaving.after(&there("serve")), Phase::Serve);
        assert_eq!(Phase::Serve.after(&Seen::Absent), Phase::Serve);
    }
}
