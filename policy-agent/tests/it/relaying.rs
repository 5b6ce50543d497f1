//! A relay as a program of its own, and many agents that read it.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mesh::ca::{Authority, Leaf};
use mesh::client::Params;
use mesh::drain::Drain;
use mesh::identity::Identity;
use mesh::tasks::Tasks;
use mesh::tls::{TlsConfig, TlsMaterial};
use policy_agent::relay::client::{Client, Frames};
use prost::Message as _;
use serde_json::json;

const DAY: Duration = Duration::from_hours(24);
/// How long anything may take that should come about.
const LIMIT: Duration = Duration::from_mins(2);
/// Agents that read.
const AGENTS: usize = 100;
/// Pods of the cluster; each changes once.
const PODS: usize = 500;
/// Pods that change at a time, and the pause between: 100 events per second.
const AT_ONCE: usize = 5;
const PAUSE: Duration = Duration::from_millis(50);

struct Relay {
    child: Child,
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Relay {
    /// CPU time so far.
    fn cpu(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // Behind the name, which may hold blanks: state is the first, user and system time the 12th and 13th.
        let (_, fields) = text.rsplit_once(')').unwrap();
        let times = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = times.map(|n| n.parse::<u64>().unwrap()).sum();
        // USER_HZ is 100 on every architecture we build for.
        Duration::from_millis(ticks * 10)
    }

    /// Most memory it ever had, in KiB.
    fn peak(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find(|l| l.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

fn write_pod(folder: &Path, number: usize, round: &str) {
    let document = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": format!("space-{}", number % 50),
            "name": format!("deployment-7d4b9c6f5-{number:05}"),
            "uid": format!("00000000-0000-0000-0000-{number:012}"),
            "labels": {"app": format!("app-{}", number % 40), "tier": "backend", "round": round},
        },
        "spec": {"nodeName": format!("node-{}", number % 30)},
        "status": {"phase": "Running", "podIPs": [{"ip": format!("10.7.{}.{}", number / 250, number % 250)}]},
    });
    // Appears as a whole.
    let fresh = folder.join(".fresh");
    std::fs::write(&fresh, document.to_string()).unwrap();
    std::fs::rename(fresh, folder.join(format!("pod-{number}.json"))).unwrap();
}

/// What one agent read.
#[derive(Default)]
struct Read {
    changes: usize,
    bytes: usize,
}

/// Reads frames until so many changes came.
async fn read(frames: &mut Frames, changes: usize) -> Read {
    let mut read = Read::default();
    while read.changes < changes {
        let next = tokio::time::timeout(LIMIT, frames.next()).await;
        let frame = next.expect("in time").unwrap().expect("the stream goes on");
        read.changes += frame.changes.len();
        read.bytes += frame.encoded_len();
    }
    read
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundred_agents_read_every_event_beside_one_that_does_not_read() {
    mesh::tls::install_provider();
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("manifests");
    std::fs::create_dir(&folder).unwrap();
    (0..PODS).for_each(|number| write_pod(&folder, number, "0"));
    let authority = Authority::new(DAY).unwrap();
    let tls = |identity: &Identity, name: &str| {
        let at = dir.path().join(name);
        let issued = authority.issue(&Leaf::new(identity, DAY)).unwrap();
        issued.write(&at).unwrap();
        TlsConfig::in_dir(&at)
    };
    let of_relay = tls(&Identity::relay("r1"), "relay");
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = free.local_addr().unwrap().to_string();
    drop(free);
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_policy-agent"));
    for set in [
        "mode=relay".to_owned(),
        "node.name=r1".to_owned(),
        "node.cluster=c1".to_owned(),
        "felix_health.enabled=false".to_owned(),
        format!("feed.manifests={}", folder.display()),
        format!("relay.listen={target}"),
        format!("tls.ca={}", of_relay.ca.display()),
        format!("tls.cert={}", of_relay.cert.display()),
        format!("tls.key={}", of_relay.key.display()),
    ] {
        command.arg("--set").arg(set);
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let relay = Relay { child };
    let client = Client {
        tls: TlsMaterial::load(&tls(&Identity::node("c1", "i-1"), "node")).unwrap(),
        params: Params::default(),
        cluster: "c1".to_owned(),
        node_name: "n1".to_owned(),
    };
    let watch = async || {
        let begun = Instant::now();
        loop {
            match client.watch(&target).await {
                Ok(frames) => return frames,
                Err(error) => assert!(begun.elapsed() < LIMIT, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let idle = watch().await;
    let mut agents = Vec::new();
    let mut state = 0;
    for _ in 0..AGENTS {
        let mut frames = watch().await;
        state = read(&mut frames, PODS).await.bytes;
        agents.push(frames);
    }

    let tasks = Tasks::new(Drain::new());
    let (cpu, begun) = (relay.cpu(), Instant::now());
    let readers: Vec<_> = agents
        .into_iter()
        .map(|mut frames| tasks.spawn_once("agent", async move { read(&mut frames, PODS).await }))
        .collect();
    for first in (0..PODS).step_by(AT_ONCE) {
        (first..first + AT_ONCE).for_each(|number| write_pod(&folder, number, "1"));
        tokio::time::sleep(PAUSE).await;
    }
    let mut bytes = 0;
    for reader in readers {
        let read = reader.await.unwrap();
        assert_eq!(read.changes, PODS);
        bytes = read.bytes;
    }
    let (spent, took) = (relay.cpu().saturating_sub(cpu), begun.elapsed());
    drop(idle);

    show(&Figures {
        took,
        spent,
        bytes: bytes / PODS,
        state: state / PODS,
        peak: relay.peak(),
    });
    assert!(relay.peak() <= 100 << 10, "{} KiB", relay.peak());
    assert!(bytes / PODS <= 256, "{} bytes per event", bytes / PODS);
}

/// What was measured.
struct Figures {
    took: Duration,
    spent: Duration,
    bytes: usize,
    state: usize,
    peak: u64,
}

#[expect(clippy::print_stdout, reason = "a measurement is there to be seen")]
fn show(figures: &Figures) {
    let build = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    let (took, spent) = (figures.took.as_secs_f64(), figures.spent.as_secs_f64());
    let deliveries = f64::from(u32::try_from(AGENTS * PODS).unwrap());
    println!(
        "relay, {build} build: {AGENTS} agents, {PODS} events in {took:.1} s: {} bytes per event and agent, {} of the \
         state per pod, {:.1} µs CPU per event and agent ({:.0} % of a core), peak {:.1} MB",
        figures.bytes,
        figures.state,
        spent * 1e6 / deliveries,
        100.0 * spent / took,
        f64::from(u32::try_from(figures.peak).unwrap()) / 1024.0,
    );
}
