//! A node that begins to serve, fails, and leaves: what is written for the runtime, and what the control plane hears.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cluster::object::{Phase, Seen};
use cluster::reports::Tone;
use mesh::health::Health;
use mesh::metrics::Registry;
use node_agent::announcer::Announcer;
use node_agent::api::CniDoor;
use node_agent::capacity::Capacity;
use node_agent::conflist::Conflist;
use node_agent::device_plugin::Offer;
use node_agent::gate::Gate;
use node_agent::ledger::{self, Ledger};
use node_agent::metrics::Metrics;
use node_agent::overseer::Overseer;
use node_agent::pool::Pool;
use node_agent::reconcile::Retirement;
use node_agent::standing::Shortage;
use node_agent::store::Store;
use node_agent::target::Targets;
use proto::control::v1::{AnnotatePodRequest, PodObject};
use proto::node::v1::cni_server::Cni as _;
use proto::node::v1::{AddRequest, Attachment, PodRef, StatusRequest};
use proto::types::v1::Reason;
use serde_json::json;
use tokio::sync::watch;
use tonic::{Code, Request};
use types::address::Stack;
use types::op::ShardId;

use crate::controlplane::Serving;
use crate::lab::{Lab, until};

const CONFLIST: &str = r#"{"cniVersion":"1.0.0","name":"terway","plugins":[{"type":"terway"}]}"#;

/// An overseer with everything it looks at in hand.
struct Duty {
    serving: Serving,
    phase: watch::Sender<Phase>,
    node: watch::Sender<Seen>,
    targets: Targets,
    offer: watch::Receiver<Offer>,
    health: Health,
    registry: Registry,
    conflist: Conflist,
    _ledger: Ledger,
    _kernel: watch::Sender<Option<String>>,
    _dir: tempfile::TempDir,
}

fn shard() -> ShardId {
    "vsw-a.0".parse().unwrap()
}

fn node(provider: &str) -> Seen {
    Seen::There(Arc::new(
        json!({"kind": "Node", "spec": {"providerID": provider}}),
    ))
}

impl Duty {
    async fn new() -> Self {
        let serving = Serving::prepare();
        serving.serve().await;
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let conflist = Conflist {
            source: folder("eni"),
            dir: folder("net.d"),
        };
        std::fs::write(conflist.source.join("10-terway.conflist"), CONFLIST).unwrap();
        let store = Store::open(&dir.path().join("agent.redb")).unwrap();
        let pool = Pool::new(Stack::Dual, Duration::ZERO);
        let (ledger, writer) = ledger::open(store, pool).unwrap();
        drop(serving.tasks.spawn_blocking(move || writer.run().unwrap()));
        let registry = Registry::new();
        let health = Health::new();
        let (phase, phases) = watch::channel(Phase::Serve);
        let (node, nodes) = watch::channel(Seen::Unknown);
        let (kernel, kernels) = watch::channel(None);
        let (offer, offered) = watch::channel(Offer::default());
        let targets = Targets::default();
        let (ask, _asked) = watch::channel(false);
        let (_kept, done) = watch::channel(true);
        let overseer = Overseer {
            node_name: "node-1".to_owned(),
            instance: "i-1".parse().unwrap(),
            region: "cn-hangzhou".parse().unwrap(),
            tls: serving.node.clone(),
            node: nodes,
            phase: phases,
            feed: None,
            gate: Gate::off(),
            kernel: kernels,
            targets: targets.clone(),
            ledger: ledger.clone(),
            offer: Some(offer),
            conflist: Some(conflist.clone()),
            reports: Some(serving.reports(&registry)),
            ready: health.condition("node"),
            metrics: Arc::new(Metrics::register(&registry)),
            retirement: Retirement { ask, done },
        };
        let stopping = serving.tasks.stopping();
        serving.tasks.spawn("overseer", overseer.run(stopping));
        Self {
            serving,
            phase,
            node,
            targets,
            offer: offered,
            health,
            registry,
            conflist,
            _ledger: ledger,
            _kernel: kernel,
            _dir: dir,
        }
    }

    fn file(&self) -> PathBuf {
        self.conflist.dir.join("10-terway.conflist")
    }

    /// A replica welcomes the node and has a shard for it.
    fn welcome(&self) {
        self.targets.set_connected("10.0.0.1:7301", true);
        self.targets.set_shards(BTreeSet::from([shard()]));
        self.targets.set_capacity(Capacity {
            max_pods: 12,
            per_eni: 6,
        });
    }

    fn condition(&self, name: &str) -> Option<(bool, String)> {
        let report = self.serving.plane.node();
        let found = report.conditions.into_iter().find(|c| c.r#type == name)?;
        Some((found.status, found.reason))
    }

    async fn is(&self, name: &str, status: bool, reason: &str) {
        let what = format!("{name} is {status} because of {reason}");
        let wanted = Some((status, reason.to_owned()));
        until(&what, || self.condition(name) == wanted).await;
    }

    async fn event(&self, reason: &str) {
        until(reason, || {
            let about = |e: &&proto::control::v1::PostEventRequest| e.reason == reason;
            self.serving
                .plane
                .said(|s| s.events.iter().filter(about).count())
                > 0
        })
        .await;
    }
}

#[tokio::test]
async fn configuration_is_written_last_and_stays_while_something_fails() {
    let duty = Duty::new().await;
    duty.is("TerwayReady", false, "Starting").await;
    assert!(!duty.file().exists());
    duty.node.send_replace(node("cn-hangzhou.i-1"));
    duty.targets
        .note_trouble(None, "10.0.0.1:7301: connection refused".to_owned());
    duty.is("TerwayReady", false, "IpamUnreachable").await;
    assert!(!duty.file().exists());

    duty.welcome();

    until("the file is there", || duty.file().exists()).await;
    assert_eq!(std::fs::read_to_string(duty.file()).unwrap(), CONFLIST);
    duty.is("TerwayReady", true, "TerwayReady").await;
    duty.is("SufficientIP", true, "SufficientIP").await;
    duty.event("TerwayReady").await;
    let report = duty.serving.plane.node();
    assert!(report.serving);
    assert_eq!((report.pod_capacity, report.whole_enis), (12, 1));
    assert_eq!(report.component, "node-agent");
    assert_eq!(*duty.offer.borrow(), Offer { all: 2, whole: 1 });

    let short = Shortage {
        reason: Reason::VswitchExhausted,
        message: "vsw-a has no free address".to_owned(),
    };
    duty.targets.set_shortage(shard(), Some(short));
    duty.is("SufficientIP", false, "InsufficientIP").await;
    duty.is("TerwayReady", false, "VswitchExhausted").await;
    duty.event("VswitchExhausted").await;
    let text = duty.registry.encode();
    let named = r#"terway_agent_fault{reason="VswitchExhausted"} 1"#;
    assert!(text.contains(named), "{text}");
    assert!(duty.file().exists(), "running pods need it");
}

#[tokio::test]
async fn node_of_another_instance_is_not_ready_and_gets_no_configuration() {
    let duty = Duty::new().await;
    duty.welcome();
    duty.node.send_replace(node("cn-hangzhou.i-2"));

    duty.is("TerwayReady", false, "IdentityMismatch").await;
    duty.event("IdentityMismatch").await;

    assert!(!duty.file().exists());
    let unmet = duty.health.unmet();
    assert!(unmet[0].1.contains("cn-hangzhou.i-2"), "{unmet:?}");
}

#[tokio::test]
async fn node_that_leaves_removes_its_configuration_first_and_says_when_it_has_left() {
    let duty = Duty::new().await;
    duty.node.send_replace(node(""));
    duty.welcome();
    until("it serves", || duty.file().exists()).await;

    duty.phase.send_replace(Phase::Leave);

    until("the file is gone", || !duty.file().exists()).await;
    until("it has left", || duty.serving.plane.node().left).await;
    let report = duty.serving.plane.node();
    assert!(!report.serving && report.waits_for.is_empty(), "{report:?}");
    assert_eq!(*duty.offer.borrow(), Offer::default());
    duty.is("TerwayReady", false, "Leaving").await;

    duty.phase.send_replace(Phase::Serve);
    until("it serves again", || duty.file().exists()).await;
    duty.is("TerwayReady", true, "TerwayReady").await;
}

#[tokio::test]
async fn what_was_said_while_the_control_plane_was_away_is_heard_when_it_is_back() {
    let serving = Serving::prepare();
    let registry = Registry::new();
    let reports = serving.reports(&registry);
    let pod = |name: &str| AnnotatePodRequest {
        namespace: "n".to_owned(),
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        ..AnnotatePodRequest::default()
    };
    reports.annotate(pod("unknown"));
    reports.annotate(pod("a"));
    let object = PodObject {
        namespace: "n".to_owned(),
        name: "a".to_owned(),
        uid: "uid-a".to_owned(),
    };
    reports.pod_event(
        object,
        Tone::Normal,
        "AllocIPSucceed",
        "took 1ms".to_owned(),
    );
    until("nobody answers", || {
        registry.encode().contains("terway_control_failures_total")
    })
    .await;
    assert_eq!(serving.plane.said(|said| said.annotations.len()), 0);

    serving.serve().await;

    until("all is heard", || {
        serving.plane.said(|s| s.events.len()) == 1
    })
    .await;
    let heard = serving.plane.said(|s| s.annotations.clone());
    let names: Vec<_> = heard.iter().map(|a| a.name.as_str()).collect();
    assert_eq!(names, ["a"]);
    let text = registry.encode();
    // What is refused for good is given up, and does not keep the others.
    let dropped = r#"terway_control_dropped_total{what="annotation"} 1"#;
    assert!(text.contains(dropped), "{text}");
    until("nothing waits", || {
        registry.encode().contains("terway_control_waiting 0")
    })
    .await;
}

#[tokio::test]
async fn pod_hears_of_its_addresses_and_of_a_node_that_takes_no_new_pods() {
    let lab = Lab::new().await;
    let serving = Serving::prepare();
    serving.serve().await;
    let registry = Registry::new();
    let (phase, phases) = watch::channel(Phase::Serve);
    let door = CniDoor {
        pods: lab.pods(&Gate::off()),
        ledger: lab.ledger.clone(),
        targets: Targets::default(),
        metrics: Arc::new(Metrics::register(&registry)),
        phase: phases,
        announcer: Announcer {
            reports: Some(serving.reports(&registry)),
            feed: lab.feed.clone(),
        },
    };
    let request = |sandbox: &str| {
        let add = lab.add(sandbox);
        Request::new(AddRequest {
            attachment: Some(Attachment {
                sandbox_id: sandbox.to_owned(),
                ifname: "eth0".to_owned(),
            }),
            pod: Some(PodRef {
                namespace: add.pod.namespace,
                name: add.pod.name,
                uid: add.pod_uid,
            }),
            netns: add.netns,
            ..AddRequest::default()
        })
    };

    door.add(request("s1")).await.unwrap();
    until("told", || serving.plane.said(|s| s.events.len()) == 1).await;
    phase.send_replace(Phase::Leave);
    let refused = door.add(request("s2")).await.unwrap_err();
    let status = door.status(Request::new(StatusRequest {})).await;
    until("told again", || serving.plane.said(|s| s.events.len()) == 2).await;

    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("no new pods"), "{refused:?}");
    assert_eq!(status.unwrap_err().code(), Code::Unavailable);
    let (annotations, events) = serving
        .plane
        .said(|s| (s.annotations.clone(), s.events.clone()));
    assert_eq!(annotations.len(), 1);
    assert_eq!((&*annotations[0].name, &*annotations[0].uid), ("a", "u"));
    let ips = "10.9.0.1,fd09::1".to_owned();
    let wanted = [("k8s.aliyun.com/pod-ips".to_owned(), ips)];
    assert_eq!(annotations[0].annotations, wanted.into());
    let told: Vec<_> = events.iter().map(|e| (&*e.r#type, &*e.reason)).collect();
    assert_eq!(
        told,
        [("Normal", "AllocIPSucceed"), ("Warning", "AllocIPFailed")]
    );
    assert!(
        events[0].message.starts_with("Alloc IP 10.9.0.1"),
        "{events:?}"
    );
}
