//! NetworkPolicy of `networking.k8s.io/v1`, and ACK's cluster-wide policy of the same shape.

use serde_json::Value;

use crate::block::Block;
use crate::document::{self, Object};
use crate::flow::{Direction, Flow};
use crate::inventory::{Inventory, Pod};
use crate::label_selector::LabelSelector;
use crate::port::PortRule;

/// A policy that allows, and isolates the pods it selects.
#[derive(Debug, Clone)]
pub(crate) struct NetworkPolicy {
    /// The policy's namespace; `None` for ACK's cluster-wide kind.
    namespace: Option<String>,
    /// For a person.
    pub(crate) title: String,
    subjects: Subjects,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

#[derive(Debug, Clone)]
struct Subjects {
    namespaces: Option<LabelSelector>,
    pods: LabelSelector,
    readable: bool,
}

/// A readable rule; one that cannot be read allows nothing, and is not kept.
#[derive(Debug, Clone)]
struct Rule {
    /// Place in the document, from 1.
    number: usize,
    /// `None`: any peer.
    peers: Option<Vec<Peer>>,
    /// `None`: any protocol.
    ports: Option<Vec<PortRule>>,
}

#[derive(Debug, Clone)]
enum Peer {
    Pods {
        /// `None`: the policy's own namespace.
        namespaces: Option<LabelSelector>,
        pods: LabelSelector,
    },
    Block(Block),
}

impl NetworkPolicy {
    /// Reads a NetworkPolicy. What cannot be read allows nothing; a subject selector that cannot be
    /// read stands for all pods of the namespace, and the policy then allows nothing at all: nobody
    /// can say which pods its rules were to open.
    pub(crate) fn parse(document: &Object) -> (Self, Vec<String>) {
        let (namespace, name) = document::identity(document);
        let namespace = if namespace.is_empty() {
            "default".to_owned()
        } else {
            namespace
        };
        let title = format!("NetworkPolicy {namespace}/{name}");
        Self::read(document, Some(namespace), title)
    }

    /// Reads ACK's GlobalNetworkPolicy, likewise.
    pub(crate) fn parse_global(document: &Object) -> (Self, Vec<String>) {
        let (_, name) = document::identity(document);
        Self::read(document, None, format!("GlobalNetworkPolicy {name} of ACK"))
    }

    fn read(document: &Object, namespace: Option<String>, title: String) -> (Self, Vec<String>) {
        let mut complaints = Vec::new();
        let empty = Object::new();
        let (spec, readable) = match document::object(document, "spec") {
            Ok(spec) => (spec.unwrap_or(&empty), true),
            Err(complaint) => {
                complaints.push(format!("{complaint}; isolates, and allows nothing"));
                (&empty, false)
            }
        };
        let mut note = |complaint: String| complaints.push(complaint);
        let subjects = Subjects::read(spec, namespace.is_none(), &mut note);
        let (ingress, egress) = if readable {
            directions(spec, &mut note)
        } else {
            (true, true)
        };
        let mut rules = |key: &str, peers: &str| {
            let mut rules = Rule::read_all(spec, key, peers, &mut note);
            rules.retain(|_| subjects.readable);
            rules
        };
        let policy = Self {
            title,
            ingress: ingress.then(|| rules("ingress", "from")),
            egress: egress.then(|| rules("egress", "to")),
            subjects,
            namespace,
        };
        (policy, complaints)
    }

    /// Whether it isolates the pod in that direction.
    pub(crate) fn isolates(&self, pod: &Pod, direction: Direction, inventory: &Inventory) -> bool {
        let here = match &self.namespace {
            Some(namespace) => *namespace == pod.namespace,
            None => match &self.subjects.namespaces {
                None => true,
                Some(selector) => inventory
                    .namespace_labels(pod)
                    .is_some_and(|labels| selector.matches(labels)),
            },
        };
        here && self.subjects.pods.matches(&pod.labels) && self.rules(direction).is_some()
    }

    fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// Whether one of its rules allows the flow, with sentences that say why or why not.
    pub(crate) fn allows(&self, flow: Flow<'_>, reasons: &mut Vec<String>) -> bool {
        let rules = self.rules(flow.direction).unwrap_or_default();
        if rules.is_empty() {
            reasons.push(format!("{} allows nothing", self.title));
            return false;
        }
        let mut near = Vec::new();
        for rule in rules {
            match rule.judge(flow, self.namespace.as_deref()) {
                Outcome::Allows => {
                    reasons.push(format!("{} rule {} allows it", self.title, rule.number));
                    return true;
                }
                Outcome::WrongPort(ports) => near.push(format!(
                    "{} rule {} matched the peer, but {} is not {ports}",
                    self.title,
                    rule.number,
                    flow.what()
                )),
                Outcome::WrongPeer => {}
            }
        }
        if near.is_empty() {
            near.push(format!(
                "{} has no rule that names {}",
                self.title, flow.remote
            ));
        }
        reasons.append(&mut near);
        false
    }
}

impl Subjects {
    fn read(spec: &Object, global: bool, note: &mut impl FnMut(String)) -> Self {
        let mut readable = true;
        let mut selector = |key: &str| match document::field(spec, key) {
            None => None,
            Some(value) => match LabelSelector::parse(value, key) {
                Ok(selector) => Some(selector),
                Err(complaint) => {
                    note(format!(
                        "{complaint}; taken as selecting everything, and allows nothing"
                    ));
                    readable = false;
                    Some(LabelSelector::default())
                }
            },
        };
        Self {
            pods: selector("podSelector").unwrap_or_default(),
            namespaces: if global {
                selector("namespaceSelector")
            } else {
                None
            },
            readable,
        }
    }
}

enum Outcome {
    Allows,
    /// The ports that it would have been.
    WrongPort(String),
    WrongPeer,
}

impl Rule {
    fn read_all(
        spec: &Object,
        key: &str,
        peers_key: &str,
        note: &mut impl FnMut(String),
    ) -> Vec<Self> {
        let rules = match document::list(spec, key) {
            Ok(rules) => rules,
            Err(complaint) => {
                note(format!("{complaint}; allows nothing"));
                return Vec::new();
            }
        };
        let mut read = Vec::new();
        for (number, rule) in (1_usize..).zip(rules) {
            let at = format!("{key} rule {number}");
            match Self::read(number, rule, peers_key, &mut |complaint| {
                note(format!("{at}: {complaint}"));
            }) {
                Ok(rule) => read.push(rule),
                Err(complaint) => note(format!("{at}: {complaint}; the rule allows nothing")),
            }
        }
        read
    }

    fn read(
        number: usize,
        value: &Value,
        peers_key: &str,
        note: &mut impl FnMut(String),
    ) -> Result<Self, String> {
        let object = document::as_object(value, "the rule")?;
        document::only(object, &[peers_key, "ports"], "the rule")?;
        Ok(Self {
            number,
            peers: entries(document::list(object, peers_key)?, Peer::parse, note),
            ports: entries(
                document::list(object, "ports")?,
                PortRule::of_network_policy,
                note,
            ),
        })
    }

    fn judge(&self, flow: Flow<'_>, namespace: Option<&str>) -> Outcome {
        let matched: Vec<Option<&Peer>> = match &self.peers {
            None => vec![None],
            Some(peers) => peers
                .iter()
                .filter(|peer| peer.matches(flow, namespace))
                .map(Some)
                .collect(),
        };
        if matched.is_empty() {
            return Outcome::WrongPeer;
        }
        let Some(ports) = &self.ports else {
            return Outcome::Allows;
        };
        let allowed = matched.iter().any(|peer| {
            ports.iter().any(|port| {
                port.matches(flow, |pod| {
                    peer.is_none_or(|peer| peer.admits(pod, flow, namespace))
                })
            })
        });
        if allowed {
            Outcome::Allows
        } else if ports.is_empty() {
            Outcome::WrongPort("a port that could be read".to_owned())
        } else {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            Outcome::WrongPort(ports.join(" or "))
        }
    }
}

/// The entries that can be read; `None` when the list is empty, which restricts nothing.
fn entries<T>(
    values: &[Value],
    parse: impl Fn(&Value) -> Result<T, String>,
    note: &mut impl FnMut(String),
) -> Option<Vec<T>> {
    if values.is_empty() {
        return None;
    }
    let mut read = Vec::new();
    for value in values {
        match parse(value) {
            Ok(entry) => read.push(entry),
            Err(complaint) => note(format!("{complaint}; matches nothing")),
        }
    }
    Some(read)
}

impl Peer {
    fn parse(value: &Value) -> Result<Self, String> {
        let known = ["podSelector", "namespaceSelector", "ipBlock"];
        let object = document::as_object(value, "peer")?;
        document::only(object, &known, "peer")?;
        let selector = |key: &str| {
            document::field(object, key)
                .map(|value| LabelSelector::parse(value, key))
                .transpose()
        };
        let (pods, namespaces) = (selector("podSelector")?, selector("namespaceSelector")?);
        match (document::field(object, "ipBlock"), pods, namespaces) {
            (Some(block), None, None) => Block::parse(block).map(Self::Block),
            (Some(_), _, _) => Err("peer has a selector beside its ipBlock".to_owned()),
            (None, None, None) => Err("peer has none of the fields that are known".to_owned()),
            (None, pods, namespaces) => Ok(Self::Pods {
                pods: pods.unwrap_or_default(),
                namespaces,
            }),
        }
    }

    /// Whether the other side's address is meant.
    fn matches(&self, flow: Flow<'_>, namespace: Option<&str>) -> bool {
        match self {
            Self::Block(block) => block.contains(flow.remote),
            Self::Pods { .. } => flow.peers().any(|pod| self.admits(pod, flow, namespace)),
        }
    }

    /// Whether this pod, which holds the other side's address, is meant.
    fn admits(&self, pod: &Pod, flow: Flow<'_>, namespace: Option<&str>) -> bool {
        match self {
            Self::Block(block) => block.contains(flow.remote),
            Self::Pods { namespaces, pods } => {
                let here = match (namespaces, namespace) {
                    (Some(selector), _) => flow
                        .inventory
                        .namespace_labels(pod)
                        .is_some_and(|labels| selector.matches(labels)),
                    (None, Some(own)) => pod.namespace == own,
                    (None, None) => true,
                };
                here && pods.matches(&pod.labels)
            }
        }
    }
}

/// The directions that a policy governs; both when they cannot be read.
fn directions(spec: &Object, note: &mut impl FnMut(String)) -> (bool, bool) {
    let both = (true, true);
    match document::texts(spec, "policyTypes") {
        Err(complaint) => {
            note(format!("{complaint}; isolates in both directions"));
            both
        }
        Ok(types) if types.is_empty() => {
            let egress = document::field(spec, "egress");
            // A list of rules that cannot be read may have had one.
            let has_egress =
                egress.is_some_and(|list| list.as_array().is_none_or(|l| !l.is_empty()));
            (true, has_egress)
        }
        Ok(types) => {
            if let Some(unknown) = types.iter().find(|t| !matches!(**t, "Ingress" | "Egress")) {
                note(format!(
                    "policyTypes has {unknown:?}; isolates in both directions"
                ));
                return both;
            }
            (types.contains(&"Ingress"), types.contains(&"Egress"))
        }
    }
}
