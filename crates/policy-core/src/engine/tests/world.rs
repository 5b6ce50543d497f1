//! An engine with a kernel under it, and short ways to make objects.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use nft_wire::change::Change;
use nft_wire::verdict::Verdict as Lead;
use serde_json::{Value, json};
use types::pod::{AttachmentKey, PodKey};

use super::kernel::Kernel;
use crate::engine::Engine;
use crate::flow::{Flow, Protocol};
use crate::index::LocalPod;
use crate::layout::Settings;
use crate::object::{Event, ObjectKey};
use crate::parse::{self, Parsed};
use crate::plan::{Failure, Step, StepKind, Target};
use crate::policy::{PolicyId, PolicyKind};

pub(super) const STEPS: usize = 300;

pub(super) fn link(pod: &PodKey) -> String {
    format!("cali{}", pod.name)
}

pub(super) fn settings() -> Settings {
    Settings {
        link_name: Some(link),
        ..Settings::default()
    }
}

pub(super) struct World {
    pub(super) engine: Engine,
    pub(super) kernel: Kernel,
}

impl World {
    /// A node `n1` with an empty kernel, in sync, with namespace `x`.
    pub(super) fn new() -> Self {
        Self::with(settings())
    }

    pub(super) fn with(settings: Settings) -> Self {
        let mut world = Self::on(Kernel::default(), settings);
        world.put(&namespace("x", &json!({})));
        world.engine.set_synced();
        world
    }

    pub(super) fn on(kernel: Kernel, settings: Settings) -> Self {
        Self {
            engine: Engine::new("n1", settings),
            kernel,
        }
    }

    pub(super) fn put(&mut self, document: &Value) {
        let Parsed::Object(object) = parse::document(document) else {
            panic!("unreadable: {document}");
        };
        self.engine.apply(Event::Upsert(object));
    }

    pub(super) fn drop_policy(&mut self, name: &str) {
        let id = PolicyId {
            kind: PolicyKind::NetworkPolicy,
            namespace: "x".into(),
            name: name.into(),
        };
        self.engine.apply(Event::Delete(ObjectKey::Policy(id)));
    }

    pub(super) fn drop_pod(&mut self, name: &str) {
        self.engine
            .apply(Event::Delete(ObjectKey::Pod(PodKey::new("x", name))));
    }

    /// Runs until nothing is left; what was done. Checks the order within.
    pub(super) fn settle(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        for _ in 0..STEPS {
            for target in self.engine.unknown_targets() {
                self.engine.adopt(&target, &self.kernel.dump());
            }
            let Some(step) = self.engine.next_step() else {
                if self.engine.unknown_targets().is_empty() {
                    return steps;
                }
                continue;
            };
            check_order(&step);
            match self.kernel.transact(&step.changes) {
                Ok(()) => self.engine.committed(&step),
                Err((index, errno)) => self.engine.failed(&step, Failure::Change { index, errno }),
            }
            steps.push(step);
        }
        panic!("no end after {STEPS} steps");
    }

    /// Runs until nothing is left, with nothing refused.
    pub(super) fn settle_clean(&mut self) -> Vec<Step> {
        let refused = self.engine.stats().refused;
        let steps = self.settle();
        assert_eq!(
            self.engine.stats().refused,
            refused,
            "something was refused"
        );
        assert_eq!(
            self.engine.diff(&Target::Host, &self.kernel.dump()),
            Vec::<String>::new()
        );
        steps
    }

    pub(super) fn members(&self, set: &str) -> usize {
        self.kernel
            .policy()
            .sets
            .get(set)
            .map_or(0, |s| s.elements.len())
    }

    /// Chains and sets by content that the kernel has.
    pub(super) fn units(&self) -> BTreeSet<String> {
        let policy = self.kernel.policy();
        let names = policy.chains.keys().chain(policy.sets.keys());
        names
            .map(ToString::to_string)
            .filter(|name| {
                let prefix = name.split('_').next().unwrap_or_default();
                [
                    "r", "s", "in", "eg", "pm", "t", "p4", "p6", "n4", "n6", "b4", "b6",
                ]
                .contains(&prefix)
                    && name.len() > 10
            })
            .collect()
    }

    pub(super) fn lead(&self, map: &str, pod: &str) -> Option<Lead> {
        let key = nft_wire::key::Key::ifname(&link(&PodKey::new("x", pod)));
        let set = self.kernel.policy().sets.get(map)?;
        set.elements.iter().find(|e| e.key == key)?.verdict.clone()
    }
}

/// No transaction makes a chain and leads an element to it.
pub(super) fn check_order(step: &Step) {
    let mut made = BTreeSet::new();
    let mut led = BTreeSet::new();
    for change in &step.changes {
        if let Change::AddChain(chain) = change {
            made.insert(chain.name.to_string());
        }
        if let Change::AddElements(e) = change
            && !e.set.starts_with("pm_")
        {
            let chains = e
                .elements
                .iter()
                .filter_map(|e| e.verdict.as_ref()?.chain());
            led.extend(chains.map(ToString::to_string));
        }
    }
    let both: Vec<_> = made.intersection(&led).collect();
    assert!(
        both.is_empty(),
        "made and led to in one transaction: {both:?}"
    );
    let follows = |set: &str| set.starts_with(['p', 'n']) && set.contains("4_");
    let adds = step
        .changes
        .iter()
        .any(|c| matches!(c, Change::AddElements(e) if follows(&e.set)));
    let shrinks = step
        .changes
        .iter()
        .any(|c| matches!(c, Change::DeleteElements(e) if follows(&e.set)));
    assert!(
        step.kind == StepKind::Create || !(adds && shrinks),
        "grows and shrinks at once"
    );
}

pub(super) fn namespace(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

pub(super) fn pod(name: &str, node: &str, ips: &[&str], labels: &Value) -> Value {
    let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "x", "name": name, "uid": format!("u-{name}"), "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIPs": ips},
    })
}

pub(super) fn with_ports(mut pod: Value, ports: &Value) -> Value {
    pod["spec"]["containers"][0]["ports"] = ports.clone();
    pod
}

pub(super) fn policy(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": name}, "spec": spec,
    })
}

/// Ingress of all pods from those with label `app` of this value, at one TCP port.
pub(super) fn allow(name: &str, app: &str, port: u16) -> Value {
    policy(
        name,
        &json!({
            "podSelector": {},
            "ingress": [{
                "from": [{"podSelector": {"matchLabels": {"app": app}}}],
                "ports": [{"port": port}],
            }],
        }),
    )
}

pub(super) fn placed(name: &str, sandbox: &str, ips: &[&str]) -> LocalPod {
    let key = PodKey::new("x", name);
    LocalPod {
        host_link: Some(Arc::from(link(&key))),
        key,
        uid: Arc::from(format!("u-{name}")),
        attachment: attachment(sandbox),
        netns: None,
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
    }
}

pub(super) fn attachment(sandbox: &str) -> AttachmentKey {
    AttachmentKey::new(sandbox, "eth0").unwrap()
}

pub(super) fn flow(from: &str, to: &str, protocol: Protocol, port: u16) -> Flow {
    Flow {
        source: ip(from),
        destination: ip(to),
        protocol,
        port,
    }
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
