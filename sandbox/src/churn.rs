//! Many ADDs and DELs, all nodes at once, one at a time on each: how long they take.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::percentile::Durations;

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Churn {
    /// ADDs that succeeded.
    pub adds: Durations,
    /// DELs that succeeded.
    pub dels: Durations,
    /// What went wrong, one line each.
    pub failures: Vec<String>,
}

/// `rounds` pods in all come and go again, spread over the nodes.
pub async fn churn(cluster: &Cluster, rounds: usize) -> anyhow::Result<Churn> {
    let nodes = cluster.nodes().len();
    let share = rounds.div_ceil(nodes.max(1));
    let loops = (1..=nodes).map(|node| churn_node(cluster, node, share));
    let mut all = Churn::default();
    let (mut adds, mut dels) = (Vec::new(), Vec::new());
    for outcome in futures::future::join_all(loops).await {
        let part = outcome?;
        adds.extend(part.adds);
        dels.extend(part.dels);
        all.failures.extend(part.failures);
    }
    all.adds = Durations::new(adds);
    all.dels = Durations::new(dels);
    Ok(all)
}

#[derive(Debug, Default)]
struct Part {
    adds: Vec<Duration>,
    dels: Vec<Duration>,
    failures: Vec<String>,
}

async fn churn_node(cluster: &Cluster, node: usize, rounds: usize) -> anyhow::Result<Part> {
    let mut part = Part::default();
    for round in 0..rounds {
        let name = format!("churn-{node}-{round}");
        let mut pod = cluster.prepare_quiet_pod(node, "churn", &name).await?;
        let add = cluster.add_pod(&mut pod).await?;
        if add.is_ok() {
            part.adds.push(add.duration);
        } else {
            part.failures
                .push(format!("ADD of {}: {}", pod.key, add.text()));
        }
        let del = cluster.del_pod(&pod, true).await?;
        if del.is_ok() {
            part.dels.push(del.duration);
        } else {
            part.failures
                .push(format!("DEL of {}: {}", pod.key, del.text()));
        }
        cluster.remove_pod(pod).await?;
    }
    Ok(part)
}
