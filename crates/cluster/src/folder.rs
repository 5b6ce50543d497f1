//! Pods from a folder of manifests: for the sandbox, for tests, and for people without a cluster.
//!
//! Every `*.yaml`, `*.yml` and `*.json` file may hold several documents; kinds other than Pod are passed over.
//! A file that can not be read keeps what it said last and is named once in the log. Changes are seen by inotify
//! and, should a notification be lost, by a full look every few seconds.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};
use k8s_api::manifest::{self, Pod};
use tokio_util::sync::CancellationToken;

use crate::pods::{PodSet, Pods, PodsWriter, channel};

/// Time between full looks.
const FULL_LOOK: Duration = Duration::from_secs(5);
/// Largest manifest that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

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

/// Watches a folder for the pods of one node.
pub struct FolderSource {
    path: PathBuf,
    node: String,
    notify: EventStream<[u8; 4096]>,
    writer: PodsWriter,
    files: BTreeMap<PathBuf, FileState>,
}

impl std::fmt::Debug for FolderSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FolderSource")
            .field("path", &self.path)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct FileState {
    pods: Vec<Arc<Pod>>,
    text: Option<Vec<u8>>,
    complained: bool,
}

impl FolderSource {
    /// Opens the folder and takes a first look; pods of other nodes are left out.
    ///
    /// # Errors
    /// [`FolderError`] when the folder is not there or can not be watched.
    pub fn open(path: &Path, node: &str) -> Result<(Self, Pods), FolderError> {
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
        let (writer, pods) = channel();
        let mut source = Self {
            path: path.to_owned(),
            node: node.to_owned(),
            notify,
            writer,
            files: BTreeMap::new(),
        };
        source.look();
        Ok((source, pods))
    }

    /// Follows the folder until `drain` is cancelled.
    pub async fn run(mut self, drain: CancellationToken) {
        let mut every = tokio::time::interval(FULL_LOOK);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                // The event only says that something changed; the look says what.
                event = self.notify.next() => if !matches!(event, Some(Ok(_))) {
                    tracing::warn!("a change notification was lost; looking periodically");
                    every.tick().await;
                },
                _ = every.tick() => {}
            }
            self.look();
        }
    }

    fn look(&mut self) {
        match list(&self.path) {
            Ok(paths) => {
                self.files.retain(|path, _| paths.contains(path));
                for path in paths {
                    match text(&path) {
                        Ok(text) => take(&path, self.files.entry(path.clone()).or_default(), text),
                        // Deleted since it was listed: gone, as if it had never been on the list.
                        Err(error) if error.kind() == ErrorKind::NotFound => {
                            self.files.remove(&path);
                        }
                        Err(error) => {
                            let state = self.files.entry(path.clone()).or_default();
                            complain(&path, state, &error.to_string());
                        }
                    }
                }
            }
            Err(error) => {
                // Losing the folder for a moment must not look like the end of all pods.
                tracing::warn!(path = %self.path.display(), %error, "manifest folder unreadable");
                return;
            }
        }
        let mut set = PodSet::new();
        for pod in self.files.values().flat_map(|f| &f.pods) {
            if pod.node == self.node {
                set.insert(pod.key.clone(), Arc::clone(pod));
            }
        }
        self.writer.publish(set);
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

fn text(path: &Path) -> std::io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.len() > MAX_FILE {
        return Err(std::io::Error::other("larger than 4 MiB"));
    }
    std::fs::read(path)
}

fn take(path: &Path, state: &mut FileState, text: Vec<u8>) {
    if state.text.as_ref() == Some(&text) {
        return;
    }
    let parsed = std::str::from_utf8(&text)
        .map_err(|e| e.to_string())
        .and_then(parse);
    state.text = Some(text);
    match parsed {
        Ok(pods) => {
            state.pods = pods;
            state.complained = false;
        }
        Err(why) => {
            state.complained = false;
            complain(path, state, &why);
        }
    }
}

fn complain(path: &Path, state: &mut FileState, why: &str) {
    if !state.complained {
        state.complained = true;
        tracing::warn!(path = %path.display(), why, "manifest not read; its last state stays");
    }
}

fn parse(text: &str) -> Result<Vec<Arc<Pod>>, String> {
    let documents: Vec<serde_json::Value> =
        serde_saphyr::from_multiple(text).map_err(|e| e.to_string())?;
    let mut pods = Vec::new();
    for document in documents {
        match document.get("kind").and_then(serde_json::Value::as_str) {
            Some("Pod") => {
                pods.push(Arc::new(
                    manifest::pod(document).map_err(|e| e.to_string())?,
                ));
            }
            Some(_) => {}
            None if document.is_null() => {}
            None => return Err("a document has no kind".to_owned()),
        }
    }
    Ok(pods)
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::pod::PodKey;

    fn manifest_of(name: &str, node: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{nodeName: {node}}}\n"
        )
    }

    #[tokio::test]
    async fn pods_of_other_nodes_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let two = format!("{}---\n{}", manifest_of("a", "n1"), manifest_of("b", "n2"));
        std::fs::write(dir.path().join("p.yaml"), two).unwrap();

        let (_source, pods) = FolderSource::open(dir.path(), "n1").unwrap();

        let keys: Vec<_> = pods.snapshot().keys().cloned().collect();
        assert_eq!(keys, [PodKey::new("default", "a")]);
    }

    #[tokio::test]
    async fn pod_that_is_written_later_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let (source, pods) = FolderSource::open(dir.path(), "n1").unwrap();
        let drain = CancellationToken::new();
        let run = source.run(drain.clone());
        let seen = async {
            std::fs::write(dir.path().join("p.yaml"), manifest_of("a", "n1")).unwrap();
            let key = PodKey::new("default", "a");
            let pod = pods.wait_for(&key, Duration::from_secs(20)).await;
            drain.cancel();
            pod
        };

        let ((), pod) = tokio::join!(run, seen);

        assert_eq!(pod.unwrap().node, "n1");
    }

    #[tokio::test]
    async fn broken_file_keeps_what_it_said_before() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.yaml");
        std::fs::write(&file, manifest_of("a", "n1")).unwrap();
        let (mut source, pods) = FolderSource::open(dir.path(), "n1").unwrap();

        std::fs::write(&file, "kind: [").unwrap();
        source.look();

        assert_eq!(pods.snapshot().len(), 1);
    }

    #[tokio::test]
    async fn deleted_file_takes_its_pods_along() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.json");
        std::fs::write(
            &file,
            r#"{"kind":"Pod","metadata":{"name":"a"},"spec":{"nodeName":"n1"}}"#,
        )
        .unwrap();
        let (mut source, pods) = FolderSource::open(dir.path(), "n1").unwrap();
        assert_eq!(pods.snapshot().len(), 1);

        std::fs::remove_file(&file).unwrap();
        source.look();

        assert!(pods.snapshot().is_empty());
    }

    #[tokio::test]
    async fn file_that_is_listed_but_gone_takes_its_pods_along() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = elsewhere.path().join("p.yaml");
        std::fs::write(&file, manifest_of("a", "n1")).unwrap();
        // A link to nothing is what a deleted file is: on the list, and not there when it is read.
        std::os::unix::fs::symlink(&file, dir.path().join("p.yaml")).unwrap();
        let (mut source, pods) = FolderSource::open(dir.path(), "n1").unwrap();
        assert_eq!(pods.snapshot().len(), 1);

        std::fs::remove_file(&file).unwrap();
        source.look();

        assert!(pods.snapshot().is_empty());
        assert!(source.files.is_empty());
    }

    #[test]
    fn folder_that_is_not_there_is_named() {
        let err = FolderSource::open(Path::new("/does/not/exist"), "n1").unwrap_err();

        assert_eq!(err.to_string(), "manifest folder /does/not/exist");
    }
}
