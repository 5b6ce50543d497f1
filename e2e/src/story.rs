//! Runs one story on one cluster.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use sandbox::cluster::Cluster;
use sandbox::options::ClusterOptions;
use tokio::time::Instant;

use crate::leftovers::Traces;

/// One cluster at a time: the machine is small, and a story's times should be its own.
static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Time between two looks at a level.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Holds back every story of this program: for what starts a cluster by other means.
pub fn alone() -> tokio::sync::MutexGuard<'static, ()> {
    ONE.blocking_lock()
}

/// Starts a cluster, tells the story, ends the cluster, and looks whether anything of it is left.
///
/// # Panics
/// When the machine can not run it, or the story fails; the message says what.
#[expect(clippy::panic, reason = "a story is the body of a test")]
pub fn tell(options: ClusterOptions, story: impl AsyncFnOnce(&Cluster) -> Result<()>) {
    let told = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(tell_on(options, story)));
    if let Err(error) = told {
        panic!("{error:#}");
    }
}

async fn tell_on(
    options: ClusterOptions,
    story: impl AsyncFnOnce(&Cluster) -> Result<()>,
) -> Result<()> {
    let _one = ONE.lock().await;
    let cluster = Cluster::start(options).await.context("start the cluster")?;
    let traces = Traces::of(&cluster);
    let mut told = story(&cluster).await;
    if let Err(error) = told {
        cluster.run_dir().keep();
        let logs = cluster.run_dir().logs();
        told = Err(error.context(format!("logs are in {}", logs.display())));
    }
    let stopped = cluster.stop().await.context("stop the cluster");
    let gone = traces.check(told.is_err());
    told.and(stopped).and(gone)
}

/// Looks until it succeeds, at most for `limit`; then the last error is the answer.
///
/// # Errors
/// The error of the last look.
pub async fn eventually<T>(limit: Duration, look: impl AsyncFn() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let error = match tokio::time::timeout_at(deadline, look()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error,
            Err(_) => anyhow!("the look itself took too long"),
        };
        if Instant::now() + LOOK_EVERY >= deadline {
            return Err(error.context(format!("not within {limit:?}")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
