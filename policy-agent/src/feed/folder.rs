//! A folder as a source.

use std::path::Path;

use cluster::documents::{DocumentSource, Documents};
use cluster::files::FolderError;
use tokio_util::sync::CancellationToken;

use crate::feed::Batch;
use crate::feed::output::Output;
use crate::relay::wire;

/// A folder that is watched while somebody runs it.
#[derive(Debug)]
pub(super) struct Folder {
    source: DocumentSource,
    documents: Documents,
}

impl Folder {
    pub(super) fn open(path: &Path) -> Result<Self, FolderError> {
        let (source, documents) = DocumentSource::open(path, wire::wanted)?;
        Ok(Self { source, documents })
    }

    /// Tells the folder's state and its changes, until nobody reads.
    ///
    /// # Cancel safety
    /// Cancel-safe; the source is gone then.
    pub(super) async fn run(mut self, output: &mut Output) {
        let done = CancellationToken::new();
        let _ends_with_us = done.clone().drop_guard();
        output.begin();
        let tell = async {
            while let Some(batch) = self.documents.next().await {
                let batch = Batch {
                    sequence: batch.number,
                    synced: batch.synced,
                    events: batch.changes.iter().filter_map(wire::event).collect(),
                    seen_at_ms: mesh::clock::wall_ms(),
                };
                if output.deliver(batch).await.is_err() {
                    break;
                }
            }
            done.cancel();
        };
        tokio::join!(self.source.run(done.clone()), tell);
    }
}
