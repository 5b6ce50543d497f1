//! Says that a policy is malformed: once per cluster, not once per node.
//!
//! The rule: behind a relay the relay says it, since it reads every policy and there is one of it. Without a relay
//! the node says it whose hash with the policy is lowest among the nodes known and itself: all nodes compute the
//! same, the work is spread, and a node that goes hands its policies to the next one. A node that hears of a policy
//! before it hears of the other nodes may say it too; once everything was listed, that does not happen.
//!
//! What the kernel of a node refuses is that node's own matter, and said by it, whoever speaks of policies.
//!
//! It is said by a Kubernetes Event about the policy, as a line of the log and, if one is configured, of a file.
//! The same problem of the same policy is said once in the life of the process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use policy_core::policy::{Policy, PolicyId, PolicyKind, Problem};
use serde_json::{Value, json};

/// Where notices go beside the log.
#[derive(Debug, Clone, Default)]
pub struct Sink {
    /// File that gets one Event as a line of JSON.
    pub file: Option<PathBuf>,
}

/// Who says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// This process alone: it is the relay.
    Speaker,
    /// The node of this name says nothing of policies: a relay speaks.
    Silent(String),
    /// The node of this name, if the rule names it.
    Node(String),
}

/// Something that the kernel of this node refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The object and the error, and whom it closes, in words.
    pub text: String,
    /// The policies that it belongs to, where that is known.
    pub policies: Vec<PolicyId>,
}

/// The malformed policies, and which of them were said.
#[derive(Debug)]
pub struct Notices {
    role: Role,
    sink: Sink,
    nodes: BTreeSet<String>,
    malformed: BTreeMap<PolicyId, Vec<Problem>>,
    said: BTreeMap<PolicyId, Vec<Problem>>,
    refused: BTreeSet<String>,
}

impl Notices {
    /// Knows nothing yet.
    pub const fn new(role: Role, sink: Sink) -> Self {
        Self {
            role,
            sink,
            nodes: BTreeSet::new(),
            malformed: BTreeMap::new(),
            said: BTreeMap::new(),
            refused: BTreeSet::new(),
        }
    }

    /// A node is in the cluster.
    pub fn node(&mut self, name: &str) {
        if !self.nodes.contains(name) {
            self.nodes.insert(name.to_owned());
        }
    }

    /// A node is not in the cluster any more.
    pub fn node_gone(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    /// A policy is now so.
    pub fn policy(&mut self, policy: &Policy) {
        if policy.problems.is_empty() {
            self.policy_gone(&policy.id);
        } else {
            self.malformed
                .insert(policy.id.clone(), policy.problems.clone());
        }
    }

    /// A policy is gone.
    pub fn policy_gone(&mut self, id: &PolicyId) {
        self.malformed.remove(id);
        self.said.remove(id);
    }

    /// How many policies are malformed.
    pub fn malformed(&self) -> usize {
        self.malformed.len()
    }

    /// Whether the policy is malformed.
    pub fn knows(&self, id: &PolicyId) -> bool {
        self.malformed.contains_key(id)
    }

    /// A sentence for each malformed policy.
    pub fn sentences(&self) -> Vec<String> {
        self.malformed
            .iter()
            .map(|(id, problems)| sentence(id, problems))
            .collect()
    }

    /// Says what is this process's to say and was not said. To be called when everything known was listed at least
    /// once. Returns the Events.
    pub fn say(&mut self) -> Vec<Value> {
        let mut events = Vec::new();
        for (id, problems) in &self.malformed {
            if self.said.get(id) == Some(problems) || !self.is_ours(id) {
                continue;
            }
            let text = sentence(id, problems);
            tracing::warn!(policy = %id, "{text}");
            events.push(event(id, "PolicyMalformed", &text, self.host()));
            self.said.insert(id.clone(), problems.clone());
        }
        self.put(&events);
        events
    }

    /// Says what of this was not said: all that the kernel refuses now. Returns the Events.
    pub fn refused(&mut self, now: &[Refused]) -> Vec<Value> {
        let mut events = Vec::new();
        for refused in now.iter().filter(|r| !self.refused.contains(&r.text)) {
            let text = &refused.text;
            tracing::error!("{text}");
            let host = self.host();
            if refused.policies.is_empty() {
                events.push(node_event(host, text));
            }
            let about = refused.policies.iter();
            events.extend(about.map(|id| event(id, "PolicyNotEnforced", text, host)));
        }
        // What went and comes again is worth a word again.
        self.refused = now.iter().map(|r| r.text.clone()).collect();
        self.put(&events);
        events
    }

    fn put(&self, events: &[Value]) {
        if let Some(path) = self.sink.file.as_ref().filter(|_| !events.is_empty())
            && let Err(error) = append(path, events)
        {
            tracing::warn!(path = %path.display(), %error, "events were not written");
        }
    }

    fn host(&self) -> &str {
        match &self.role {
            Role::Node(name) | Role::Silent(name) => name,
            Role::Speaker => "",
        }
    }

    fn is_ours(&self, id: &PolicyId) -> bool {
        let own = match &self.role {
            Role::Speaker => return true,
            Role::Silent(_) => return false,
            Role::Node(own) => own,
        };
        let rank = |node: &str| (hash(node, id), node.to_owned());
        let ours = rank(own);
        self.nodes.iter().all(|node| rank(node) >= ours)
    }
}

fn sentence(id: &PolicyId, problems: &[Problem]) -> String {
    let all: Vec<String> = problems
        .iter()
        .map(|p| format!("{}: {}", p.field, p.why))
        .collect();
    format!(
        "{id} is malformed and denies what it does not clearly allow: {}",
        all.join("; ")
    )
}

/// FNV-1a over node and policy, stirred: equal on every machine and in every version, which `std`'s hasher is not.
fn hash(node: &str, id: &PolicyId) -> u64 {
    digest([node, id.kind.word(), &id.namespace, &id.name])
}

fn digest<const N: usize>(parts: [&str; N]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

/// What the API calls the kind.
const fn kind(kind: PolicyKind) -> (&'static str, &'static str) {
    match kind {
        PolicyKind::NetworkPolicy => ("networking.k8s.io/v1", "NetworkPolicy"),
        PolicyKind::ClusterNetworkPolicy => {
            ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy")
        }
        PolicyKind::AdminNetworkPolicy => {
            ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy")
        }
        PolicyKind::BaselineAdminNetworkPolicy => (
            "policy.networking.k8s.io/v1alpha1",
            "BaselineAdminNetworkPolicy",
        ),
        PolicyKind::CalicoGlobal => ("crd.projectcalico.org/v1", "GlobalNetworkPolicy"),
        PolicyKind::CalicoNamespaced => ("crd.projectcalico.org/v1", "NetworkPolicy"),
        PolicyKind::AckGlobal => ("network.alibabacloud.com/v1beta1", "GlobalNetworkPolicy"),
    }
}

/// The name is a function of what it says, so that a second one overwrites the first.
fn event(id: &PolicyId, reason: &str, text: &str, host: &str) -> Value {
    let (version, kind) = kind(id.kind);
    // Events about objects without a namespace live in `default`.
    let namespace = if id.namespace.is_empty() {
        "default"
    } else {
        &id.namespace
    };
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": format!("{}.{:016x}", id.name, hash(text, id)),
            "namespace": namespace,
        },
        "involvedObject": {
            "apiVersion": version,
            "kind": kind,
            "namespace": &*id.namespace,
            "name": &*id.name,
        },
        "reason": reason,
        "type": "Warning",
        "message": text,
        "source": { "component": "policy-agent", "host": host },
    })
}

fn node_event(host: &str, text: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": format!("{host}.{:016x}", digest([host, text])),
            "namespace": "default",
        },
        "involvedObject": { "apiVersion": "v1", "kind": "Node", "name": host },
        "reason": "PolicyNotEnforced",
        "type": "Warning",
        "message": text,
        "source": { "component": "policy-agent", "host": host },
    })
}

fn append(path: &PathBuf, events: &[Value]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let mut text = String::new();
    for event in events {
        text.push_str(&event.to_string());
        text.push('\n');
    }
    // One write: lines of several processes do not mix.
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use policy_core::policy::{NamespaceScope, PodScope, Tier};
    use policy_core::selector::Selector;

    use super::*;

    fn policy(name: &str, why: &str) -> Policy {
        let everything = Arc::new(Selector::Everything);
        Policy {
            id: PolicyId {
                kind: PolicyKind::NetworkPolicy,
                namespace: "x".into(),
                name: name.into(),
            },
            tier: Tier::Namespaced,
            order: Policy::KUBERNETES_ORDER,
            subject: PodScope {
                namespaces: NamespaceScope::Own("x".into()),
                pods: Arc::clone(&everything),
                accounts: everything,
            },
            ingress: Some(Vec::new()),
            egress: None,
            problems: vec![Problem {
                field: "spec.podSelector".to_owned(),
                why: why.to_owned(),
            }],
        }
    }

    fn of_node(name: &str, nodes: &[&str]) -> Notices {
        let mut notices = Notices::new(Role::Node(name.to_owned()), Sink::default());
        for node in nodes {
            notices.node(node);
        }
        notices
    }

    #[test]
    fn every_policy_is_named_by_exactly_one_of_the_nodes() {
        let nodes = ["n1", "n2", "n3", "n4", "n5"];
        let mut speakers = BTreeSet::new();
        for number in 0..40 {
            let policy = policy(&format!("p{number}"), "is no object");
            let mut said = 0;
            for name in nodes {
                let mut notices = of_node(name, &nodes);
                notices.policy(&policy);
                if !notices.say().is_empty() {
                    said += 1;
                    speakers.insert(name);
                }
            }
            assert_eq!(said, 1, "{}", policy.id);
        }
        assert!(speakers.len() > 2, "the work is not spread: {speakers:?}");
    }

    #[test]
    fn same_problem_is_said_once_and_another_one_again() {
        let mut notices = of_node("n1", &["n1"]);

        notices.policy(&policy("p", "is no object"));
        assert_eq!(notices.say().len(), 1);
        notices.policy(&policy("p", "is no object"));
        assert_eq!(notices.say().len(), 0);
        notices.policy(&policy("p", "is a number"));
        assert_eq!(notices.say().len(), 1);
    }

    #[test]
    fn node_behind_a_relay_counts_and_says_nothing() {
        let mut notices = Notices::new(Role::Silent("n1".to_owned()), Sink::default());
        notices.policy(&policy("p", "is no object"));

        assert_eq!(notices.say(), Vec::<Value>::new());
        assert_eq!(notices.malformed(), 1);
        assert!(notices.sentences()[0].contains("spec.podSelector: is no object"));
    }

    #[test]
    fn policies_of_a_node_that_went_are_said_by_another() {
        let nodes = ["n1", "n2"];
        let mut first = of_node("n1", &nodes);
        let named = (0..40)
            .map(|n| policy(&format!("p{n}"), "is no object"))
            .find(|p| {
                let mut second = of_node("n2", &nodes);
                second.policy(p);
                !second.say().is_empty()
            })
            .unwrap();
        first.policy(&named);
        assert!(first.say().is_empty());

        first.node_gone("n2");

        assert_eq!(first.say().len(), 1);
    }

    #[test]
    fn refusal_of_a_nodes_kernel_is_said_once_about_its_policies_or_about_the_node() {
        let mut notices = Notices::new(Role::Silent("n1".to_owned()), Sink::default());
        let of_policy = Refused {
            text: "r_1: error 22".to_owned(),
            policies: vec![policy("p", "").id],
        };
        let of_node = Refused {
            text: "in_1: error 22".to_owned(),
            policies: Vec::new(),
        };

        let said = notices.refused(&[of_policy.clone(), of_node.clone()]);

        let kinds: Vec<&Value> = said.iter().map(|e| &e["involvedObject"]["kind"]).collect();
        assert_eq!(kinds, ["NetworkPolicy", "Node"]);
        assert_eq!(said[1]["involvedObject"]["name"], "n1");
        assert!(notices.refused(&[of_policy.clone(), of_node]).is_empty());
        assert!(notices.refused(&[]).is_empty());
        assert_eq!(notices.refused(&[of_policy]).len(), 1);
    }

    #[test]
    fn event_is_about_the_policy_and_lands_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("events");
        let sink = Sink {
            file: Some(file.clone()),
        };
        let mut notices = Notices::new(Role::Speaker, sink);
        notices.policy(&policy("p", "is no object"));

        notices.say();

        let text = std::fs::read_to_string(file).unwrap();
        let event: Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(event["involvedObject"]["kind"], "NetworkPolicy");
        assert_eq!(event["metadata"]["namespace"], "x");
        assert_eq!(event["type"], "Warning");
    }
}
