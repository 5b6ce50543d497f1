//! Everything the oracle knows: the objects of a cluster.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use crate::calico::CalicoPolicy;
use crate::cluster_policy::{ClusterPolicy, Kind};
use crate::document::{self, Object};
use crate::flow::{Direction, Flow};
use crate::inventory::{Inventory, Node, Pod, labels_of};
use crate::network_policy::NetworkPolicy;
use crate::probe::{Decision, End, Probe, Protocol, Side};
use crate::problem::Problem;
use crate::tier::Policies;

/// Pods, namespaces, nodes and policies, as read from documents.
#[derive(Debug, Clone, Default)]
pub struct World {
    inventory: Inventory,
    policies: Policies,
    problems: Vec<Problem>,
}

/// What an end of a probe is to policy.
enum Party<'a> {
    /// Pods whose policies apply.
    Pods(Vec<&'a Pod>),
    /// A node of that name.
    Node(&'a str),
    /// Nobody that the cluster knows.
    Stranger,
}

impl World {
    /// Reads objects; the order does not matter, and of two with the same identity the later counts.
    ///
    /// Never fails. A policy that cannot be read fails closed for its subjects and is named in
    /// [`World::problems`]. Kinds that have nothing to do with policy are passed over silently. A
    /// `List` is read item by item.
    pub fn from_documents(documents: impl IntoIterator<Item = Value>) -> Self {
        let mut latest = BTreeMap::new();
        let mut world = Self::default();
        for document in documents {
            world.file(document, &mut latest);
        }
        for ((group, kind, _, _), document) in latest {
            world.read(&group, &kind, &document);
        }
        world.policies.sort();
        world.problems.sort();
        world
    }

    /// What could not be read or is not supported, sorted.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// All pods that policy can see (running, with an address, off the host network): namespace,
    /// name and addresses, sorted.
    pub fn pods(&self) -> Vec<(&str, &str, &[IpAddr])> {
        self.inventory
            .pods
            .values()
            .filter(|pod| pod.counts() && !pod.addresses.is_empty())
            .map(|pod| {
                (
                    pod.namespace.as_str(),
                    pod.name.as_str(),
                    pod.addresses.as_slice(),
                )
            })
            .collect()
    }

    /// Whether the connection opens, and why.
    pub fn decide(&self, probe: &Probe) -> Decision {
        let egress = self.side(probe, Direction::Egress);
        let ingress = self.side(probe, Direction::Ingress);
        Decision {
            allowed: egress.allowed && ingress.allowed,
            egress,
            ingress,
        }
    }

    /// Sorts a document under its identity, where a later one replaces it.
    fn file(
        &mut self,
        document: Value,
        latest: &mut BTreeMap<(String, String, String, String), Object>,
    ) {
        let Value::Object(document) = document else {
            self.problems.push(Problem {
                kind: String::new(),
                namespace: String::new(),
                name: String::new(),
                detail: "a document is not an object; passed over".to_owned(),
            });
            return;
        };
        let part = |key: &str| {
            document
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (version, kind) = (part("apiVersion"), part("kind"));
        if kind.ends_with("List") && document.contains_key("items") {
            let member = kind.trim_end_matches("List");
            if let Some(Value::Array(items)) = document.get("items") {
                for item in items {
                    // Items of a typed list do not repeat their kind.
                    let mut item = item.clone();
                    if let Some(fields) = item.as_object_mut()
                        && !member.is_empty()
                    {
                        fields
                            .entry("apiVersion")
                            .or_insert_with(|| version.clone().into());
                        fields.entry("kind").or_insert_with(|| member.into());
                    }
                    self.file(item, latest);
                }
            }
            return;
        }
        let (namespace, name) = document::identity(&document);
        latest.insert((version, kind, namespace, name), document);
    }

    fn read(&mut self, version: &str, kind: &str, document: &Object) {
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let (namespace, name) = document::identity(document);
        let complaints = match (group, kind) {
            ("", "Pod") => {
                let (pod, complaints) = Pod::parse(document);
                let key = (pod.namespace.clone(), pod.name.clone());
                self.inventory.pods.insert(key, pod);
                complaints
            }
            ("", "Namespace") => {
                let mut complaints = Vec::new();
                let labels = labels_of(document, &mut |complaint| complaints.push(complaint));
                self.inventory.namespaces.insert(name.clone(), labels);
                complaints
            }
            ("", "Node") => {
                let (node, complaints) = Node::parse(document);
                self.inventory.nodes.insert(name.clone(), node);
                complaints
            }
            ("", "ServiceAccount") => {
                let mut complaints = Vec::new();
                let labels = labels_of(document, &mut |complaint| complaints.push(complaint));
                let key = (namespace.clone(), name.clone());
                self.inventory.service_accounts.insert(key, labels);
                complaints
            }
            ("networking.k8s.io", "NetworkPolicy") => {
                let (policy, complaints) = NetworkPolicy::parse(document);
                self.policies.network.push(policy);
                complaints
            }
            ("policy.networking.k8s.io", _) => self.read_cluster_policy(kind, document),
            (
                "crd.projectcalico.org" | "projectcalico.org",
                "GlobalNetworkPolicy" | "NetworkPolicy",
            ) => self.read_calico(kind == "GlobalNetworkPolicy", document),
            ("network.alibabacloud.com", "GlobalNetworkPolicy") => self.read_ack(version, document),
            _ => Vec::new(),
        };
        self.problems
            .extend(complaints.into_iter().map(|detail| Problem {
                kind: kind.to_owned(),
                namespace: namespace.clone(),
                name: name.clone(),
                detail,
            }));
    }

    fn read_cluster_policy(&mut self, kind: &str, document: &Object) -> Vec<String> {
        let kind = match kind {
            "ClusterNetworkPolicy" => Kind::Cluster,
            "AdminNetworkPolicy" => Kind::Admin,
            "BaselineAdminNetworkPolicy" => Kind::Baseline,
            _ => return Vec::new(),
        };
        let (policy, complaints) = ClusterPolicy::parse(kind, document);
        self.policies.cluster.push(policy);
        complaints
    }

    fn read_calico(&mut self, global: bool, document: &Object) -> Vec<String> {
        match CalicoPolicy::parse(document, global) {
            Ok((policy, complaints)) => {
                self.policies.calico.push(policy);
                complaints
            }
            Err(refusal) => vec![refusal],
        }
    }

    /// ACK's cluster-wide policy has, as far as its manual says, the shape and meaning of a
    /// NetworkPolicy with a selector of namespaces. Any other form is refused: no effect.
    fn read_ack(&mut self, version: &str, document: &Object) -> Vec<String> {
        let known = [
            "podSelector",
            "namespaceSelector",
            "policyTypes",
            "ingress",
            "egress",
        ];
        let spec = document.get("spec").and_then(Value::as_object);
        let form = match (version, spec) {
            ("network.alibabacloud.com/v1beta2", Some(spec)) => {
                document::only(spec, &known, "spec")
            }
            ("network.alibabacloud.com/v1beta2", None) => Err("spec is not an object".to_owned()),
            _ => Err(format!("the meaning of {version} is not known")),
        };
        if let Err(complaint) = form {
            return vec![format!("{complaint}; refused, no effect")];
        }
        let (policy, complaints) = NetworkPolicy::parse_global(document);
        self.policies.network.push(policy);
        complaints
    }

    fn party<'a>(&'a self, end: &'a End) -> Party<'a> {
        match end {
            End::Node { name, .. } => Party::Node(name),
            End::Address(address) => self.party_of_address(*address),
            End::Pod {
                namespace,
                name,
                address,
            } => match self.inventory.pods.get(&(namespace.clone(), name.clone())) {
                Some(pod) if pod.counts() => Party::Pods(vec![pod]),
                Some(pod) if pod.is_on_host() => match &pod.node {
                    Some(node) => Party::Node(node),
                    None => Party::Stranger,
                },
                Some(_) => Party::Stranger,
                None => self.party_of_address(*address),
            },
        }
    }

    fn party_of_address(&self, address: IpAddr) -> Party<'_> {
        let pods: Vec<&Pod> = self.inventory.holders(address).collect();
        if pods.is_empty() {
            Party::Stranger
        } else {
            Party::Pods(pods)
        }
    }

    fn side(&self, probe: &Probe, direction: Direction) -> Side {
        let (own, _) = ends(probe, direction);
        let always = |reason: String| Side {
            allowed: true,
            reasons: vec![reason],
        };
        if probe.protocol == Protocol::NeighbourDiscovery {
            return always(format!(
                "{direction}: neighbour discovery is always allowed"
            ));
        }
        let subjects = match self.party(own) {
            Party::Pods(pods) => pods,
            Party::Node(name) => {
                return always(format!(
                    "{direction} of node {name}: no policy selects nodes"
                ));
            }
            Party::Stranger => {
                return always(format!(
                    "{direction} of {own}: not a pod that policy knows, no policy applies"
                ));
            }
        };
        let mut reasons = Vec::new();
        let mut allowed = true;
        for subject in subjects {
            let mut own_reasons = Vec::new();
            allowed &= self.side_of(subject, probe, direction, &mut own_reasons);
            if let Some(first) = own_reasons.first_mut() {
                *first = format!(
                    "{direction} of {}/{}: {first}",
                    subject.namespace, subject.name
                );
            }
            reasons.append(&mut own_reasons);
        }
        Side { allowed, reasons }
    }

    fn side_of(
        &self,
        subject: &Pod,
        probe: &Probe,
        direction: Direction,
        reasons: &mut Vec<String>,
    ) -> bool {
        let (own, other) = ends(probe, direction);
        let counterpart = self.party(other);
        if direction == Direction::Ingress
            && let Party::Node(node) = counterpart
            && subject.node.as_deref() == Some(node)
        {
            reasons.push(format!("generated on its own node {node}: always allowed"));
            return true;
        }
        // By name when the other end has one: two pods may hold one address for a while.
        let itself = match counterpart {
            Party::Pods(pods) => pods.as_slice() == [subject],
            Party::Node(_) | Party::Stranger => false,
        };
        if itself && !probe.through_service {
            reasons.push("a pod always reaches its own address: allowed".to_owned());
            return true;
        }
        let flow = Flow {
            inventory: &self.inventory,
            subject,
            direction,
            local: own.address(),
            remote: other.address(),
            protocol: probe.protocol,
            port: probe.port,
            source_port: probe.source_port,
        };
        self.policies.allow(flow, itself, reasons)
    }
}

/// Whose policies are asked, and who is at the other end.
fn ends(probe: &Probe, direction: Direction) -> (&End, &End) {
    match direction {
        Direction::Egress => (&probe.source, &probe.destination),
        Direction::Ingress => (&probe.destination, &probe.source),
    }
}
