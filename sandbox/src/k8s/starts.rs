//! How long pods take from Scheduled to Running, and what of it the network plug-in takes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::k8s::bed::Bed;
use crate::k8s::kube::Kube;
use crate::k8s::node_config::CONTAINERD_METRICS;
use crate::percentile::Durations;
use crate::probe;

/// How long a wave of pods may take to run, and to be gone.
const LIMIT: Duration = Duration::from_mins(3);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// When what was first seen of a pod.
#[derive(Debug, Clone, Default)]
struct Times {
    scheduled: Option<Instant>,
    running: Option<Instant>,
    address: String,
}

/// Watches the pods of a namespace; ends when dropped.
#[derive(Debug)]
pub struct StartWatch {
    seen: Arc<Mutex<BTreeMap<String, Times>>>,
    _task: JoinSet<()>,
}

impl StartWatch {
    /// Begins to watch.
    ///
    /// # Errors
    /// When kubectl does not start.
    pub fn begin(kube: &Kube, namespace: &str) -> anyhow::Result<Self> {
        let line =
            r#"jsonpath={.metadata.name}|{.spec.nodeName}|{.status.phase}|{.status.podIP}{"\n"}"#;
        let mut child = kube
            .command(&["get", "pods", "-n", namespace, "--watch", "-o", line])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start kubectl")?;
        let out = child.stdout.take().context("no output of kubectl")?;
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let mut task = JoinSet::new();
        let notes = Arc::clone(&seen);
        task.spawn(async move {
            let mut lines = BufReader::new(out).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                note(&mut *notes.lock().await, &line);
            }
            drop(child);
        });
        Ok(Self { seen, _task: task })
    }

    /// Waits until so many pods run; gives the times from Scheduled to Running.
    ///
    /// # Errors
    /// When they do not.
    pub async fn wait(&self, pods: usize) -> anyhow::Result<Durations> {
        let end = Instant::now() + LIMIT;
        loop {
            let took: Vec<Duration> = {
                let seen = self.seen.lock().await;
                let both = seen
                    .values()
                    .filter_map(|times| times.scheduled.zip(times.running));
                both.map(|(scheduled, running)| running.duration_since(scheduled))
                    .collect()
            };
            if took.len() >= pods {
                return Ok(Durations::new(took));
            }
            ensure!(
                Instant::now() < end,
                "{} of {pods} pods run after {LIMIT:?}",
                took.len()
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Addresses of the pods that were seen.
    pub async fn addresses(&self) -> Vec<String> {
        let seen = self.seen.lock().await;
        seen.values().map(|times| times.address.clone()).collect()
    }
}

fn note(seen: &mut BTreeMap<String, Times>, line: &str) {
    let mut words = line.split('|');
    let (Some(name), Some(node), Some(phase)) = (words.next(), words.next(), words.next()) else {
        return;
    };
    let address = words.next().unwrap_or_default();
    let times = seen.entry(name.to_owned()).or_default();
    let now = Instant::now();
    if !node.is_empty() && times.scheduled.is_none() {
        times.scheduled = Some(now);
    }
    if phase == "Running" && times.running.is_none() {
        times.running = Some(now);
    }
    if !address.is_empty() {
        address.clone_into(&mut times.address);
    }
}

/// Calls of the plug-in by containerd: how many, and how long they took in all.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PluginTime {
    /// Pods that were set up.
    pub calls: f64,
    /// Seconds for all of them.
    pub seconds: f64,
}

impl PluginTime {
    /// What came in between.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            calls: self.calls - before.calls,
            seconds: self.seconds - before.seconds,
        }
    }

    /// Time of one call.
    pub fn mean(self) -> Duration {
        if self.calls > 0.0 {
            Duration::try_from_secs_f64(self.seconds / self.calls).unwrap_or_default()
        } else {
            Duration::ZERO
        }
    }
}

/// What a wave of pods took.
#[derive(Debug, Clone, PartialEq)]
pub struct Wave {
    /// Half of them took less.
    pub p50: Duration,
    /// Nearly all took less.
    pub p99: Duration,
    /// From the first request until all ran.
    pub all: Duration,
    /// The plug-in's part, per pod.
    pub plugin: Duration,
    /// From the request to delete them until they were gone.
    pub gone: Duration,
    /// The addresses they had.
    pub addresses: Vec<String>,
}

impl Bed {
    /// What containerd has counted of the plug-in on all nodes.
    ///
    /// # Errors
    /// When its metrics can not be read.
    pub async fn plugin_time(&self) -> anyhow::Result<PluginTime> {
        let mut all = PluginTime::default();
        for node in &self.nodes {
            let at = SocketAddr::from(([127, 0, 0, 1], CONTAINERD_METRICS));
            let answer = probe::get(node.machine()?.network(), at, "/v1/metrics").await?;
            let text = answer.context("containerd's metrics")?.body;
            all.calls += metric(&text, "count");
            all.seconds += metric(&text, "sum");
        }
        Ok(all)
    }

    /// Scales a Deployment from nothing to `pods`, waits until all run, and back.
    ///
    /// # Errors
    /// When they do not run, or do not go.
    pub async fn wave(
        &self,
        namespace: &str,
        deployment: &str,
        pods: usize,
    ) -> anyhow::Result<Wave> {
        let watch = StartWatch::begin(self.kube(), namespace)?;
        let before = self.plugin_time().await?;
        let target = format!("deployment/{deployment}");
        let scale = async |replicas: usize| {
            let replicas = format!("--replicas={replicas}");
            self.kube()
                .run(&["scale", &target, &replicas, "-n", namespace])
                .await
        };
        let start = Instant::now();
        scale(pods).await?;
        let took = watch.wait(pods).await?;
        let all = start.elapsed();
        let plugin = self.plugin_time().await?.since(before).mean();
        let end = Instant::now();
        scale(0).await?;
        self.no_pods(namespace).await?;
        Ok(Wave {
            p50: took.percentile(50),
            p99: took.percentile(99),
            all,
            plugin,
            gone: end.elapsed(),
            addresses: watch.addresses().await,
        })
    }

    /// Waits until a namespace has no pods.
    ///
    /// # Errors
    /// When some stay.
    pub async fn no_pods(&self, namespace: &str) -> anyhow::Result<()> {
        self.kube()
            .until(LIMIT, async |kube| {
                let words = ["get", "pods", "-n", namespace, "--no-headers"];
                let left = kube.run(&words).await?;
                ensure!(left.trim().is_empty(), "pods are left:\n{left}");
                Ok(())
            })
            .await
    }
}

/// Sum of a containerd histogram's lines for setting up pods.
fn metric(text: &str, what: &str) -> f64 {
    // As containerd 1.6 and 1.7 spell it.
    let name = format!("containerd_cri_network_plugin_operations_duration_seconds_seconds_{what}");
    text.lines()
        .filter(|line| line.starts_with(&name) && line.contains("set_up_pod"))
        .filter_map(|line| line.split_whitespace().last()?.parse::<f64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_is_scheduled_before_it_runs() {
        let mut seen = BTreeMap::new();
        note(&mut seen, "a||Pending|");
        assert!(seen["a"].scheduled.is_none());
        note(&mut seen, "a|node-1|Pending|");
        note(&mut seen, "a|node-1|Running|10.1.0.3");

        let times = &seen["a"];
        assert!(times.scheduled.unwrap() <= times.running.unwrap());
    }
}
