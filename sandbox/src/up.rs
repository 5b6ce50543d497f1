//! What `sandbox up` does, from nothing to a verdict.

mod policy;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::agreement::{self, AuditInputs};
use crate::args::UpArgs;
use crate::churn::churn;
use crate::cluster::{AUDITOR, Cluster, Host, READY_LIMIT};
use crate::controls;
use crate::options::{ClusterOptions, Latency, PolicyFeed, Service, Store};
use crate::pods::Pod;
use crate::reachability::{Place, all_pairs};
use crate::report::Report;
use crate::trace_tree::Trace;

/// How long a connection between any two places may take.
const DIAL_LIMIT: Duration = Duration::from_secs(3);
/// Addresses that a node keeps ready at least.
const POOL_MIN: u32 = 5;
/// Addresses that a node keeps ready at most.
const POOL_MAX: u32 = 15;
/// Lines of details under a failed check.
const DETAILS: usize = 12;
/// Fewest spans from `cni.ADD` to the cloud's request id.
const MIN_CHAIN: usize = 6;
/// Fewest shards.
const MIN_SHARDS: usize = 4;
/// How long spans may take to their files.
const SPAN_LIMIT: Duration = Duration::from_secs(5);
/// How long stores may take to agree after a change.
const AGREE_LIMIT: Duration = Duration::from_secs(15);

/// Starts a cluster, proves what it can do, and, without `--check`, waits for Ctrl-C. True if all checks held.
///
/// # Errors
/// Whatever kept it from getting to a verdict.
pub async fn up(args: &UpArgs, out: impl Write) -> anyhow::Result<bool> {
    let mut report = Report::new(out);
    let options = options(args);
    let words = format!(
        "{} nodes in {} zones, store {}, latency {}, policy {}",
        options.nodes,
        options.zones,
        options.store.name(),
        options.latency.name(),
        options.policy.map_or("off", PolicyFeed::name),
    );
    report.step(&format!("starting {words}"));
    let cluster = Cluster::start(options).await?;
    let verdict = prove(&cluster, args, &mut report).await;
    if verdict.is_ok() && !args.check {
        stay(&cluster, &mut report).await?;
    }
    finish(cluster, verdict, &mut report).await?;
    if args.check && args.latency == crate::args::LatencyArg::Fast && report.holds() {
        slow_pass(args, &mut report).await?;
    }
    report.close();
    Ok(report.holds())
}

/// Ends a cluster; after a failure its files stay.
async fn finish<W: Write>(
    cluster: Cluster,
    verdict: anyhow::Result<()>,
    report: &mut Report<W>,
) -> anyhow::Result<()> {
    if let Err(error) = verdict {
        report.check(false, &format!("stopped by: {error:#}"));
    }
    if !report.holds() {
        cluster.run_dir().keep();
        let root = cluster.run_dir().root().display();
        report.line(&format!("    everything that was written is in {root}"));
    }
    report.step("stopping");
    cluster.stop().await
}

fn options(args: &UpArgs) -> ClusterOptions {
    let store = Store::from(args.store);
    ClusterOptions {
        nodes: args.nodes,
        store,
        ipam_replicas: if store == Store::Etcd { 2 } else { 1 },
        latency: args.latency.into(),
        pool_min: POOL_MIN,
        pool_max: POOL_MAX,
        set: BTreeMap::from([(cold_agent(args), cold_pool())]),
        run_root: args.run_root.clone(),
        keep_files: args.keep,
        bin_dir: args.bin_dir.clone(),
        policy: args.policy.into(),
        ..ClusterOptions::default()
    }
}

/// The agent that starts without a single address, so that its first ADD is a cold one.
fn cold_agent(args: &UpArgs) -> Service {
    Service::Agent(args.nodes)
}

fn cold_pool() -> Vec<(String, String)> {
    ["pool.min_idle", "pool.max_idle"]
        .map(|key| (key.to_owned(), "0".to_owned()))
        .to_vec()
}

/// A pod whose ADD causes the cloud calls that serve it.
///
/// Agents ask for an address as soon as they see a pod's manifest, so that kubelet's call mostly finds one: those
/// cloud calls belong to nobody's ADD. While ipam is away nothing can be asked ahead; the ADD itself asks.
async fn cold_pod(cluster: &Cluster, args: &UpArgs) -> anyhow::Result<Pod> {
    let replicas: Vec<_> = cluster
        .all_services()
        .into_iter()
        .filter(|service| matches!(service, Service::Ipam(_)))
        .collect();
    for replica in &replicas {
        cluster.terminate(*replica).await?;
    }
    let mut pod = cluster.prepare_pod(args.nodes, "default", "cold").await?;
    let back = async {
        for replica in &replicas {
            cluster.restart(*replica).await?;
        }
        for replica in &replicas {
            cluster.wait_ready(*replica, READY_LIMIT).await?;
        }
        anyhow::Ok(())
    };
    let (add, back) = tokio::join!(cluster.add_pod(&mut pod), back);
    back?;
    let add = add?;
    if !add.is_ok() {
        anyhow::bail!("ADD of {}: {}", pod.key, add.text());
    }
    Ok(pod)
}

/// From then on the node keeps addresses ready like the others; its agent finds its pods again.
async fn warm_up(cluster: &Cluster, args: &UpArgs) -> anyhow::Result<()> {
    let (min, max) = (POOL_MIN.to_string(), POOL_MAX.to_string());
    let set = [
        ("pool.min_idle", min.as_str()),
        ("pool.max_idle", max.as_str()),
    ];
    cluster.terminate(cold_agent(args)).await?;
    cluster
        .restart_with(cold_agent(args), Vec::new(), &set)
        .await?;
    cluster.wait_ready(cold_agent(args), READY_LIMIT).await
}

async fn prove<W: Write>(
    cluster: &Cluster,
    args: &UpArgs,
    report: &mut Report<W>,
) -> anyhow::Result<()> {
    report.step("services are ready; one pod on a node without addresses, while ipam restarts");
    let cold = cold_pod(cluster, args).await?;
    show_trace(cluster, report).await?;
    report.step("the other pods, on all nodes at once");
    warm_up(cluster, args).await?;
    let mut pods = vec![cold];
    pods.extend(make_pods(cluster, args.pods.saturating_sub(1)).await?);
    let inputs = agree(cluster, &pods, report).await?;
    show_pods(cluster, &pods, &inputs, report);
    show_owners(cluster, report).await?;
    check_reachability(cluster, &pods, report).await?;
    if cluster.options.policy.is_some() {
        policy::check(cluster, report).await?;
    }
    if args.churn > 0 {
        check_churn(cluster, args.churn, report).await?;
        agree(cluster, &pods, report).await?;
    }
    check_audit(cluster, report).await?;
    check_controls(cluster, &pods, !args.check, report).await?;
    show_calls(cluster, report);
    cluster.check_processes().await
}

/// Pods on all nodes in turn; nodes work at the same time, as kubelets do.
async fn make_pods(cluster: &Cluster, count: usize) -> anyhow::Result<Vec<Pod>> {
    let nodes = cluster.nodes().len();
    let of_node = |node: usize| async move {
        let mut pods = Vec::new();
        for n in (1..=count).filter(|n| (n - 1) % nodes + 1 == node) {
            pods.push(
                cluster
                    .create_pod(node, "default", &format!("web-{n}"))
                    .await?,
            );
        }
        Ok::<_, anyhow::Error>(pods)
    };
    let all = futures::future::join_all((1..=nodes).map(of_node)).await;
    let all: Result<Vec<_>, _> = all.into_iter().collect();
    Ok(all?.into_iter().flatten().collect())
}

fn show_pods<W: Write>(
    cluster: &Cluster,
    pods: &[Pod],
    inputs: &AuditInputs,
    report: &mut Report<W>,
) {
    let shards = shards_of(inputs);
    let head = ["pod", "node", "zone", "shard", "ipv4", "ipv6", "ADD"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for pod in pods {
        let text = |v4| pod.address(v4).map(|ip| ip.to_string()).unwrap_or_default();
        let host = pod.node.checked_sub(1).and_then(|n| cluster.nodes().get(n));
        let shard = pod.address(true).and_then(|ip| shards.get(&ip).cloned());
        let took = pod.add.as_ref().map(|add| add.duration.as_millis());
        rows.push(vec![
            pod.key.to_string(),
            host.map(|h| h.name.clone()).unwrap_or_default(),
            host.map(|h| h.zone.clone()).unwrap_or_default(),
            shard.unwrap_or_default(),
            text(true),
            text(false),
            format!("{} ms", took.unwrap_or_default()),
        ]);
    }
    report.table(&rows);
    let zones: std::collections::BTreeSet<_> = cluster.nodes().iter().map(|n| &n.zone).collect();
    let (pods, nodes, zones) = (pods.len(), cluster.nodes().len(), zones.len());
    let shards = inputs.shards.len();
    let enough = pods >= nodes && zones >= 2 && shards >= MIN_SHARDS;
    let text = format!("{pods} pods on {nodes} nodes in {zones} zones, {shards} shards");
    report.check(enough, &text);
}

async fn check_audit<W: Write>(cluster: &Cluster, report: &mut Report<W>) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + AGREE_LIMIT;
    let mut look = tokio::time::interval(Duration::from_millis(500));
    loop {
        look.tick().await;
        let findings = cluster.audit().await?;
        // What is under way for a moment is no finding.
        if findings.is_empty() || tokio::time::Instant::now() >= deadline {
            let text = format!("terwayctl audit: {} findings", findings.len());
            report.check(findings.is_empty(), &text);
            report.details(&findings, DETAILS);
            return Ok(());
        }
    }
}

async fn show_owners<W: Write>(cluster: &Cluster, report: &mut Report<W>) -> anyhow::Result<()> {
    for (replica, shards) in cluster.shards_by_replica().await? {
        let shards: Vec<_> = shards.into_iter().map(|s| s.shard).collect();
        report.line(&format!("    {replica} owns {}", shards.join(", ")));
    }
    Ok(())
}

/// The shard of every address that is not free.
fn shards_of(inputs: &AuditInputs) -> BTreeMap<IpAddr, String> {
    let mut shards = BTreeMap::new();
    for shard in &inputs.shards {
        for slot in &shard.slots {
            if let Ok(ip) = slot.ip.parse() {
                shards.insert(ip, shard.shard.clone());
            }
        }
    }
    shards
}

async fn check_reachability<W: Write>(
    cluster: &Cluster,
    pods: &[Pod],
    report: &mut Report<W>,
) -> anyhow::Result<()> {
    let hosts = cluster.plain_hosts().iter().chain(cluster.nodes());
    let places: Vec<Place> = pods
        .iter()
        .map(Pod::place)
        .chain(hosts.map(Host::place))
        .collect();
    let matrix = all_pairs(&places, &places, DIAL_LIMIT).await?;
    let failures = matrix.failures();
    let family = |v4: bool| {
        let of_family = matrix.attempts.iter().filter(|a| a.target.is_ipv4() == v4);
        of_family.count()
    };
    let text = format!(
        "TCP between all of {} pods, {} nodes and {} plain host: {} connections over IPv4, {} over IPv6, {} failed",
        pods.len(),
        cluster.nodes().len(),
        cluster.plain_hosts().len(),
        family(true),
        family(false),
        failures.len(),
    );
    report.check(failures.is_empty() && family(true) > 0, &text);
    let lines: Vec<_> = failures.iter().map(ToString::to_string).collect();
    report.details(&lines, DETAILS);
    Ok(())
}

/// Compares kernel, stores, log and cloud; changes that are under way get time to end.
async fn agree<W: Write>(
    cluster: &Cluster,
    pods: &[Pod],
    report: &mut Report<W>,
) -> anyhow::Result<AuditInputs> {
    let deadline = tokio::time::Instant::now() + AGREE_LIMIT;
    let mut look = tokio::time::interval(Duration::from_millis(200));
    loop {
        look.tick().await;
        let inputs = cluster.audit_inputs(pods).await?;
        let agreement = agreement::compare(&inputs);
        let agreed = agreement.differences.is_empty() && agreement.pods == pods.len();
        if agreed || tokio::time::Instant::now() >= deadline {
            let text = format!(
                "{} addresses of ENIs equal in agent stores, shard log and cloud; those of {} pods also in the kernel",
                agreement.addresses, agreement.pods,
            );
            report.check(agreed, &text);
            report.details(&agreement.differences, DETAILS);
            return Ok(inputs);
        }
    }
}

async fn show_trace<W: Write>(cluster: &Cluster, report: &mut Report<W>) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + SPAN_LIMIT;
    let mut look = tokio::time::interval(Duration::from_millis(100));
    loop {
        look.tick().await;
        let traces = Trace::cold_adds(&cluster.traces()?);
        let chain = traces.first().map_or(0, Trace::longest_chain);
        if chain < MIN_CHAIN && tokio::time::Instant::now() < deadline {
            continue;
        }
        let text = format!(
            "a cold ADD is one trace: {chain} spans from cni.ADD to a cloud request id (at least {MIN_CHAIN})"
        );
        report.check(chain >= MIN_CHAIN, &text);
        if let Some(trace) = traces.first() {
            report.line(trace.render().trim_end());
        }
        return Ok(());
    }
}

async fn check_churn<W: Write>(
    cluster: &Cluster,
    rounds: usize,
    report: &mut Report<W>,
) -> anyhow::Result<()> {
    report.step(&format!("{rounds} pods come and go"));
    let before = match cluster.options.policy {
        Some(_) => Some(policy::before(cluster).await?),
        None => None,
    };
    let churn = churn(cluster, rounds).await?;
    let ms = |d: Duration| format!("{:.1} ms", d.as_secs_f64() * 1e3);
    for (verb, durations) in [("ADD", &churn.adds), ("DEL", &churn.dels)] {
        let text = format!(
            "{} {verb}: p50 {}, p99 {}",
            durations.count(),
            ms(durations.percentile(50)),
            ms(durations.percentile(99)),
        );
        report.check(durations.count() >= rounds, &text);
    }
    report.details(&churn.failures, DETAILS);
    if let Some(before) = before {
        policy::check_cost(cluster, &churn.adds, &before, report).await?;
    }
    Ok(())
}

async fn check_controls<W: Write>(
    cluster: &Cluster,
    pods: &[Pod],
    heal: bool,
    report: &mut Report<W>,
) -> anyhow::Result<()> {
    report.step("controls: what must fail fails");
    let spoof = controls::spoof(cluster, pods).await?;
    let text = format!(
        "a spoofed source is dropped ({} counted), and passes once the filter is off",
        spoof.dropped
    );
    report.check(spoof.holds(), &text);
    let detach = controls::detach(cluster, pods, heal).await?;
    let text = format!(
        "detaching {} breaks exactly its pods ({} of {})",
        detach.eni,
        detach.expected.len(),
        pods.len()
    );
    report.check(detach.holds(), &text);
    if !detach.holds() {
        report.details(&[format!("{detach:?}")], 1);
    }
    Ok(())
}

fn show_calls<W: Write>(cluster: &Cluster, report: &mut Report<W>) {
    report.step("cloud calls made");
    let mut rows = vec![
        ["action", "calls", "throttled", "refused"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (action, count) in cluster.call_counts() {
        let refused: u64 = count.refused.values().sum();
        let numbers = [count.total, count.throttled, refused];
        let mut row = vec![action];
        row.extend(numbers.map(|n| n.to_string()));
        rows.push(row);
    }
    report.table(&rows);
}

/// A small cluster whose cloud takes seconds, as the real one.
async fn slow_pass<W: Write>(args: &UpArgs, report: &mut Report<W>) -> anyhow::Result<()> {
    report.step("once more with a cloud that takes seconds: 2 nodes, 4 pods");
    let options = ClusterOptions {
        nodes: 2,
        latency: Latency::Real,
        set: (1..=2).map(|n| (Service::Agent(n), cold_pool())).collect(),
        ..options(args)
    };
    let cluster = Cluster::start(options).await?;
    let proof = async {
        let pods = make_pods(&cluster, 4).await?;
        let slowest = pods
            .iter()
            .filter_map(|p| p.add.as_ref())
            .map(|add| add.duration)
            .max();
        let slowest = slowest.context("no pod was made")?;
        let text = format!("cold ADDs took up to {:.1} s", slowest.as_secs_f64());
        report.check(slowest >= Duration::from_secs(1), &text);
        agree(&cluster, &pods, report).await?;
        check_reachability(&cluster, &pods, report).await
    };
    let verdict = proof.await;
    finish(cluster, verdict, report).await
}

async fn stay<W: Write>(cluster: &Cluster, report: &mut Report<W>) -> anyhow::Result<()> {
    // Before anybody is told of it: an answer that comes at once must find us listening.
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    report.step("the cluster runs until Ctrl-C; to look around:");
    let root = cluster.run_dir().root().display();
    report.line(&format!(
        "    logs, configuration, stores, traces   ls {root}"
    ));
    for host in cluster.nodes().iter().chain(cluster.plain_hosts()) {
        let path = host.namespace.path();
        let enter = format!("nsenter --net={} bash", path.display());
        report.line(&format!("    {:<37} {enter}", host.name));
    }
    if cluster.options.policy.is_some() {
        let socket = cluster.run_dir().policy_socket(1);
        let terwayctl = cluster.bin_dir().join(AUDITOR);
        report.line(&format!(
            "    {:<37} {} policy denied --socket {}",
            "what node-1 denied lately",
            terwayctl.display(),
            socket.display()
        ));
    }
    let namespace = cluster.services_host().namespace.path();
    report.line(&format!(
        "    {:<37} nsenter --net={} bash",
        "central services",
        namespace.display()
    ));
    interrupt.recv().await.context("wait for Ctrl-C")
}
