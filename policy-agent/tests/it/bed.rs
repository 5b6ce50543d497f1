//! A node, a machine elsewhere, and pods: each a network namespace. The agent's parts run in this process, with
//! their sockets in the node's namespace, and the test is the feed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mesh::drain::Drain;
use mesh::metrics::Registry;
use mesh::tasks::Tasks;
use nix::sched::{CloneFlags, setns};
use policy_agent::attachments::{Attached, Attachments};
use policy_agent::enforcer::port::Rules;
use policy_agent::enforcer::{self, Handle};
use policy_agent::feed::{self, Batch};
use policy_agent::gate::{Gate, Waits};
use policy_agent::metrics::Metrics;
use policy_agent::notices::{Notices, Role, Sink};
use policy_agent::revoker;
use policy_agent::revoker::port::Flows;
use policy_agent::rules::{self, Place};
use policy_agent::scope::Pending;
use policy_core::engine::Engine;
use policy_core::layout::Settings;
use policy_core::object::{Event, Object};
use policy_core::parse::{self, Parsed};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use types::pod::{AttachmentKey, PodKey};

/// How long something may take that should come about.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Name of the node.
pub(crate) const NODE: &str = "n1";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs a program with words separated by blanks.
pub(crate) fn run(words: &str) -> String {
    let mut parts = words.split_whitespace();
    let output = Command::new(parts.next().unwrap())
        .args(parts)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{words}: {} (these tests need root)",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `work` on a thread inside a namespace.
pub(crate) fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let path = path_of(namespace);
    std::thread::scope(|scope| {
        scope
            .spawn(move || {
                let file = std::fs::File::open(path).unwrap();
                setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            })
            .join()
            .unwrap()
    })
}

pub(crate) fn path_of(namespace: &str) -> PathBuf {
    Path::new("/var/run/netns").join(namespace)
}

/// A pod with its link.
#[derive(Debug, Clone)]
pub(crate) struct BedPod {
    pub(crate) key: PodKey,
    pub(crate) namespace: String,
    pub(crate) link: String,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
}

impl BedPod {
    pub(crate) fn attached(&self, sandbox: &str) -> Attached {
        Attached {
            attachment: AttachmentKey::new(sandbox, "eth0").unwrap(),
            pod: self.key.clone(),
            uid: String::new(),
            host_link: self.link.clone(),
            netns: path_of(&self.namespace).display().to_string(),
            ips: vec![self.v4, self.v6],
        }
    }

    /// The pod's object.
    pub(crate) fn object(&self, labels: &Value) -> Event {
        upsert(&self.document(labels))
    }

    /// The pod's manifest.
    pub(crate) fn document(&self, labels: &Value) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": self.key.namespace,
                "name": self.key.name,
                "labels": labels,
            },
            "spec": {"nodeName": NODE},
            "status": {
                "phase": "Running",
                "podIPs": [{"ip": self.v4.to_string()}, {"ip": self.v6.to_string()}],
            },
        })
    }
}

/// What a document is to the feed.
pub(crate) fn upsert(document: &Value) -> Event {
    match parse::document(document) {
        Parsed::Object(object) => Event::Upsert(object),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn namespace(name: &str) -> Event {
    upsert(&json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
    }))
}

/// A policy of namespace `x` over all its pods.
pub(crate) fn policy(name: &str, spec: &Value) -> Event {
    upsert(&json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": name},
        "spec": spec,
    }))
}

pub(crate) fn deny_ingress() -> Event {
    policy(
        "deny",
        &json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
    )
}

pub(crate) fn gone(event: &Event) -> Event {
    match event {
        Event::Upsert(Object::Policy(policy)) => {
            Event::Delete(policy_core::object::ObjectKey::Policy(policy.id.clone()))
        }
        Event::Upsert(Object::Pod(pod)) => {
            Event::Delete(policy_core::object::ObjectKey::Pod(pod.key.clone()))
        }
        other => panic!("{other:?}"),
    }
}

/// The namespaces.
pub(crate) struct Bed {
    pub(crate) name: String,
    namespaces: Vec<String>,
    pods: u8,
    pub(crate) folder: tempfile::TempDir,
}

impl Drop for Bed {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            drop(
                Command::new("ip")
                    .args(["netns", "del", namespace])
                    .status(),
            );
        }
    }
}

/// Addresses of the machine elsewhere.
pub(crate) const FAR_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 45, 0, 9));
pub(crate) const FAR_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd45, 0, 0, 0, 0, 0, 0, 9));

impl Bed {
    /// A node and a machine elsewhere that reaches its pods.
    pub(crate) fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pa{}-{number}", std::process::id());
        let mut bed = Self {
            name,
            namespaces: Vec::new(),
            pods: 0,
            folder: tempfile::tempdir().unwrap(),
        };
        let (node, far) = (bed.add("node"), bed.add("far"));
        run(&format!(
            "ip -n {node} link add eth0 type veth peer name eth0 netns {far}"
        ));
        for (namespace, last) in [(&node, 1), (&far, 9)] {
            run(&format!(
                "ip -n {namespace} addr add 10.45.0.{last}/24 dev eth0"
            ));
            run(&format!(
                "ip -n {namespace} addr add fd45::{last}/64 dev eth0 nodad"
            ));
            run(&format!("ip -n {namespace} link set eth0 up"));
        }
        run(&format!("ip -n {far} route add 10.44.0.0/24 via 10.45.0.1"));
        run(&format!("ip -n {far} route add fd44::/64 via fd45::1"));
        for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
            run(&format!("ip netns exec {node} sysctl -qw {setting}"));
        }
        bed
    }

    fn add(&mut self, part: &str) -> String {
        let namespace = format!("{}-{part}", self.name);
        run(&format!("ip netns add {namespace}"));
        run(&format!("ip -n {namespace} link set lo up"));
        self.namespaces.push(namespace.clone());
        namespace
    }

    pub(crate) fn node(&self) -> String {
        format!("{}-node", self.name)
    }

    pub(crate) fn far(&self) -> String {
        format!("{}-far", self.name)
    }

    /// A pod of namespace `x`, with its veth up.
    pub(crate) fn pod(&mut self, name: &str) -> BedPod {
        self.pods += 1;
        let number = self.pods;
        let namespace = self.add(&format!("pod{number}"));
        let key = PodKey::new("x", name);
        let link = datapath::names::host_link("", &key, "eth0").unwrap();
        let node = self.node();
        let mac = format!("02:00:00:00:44:{number:02x}");
        run(&format!(
            "ip -n {node} link add {link} address 02:00:00:00:45:01 type veth peer name eth0 address {mac} netns {namespace}"
        ));
        run(&format!("ip -n {node} link set {link} up"));
        run(&format!(
            "ip -n {namespace} addr add 10.44.0.{number}/32 dev eth0"
        ));
        run(&format!(
            "ip -n {namespace} addr add fd44::{number}/128 dev eth0 nodad"
        ));
        run(&format!("ip -n {namespace} link set eth0 up"));
        for (family, gateway) in [("-4", "169.254.1.1"), ("-6", "fe80::1")] {
            run(&format!(
                "ip {family} -n {namespace} neigh add {gateway} lladdr 02:00:00:00:45:01 dev eth0 nud permanent"
            ));
            run(&format!(
                "ip {family} -n {namespace} route add {gateway} dev eth0"
            ));
            run(&format!(
                "ip {family} -n {namespace} route add default via {gateway} dev eth0"
            ));
        }
        for address in [format!("10.44.0.{number}"), format!("fd44::{number}")] {
            run(&format!("ip -n {node} route add {address} dev {link}"));
            run(&format!(
                "ip -n {node} neigh add {address} lladdr {mac} dev {link} nud permanent"
            ));
        }
        BedPod {
            key,
            namespace,
            link,
            v4: IpAddr::from([10, 44, 0, number]),
            v6: format!("fd44::{number}").parse().unwrap(),
        }
    }

    /// A pod of namespace `x` whose only link is its own, with no rules of the node's in the way.
    pub(crate) fn exclusive_pod(&mut self, name: &str) -> BedPod {
        let mut pod = self.pod(name);
        // Named as no link of a pod on the node is: the node does not know it.
        let (node, link) = (self.node(), format!("wire{}", self.pods));
        run(&format!("ip -n {node} link set {} down", pod.link));
        run(&format!("ip -n {node} link set {} name {link}", pod.link));
        run(&format!("ip -n {node} link set {link} up"));
        for address in [pod.v4, pod.v6] {
            run(&format!("ip -n {node} route replace {address} dev {link}"));
            run(&format!(
                "ip -n {node} neigh replace {address} lladdr 02:00:00:00:44:{:02x} dev {link} nud permanent",
                self.pods
            ));
        }
        pod.link = String::new();
        pod
    }

    pub(crate) fn place(&self) -> Place {
        Place::At(path_of(&self.node()))
    }

    /// The generation of the node's ruleset: it counts transactions, ours and others'.
    pub(crate) fn generation(&self) -> u32 {
        rules::generation(&self.place()).unwrap()
    }

    /// Whether conntrack of the node has a flow with the address.
    pub(crate) fn tracks(&self, ip: IpAddr) -> bool {
        let mut flows = rules::flows(&self.place()).unwrap();
        let mut found = false;
        let all = nft_wire::conntrack::Filter::default();
        flows
            .dump(&all, &mut |flow| {
                found |= [flow.original.source, flow.reply.source].contains(&ip);
            })
            .unwrap();
        found
    }

    /// The node's rules without what traffic changes in them.
    pub(crate) fn listed_without_counters(&self) -> String {
        let listed = run(&format!(
            "ip netns exec {} nft -s list ruleset",
            self.node()
        ));
        let mut kept = String::new();
        let mut in_denied = false;
        for line in listed.lines() {
            in_denied |= line.trim_start().starts_with("set denied");
            // Whose the table is changes with every start, and so does the comment with his name.
            let line = line.split(" # ").next().unwrap_or_default();
            if !in_denied && !line.trim_start().starts_with("flags ") {
                kept.push_str(line);
                kept.push('\n');
            }
            in_denied &= line.trim() != "}";
        }
        kept
    }

    /// The node's rules, as another program reads them.
    pub(crate) fn listed(&self) -> String {
        run(&format!("ip netns exec {} nft list ruleset", self.node()))
    }
}

/// The agent's parts.
pub(crate) struct Agent {
    pub(crate) gate: Gate,
    pub(crate) handle: Handle,
    pub(crate) revoker: revoker::Handle,
    pub(crate) metrics: Registry,
    pub(crate) events_file: PathBuf,
    sender: mpsc::Sender<Batch>,
    sequence: u64,
    drain: Drain,
    tasks: Tasks,
}

/// What a test changes of an agent.
pub(crate) struct Wants {
    pub(crate) settings: Settings,
    pub(crate) judge: bool,
    pub(crate) unknown: Duration,
    /// Puts something between the enforcer and the kernel.
    pub(crate) between: Between,
    /// Puts something between the revoker and the flows.
    pub(crate) before_flows: BeforeFlows,
}

/// Makes other rules of the kernel's.
pub(crate) type Between = Box<dyn FnOnce(Box<dyn Rules + Send>) -> Box<dyn Rules + Send> + Send>;

/// Makes other flows of the kernel's.
pub(crate) type BeforeFlows =
    Box<dyn FnOnce(Box<dyn Flows + Send>) -> Box<dyn Flows + Send> + Send>;

impl Default for Wants {
    fn default() -> Self {
        Self {
            settings: settings(),
            judge: true,
            unknown: Duration::from_millis(300),
            between: Box::new(|rules| rules),
            before_flows: Box::new(|flows| flows),
        }
    }
}

pub(crate) fn settings() -> Settings {
    Settings {
        link_name: Some(|pod| datapath::names::host_link("", pod, "eth0").unwrap_or_default()),
        ..Settings::default()
    }
}

impl Agent {
    pub(crate) async fn start(bed: &Bed) -> Self {
        Self::start_with(bed, Wants::default()).await
    }

    pub(crate) async fn start_with(bed: &Bed, wants: Wants) -> Self {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry);
        let drain = Drain::new();
        let tasks = Tasks::new(drain.clone());
        let pending = Pending::default();
        let params = revoker::Params {
            judge: wants.judge,
            bit: wants.settings.revoke_bit,
            pause: Duration::from_millis(20),
            again: Duration::from_millis(200),
        };
        let flows = (wants.before_flows)(rules::flows(&bed.place()).unwrap());
        let (revoker, revocations) = revoker::new(params, flows, pending.clone(), metrics.clone());
        let list = Attachments::open(bed.folder.path()).unwrap();
        let patience = Waits {
            longest: PATIENCE,
            unknown: wants.unknown,
        };
        let gate = Gate::new(
            list,
            revocations.clone(),
            patience,
            metrics.clone(),
            tasks.clone(),
        );
        let (place, settings) = (bed.place(), wants.settings.clone());
        let opened = rules::blocking(&tasks, move || rules::open(&place, &settings, None))
            .await
            .unwrap();
        let (settings, port) = (opened.settings.clone(), opened.port);
        let events_file = bed.folder.path().join("events");
        let sink = Sink {
            file: Some(events_file.clone()),
        };
        let (sender, feed) = feed::channel();
        let handle = gate
            .enforce(|known| {
                let params = enforcer::Params {
                    engine: Engine::new(NODE, opened.settings),
                    rules: (wants.between)(opened.rules),
                    notices: Notices::new(Role::Node(NODE.to_owned()), sink),
                    metrics,
                    pending,
                    retry: mesh::backoff::Params {
                        first_ms: 10,
                        max_ms: 200,
                    },
                    known,
                };
                enforcer::start(params, feed, &tasks)
            })
            .await
            .unwrap();
        revoker.start(handle.clone(), &tasks).unwrap();
        if !settings.owner {
            rules::watch(&bed.place(), &settings, port, handle.clone(), &tasks).unwrap();
        }
        Self {
            gate,
            handle,
            revoker: revocations,
            metrics: registry,
            events_file,
            sender,
            sequence: 0,
            drain,
            tasks,
        }
    }

    /// Tells events as one batch, everything listed.
    pub(crate) async fn tell(&mut self, events: Vec<Event>) -> u64 {
        self.batch(events, true).await
    }

    pub(crate) async fn batch(&mut self, events: Vec<Event>, synced: bool) -> u64 {
        self.sequence += 1;
        let batch = Batch {
            sequence: self.sequence,
            synced,
            events,
            seen_at_ms: 0,
        };
        self.sender.send(batch).await.unwrap();
        self.sequence
    }

    /// Tells events and waits until they are in force.
    pub(crate) async fn enforce(&mut self, events: Vec<Event>) {
        let sequence = self.tell(events).await;
        self.until_applied(sequence).await;
    }

    pub(crate) async fn until_applied(&self, sequence: u64) {
        until("the feed is in force", async || {
            self.handle.progress().await.unwrap().applied >= sequence
        })
        .await;
    }

    pub(crate) fn tasks(&self) -> Tasks {
        self.tasks.clone()
    }

    /// Does something meanwhile.
    pub(crate) fn spawn<F>(&self, work: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn_once("test", work)
    }

    /// How many transactions took effect.
    pub(crate) async fn transactions(&self) -> u64 {
        self.handle.progress().await.unwrap().transactions
    }

    /// The first value of a metric.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.metrics.encode();
        let line = text
            .lines()
            .find(|line| line.starts_with(name) && !line.starts_with('#'))
            .unwrap_or_else(|| panic!("no {name}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Ends at once: whatever is in the kernel stays as it is.
    pub(crate) async fn end(self) {
        self.drain.stop();
        assert!(self.tasks.wait(PATIENCE).await, "tasks did not end");
    }
}

/// A test that fails ends, too.
impl Drop for Agent {
    fn drop(&mut self) {
        self.drain.stop();
    }
}

/// Looks until it is so, with a bound.
pub(crate) async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let mut look = tokio::time::interval(Duration::from_millis(5));
    let waiting = async {
        while !so().await {
            look.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"));
}
