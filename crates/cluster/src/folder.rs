//! Pods of one node from a folder of manifests: for the sandbox, for tests, and for people without a cluster.
//!
//! Kinds other than Pod are passed over; the folder is read as [`crate::files`] says.

use std::path::Path;
use std::sync::Arc;

use k8s_api::manifest::{self, Pod};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::files::{Files, FolderError};
use crate::pods::{PodSet, Pods, PodsWriter, channel};

/// Watches a folder for the pods of one node.
#[derive(Debug)]
pub struct FolderSource {
    node: String,
    files: Files<Arc<Pod>>,
    writer: PodsWriter,
}

impl FolderSource {
    /// Opens the folder and takes a first look; pods of other nodes are left out.
    ///
    /// # Errors
    /// [`FolderError`] when the folder is not there or can not be watched.
    pub fn open(path: &Path, node: &str) -> Result<(Self, Pods), FolderError> {
        let files = Files::open(path, take)?;
        let (writer, pods) = channel();
        let mut source = Self {
            node: node.to_owned(),
            files,
            writer,
        };
        source.look();
        Ok((source, pods))
    }

    /// Follows the folder until `drain` is cancelled.
    pub async fn run(mut self, drain: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                () = self.files.changed() => {}
            }
            self.look();
        }
    }

    fn look(&mut self) {
        if !self.files.look() {
            return;
        }
        let mut set = PodSet::new();
        for pod in self.files.documents() {
            if pod.node == self.node {
                set.insert(pod.key.clone(), Arc::clone(pod));
            }
        }
        self.writer.publish(set);
    }
}

fn take(document: Value) -> Result<Option<Arc<Pod>>, String> {
    if document.get("kind").and_then(Value::as_str) != Some("Pod") {
        return Ok(None);
    }
    let pod = manifest::pod(document).map_err(|e| e.to_string())?;
    Ok(Some(Arc::new(pod)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
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
