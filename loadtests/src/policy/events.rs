//! From an event to the kernel's commit, against `nft`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use cluster::documents::Change;
use fabric::namespace::Namespace;
use policy_lab::bed::agents::Agents;
use policy_lab::bed::topology::Topology;
use serde_json::{Value, json};

use crate::cost::{percentiles, process_cpu};
use crate::policy::watcher::Watcher;
use crate::policy::{Promises, world};
use crate::report::line;

/// Pods on the node.
const LOCAL: u32 = 100;
/// Pods elsewhere.
const REMOTE: u32 = 100_000;
/// Apps that remote pods belong to; policies let a few of them in.
const APPS: u32 = 1_000;
/// Events of each kind, one at a time.
const EVENTS: u32 = 300;
/// Changes of the burst.
const BURST: u32 = 1_000;
/// Forked `nft` runs.
const FORKS: u32 = 100;

/// Feeds `rules` to one `nft` process in the namespace.
pub(crate) fn nft(node: &Namespace, rules: &str) -> Result<()> {
    let entry = node.entry();
    let (first, rest) = entry.split_first().context("a namespace has an entry")?;
    let mut child = Command::new(first)
        .args(rest)
        .args(["nft", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("start nft")?;
    child
        .stdin
        .take()
        .context("no standard input")?
        .write_all(rules.as_bytes())?;
    let status = child.wait()?;
    ensure!(status.success(), "nft ended with {status}");
    Ok(())
}

/// Measures single events and a burst.
pub(crate) async fn run(promises: &mut Promises) -> Result<()> {
    let mut topology = Topology::create(&[world::node()], &[]).await?;
    let mut agents = Agents::start(&topology.nodes, &json!({})).await?;
    agents.publish(&documents()?);
    agents.run(0, &[])?;
    agents.settle().await?;
    for n in 0..LOCAL {
        let pod = topology.sandbox(&world::local(n)?)?;
        topology.raise(pod.clone()).await?;
        agents.ready(&pod).await?;
    }
    let node = topology.node(0)?.namespace.clone();
    let watcher = Watcher::start(&node)?;
    for kind in [Kind::Remote, Kind::Policy, Kind::Local] {
        single(kind, &mut agents, &watcher, promises).await?;
    }
    let control = empty_transactions(&node)?;
    line(&format!(
        "         control, empty transactions: p50 {:.3} ms p99 {:.3} ms",
        ms(control.0),
        ms(control.1)
    ));
    burst(&mut agents, &watcher, promises).await
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Remote,
    Policy,
    Local,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Remote => "a remote pod changes its app",
            Self::Policy => "a policy changes its rule",
            Self::Local => "a local pod changes its labels",
        }
    }

    fn change(self, n: u32) -> Result<Change> {
        Ok(Change::Upsert(match self {
            Self::Remote => world::remote(n, 5_000, (n + 1) % APPS),
            Self::Policy => policy_of(n % LOCAL, n % APPS, 30_000 + n),
            Self::Local => {
                let pod = world::local(n % LOCAL)?;
                let role = (n + 1 + n / LOCAL) % LOCAL;
                world::local_document(&pod, &json!({"role": format!("role-{role}")}))
            }
        }))
    }
}

async fn single(
    kind: Kind,
    agents: &mut Agents,
    watcher: &Watcher,
    promises: &mut Promises,
) -> Result<()> {
    let pid = agent_pid(agents)?;
    let before = agents.status(0).await?.transactions;
    let cpu = process_cpu(pid)?;
    let mut latencies = Vec::new();
    for n in 0..EVENTS {
        watcher.take();
        let start = Instant::now();
        agents.publish_changes(&[kind.change(n)?]);
        agents.settle().await?;
        // The last commit that its effects needed; objects nobody refers to may be removed later.
        if let Some(at) = watcher.take().last() {
            latencies.push(at.saturating_duration_since(start));
        }
    }
    let cpu = process_cpu(pid)?.saturating_sub(cpu) / EVENTS;
    let transactions = agents.status(0).await?.transactions.saturating_sub(before);
    let seen = latencies.len();
    ensure!(seen > 0, "no event of kind {kind:?} reached the kernel");
    let (p50, p99) = percentiles(&mut latencies);
    #[expect(clippy::cast_precision_loss, reason = "a count of events")]
    let each = transactions as f64 / f64::from(EVENTS);
    promises.check(
        each <= 3.0,
        &format!(
            "{}: {each:.2} transactions per event (at most 3)",
            kind.name()
        ),
    );
    promises.check(
        p99 <= Duration::from_millis(5),
        &format!(
            "{}: {seen} events, to the commit p50 {:.3} ms p99 {:.3} ms (goal 5), agent CPU {:.3} ms each",
            kind.name(),
            ms(p50),
            ms(p99),
            ms(cpu)
        ),
    );
    Ok(())
}

/// The pid of the only agent.
pub(crate) fn agent_pid(agents: &Agents) -> Result<i32> {
    let pid = agents.pid(0).context("the agent does not run")?;
    Ok(i32::try_from(pid)?)
}

fn empty_transactions(node: &Namespace) -> Result<(Duration, Duration)> {
    let times = node.enter(|| -> Result<Vec<Duration>> {
        let mut socket = policy_agent::kernel::nft::Socket::open()?;
        let mut times = Vec::new();
        for _ in 0..EVENTS {
            let start = Instant::now();
            socket.commit(&[])?;
            times.push(start.elapsed());
        }
        Ok(times)
    })??;
    let mut times = times;
    Ok(percentiles(&mut times))
}

async fn burst(agents: &mut Agents, watcher: &Watcher, promises: &mut Promises) -> Result<()> {
    let mut ours = Vec::new();
    for round in 0..3_u32 {
        let changes: Vec<Change> = (0..BURST)
            .map(|n| {
                let app = (n + round * 7) % APPS;
                Change::Upsert(extra_policy(n, app, 40_000 + (n + round) % 1_000))
            })
            .collect();
        watcher.take();
        let start = Instant::now();
        agents.publish_changes(&changes);
        agents.settle().await?;
        let commits = watcher.take();
        let last = commits.last().context("the burst reached no kernel")?;
        ours.push(last.saturating_duration_since(start));
    }
    ours.sort_unstable();
    let best = ours.first().copied().unwrap_or_default();
    let (forked, batched) = with_nft().await?;
    promises.check(
        best <= Duration::from_millis(100),
        &format!(
            "1,000 policy changes in one burst: {:.1} ms of {:?} rounds (at most 100)",
            ms(best),
            ours.len()
        ),
    );
    let each = best / BURST;
    let ratio = forked.as_secs_f64() / each.as_secs_f64();
    promises.check(
        ratio >= 10.0,
        &format!(
            "one change: {:.3} ms, one forked nft: {:.3} ms, {ratio:.0} times (at least 10)",
            ms(each),
            ms(forked)
        ),
    );
    let ratio = batched.as_secs_f64() / best.as_secs_f64();
    promises.check(
        ratio >= 2.0,
        &format!(
            "1,000 changes: {:.1} ms, one `nft -f -`: {:.1} ms, {ratio:.1} times (at least 2)",
            ms(best),
            ms(batched)
        ),
    );
    Ok(())
}

/// The same changes by `nft`: one process per change, and one process for all.
async fn with_nft() -> Result<(Duration, Duration)> {
    let topology = Topology::create(&[world::node()], &[]).await?;
    let node = topology.node(0)?.namespace.clone();
    let mut base = String::from("table inet peer {\n");
    for app in 0..APPS {
        let members: Vec<String> = (0..100)
            .map(|n| format!("10.{}.{}.{n}", app / 250, app % 250))
            .collect();
        let members = members.join(", ");
        writeln!(
            base,
            "set s{app} {{ type ipv4_addr; elements = {{ {members} }} }}"
        )?;
    }
    for n in 0..BURST {
        writeln!(
            base,
            "chain r{n} {{ ip saddr @s{} udp dport {n} accept }}",
            n % APPS
        )?;
    }
    base.push_str("}\n");
    nft(&node, &base)?;
    let change = |n: u32| {
        let app = (n + 7) % APPS;
        format!(
            "flush chain inet peer r{n}\nadd rule inet peer r{n} ip saddr @s{app} udp dport {} accept\n",
            n + 1
        )
    };
    let start = Instant::now();
    for n in 0..FORKS {
        nft(&node, &change(n))?;
    }
    let forked = start.elapsed() / FORKS;
    let all: String = (0..BURST).map(change).collect();
    let mut batched = Vec::new();
    for _ in 0..3 {
        let start = Instant::now();
        nft(&node, &all)?;
        batched.push(start.elapsed());
    }
    batched.sort_unstable();
    let Some(best) = batched.first() else {
        bail!("nft did not run");
    };
    Ok((forked, *best))
}

fn policy_of(local: u32, app: u32, port: u32) -> Value {
    let subject = json!({"role": format!("role-{local}")});
    let apps = [app, (app + 1) % APPS, (app + 2) % APPS];
    world::policy("local", &format!("policy-{local}"), &subject, &apps, port)
}

/// Policies of the burst: ten for each local pod.
fn extra_policy(n: u32, app: u32, port: u32) -> Value {
    let subject = json!({"role": format!("role-{}", n % LOCAL)});
    world::policy("local", &format!("extra-{n}"), &subject, &[app], port)
}

/// A cluster of 100,000 pods in view of a node with 100.
fn documents() -> Result<Vec<Value>> {
    let mut documents = vec![world::node_document(), world::namespace("local")];
    documents.extend((0..5_000).map(|n| world::namespace(&format!("ns-{n}"))));
    documents.extend((0..REMOTE).map(|n| world::remote(n, 5_000, n % APPS)));
    for n in 0..LOCAL {
        let labels = json!({"role": format!("role-{n}")});
        documents.push(world::local_document(&world::local(n)?, &labels));
        documents.push(policy_of(n, n, 9_000));
    }
    documents.extend((0..BURST).map(|n| extra_policy(n, n % APPS, 40_000 + n)));
    Ok(documents)
}

/// Milliseconds with their fraction.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
