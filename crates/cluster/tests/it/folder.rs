//! The folder, held to the contract.

use cluster::documents::{DocumentKey, DocumentSource, Documents, Wanted};
use cluster::folder::FolderSource;
use cluster::pods::Pods;
use serde_json::Value;

use crate::contract::{self, World, for_each_case};
use crate::reader::Run;

struct Folder {
    dir: tempfile::TempDir,
    aside: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            aside: tempfile::tempdir().unwrap(),
        }
    }

    fn file(object: &Value) -> String {
        let key = DocumentKey::of(object);
        let group = key.api_version.replace('/', "-");
        format!("{group}.{}.{}.{}.json", key.kind, key.namespace, key.name)
    }
}

impl World for Folder {
    async fn put(&mut self, object: Value) {
        let (aside, file) = (self.aside.path().join("new"), Self::file(&object));
        std::fs::write(&aside, object.to_string()).unwrap();
        std::fs::rename(aside, self.dir.path().join(file)).unwrap();
    }

    async fn delete(&mut self, object: &Value) {
        std::fs::remove_file(self.dir.path().join(Self::file(object))).unwrap();
    }

    async fn documents(&self, wanted: Wanted) -> (Run, Documents) {
        let (source, documents) = DocumentSource::open(self.dir.path(), wanted).unwrap();
        (Box::new(|drain| Box::pin(source.run(drain))), documents)
    }

    async fn pods(&self, node: &str) -> (Run, Pods) {
        let (source, pods) = FolderSource::open(self.dir.path(), node).unwrap();
        (Box::new(|drain| Box::pin(source.run(drain))), pods)
    }
}

macro_rules! tests {
    ($($case:ident)*) => {$(
        #[tokio::test]
        async fn $case() {
            contract::$case(&mut Folder::new()).await;
        }
    )*};
}
for_each_case!(tests);
