//! What we watch ourselves: a folder, or the API server.

use cluster::documents::Documents;
use cluster::health::Health;
use cluster::source::{DocumentsSource, OpenError, Place};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::feed::output::Output;
use crate::feed::{Batch, Fares};
use crate::relay::wire;

/// A place that is watched while somebody runs it.
#[derive(Debug)]
pub(super) struct Direct {
    source: DocumentsSource,
    documents: Documents,
}

impl Direct {
    pub(super) async fn open(place: &Place) -> Result<Self, OpenError> {
        let (source, documents) = place.documents(wire::wanted).await?;
        Ok(Self { source, documents })
    }

    /// How it fares; nothing for a folder.
    pub(super) fn health(&self) -> Option<watch::Receiver<Health>> {
        self.source.health()
    }

    /// Tells the state and its changes, until nobody reads.
    ///
    /// # Cancel safety
    /// Cancel-safe; the source is gone then.
    pub(super) async fn run(mut self, output: &mut Output, fares: &Fares) {
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
        let health = self.source.health();
        let show = async {
            match health {
                Some(health) => fares.follow(health).await,
                None => std::future::pending().await,
            }
        };
        let run = async { tokio::join!(self.source.run(done.clone()), tell) };
        tokio::select! {
            _ = run => {}
            () = show => {}
        }
        fares.trouble.send_replace(None);
    }
}
