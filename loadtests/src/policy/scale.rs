//! Memory, steady load, and starts, with a large cluster in view.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cluster::documents::Change;
use policy_lab::bed::agents::Agents;
use policy_lab::bed::topology::Topology;
use serde_json::{Value, json};

use crate::cost::process_cpu;
use crate::policy::events::{agent_pid, ms};
use crate::policy::flows::{self, Flow};
use crate::policy::{Promises, world};
use crate::report::line;

/// Pods elsewhere.
const PODS: u32 = 100_000;
/// Namespaces.
const NAMESPACES: u32 = 5_000;
/// Policies.
const POLICIES: u32 = 10_000;
/// Pods on the node.
const LOCAL: u32 = 50;
/// Entries in the connection tracking table.
const FLOWS: u32 = 100_000;
/// Pod events per second, and how long.
const RATE: u32 = 1_000;
const SECONDS: u32 = 30;
/// Starts of which the best counts: neighbours make the others slow.
const STARTS: u32 = 3;
/// Selectors that together have a million members.
const WIDE: u32 = 10;

/// Memory with a large cluster in view, a steady load, and a restart.
pub(crate) async fn crowded(promises: &mut Promises) -> Result<()> {
    let spans = tempfile::NamedTempFile::new()?;
    let telemetry = json!({"service": {"telemetry": {"span_file": spans.path()}}});
    let (topology, mut agents) = stand(&crowd()?, LOCAL, &telemetry).await?;
    let pid = agent_pid(&agents)?;
    promises.check(
        high_water(pid)? <= 64 << 10,
        &format!(
            "100,000 pods, 5,000 namespaces, 10,000 policies listed and watched from a relay with mTLS, spans written: VmHWM {:.1} MB (at most 64)",
            mib(high_water(pid)?)
        ),
    );
    let node = topology.node(0)?.namespace.clone();
    let entries = flows::fill(&node, tracked()?)?;
    ensure!(
        entries >= usize::try_from(FLOWS)?,
        "{entries} flows are tracked"
    );
    churn(&mut agents, promises).await?;
    promises.check(
        high_water(pid)? <= 64 << 10,
        &format!("after the churn: VmHWM {:.1} MB", mib(high_water(pid)?)),
    );
    warm(&mut agents, promises).await
}

async fn stand(documents: &[Value], local: u32, over: &Value) -> Result<(Topology, Agents)> {
    let mut topology = Topology::create(&[world::node()], &[]).await?;
    let mut agents = Agents::start(&topology.nodes, over).await?;
    agents.publish(documents);
    agents.settle().await?;
    for n in 0..local {
        let pod = topology.sandbox(&world::local(n)?)?;
        topology.raise(pod.clone()).await?;
        agents.ready(&pod).await?;
    }
    Ok((topology, agents))
}

/// Pod events at a steady rate, a hundred of them in each tenth of a second.
async fn churn(agents: &mut Agents, promises: &mut Promises) -> Result<()> {
    let pid = agent_pid(agents)?;
    let revocations = agents.status(0).await?.revocations;
    let cpu = process_cpu(pid)?;
    let start = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let per_tick = RATE / 50;
    for round in 0..SECONDS * 50 {
        tick.tick().await;
        for n in 0..per_tick {
            let pod = (round * per_tick + n) % PODS;
            let app = (pod + 1 + round) % 1_000;
            agents.publish_changes(&[Change::Upsert(world::remote(pod, NAMESPACES, app))]);
        }
    }
    agents.settle().await?;
    let spent = process_cpu(pid)?.saturating_sub(cpu);
    let share = spent.as_secs_f64() / start.elapsed().as_secs_f64();
    let passes = agents
        .status(0)
        .await?
        .revocations
        .saturating_sub(revocations);
    promises.check(
        share <= 0.05,
        &format!(
            "1,000 pod events/s for {SECONDS} s with 100,000 flows tracked: {:.1} % of a core (at most 5), {passes} flows revoked or restored",
            share * 100.0
        ),
    );
    Ok(())
}

/// A restart that finds everything as it should be.
async fn warm(agents: &mut Agents, promises: &mut Promises) -> Result<()> {
    let mut starts = Vec::new();
    let mut written = 0;
    for _ in 0..STARTS {
        agents.kill(0)?;
        starts.push(Start::of(agents).await?);
        written += agents.status(0).await?.transactions;
    }
    let best = Start::best(&starts)?;
    promises.check(
        best.took <= Duration::from_millis(600) && written == 0,
        &format!(
            "warm restart, process start to in force: {}, {written} transactions (at most 600 ms, none)",
            best.text(&starts)
        ),
    );
    Ok(())
}

/// One start of an agent until all is in force.
#[derive(Debug, Clone, Copy)]
struct Start {
    took: Duration,
    /// Of the agent, all threads.
    cpu: Duration,
}

impl Start {
    async fn of(agents: &mut Agents) -> Result<Self> {
        let start = Instant::now();
        agents.run(0, &[])?;
        agents.settle().await?;
        let took = start.elapsed();
        let cpu = process_cpu(agent_pid(agents)?)?;
        Ok(Self { took, cpu })
    }

    fn best(all: &[Self]) -> Result<Self> {
        let best = all.iter().min_by_key(|start| start.took);
        best.copied().context("nothing was started")
    }

    fn text(&self, all: &[Self]) -> String {
        format!(
            "{:.0} ms with {:.0} ms of CPU, best of {}",
            ms(self.took),
            ms(self.cpu),
            all.len()
        )
    }
}

/// A node whose sets have a million members.
pub(crate) async fn members(promises: &mut Promises) -> Result<()> {
    let mut documents = vec![world::node_document(), world::namespace("local")];
    documents.extend((0..NAMESPACES).map(|n| world::namespace(&format!("ns-{n}"))));
    documents.extend((0..PODS).map(|n| world::remote(n, NAMESPACES, n % 1_000)));
    for n in 0..WIDE {
        documents.push(wide_policy(n));
    }
    documents.push(world::local_document(
        &world::local(0)?,
        &json!({"role": "server"}),
    ));
    let mut starts = Vec::new();
    let mut members = u64::MAX;
    for _ in 0..STARTS {
        let topology = Topology::create(&[world::node()], &[]).await?;
        let mut agents = Agents::start(&topology.nodes, &json!({})).await?;
        // The one that runs has written nothing yet: there was nothing to be in sync with.
        agents.kill(0)?;
        agents.publish(&documents);
        starts.push(Start::of(&mut agents).await?);
        let status = agents.status(0).await?;
        members = members.min(status.set_members);
        line(&format!(
            "         {} members in {} sets, VmHWM {:.1} MB",
            status.set_members,
            status.sets,
            mib(high_water(agent_pid(&agents)?)?)
        ));
    }
    let best = Start::best(&starts)?;
    promises.check(
        members >= 1_000_000 && best.took <= Duration::from_secs(2),
        &format!(
            "cold start with {members} members, process start to in force: {} (at most 2,000 ms)",
            best.text(&starts)
        ),
    );
    Ok(())
}

/// One of the policies whose peers are all pods, each by another selector.
fn wide_policy(n: u32) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "local", "name": format!("wide-{n}")},
        "spec": {
            "podSelector": {},
            "ingress": [{"from": [{
                "namespaceSelector": {},
                "podSelector": {"matchExpressions": [
                    {"key": "all", "operator": "Exists"},
                    {"key": format!("absent-{n}"), "operator": "DoesNotExist"},
                ]},
            }]}],
        },
    })
}

/// 100,000 pods, 5,000 namespaces, 10,000 policies: two per namespace, and a few of the node's own.
fn crowd() -> Result<Vec<Value>> {
    let mut documents = vec![world::node_document(), world::namespace("local")];
    documents.extend((0..NAMESPACES).map(|n| world::namespace(&format!("ns-{n}"))));
    documents.extend((0..PODS).map(|n| world::remote(n, NAMESPACES, n % 1_000)));
    for n in 0..LOCAL {
        let labels = json!({"role": format!("role-{n}")});
        documents.push(world::local_document(&world::local(n)?, &labels));
        let subject = json!({"role": format!("role-{n}")});
        let apps = [n, n + 100, n + 200];
        let name = format!("policy-{n}");
        documents.push(world::policy("local", &name, &subject, &apps, 9_000));
    }
    for n in 0..POLICIES - LOCAL {
        let namespace = format!("ns-{}", n % NAMESPACES);
        let subject = json!({"app": format!("app-{}", n % 1_000)});
        let apps = [n % 1_000, (n + 1) % 1_000];
        let name = format!("policy-{n}");
        documents.push(world::policy(&namespace, &name, &subject, &apps, 9_000));
    }
    Ok(documents)
}

/// Flows between the node's pods and pods elsewhere that policy allows: half of them begun by the node's pods, half by
/// pods that the policies let in.
fn tracked() -> Result<Vec<Flow>> {
    let flow = |n: u32| {
        let own = n % LOCAL;
        let address = world::local(own)?.v4.context("pods have IPv4")?;
        let turn = n / LOCAL;
        let port = u16::try_from(10_000 + turn)?;
        Ok(if turn.is_multiple_of(2) {
            Flow {
                source: (address, port),
                destination: (world::remote_address(n % PODS), 53),
            }
        } else {
            // One of the three apps of the pod's policy, and one of the app's pods.
            let app = own + 100 * (turn % 3);
            let other = (app + 1_000 * (turn % 100)) % PODS;
            Flow {
                source: (world::remote_address(other), port),
                destination: (address, 9_000),
            }
        })
    };
    (0..FLOWS).map(flow).collect()
}

/// Largest resident size so far, in KiB.
fn high_water(pid: i32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next())
        .context("no VmHWM")?
        .parse()
        .context("VmHWM")
}

fn mib(kib: u64) -> f64 {
    u32::try_from(kib).map_or(f64::NAN, |kib| f64::from(kib) / 1024.0)
}
