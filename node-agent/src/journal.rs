//! Replays the DELs that found no agent.
//!
//! Source: the format is `types::journal`; the plug-in writes it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh::causes;
use tokio_util::sync::CancellationToken;
use types::journal::{Entry, SUFFIX};

use crate::pods::{PodError, Pods};

/// Between two looks into the folder.
const EVERY: Duration = Duration::from_secs(2);

/// Looks into the folder until `drain` is cancelled.
pub async fn run(folder: PathBuf, pods: Pods, drain: CancellationToken) {
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = drain.cancelled() => return,
            _ = every.tick() => replay(&folder, &pods).await,
        }
    }
}

/// Does every DEL in the folder once; one that fails stays.
pub async fn replay(folder: &Path, pods: &Pods) {
    for path in entries(folder) {
        let entry = match read(&path) {
            Ok(entry) => entry,
            Err(why) => {
                tracing::warn!(path = %path.display(), why, "journal entry can not be read");
                continue;
            }
        };
        match pods.del(&entry.attachment, entry.pod.as_ref()).await {
            Ok(()) => {
                tracing::info!(attachment = %entry.attachment, "DEL replayed");
                if let Err(error) = std::fs::remove_file(&path) {
                    // The DEL is repeated, which does no harm.
                    tracing::warn!(path = %path.display(), %error, "journal entry not removed");
                }
            }
            Err(PodError::Busy(_)) => {}
            Err(error) => {
                tracing::warn!(attachment = %entry.attachment, error = %causes::text(&error),
                    "DEL not replayed yet");
            }
        }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    // No folder: no plug-in has written an entry yet.
    let Ok(found) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let paths = found.filter_map(|entry| Some(entry.ok()?.path()));
    let mut paths: Vec<PathBuf> = paths
        .filter(|p| p.to_str().is_some_and(|p| p.ends_with(SUFFIX)))
        .collect();
    paths.sort();
    paths
}

fn read(path: &Path) -> Result<Entry, String> {
    let text = std::fs::read(path).map_err(|e| e.to_string())?;
    serde_json::from_slice(&text).map_err(|e| e.to_string())
}
