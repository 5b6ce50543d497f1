//! The admin and baseline tiers: ClusterNetworkPolicy (v1alpha2), AdminNetworkPolicy and
//! BaselineAdminNetworkPolicy (v1alpha1).

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::block;
use crate::document::{self, Object};
use crate::flow::{Direction, Flow};
use crate::inventory::{Inventory, Pod};
use crate::label_selector::LabelSelector;
use crate::port::PortRule;

/// Which of the API's kinds a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// v1alpha2, either tier.
    Cluster,
    /// v1alpha1, admin tier.
    Admin,
    /// v1alpha1, baseline tier, without a priority.
    Baseline,
}

/// Where a policy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    Admin,
    Baseline,
}

/// What a rule does with what it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Accept,
    Deny,
    Pass,
}

/// A policy of the admin or the baseline tier.
#[derive(Debug, Clone)]
pub(crate) struct ClusterPolicy {
    pub(crate) tier: Tier,
    /// Lower first; before all others when it cannot be read.
    pub(crate) priority: Option<u32>,
    pub(crate) name: String,
    pub(crate) title: String,
    subject: PodPeer,
    ingress: Vec<Rule>,
    egress: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    /// "rule 2", "rule 2 (dns)".
    title: String,
    action: Action,
    peers: Peers,
    /// `None`: any protocol.
    ports: Option<Vec<PortRule>>,
}

#[derive(Debug, Clone)]
enum Peers {
    /// The rule could not be read and denies all.
    All,
    Some(Vec<Peer>),
}

#[derive(Debug, Clone)]
enum Peer {
    Pods(PodPeer),
    Nodes(LabelSelector),
    Networks(Vec<IpNet>),
    /// Domain names are not resolved; the entry matches nothing.
    Domains,
}

/// Pods by the labels of their namespace and their own.
#[derive(Debug, Clone, Default)]
struct PodPeer {
    /// `None`: even of a namespace that is not known; only for a subject that cannot be read.
    namespaces: Option<LabelSelector>,
    pods: LabelSelector,
}

impl ClusterPolicy {
    /// Reads a policy.
    ///
    /// A rule that cannot be read accepts nothing, or denies all if it was to deny or to pass. A
    /// subject that cannot be read makes the policy govern all pods. With a subject, a tier or a
    /// priority that cannot be read the policy only denies: in the admin tier without a tier, and
    /// before all others of its tier without a priority. A spec that is no object denies all.
    pub(crate) fn parse(kind: Kind, document: &Object) -> (Self, Vec<String>) {
        let (_, name) = document::identity(document);
        let mut complaints = Vec::new();
        let empty = Object::new();
        let spec = document::object(document, "spec").unwrap_or_else(|complaint| {
            complaints.push(complaint);
            None
        });
        let denies_all = !complaints.is_empty();
        let spec = spec.unwrap_or(&empty);
        let mut open = true;
        let mut doubt = |complaint: String| {
            complaints.push(format!("{complaint}; the policy can only deny"));
            open = false;
        };

        let tier = match kind {
            Kind::Admin => Tier::Admin,
            Kind::Baseline => Tier::Baseline,
            Kind::Cluster => match document::text(spec, "tier") {
                Ok(Some("Admin")) => Tier::Admin,
                Ok(Some("Baseline")) => Tier::Baseline,
                Ok(_) | Err(_) => {
                    doubt("tier is neither Admin nor Baseline".to_owned());
                    Tier::Admin
                }
            },
        };
        let priority = match kind {
            Kind::Baseline => Some(u32::MAX),
            Kind::Admin | Kind::Cluster => priority_of(spec).map_err(&mut doubt).ok(),
        };
        let subject = document::field(spec, "subject")
            .ok_or_else(|| "subject is missing".to_owned())
            .and_then(|subject| {
                let (key, value) = document::one_of(subject, &["namespaces", "pods"], "subject")?;
                PodPeer::parse(key, value)
            })
            .unwrap_or_else(|complaint| {
                doubt(complaint);
                PodPeer::default()
            });

        let mut note = |complaint: String| complaints.push(complaint);
        let mut rules = |direction: Direction| {
            if denies_all {
                return vec![Rule::denies_all(direction.to_string())];
            }
            Rule::read_all(kind, spec, direction, open, &mut note)
        };
        let ingress = rules(Direction::Ingress);
        let egress = rules(Direction::Egress);
        let title = match kind {
            Kind::Cluster => format!("ClusterNetworkPolicy {name}"),
            Kind::Admin => format!("AdminNetworkPolicy {name}"),
            Kind::Baseline => format!("BaselineAdminNetworkPolicy {name}"),
        };
        let policy = Self {
            tier,
            priority,
            name,
            title,
            subject,
            ingress,
            egress,
        };
        (policy, complaints)
    }

    /// Whether the policy governs the pod.
    pub(crate) fn governs(&self, pod: &Pod, inventory: &Inventory) -> bool {
        self.subject.admits(pod, inventory)
    }

    /// What the first rule that matches does, with sentences that say why.
    pub(crate) fn judge(&self, flow: Flow<'_>, reasons: &mut Vec<String>) -> Option<Action> {
        let rules = match flow.direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        };
        for rule in rules {
            if rule.matches(flow) {
                let does = match rule.action {
                    Action::Accept => "accepts it",
                    Action::Deny => "denies it",
                    Action::Pass => "passes it to the next tier",
                };
                reasons.push(format!("{} {} {does}", self.title, rule.title));
                return Some(rule.action);
            }
        }
        None
    }
}

fn priority_of(spec: &Object) -> Result<u32, String> {
    document::field(spec, "priority")
        .and_then(Value::as_u64)
        .and_then(|priority| u32::try_from(priority).ok())
        .filter(|priority| *priority <= 1000)
        .ok_or_else(|| "priority is not a number from 0 to 1000".to_owned())
}

impl Rule {
    /// The rules of one direction; of a policy that is not `open`, none accepts or passes.
    fn read_all(
        kind: Kind,
        spec: &Object,
        direction: Direction,
        open: bool,
        note: &mut impl FnMut(String),
    ) -> Vec<Self> {
        let key = direction.to_string();
        let rules = match document::list(spec, &key) {
            Ok(rules) => rules,
            Err(complaint) => {
                note(format!("{complaint}; denies all"));
                return vec![Self::denies_all(key)];
            }
        };
        let mut read = Vec::new();
        for (number, value) in (1_usize..).zip(rules) {
            let title = match value.get("name").and_then(Value::as_str) {
                Some(name) => format!("{key} rule {number} ({name})"),
                None => format!("{key} rule {number}"),
            };
            match Self::read(kind, title.clone(), value, direction, note) {
                Ok(mut rule) => match (open, rule.action) {
                    (true, _) | (false, Action::Deny) => read.push(rule),
                    (false, Action::Accept) => {}
                    (false, Action::Pass) => {
                        rule.action = Action::Deny;
                        read.push(rule);
                    }
                },
                Err(complaint) if accepts(value) => {
                    note(format!("{title}: {complaint}; it accepts nothing"));
                }
                Err(complaint) => {
                    note(format!("{title}: {complaint}; it denies all"));
                    read.push(Self::denies_all(title));
                }
            }
        }
        read
    }

    fn denies_all(title: String) -> Self {
        Self {
            title,
            action: Action::Deny,
            peers: Peers::All,
            ports: None,
        }
    }

    fn read(
        kind: Kind,
        title: String,
        value: &Value,
        direction: Direction,
        note: &mut impl FnMut(String),
    ) -> Result<Self, String> {
        let (accept, ports_key) = match kind {
            Kind::Cluster => ("Accept", "protocols"),
            Kind::Admin | Kind::Baseline => ("Allow", "ports"),
        };
        let peers_key = match direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        let object = document::as_object(value, "rule")?;
        document::only(object, &["name", "action", peers_key, ports_key], "rule")?;
        let action = match document::text(object, "action")?.unwrap_or_default() {
            action if action == accept => Action::Accept,
            "Deny" => Action::Deny,
            "Pass" if kind != Kind::Baseline => Action::Pass,
            action => return Err(format!("action {action:?} is not known")),
        };
        let peers: Vec<Peer> = document::list(object, peers_key)?
            .iter()
            .map(|peer| Peer::parse(peer, direction))
            .collect::<Result<_, _>>()?;
        if peers.is_empty() {
            return Err(format!("{peers_key} is empty"));
        }
        if peers.iter().any(|peer| matches!(peer, Peer::Domains)) {
            if action != Action::Accept {
                return Err("domainNames can only be accepted".to_owned());
            }
            note(format!(
                "{title}: domainNames are not supported; they match nothing"
            ));
        }
        let ports = document::list(object, ports_key)?
            .iter()
            .map(|port| match kind {
                Kind::Cluster => PortRule::of_cluster_policy(port),
                Kind::Admin | Kind::Baseline => PortRule::of_admin_policy(port),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let outside = peers.iter().any(|peer| !matches!(peer, Peer::Pods(_)));
        if outside && ports.iter().any(PortRule::is_named) {
            return Err("a named port beside peers that are not pods".to_owned());
        }
        Ok(Self {
            title,
            action,
            peers: Peers::Some(peers),
            ports: (!ports.is_empty()).then_some(ports),
        })
    }

    fn matches(&self, flow: Flow<'_>) -> bool {
        let peers = match &self.peers {
            Peers::All => return true,
            Peers::Some(peers) => peers,
        };
        peers.iter().filter(|peer| peer.matches(flow)).any(|peer| {
            self.ports.as_ref().is_none_or(|ports| {
                ports
                    .iter()
                    .any(|port| port.matches(flow, |pod| peer.admits(pod, flow.inventory)))
            })
        })
    }
}

/// Whether a rule that cannot be read was meant to accept.
fn accepts(rule: &Value) -> bool {
    matches!(
        rule.get("action").and_then(Value::as_str),
        Some("Accept" | "Allow")
    )
}

impl Peer {
    fn parse(value: &Value, direction: Direction) -> Result<Self, String> {
        let known: &[&str] = match direction {
            Direction::Ingress => &["namespaces", "pods"],
            Direction::Egress => &["namespaces", "pods", "nodes", "networks", "domainNames"],
        };
        let (key, value) = document::one_of(value, known, "peer")?;
        match key {
            "nodes" => LabelSelector::parse(value, key).map(Self::Nodes),
            "networks" => {
                let networks = value.as_array().ok_or("networks is not a list")?;
                networks
                    .iter()
                    .map(|net| {
                        let text = net
                            .as_str()
                            .ok_or("networks has an item that is no string")?;
                        block::range_of(text)
                    })
                    .collect::<Result<_, _>>()
                    .map(Self::Networks)
            }
            "domainNames" => Ok(Self::Domains),
            _ => PodPeer::parse(key, value).map(Self::Pods),
        }
    }

    fn matches(&self, flow: Flow<'_>) -> bool {
        match self {
            Self::Pods(pods) => flow.peers().any(|pod| pods.admits(pod, flow.inventory)),
            Self::Nodes(selector) => flow.inventory.nodes.values().any(|node| {
                selector.matches(&node.labels) && node.addresses.contains(&flow.remote)
            }),
            Self::Networks(networks) => inside(networks, flow.remote),
            Self::Domains => false,
        }
    }

    /// Whether the pod, which holds the other side's address, is meant.
    fn admits(&self, pod: &Pod, inventory: &Inventory) -> bool {
        match self {
            Self::Pods(pods) => pods.admits(pod, inventory),
            Self::Nodes(_) | Self::Networks(_) | Self::Domains => false,
        }
    }
}

fn inside(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|net| net.contains(&address))
}

impl PodPeer {
    fn parse(key: &str, value: &Value) -> Result<Self, String> {
        if key == "namespaces" {
            return Ok(Self {
                namespaces: Some(LabelSelector::parse(value, key)?),
                pods: LabelSelector::default(),
            });
        }
        let object = document::as_object(value, key)?;
        document::only(object, &["namespaceSelector", "podSelector"], key)?;
        let pods = document::field(object, "podSelector").ok_or("pods has no podSelector")?;
        let namespaces = match document::field(object, "namespaceSelector") {
            None => LabelSelector::default(),
            Some(selector) => LabelSelector::parse(selector, "namespaceSelector")?,
        };
        Ok(Self {
            namespaces: Some(namespaces),
            pods: LabelSelector::parse(pods, "podSelector")?,
        })
    }

    fn admits(&self, pod: &Pod, inventory: &Inventory) -> bool {
        let here = self.namespaces.as_ref().is_none_or(|selector| {
            inventory
                .namespace_labels(pod)
                .is_some_and(|labels| selector.matches(labels))
        });
        here && self.pods.matches(&pod.labels)
    }
}
