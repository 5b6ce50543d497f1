//! From an event to the kernel's commit, against `nft`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cluster::documents::Change;
use fabric::namespace::Namespace;
use policy_agent::kernel::nft;
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
/// A burst that nobody answered within this time is lost.
const LONGEST_BURST: Duration = Duration::from_secs(10);
/// Events of each kind, one at a time.
const EVENTS: u32 = 900;
/// Rounds that they are divided into: others disturb a shared machine.
const EVENT_ROUNDS: u32 = 3;
/// Changes of the burst.
const BURST: u32 = 1_000;
/// Forked `nft` runs in a round.
const FORKS: u32 = 40;
/// Rounds of the burst.
const ROUNDS: u32 = 5;
/// An event has had all its commits when none came for so long.
const PAUSE: Duration = Duration::from_millis(12);
/// The same for a burst.
const PAUSE_AFTER_BURST: Duration = Duration::from_millis(150);

/// Feeds `rules` to one `nft` process in the namespace.
pub(crate) fn run_nft(node: &Namespace, rules: &str) -> Result<()> {
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
    agents.settle().await?;
    for n in 0..LOCAL {
        let pod = topology.sandbox(&world::local(n)?)?;
        topology.raise(pod.clone()).await?;
        agents.ready(&pod).await?;
    }
    let node = topology.node(0)?.namespace.clone();
    let mut control = node.enter(nft::Socket::open)??;
    // Before anybody listens: the kernel would tell a listener of each object of a transaction, inside of it.
    burst(&mut agents, &mut control, promises).await?;
    let mut bench = Bench {
        agents,
        watcher: Watcher::start(&node)?,
        control,
    };
    for kind in [Kind::Remote, Kind::Policy, Kind::Local] {
        bench.single(kind, promises).await?;
    }
    let overruns = bench.watcher.overruns();
    ensure!(
        overruns == 0,
        "the kernel's notifications were lost {overruns} times"
    );
    Ok(())
}

/// An agent, what its kernel says, and a way around it to the same kernel.
struct Bench {
    agents: Agents,
    watcher: Watcher,
    control: nft::Socket,
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

impl Bench {
    /// Events one at a time, each with an empty transaction beside it.
    async fn single(&mut self, kind: Kind, promises: &mut Promises) -> Result<()> {
        let pid = agent_pid(&self.agents)?;
        let before = self.agents.status(0).await?.transactions;
        let mut cpu = Duration::ZERO;
        let (mut rounds, mut cleaned, mut control) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..EVENTS {
            if n % (EVENTS / EVENT_ROUNDS) == 0 {
                rounds.push(Vec::new());
            }
            let change = kind.change(n)?;
            let start = Instant::now();
            self.control.commit(&[])?;
            control.push(start.elapsed());
            self.watcher.quiet(PAUSE).await;
            self.watcher.take();
            let cpu_before = process_cpu(pid)?;
            let start = Instant::now();
            self.agents.publish_changes(&[change]);
            // Nothing is asked meanwhile: answering would cost the agent too.
            self.watcher.quiet(PAUSE).await;
            cpu += process_cpu(pid)?.saturating_sub(cpu_before);
            self.agents.settle().await?;
            let commits = self.watcher.take();
            let of = |at: Option<&Instant>| at.map(|at| at.saturating_duration_since(start));
            // With a policy's change, the last commit only removes what nobody refers to any more.
            let removes = usize::from(kind == Kind::Policy && commits.len() > 1);
            if let Some(round) = rounds.last_mut() {
                round.extend(of(commits.iter().rev().nth(removes)));
            }
            cleaned.extend(of(commits.last()));
        }
        let after = self.agents.status(0).await?.transactions;
        let seen = u32::try_from(cleaned.len())?;
        ensure!(seen > 0, "no event of kind {kind:?} reached the kernel");
        let rounds: Vec<_> = rounds.iter_mut().map(|all| percentiles(all)).collect();
        let each_round: Vec<String> = rounds
            .iter()
            .map(|(p50, p99)| format!("{:.2}/{:.2}", ms(*p50), ms(*p99)))
            .collect();
        let (p50, p99) = rounds
            .into_iter()
            .min_by_key(|(_, p99)| *p99)
            .unwrap_or_default();
        let (cleaned_p50, cleaned_p99) = percentiles(&mut cleaned);
        let (control_p50, control_p99) = percentiles(&mut control);
        let transactions = u32::try_from(after.saturating_sub(before))?;
        let each = f64::from(transactions) / f64::from(seen);
        promises.check(
            each <= 3.0,
            &format!(
                "{}: {each:.2} transactions per event that concerns the node (at most 3), {seen} of {EVENTS} do",
                kind.name()
            ),
        );
        promises.check(
            p99 <= Duration::from_millis(5),
            &format!(
                "{}: in force in the kernel p50 {:.3} ms p99 {:.3} ms (goal 5; best of the rounds {}), last commit p50 {:.3} ms p99 {:.3} ms over all, empty transaction p50 {:.3} ms p99 {:.3} ms, agent CPU {:.3} ms each",
                kind.name(),
                ms(p50),
                ms(p99),
                each_round.join(" "),
                ms(cleaned_p50),
                ms(cleaned_p99),
                ms(control_p50),
                ms(control_p99),
                ms(cpu / EVENTS)
            ),
        );
        Ok(())
    }
}

/// Many policies at once, against `nft` making the same changes of chains, rules and elements.
async fn burst(
    agents: &mut Agents,
    control: &mut nft::Socket,
    promises: &mut Promises,
) -> Result<()> {
    let mut peer = Peer::create().await?;
    let (mut ours, mut batched, mut forked) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let changes: Vec<Change> = (0..BURST)
            .map(|n| {
                let app = (n + (round + 1) * 7) % APPS;
                Change::Upsert(extra_policy(n, app, 40_000 + (n + round + 1) % 1_000))
            })
            .collect();
        let start = Instant::now();
        let before = control.generation()?.id;
        agents.publish_changes(&changes);
        let published = start.elapsed();
        let commits = commits_of_a_burst(control, before).await?;
        agents.settle().await?;
        let after = |at: Option<&Instant>| {
            let at = at.context("the burst reached no kernel")?;
            Ok::<_, anyhow::Error>(at.saturating_duration_since(start))
        };
        // New chains are created, subjects move over to them, and the old chains are removed: the burst is in force
        // with the last transaction but one.
        let took = after(commits.iter().rev().nth(1))?;
        let cleaned = after(commits.last())?;
        ours.push(took);
        batched.push(peer.batched(round)?);
        forked.push(peer.forked(round)?);
        line(&format!(
            "         round {round}: publishing took {:.1} ms, all in force after {:.1} ms, what is left over removed after {:.1} ms in {} commits",
            ms(published),
            ms(took),
            ms(cleaned),
            commits.len()
        ));
    }
    let (ours, batched, forked) = (best(&ours), best(&batched), best(&forked));
    promises.check(
        ours <= Duration::from_millis(100),
        &format!(
            "1,000 policy changes in one burst in force after {:.1} ms, best of {ROUNDS} (at most 100)",
            ms(ours)
        ),
    );
    let each = ours / BURST;
    let ratio = forked.as_secs_f64() / each.as_secs_f64();
    promises.check(
        ratio >= 10.0,
        &format!(
            "one change: {:.3} ms, one forked nft: {:.3} ms, {ratio:.0} times (at least 10)",
            ms(each),
            ms(forked)
        ),
    );
    let ratio = batched.as_secs_f64() / ours.as_secs_f64();
    promises.check(
        ratio >= 2.0,
        &format!(
            "1,000 changes: {:.1} ms, one `nft -f -`: {:.1} ms, {ratio:.1} times (at least 2)",
            ms(ours),
            ms(batched)
        ),
    );
    Ok(())
}

/// When the kernel's generation was seen to change, until it does not any more.
async fn commits_of_a_burst(control: &mut nft::Socket, before: u32) -> Result<Vec<Instant>> {
    let start = Instant::now();
    let (mut last, mut commits) = (before, Vec::new());
    while commits
        .last()
        .is_none_or(|at: &Instant| at.elapsed() < PAUSE_AFTER_BURST)
    {
        ensure!(
            start.elapsed() < LONGEST_BURST,
            "the burst reached no kernel"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
        let now = control.generation()?.id;
        if now != last {
            last = now;
            commits.push(Instant::now());
        }
    }
    Ok(commits)
}

/// The shortest.
fn best(all: &[Duration]) -> Duration {
    all.iter().min().copied().unwrap_or_default()
}

/// The pid of the only agent.
pub(crate) fn agent_pid(agents: &Agents) -> Result<i32> {
    let pid = agents.pid(0).context("the agent does not run")?;
    Ok(i32::try_from(pid)?)
}

/// A table of the same size that `nft` changes, in the same way: new chains, subjects moved over to them, old chains
/// removed.
struct Peer {
    node: Namespace,
    _topology: Topology,
}

impl Peer {
    async fn create() -> Result<Self> {
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
                "set s{app} {{ type ipv4_addr; elements = {{ {members} }} }}\nset t{app} {{ type ipv6_addr; }}"
            )?;
        }
        base.push_str("map to { type ifname : verdict; }\n");
        base.push_str(
            "chain forward { type filter hook forward priority 0; oifname vmap @to; }\n}\n",
        );
        for n in 0..BURST {
            base.push_str(&Self::rule(n, 0));
        }
        for local in 0..LOCAL {
            base.push_str(&Self::subject(local, 0));
        }
        run_nft(&node, &base)?;
        Ok(Self {
            node,
            _topology: topology,
        })
    }

    /// One process and one transaction for all changes.
    fn batched(&mut self, round: u32) -> Result<Duration> {
        let mut all: String = (0..BURST).map(|n| Self::rule(n, round + 1)).collect();
        for local in 0..LOCAL {
            writeln!(
                all,
                "delete element inet peer to {{ v{local} }}\n{}delete chain inet peer p{local}_{round}",
                Self::subject(local, round + 1)
            )?;
        }
        for n in 0..BURST {
            writeln!(all, "delete chain inet peer r{n}_{round}")?;
        }
        let start = Instant::now();
        run_nft(&self.node, &all)?;
        Ok(start.elapsed())
    }

    /// One process per change, and no more in it than one rule that is replaced: the time of one.
    fn forked(&mut self, round: u32) -> Result<Duration> {
        let start = Instant::now();
        for n in 0..FORKS {
            let app = (n + 7 * (round + 2)) % APPS;
            run_nft(
                &self.node,
                &format!(
                    "flush chain inet peer r{n}_{0}\nadd rule inet peer r{n}_{0} ip saddr @s{app} udp dport {1} accept\n",
                    round + 1,
                    n + round + 1
                ),
            )?;
        }
        Ok(start.elapsed() / FORKS)
    }

    fn rule(n: u32, round: u32) -> String {
        let app = (n + 7 * (round + 1)) % APPS;
        format!(
            "add chain inet peer r{n}_{round}\nadd rule inet peer r{n}_{round} udp dport {0} ip saddr @s{app} counter accept\nadd rule inet peer r{n}_{round} udp dport {0} ip6 saddr @t{app} counter accept\n",
            n + round + 1
        )
    }

    fn subject(local: u32, round: u32) -> String {
        let jumps: String = (0..BURST)
            .filter(|n| n % LOCAL == local)
            .map(|n| Self::jump(local, n, round))
            .collect();
        format!(
            "add chain inet peer p{local}_{round}\n{jumps}add rule inet peer p{local}_{round} drop\nadd element inet peer to {{ v{local} : goto p{local}_{round} }}\n"
        )
    }

    fn jump(local: u32, n: u32, round: u32) -> String {
        format!("add rule inet peer p{local}_{round} jump r{n}_{round}\n")
    }
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
