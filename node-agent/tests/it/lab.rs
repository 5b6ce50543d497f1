//! One node with one ENI, as namespaces, and the agent's parts over it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use datapath::kernel::Datapath;
use k8s_api::manifest;
use mesh::drain::Drain;
use mesh::tasks::Tasks;
use node_agent::gate::Gate;
use node_agent::ledger::{self, Ledger};
use node_agent::pods::{AddPod, Parts, Patience, Pods};
use node_agent::pool::{EniRecord, Pool};
use node_agent::store::Store;
use node_agent::uplinks::{NodeAddresses, Uplinks};
use serde_json::json;
use tempfile::TempDir;
use types::address::{MacAddr, Stack};
use types::op::Seq;
use types::pod::{AttachmentKey, PodKey};

/// Longest wait for anything in these tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// How long the agents of these tests wait for policy: long for a machine that is busy, short for a test.
pub(crate) const WAIT: Duration = Duration::from_millis(600);

static NEXT: AtomicU32 = AtomicU32::new(0);

fn ip(words: &str) {
    let output = Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {words}: {} (these tests need root)",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Looks until it is so, with a bound.
pub(crate) async fn until(what: &str, so: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut look = tokio::time::interval(Duration::from_millis(20));
    while !so() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not in time: {what}"
        );
        look.tick().await;
    }
}

/// See the module.
pub(crate) struct Lab {
    pub(crate) ledger: Ledger,
    pub(crate) tasks: Tasks,
    pub(crate) dir: TempDir,
    name: String,
    datapath: Arc<Datapath>,
    uplinks: Uplinks,
    manifests: cluster::pods::PodsWriter,
    pub(crate) feed: cluster::pods::Pods,
}

impl Drop for Lab {
    fn drop(&mut self) {
        for part in ["node", "pod"] {
            let name = format!("{}-{part}", self.name);
            let status = Command::new("ip").args(["netns", "del", &name]).status();
            drop(status);
        }
    }
}

impl Lab {
    pub(crate) async fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("na{}-{number}", std::process::id());
        for part in ["node", "pod"] {
            ip(&format!("netns add {name}-{part}"));
            ip(&format!("-n {name}-{part} link set lo up"));
        }
        let mac = MacAddr([0x02, 0x16, 0x3e, 0, 1, 1]);
        ip(&format!(
            "-n {name}-node link add vpc1 type veth peer name eni1 address {mac}"
        ));
        ip(&format!("-n {name}-node link set vpc1 up"));
        let node = PathBuf::from(format!("/var/run/netns/{name}-node"));
        let datapath = Arc::new(Datapath::open_at(&node).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("agent.redb")).unwrap();
        let pool = Pool::new(Stack::Dual, Duration::ZERO);
        let (ledger, writer) = ledger::open(store, pool).unwrap();
        let tasks = Tasks::new(Drain::new());
        drop(tasks.spawn_blocking(move || writer.run().unwrap()));
        ledger.attach(eni(mac)).await.unwrap();
        let uplinks = Uplinks::new(
            Arc::clone(&datapath),
            ledger.clone(),
            NodeAddresses::default(),
        );
        uplinks.look().await.unwrap();
        let (manifests, feed) = cluster::pods::channel();
        Self {
            ledger,
            tasks,
            dir,
            name,
            datapath,
            uplinks,
            manifests,
            feed,
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("policy.sock")
    }

    pub(crate) fn gate(&self) -> Gate {
        Gate::new(&self.socket(), WAIT)
    }

    pub(crate) fn pods(&self, gate: &Gate) -> Pods {
        let pod = json!({"kind": "Pod", "metadata": {"name": "a"}, "spec": {"nodeName": "n"}});
        let pod = manifest::pod(pod).unwrap();
        self.manifests
            .publish(BTreeMap::from([(pod.key.clone(), Arc::new(pod))]));
        Pods::new(Parts {
            ledger: self.ledger.clone(),
            uplinks: self.uplinks.clone(),
            datapath: Arc::clone(&self.datapath),
            gate: gate.clone(),
            feed: self.feed.clone(),
            through_node: Vec::new(),
            patience: Patience {
                manifest: PATIENCE,
                address: PATIENCE,
            },
            boot_id: "b".to_owned(),
        })
    }

    /// The ADD of pod `default/a` in a sandbox of this name.
    pub(crate) fn add(&self, sandbox: &str) -> AddPod {
        AddPod {
            attachment: attachment(sandbox),
            pod: PodKey::new("default", "a"),
            pod_uid: "u".to_owned(),
            netns: format!("/var/run/netns/{}-pod", self.name),
            veth_prefix: String::new(),
            mtu: 0,
        }
    }

    /// Links of the node whose name begins like a pod's.
    pub(crate) fn pod_links(&self) -> usize {
        let output = Command::new("ip")
            .args(["-n", &format!("{}-node", self.name), "-o", "link"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout)
            .unwrap()
            .matches(": cali")
            .count()
    }
}

pub(crate) fn attachment(sandbox: &str) -> AttachmentKey {
    AttachmentKey::new(sandbox, "eth0").unwrap()
}

fn eni(mac: MacAddr) -> EniRecord {
    let mut addresses = BTreeMap::new();
    for n in 1..=4 {
        addresses.insert(format!("10.9.0.{n}").parse().unwrap(), Seq(1));
        addresses.insert(format!("fd09::{n}").parse().unwrap(), Seq(1));
    }
    EniRecord {
        shard: "vsw-a.0".parse().unwrap(),
        eni: "eni-1".parse().unwrap(),
        mac,
        vswitch: "vsw-a".parse().unwrap(),
        ipv4_cidr: "10.9.0.0/24".parse().unwrap(),
        ipv4_gateway: "10.9.0.253".parse().unwrap(),
        ipv6: Some(("fd09::/64".parse().unwrap(), "fd09::fff7".parse().unwrap())),
        primary: "10.9.0.1".parse().unwrap(),
        addresses,
        whole: false,
    }
}
