//! The proof: everything that people expect of a cluster, then nothing that is left.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::k8s::bed::{Bed, name_of, text};
use crate::k8s::matrix::{Seen, names};
use crate::k8s::release;
use crate::k8s::starts::{StartWatch, Wave};
use crate::k8s::workload::{self, PORT, everything, namespace, serving};
use crate::report::Report;

/// Namespace of what everybody has.
pub const EVERYTHING: &str = "bed";
/// Namespace of the pods that are timed.
const TIMED: &str = "timed";
/// Namespace of pods with an ENI of their own.
const WHOLE: &str = "whole";
/// Their resource.
const RESOURCE: &str = "aliyun/eni";
/// Namespace of the story of a policy.
const POLICY: &str = "policy";
/// Pods of the Deployment, so that at least sixty run with addresses.
const WEB: u32 = 46;
/// Pods that are timed.
const WAVE: usize = 60;
/// Waves of each plug-in; the first one of each warms the machine.
const ROUNDS: (usize, usize) = (2, 6);
/// How long workloads may take to run.
const LIMIT: Duration = Duration::from_mins(3);
/// How long a policy may take to hold.
const POLICY_LIMIT: Duration = Duration::from_secs(10);
/// How long an offer must stand.
const STEADY: Duration = Duration::from_secs(15);
/// Lines of details that are shown.
const DETAILS: usize = 12;

/// All of it, on a bed without the release.
///
/// # Errors
/// When something could not be looked at. What did not hold is in the report.
pub async fn check<W: Write>(bed: &Bed, long: bool, report: &mut Report<W>) -> anyhow::Result<()> {
    report.step("helm install");
    bed.install(&release::values(bed)).await?;
    report.check(true, "the chart is installed, all its pods are Ready, all nodes are Ready, CoreDNS has addresses");
    whole_enis(bed, report).await?;
    delete(bed, &[WHOLE]).await?;
    run_everything(bed, report).await?;
    reach(bed, report).await?;
    policy(bed, report).await?;
    delete(bed, &[EVERYTHING, POLICY]).await?;
    compare(bed, long, report).await?;
    delete(bed, &[TIMED]).await?;
    leave(bed, report).await
}

/// Starts one of each kind of workload and looks at the pods' addresses.
///
/// # Errors
/// When they do not run.
pub async fn run_everything<W: Write>(bed: &Bed, report: &mut Report<W>) -> anyhow::Result<()> {
    report
        .step("Deployments, StatefulSet, DaemonSets, Job; host network, init containers, hostPort");
    let kube = bed.kube();
    kube.apply(&[namespace(EVERYTHING)]).await?;
    let watch = StartWatch::begin(kube, EVERYTHING)?;
    let nodes = u32::try_from(bed.nodes.len())?;
    let objects = in_namespace(everything(WEB, nodes), EVERYTHING);
    kube.apply(&objects).await?;
    running(bed, EVERYTHING, &objects).await?;
    let pods = bed.pods(EVERYTHING).await?;
    let with_address: Vec<&Seen> = pods.iter().filter(|pod| !pod.host_network).collect();
    report.check(
        with_address.len() >= 60,
        &format!(
            "{} pods run, {} of them with addresses of their own",
            pods.len(),
            with_address.len()
        ),
    );
    let strangers = strangers(bed, &with_address);
    report.check(
        strangers.is_empty(),
        "every address lies in a vSwitch of the node's zone, on an ENI of the node's instance, and is nobody else's",
    );
    report.details(&strangers, DETAILS);
    let took = watch.wait(pods.len()).await?;
    report.line(&format!(
        "    Scheduled → Running of {} pods of all kinds: p50 {:.2} s, p99 {:.2} s",
        took.count(),
        took.percentile(50).as_secs_f32(),
        took.percentile(99).as_secs_f32(),
    ));
    Ok(())
}

/// Waits until workloads run and Jobs have done their work.
///
/// # Errors
/// When one does not.
pub async fn running(bed: &Bed, namespace: &str, objects: &[Value]) -> anyhow::Result<()> {
    for object in objects {
        let kind = text(object, "/kind").to_lowercase();
        let target = format!("{kind}/{}", name_of(object));
        let words: Vec<&str> = match kind.as_str() {
            "deployment" | "statefulset" | "daemonset" => vec!["rollout", "status", &target],
            "job" => vec!["wait", "--for=condition=complete", &target],
            _ => continue,
        };
        let place = ["-n", namespace, "--timeout=170s"];
        let words = [words.as_slice(), &place[..]].concat();
        bed.kube().run_for(&words, LIMIT).await?;
    }
    Ok(())
}

/// Addresses that are not where they should be.
fn strangers(bed: &Bed, pods: &[&Seen]) -> Vec<String> {
    let dump = bed.cloud().dump();
    let mut owner: BTreeMap<IpAddr, (String, String)> = BTreeMap::new();
    for instance in &dump.instances {
        for eni in dump
            .enis
            .iter()
            .filter(|eni| instance.enis.contains(&eni.id))
        {
            for ip in &eni.ipv4 {
                owner.insert(
                    IpAddr::V4(*ip),
                    (instance.id.to_string(), eni.id.to_string()),
                );
            }
        }
    }
    let mut seen = BTreeMap::new();
    let mut strangers = Vec::new();
    for pod in pods {
        if let Some(other) = seen.insert(pod.ip, pod.name.clone()) {
            strangers.push(format!("{} and {other} both have {}", pod.name, pod.ip));
        }
        let Ok(node) = bed.node(&pod.node) else {
            strangers.push(format!(
                "{} is on {}, which there is not",
                pod.name, pod.node
            ));
            continue;
        };
        let zones = bed
            .layout()
            .zones
            .iter()
            .filter(|z| z.id.to_string() == node.plan().zone);
        let mut ranges = zones
            .flat_map(|zone| &zone.pods)
            .map(|vswitch| vswitch.ipv4);
        let in_zone = ranges.any(|range| matches!(pod.ip, IpAddr::V4(ip) if range.contains(&ip)));
        let instance = owner.get(&pod.ip).map(|(instance, _)| instance.as_str());
        if !in_zone || instance != Some(node.plan().instance.as_str()) {
            strangers.push(format!(
                "{} on {} has {}, which the cloud has on {instance:?}",
                pod.name, pod.node, pod.ip
            ));
        }
    }
    strangers
}

/// Everybody tries everybody.
///
/// # Errors
/// When pods can not be asked.
pub async fn reach<W: Write>(bed: &Bed, report: &mut Report<W>) -> anyhow::Result<()> {
    report.step("every pod tries every other, Services, nodes' ports and names");
    let pods = bed.pods(EVERYTHING).await?;
    let services = bed.services_of(EVERYTHING).await?;
    let matrix = bed.matrix(&pods, &services).await?;
    report.check(
        matrix.failed.is_empty() && matrix.reached > 0,
        &format!(
            "{} connections over TCP and UDP: pods, a ClusterIP, NodePorts, hostPorts; {} failed",
            matrix.reached,
            matrix.failed.len()
        ),
    );
    report.details(&matrix.failed, DETAILS);
    let (_, inside): (Vec<_>, Vec<_>) = pods.into_iter().partition(|pod| pod.host_network);
    let mut failed = Vec::new();
    let mut reached = 0;
    for pod in &inside {
        let alone = bed
            .matrix(std::slice::from_ref(pod), &names(EVERYTHING))
            .await?;
        reached += alone.reached;
        failed.extend(alone.failed);
    }
    report.check(
        failed.is_empty() && reached > 0,
        &format!("{reached} connections by name; {} failed", failed.len()),
    );
    report.details(&failed, DETAILS);
    Ok(())
}

/// As many pods with an ENI of their own as nodes offer, and one more, which must wait.
///
/// # Errors
/// When they do not run.
pub async fn whole_enis<W: Write>(bed: &Bed, report: &mut Report<W>) -> anyhow::Result<()> {
    report.step("pods with an ENI of their own");
    let kube = bed.kube();
    let offered = steady_offer(bed).await?;
    kube.apply(&[namespace(WHOLE)]).await?;
    let mut spec = serving(PORT);
    let limits = json!({"limits": {RESOURCE: "1"}});
    workload::set(&mut spec, "/containers/0", "resources", limits);
    // Single pods: what is not admitted while the offer changes would be made anew for ever by a workload.
    let names = (0..=offered).map(|n| format!("whole-{n}"));
    let pods: Vec<Value> = names
        .map(|name| workload::pod(&name, &json!({"app": WHOLE}), &spec))
        .collect();
    kube.apply(&in_namespace(pods, WHOLE)).await?;
    let pods = kube
        .until(LIMIT, async |_| {
            let pods = bed.pods(WHOLE).await?;
            ensure!(
                pods.len() == offered,
                "{} of {offered} pods run",
                pods.len()
            );
            Ok(pods)
        })
        .await?;
    let pending = kube
        .list(&[
            "pods",
            "-n",
            WHOLE,
            "--field-selector",
            "status.phase=Pending",
        ])
        .await?;
    let why: Vec<&str> = pending
        .iter()
        .map(|pod| text(pod, "/status/conditions/0/message"))
        .collect();
    report.check(
        why.len() == 1 && why.iter().all(|why| why.contains(RESOURCE)),
        &format!("{offered} pods run, as many as nodes offer; one more waits for {RESOURCE}"),
    );
    let strangers = strangers(bed, &pods.iter().collect::<Vec<_>>());
    report.check(
        strangers.is_empty(),
        "each has an address of an ENI of its node's instance",
    );
    report.details(&strangers, DETAILS);
    let matrix = bed.matrix(&pods, &[]).await?;
    report.check(
        matrix.failed.is_empty() && matrix.reached > 0,
        &format!(
            "{} connections between them; {} failed",
            matrix.reached,
            matrix.failed.len()
        ),
    );
    report.details(&matrix.failed, DETAILS);
    Ok(())
}

/// What all nodes offer to pods, once it has stood for a while: kubelet tells changes every ten seconds.
async fn steady_offer(bed: &Bed) -> anyhow::Result<usize> {
    let offer = async || -> anyhow::Result<usize> {
        let nodes = bed.kube().list(&["nodes"]).await?;
        let of = |node: &Value| {
            let told = text(node, "/status/allocatable/aliyun~1eni");
            told.parse::<usize>().ok()
        };
        Ok(nodes.iter().filter_map(of).sum())
    };
    let end = tokio::time::Instant::now() + LIMIT;
    loop {
        let before = offer().await?;
        tokio::time::sleep(STEADY).await;
        let offered = offer().await?;
        if offered > 0 && offered == before {
            return Ok(offered);
        }
        ensure!(
            tokio::time::Instant::now() < end,
            "{offered} {RESOURCE} are offered, {before} were before"
        );
    }
}

/// A policy that lets one in and keeps another out.
///
/// # Errors
/// When the pods do not run.
pub async fn policy<W: Write>(bed: &Bed, report: &mut Report<W>) -> anyhow::Result<()> {
    report.step("NetworkPolicy");
    let kube = bed.kube();
    kube.apply(&[namespace(POLICY)]).await?;
    let roles = ["server", "friend", "stranger"];
    let pods = roles.map(|role| workload::pod(role, &json!({"role": role}), &serving(PORT)));
    kube.apply(&in_namespace(pods.to_vec(), POLICY)).await?;
    let ready = [
        "wait",
        "--for=condition=Ready",
        "pod",
        "--all",
        "-n",
        POLICY,
        "--timeout=60s",
    ];
    kube.run_for(&ready, LIMIT).await?;
    let server = kube.get(&["pod", "server", "-n", POLICY]).await?;
    let target = format!("{}:{PORT}", text(&server, "/status/podIP"));
    let before = reaches(bed, "friend", &target).await && reaches(bed, "stranger", &target).await;
    report.check(before, "both clients reach the server without a policy");
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "friends", "namespace": POLICY},
        "spec": {
            "podSelector": {"matchLabels": {"role": "server"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}],
        },
    });
    kube.apply(&[policy]).await?;
    let denied = kube
        .until(POLICY_LIMIT, async |_| {
            ensure!(
                !reaches(bed, "stranger", &target).await,
                "the stranger is let in"
            );
            Ok(())
        })
        .await;
    report.check(denied.is_ok(), "the policy keeps the stranger out");
    report.check(
        reaches(bed, "friend", &target).await,
        "and lets the friend in",
    );
    kube.run(&["delete", "networkpolicy", "friends", "-n", POLICY])
        .await?;
    let open = kube
        .until(POLICY_LIMIT, async |_| {
            ensure!(
                reaches(bed, "stranger", &target).await,
                "the stranger is kept out"
            );
            Ok(())
        })
        .await;
    report.check(open.is_ok(), "without it both are let in again");
    Ok(())
}

/// Whether a pod reaches the target, by a program that runs in it.
async fn reaches(bed: &Bed, pod: &str, target: &str) -> bool {
    let words = [
        "exec",
        pod,
        "-n",
        POLICY,
        "--",
        "/terway-probe",
        "dial",
        "tcp",
        target,
    ];
    bed.kube().run(&words).await.is_ok()
}

/// The same Deployment by ours and by `ptp` with `host-local`, in turn.
///
/// # Errors
/// When its pods do not run.
pub async fn compare<W: Write>(
    bed: &Bed,
    long: bool,
    report: &mut Report<W>,
) -> anyhow::Result<()> {
    report.step(&format!(
        "{WAVE} pods of one Deployment, ours and ptp with host-local in turn"
    ));
    let kube = bed.kube();
    kube.apply(&[namespace(TIMED)]).await?;
    let deployment = workload::workload("Deployment", "wave", Some(0), &serving(PORT));
    kube.apply(&in_namespace(vec![deployment], TIMED)).await?;
    let rounds = if long { ROUNDS.1 } else { ROUNDS.0 };
    let mut rows = vec![row("plug-in", ["p50", "p99", "all run", "CNI ADD", "gone"])];
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for round in 0..=rounds {
        let mut wave = bed.wave(TIMED, "wave", WAVE).await?;
        ensure_addresses(&wave, "10.")?;
        note(&mut rows, "terway", round, &wave);
        if round > 0 {
            ours.push(wave.clone());
        }
        bed.bare_network(true)?;
        let timed = bed.wave(TIMED, "wave", WAVE).await;
        bed.bare_network(false)?;
        wave = timed?;
        ensure_addresses(&wave, "192.168.")?;
        note(&mut rows, "ptp", round, &wave);
        if round > 0 {
            theirs.push(wave);
        }
    }
    report.table(&rows);
    let ratio = |of: fn(&Wave) -> Duration| {
        let sum = |waves: &[Wave]| waves.iter().map(|wave| of(wave).as_secs_f64()).sum::<f64>();
        sum(&ours) / sum(&theirs)
    };
    let (p50, p99, all) = (ratio(|w| w.p50), ratio(|w| w.p99), ratio(|w| w.all));
    report.line(&format!(
        "    ratio to ptp with host-local: p50 {p50:.2}, p99 {p99:.2}, all {all:.2}"
    ));
    report.check(
        p50 <= 1.0,
        &format!(
            "pods are not slower to run than with ptp and host-local (p50 ratio {p50:.2}, goal 0.9)"
        ),
    );
    Ok(())
}

fn ensure_addresses(wave: &Wave, prefix: &str) -> anyhow::Result<()> {
    let wrong = wave.addresses.iter().find(|ip| !ip.starts_with(prefix));
    ensure!(
        wrong.is_none(),
        "a pod had {wrong:?}, wanted {prefix}…: another plug-in made it"
    );
    Ok(())
}

fn note(rows: &mut Vec<Vec<String>>, who: &str, round: usize, wave: &Wave) {
    let seconds = |d: Duration| format!("{:.2} s", d.as_secs_f32());
    let who = if round == 0 {
        format!("{who} (warm-up)")
    } else {
        who.to_owned()
    };
    let plugin = format!("{:.0} ms", wave.plugin.as_secs_f64() * 1000.0);
    let cells = [
        seconds(wave.p50),
        seconds(wave.p99),
        seconds(wave.all),
        plugin,
        seconds(wave.gone),
    ];
    rows.push(row(&who, cells.each_ref().map(String::as_str)));
}

fn row(first: &str, cells: [&str; 5]) -> Vec<String> {
    std::iter::once(first)
        .chain(cells)
        .map(str::to_owned)
        .collect()
}

/// `helm uninstall`, and what it leaves.
///
/// # Errors
/// When it fails.
pub async fn leave<W: Write>(bed: &Bed, report: &mut Report<W>) -> anyhow::Result<()> {
    report.step("helm uninstall");
    let dns = [
        "scale",
        "deployment/coredns",
        "--replicas=0",
        "-n",
        "kube-system",
    ];
    bed.kube().run(&dns).await?;
    bed.uninstall().await?;
    report.check(true, "helm uninstall ended by itself");
    let left = bed.left_by_release().await?;
    report.check(
        left.is_empty(),
        "nothing is left of it: links, rules, tables, CNI configurations on nodes; ENIs and addresses in the cloud",
    );
    report.details(&left, DETAILS);
    bed.check().context("the cluster itself goes on")
}

/// Deletes namespaces with all that is in them.
///
/// # Errors
/// When they do not go.
pub async fn delete(bed: &Bed, namespaces: &[&str]) -> anyhow::Result<()> {
    let mut words = vec!["delete", "namespace", "--wait", "--timeout=120s"];
    words.extend_from_slice(namespaces);
    bed.kube().run_for(&words, LIMIT).await?;
    Ok(())
}

/// The same objects in a namespace.
pub fn in_namespace(mut objects: Vec<Value>, namespace: &str) -> Vec<Value> {
    for object in &mut objects {
        workload::set(object, "/metadata", "namespace", json!(namespace));
    }
    objects
}
