//! ADD and DEL, ours and Debian's `ptp` (no masquerade) with `host-local`, alternately on one node.
//!
//! Dual stack, warm pool, tracing on. Time is that of the plug-in's process; CPU is that of the process with
//! everything it waited for, and for ours what the node's agent used from before the ADD until the next round.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fabric::namespace::Namespace;
use sandbox::cluster::Cluster;
use sandbox::options::{ClusterOptions, Service};
use serde_json::{Value, json};

use crate::cost::{Cost, measure, percentiles, process_cpu};
use crate::report::line;

/// Promised: ours at most this share of the peer's time and CPU per ADD.
const ADD_RATIO_MAX: f64 = 0.5;
/// Promised: our DEL is no slower.
const DEL_RATIO_MAX: f64 = 1.0;
/// Promised: size of the shipped plug-in, in bytes.
const PLUGIN_BYTES_MAX: u64 = 2 << 20;
/// Rounds that are not counted.
const WARM_UP: u32 = 10;

/// What to run.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) bin_dir: PathBuf,
    pub(crate) plugin: PathBuf,
    pub(crate) peers: PathBuf,
    pub(crate) rounds: u32,
}

/// One side's calls.
#[derive(Debug, Default)]
struct Side {
    add: Vec<Cost>,
    del: Vec<Cost>,
}

/// Runs and prints; whether all promises held.
pub(crate) async fn run(setup: &Setup) -> Result<bool> {
    let options = ClusterOptions {
        nodes: 1,
        zones: 1,
        plain_hosts: 0,
        pool_min: 10,
        pool_max: 40,
        bin_dir: Some(setup.bin_dir.clone()),
        // The pool is warm as long as an address rests shorter than a round trip through all of them.
        set: [(
            Service::Agent(1),
            vec![("pool.reuse_after_ms".to_owned(), "0".to_owned())],
        )]
        .into(),
        ..ClusterOptions::default()
    };
    line("starting a cluster of one node");
    let cluster = Cluster::start(options).await?;
    let outcome = rounds(&cluster, setup).await;
    cluster.stop().await?;
    let (ours, peer) = outcome?;
    judge(setup, &ours, &peer)
}

async fn rounds(cluster: &Cluster, setup: &Setup) -> Result<(Side, Side)> {
    let node = cluster.node(1)?.namespace.clone();
    let agent = cluster
        .pid(Service::Agent(1))
        .await
        .context("the agent does not run")?;
    let state = cluster.run_dir().root().join("host-local");
    let (mut ours, mut peer) = (Side::default(), Side::default());
    for round in 0..setup.rounds + WARM_UP {
        let pod = cluster
            .prepare_quiet_pod(1, "bench", &format!("pod-{round}"))
            .await?;
        let call = Call {
            node: node.clone(),
            sandbox: pod.sandbox.clone(),
            netns: pod.netns.path(),
            name: pod.key.name.clone(),
        };
        let theirs = Namespace::create(format!("{}-peer", pod.netns.name()))?;
        let their_call = Call {
            netns: theirs.path(),
            ..call.clone()
        };
        let conf = cluster.network_conf(1);
        let mut add = call.run(&setup.plugin, "ADD", &conf, Some(agent)).await?;
        let peer_conf = peer_conf(&state);
        let ptp = setup.peers.join("ptp");
        let peer_add = their_call.run(&ptp, "ADD", &peer_conf, None).await?;
        // What the agent still did for the ADD while the peer ran belongs to the ADD.
        add.cpu += process_cpu(agent)?.saturating_sub(add.agent_after);
        let del = call.run(&setup.plugin, "DEL", &conf, Some(agent)).await?;
        let peer_del = their_call.run(&ptp, "DEL", &peer_conf, None).await?;
        theirs.delete()?;
        cluster.remove_pod(pod).await?;
        if round >= WARM_UP {
            ours.add.push(add.cost());
            ours.del.push(del.cost());
            peer.add.push(peer_add.cost());
            peer.del.push(peer_del.cost());
        }
        if round % 50 == 0 {
            line(&format!("round {round}"));
        }
    }
    Ok((ours, peer))
}

/// One sandbox's calls.
#[derive(Debug, Clone)]
struct Call {
    node: Namespace,
    sandbox: String,
    netns: PathBuf,
    name: String,
}

/// A call's cost with the agent's part.
#[derive(Debug, Clone, Copy)]
struct Measured {
    time: Duration,
    cpu: Duration,
    agent_after: Duration,
}

impl Measured {
    fn cost(&self) -> Cost {
        Cost {
            time: self.time,
            cpu: self.cpu,
        }
    }
}

impl Call {
    async fn run(
        &self,
        program: &Path,
        verb: &str,
        conf: &Value,
        agent: Option<i32>,
    ) -> Result<Measured> {
        let call = self.clone();
        let (program, verb, stdin) = (
            program.to_owned(),
            verb.to_owned(),
            conf.to_string().into_bytes(),
        );
        let agent_cpu = move || agent.map_or(Ok(Duration::ZERO), process_cpu);
        let measured = self.node.enter_async(move || -> Result<Measured> {
            let before = agent_cpu()?;
            let mut command = Command::new(&program);
            command
                .env("CNI_COMMAND", verb)
                .env("CNI_CONTAINERID", &call.sandbox)
                .env("CNI_NETNS", &call.netns)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", program.parent().unwrap_or(Path::new("/")))
                .env(
                    "CNI_ARGS",
                    format!(
                        "IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={}",
                        call.name
                    ),
                );
            let cost = measure(&mut command, &stdin)?;
            let agent_after = agent_cpu()?;
            let cpu = cost.cpu + agent_after.saturating_sub(before);
            Ok(Measured {
                time: cost.time,
                cpu,
                agent_after,
            })
        });
        measured.await?
    }
}

/// `ptp` without masquerade, with addresses of both families.
fn peer_conf(state: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "peer",
        "type": "ptp",
        "ipMasq": false,
        "ipam": {
            "type": "host-local",
            "dataDir": state,
            "ranges": [[{"subnet": "10.213.0.0/16"}], [{"subnet": "fd00:213::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    })
}

fn judge(setup: &Setup, ours: &Side, peer: &Side) -> Result<bool> {
    line(&format!(
        "{} rounds, alternately, dual stack, warm pool, tracing on",
        ours.add.len()
    ));
    line("                     ours p50   p99        ptp+host-local p50   p99        ratio of p50");
    let mut held = true;
    let rows: [(&str, &[Cost], &[Cost], f64); 2] = [
        ("ADD", &ours.add, &peer.add, ADD_RATIO_MAX),
        ("DEL", &ours.del, &peer.del, DEL_RATIO_MAX),
    ];
    for (verb, mine, theirs, limit) in rows {
        held &= row(
            &format!("{verb} time"),
            pick(mine, |c| c.time),
            pick(theirs, |c| c.time),
            limit,
        );
        held &= row(
            &format!("{verb} CPU"),
            pick(mine, |c| c.cpu),
            pick(theirs, |c| c.cpu),
            limit,
        );
    }
    let bytes = std::fs::metadata(&setup.plugin)
        .context("size of the plug-in")?
        .len();
    let small = bytes <= PLUGIN_BYTES_MAX;
    line(&format!(
        "plug-in: {bytes} bytes (at most {PLUGIN_BYTES_MAX}){}",
        verdict(small)
    ));
    Ok(held && small)
}

fn pick(all: &[Cost], of: fn(&Cost) -> Duration) -> Vec<Duration> {
    all.iter().map(of).collect()
}

fn row(what: &str, mut mine: Vec<Duration>, mut theirs: Vec<Duration>, limit: f64) -> bool {
    let (my50, my99) = percentiles(&mut mine);
    let (their50, their99) = percentiles(&mut theirs);
    let ratio = my50.as_secs_f64() / their50.as_secs_f64().max(f64::EPSILON);
    let held = ratio <= limit;
    line(&format!(
        "{what:<10} {:>16} {:>9} {:>22} {:>9} {ratio:>14.3} (at most {limit}){}",
        ms(my50),
        ms(my99),
        ms(their50),
        ms(their99),
        verdict(held),
    ));
    held
}

fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

fn verdict(held: bool) -> &'static str {
    if held { "" } else { "  NOT HELD" }
}
