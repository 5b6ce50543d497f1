//! Links of ENIs that vanish with a namespace.
//!
//! A real ENI is a device: when the namespace that it was moved to goes away, the kernel gives it back to the instance.
//! A veth dies with the namespace instead. The router sees its end go, and the ENI gets another link in its instance.

use std::process::Stdio;

use futures::future::BoxFuture;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::error::FabricError;

/// Starts to listen to the links of the router, which is entered by `entry`; the future calls `bring_back` with the
/// router's end of each that vanishes, until `cancel`.
///
/// # Errors
/// [`FabricError::Missing`] without `ip`.
pub(crate) fn follow(
    entry: &[String],
    cancel: CancellationToken,
    bring_back: impl Fn(String) -> BoxFuture<'static, ()> + Send + Sync + 'static,
) -> Result<BoxFuture<'static, ()>, FabricError> {
    let program = "ip";
    let missing = |source| FabricError::Missing { program, source };
    let (first, rest) = entry.split_first().ok_or(FabricError::Stopped)?;
    let mut child = Command::new(first)
        .args(rest)
        .args([program, "-oneline", "monitor", "link"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(missing)?;
    let output = child.stdout.take().ok_or(FabricError::Stopped)?;
    Ok(Box::pin(async move {
        let mut lines = BufReader::new(output).lines();
        loop {
            let line = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                line = lines.next_line() => line,
            };
            let Ok(Some(line)) = line else {
                if !cancel.is_cancelled() {
                    tracing::error!("links of the router are not watched any more");
                }
                break;
            };
            if let Some(outer) = vanished(&line) {
                bring_back(outer.to_owned()).await;
            }
        }
        drop(child.kill().await);
    }))
}

/// The router's end of a port in a line that says that it is gone.
fn vanished(line: &str) -> Option<&str> {
    let (_, name) = line.strip_prefix("Deleted ")?.split_once(": ")?;
    let name = name.split([':', '@']).next()?;
    name.starts_with('p').then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_of_a_link_that_is_gone_names_the_port() {
        let line = "Deleted 12: p3@if2: <BROADCAST,MULTICAST> mtu 1500 qdisc noop state DOWN";

        assert_eq!(vanished(line), Some("p3"));
        assert_eq!(vanished("Deleted 7: p4: <BROADCAST> mtu 1500"), Some("p4"));
        assert_eq!(vanished("Deleted 7: g4@p4: <BROADCAST> mtu 1500"), None);
        assert_eq!(vanished("12: p3@if2: <BROADCAST> mtu 1500"), None);
    }
}
