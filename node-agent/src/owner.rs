//! Keeps the socket that owns the rules of policy while policy-agent is away: as long as anybody has it, nobody else
//! can change or flush them.

use std::path::PathBuf;

use datapath::owner::Holder;
use tokio_util::sync::CancellationToken;

use crate::dial::pauses;

/// Attends policy-agent at `path`, one process of it after the other, until `drain` is cancelled.
pub async fn hold(path: PathBuf, drain: CancellationToken) {
    let mut holder = Holder::new();
    // A policy-agent that starts waits for what is held, so it is looked for often.
    let mut pauses = pauses(50, 500);
    loop {
        let held = holder.held().is_some();
        let attended = tokio::select! {
            biased;
            () = drain.cancelled() => return,
            attended = holder.attend(&path) => attended,
        };
        match attended {
            Ok(()) => {
                let held = holder.held().is_some();
                tracing::info!(
                    held,
                    "policy-agent went away; its socket is kept if it has one"
                );
                pauses.reset();
            }
            Err(error) => tracing::debug!(%error, held, "policy-agent is not there"),
        }
        tokio::select! {
            biased;
            () = drain.cancelled() => return,
            () = tokio::time::sleep(pauses.next_wait()) => {}
        }
    }
}
