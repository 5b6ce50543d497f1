//! One rule of a Calico policy.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::block;
use crate::calico_selector::Selector;
use crate::document::{self, Labels, Object};
use crate::flow::{Direction, Flow};
use crate::inventory::{Inventory, Pod};
use crate::probe::Protocol;

/// What a rule does with what it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Allow,
    Deny,
    Pass,
    Log,
}

/// A rule.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) action: Action,
    /// `None`: the rule could not be read and matches everything.
    criteria: Option<Criteria>,
}

#[derive(Debug, Clone)]
struct Criteria {
    ip_version: Option<u64>,
    protocol: Option<u8>,
    not_protocol: Option<u8>,
    icmp: Option<Icmp>,
    not_icmp: Option<Icmp>,
    source: Entity,
    destination: Entity,
}

#[derive(Debug, Clone, Copy)]
struct Icmp {
    kind: Option<u64>,
    code: Option<u64>,
}

/// One side of a rule; what is empty restricts nothing.
#[derive(Debug, Clone)]
struct Entity {
    pods: Option<Pods>,
    not_selector: Option<Selector>,
    nets: Vec<IpNet>,
    not_nets: Vec<IpNet>,
    ports: Vec<Port>,
    not_ports: Vec<Port>,
}

/// Which pods a side means.
#[derive(Debug, Clone)]
pub(crate) struct Pods {
    pub(crate) namespaces: Namespaces,
    pub(crate) selector: Selector,
    pub(crate) account_names: Vec<String>,
    pub(crate) account_selector: Selector,
}

/// Namespaces in which pods are looked for.
#[derive(Debug, Clone)]
pub(crate) enum Namespaces {
    All,
    One(String),
    Labelled(Selector),
}

#[derive(Debug, Clone)]
enum Port {
    Range(u16, u16),
    Named(String),
}

impl Rule {
    /// Reads a rule of a policy in `namespace`, or of a global one.
    pub(crate) fn parse(value: &Value, namespace: Option<&str>) -> Result<Self, String> {
        let known = [
            "action",
            "metadata",
            "ipVersion",
            "protocol",
            "notProtocol",
            "icmp",
            "notICMP",
            "source",
            "destination",
        ];
        let object = document::as_object(value, "rule")?;
        document::only(object, &known, "rule")?;
        let action = action_of(value).ok_or("action is not known")?;
        let ip_version = number(object, "ipVersion")?;
        if ip_version.is_some_and(|version| version != 4 && version != 6) {
            return Err("ipVersion is neither 4 nor 6".to_owned());
        }
        let criteria = Criteria {
            ip_version,
            protocol: protocol(object, "protocol")?,
            not_protocol: protocol(object, "notProtocol")?,
            icmp: icmp(object, "icmp")?,
            not_icmp: icmp(object, "notICMP")?,
            source: Entity::parse(object, "source", namespace)?,
            destination: Entity::parse(object, "destination", namespace)?,
        };
        criteria.check()?;
        Ok(Self {
            action,
            criteria: Some(criteria),
        })
    }

    /// What a rule that cannot be read is taken for: it allows nothing, or denies all.
    pub(crate) fn unreadable(value: &Value) -> Option<Self> {
        match action_of(value) {
            Some(Action::Allow | Action::Log) => None,
            Some(Action::Deny | Action::Pass) | None => Some(Self::denies_all()),
        }
    }

    /// A rule that denies all.
    pub(crate) fn denies_all() -> Self {
        Self {
            action: Action::Deny,
            criteria: None,
        }
    }

    /// Whether the flow is meant.
    pub(crate) fn matches(&self, flow: Flow<'_>) -> bool {
        self.criteria.as_ref().is_none_or(|c| c.match_flow(flow))
    }
}

fn action_of(rule: &Value) -> Option<Action> {
    match rule.get("action")?.as_str()? {
        "Allow" => Some(Action::Allow),
        "Deny" => Some(Action::Deny),
        "Pass" => Some(Action::Pass),
        "Log" => Some(Action::Log),
        _ => None,
    }
}

fn number(object: &Object, key: &str) -> Result<Option<u64>, String> {
    document::field(object, key)
        .map(|value| {
            value
                .as_u64()
                .filter(|number| *number <= 255)
                .ok_or_else(|| format!("{key} is not a number from 0 to 255"))
        })
        .transpose()
}

fn protocol(object: &Object, key: &str) -> Result<Option<u8>, String> {
    let Some(value) = document::field(object, key) else {
        return Ok(None);
    };
    let named = match value.as_str() {
        Some("TCP") => Some(6),
        Some("UDP") => Some(17),
        Some("ICMP") => Some(1),
        Some("ICMPv6") => Some(58),
        Some("SCTP") => Some(132),
        Some("UDPLite") => Some(136),
        Some(text) => text.parse().ok(),
        None => value.as_u64().and_then(|n| u8::try_from(n).ok()),
    };
    named
        .filter(|number| *number > 0)
        .map(Some)
        .ok_or_else(|| format!("{key} {value} is not known"))
}

fn icmp(object: &Object, key: &str) -> Result<Option<Icmp>, String> {
    document::object(object, key)?
        .map(|fields| {
            document::only(fields, &["type", "code"], key)?;
            let icmp = Icmp {
                kind: number(fields, "type")?,
                code: number(fields, "code")?,
            };
            if icmp.kind.is_none() && icmp.code.is_some() {
                return Err(format!("{key} has a code without a type"));
            }
            Ok(icmp)
        })
        .transpose()
}

impl Criteria {
    /// Ports need a protocol that has them; ICMP types need ICMP.
    fn check(&self) -> Result<(), String> {
        let has_ports = self.protocol.is_some_and(|p| matches!(p, 6 | 17 | 132));
        if !has_ports && (self.source.names_ports() || self.destination.names_ports()) {
            return Err("ports without a protocol that has them".to_owned());
        }
        let is_icmp = self.protocol.is_some_and(|p| matches!(p, 1 | 58));
        if !is_icmp && (self.icmp.is_some() || self.not_icmp.is_some()) {
            return Err("icmp without the protocol ICMP or ICMPv6".to_owned());
        }
        Ok(())
    }

    fn match_flow(&self, flow: Flow<'_>) -> bool {
        let (source, destination) = match flow.direction {
            Direction::Ingress => (flow.remote, flow.local),
            Direction::Egress => (flow.local, flow.remote),
        };
        let version = if flow.remote.is_ipv4() { 4 } else { 6 };
        let number = flow.protocol.number(flow.remote);
        self.ip_version.is_none_or(|wanted| wanted == version)
            && self.protocol.is_none_or(|wanted| wanted == number)
            && self.not_protocol.is_none_or(|unwanted| unwanted != number)
            && self.icmp.is_none_or(|icmp| icmp.matches(flow))
            && !self.not_icmp.is_some_and(|icmp| icmp.matches(flow))
            && self.source.matches(source, flow.source_port, flow)
            && self.destination.matches(destination, Some(flow.port), flow)
    }
}

impl Icmp {
    fn matches(self, flow: Flow<'_>) -> bool {
        let echo = if flow.remote.is_ipv4() { 8 } else { 128 };
        flow.protocol == Protocol::Icmp
            && self.kind.is_none_or(|kind| kind == echo)
            && self.code.is_none_or(|code| code == 0)
    }
}

impl Entity {
    fn parse(rule: &Object, side: &str, namespace: Option<&str>) -> Result<Self, String> {
        let empty = Object::new();
        let object = document::object(rule, side)?.unwrap_or(&empty);
        let known = [
            "nets",
            "notNets",
            "selector",
            "notSelector",
            "namespaceSelector",
            "ports",
            "notPorts",
            "serviceAccounts",
        ];
        document::only(object, &known, side)?;
        let not_selector = selector(object, "notSelector")?;
        let accounts = document::object(object, "serviceAccounts")?.unwrap_or(&empty);
        document::only(accounts, &["names", "selector"], "serviceAccounts")?;
        let own = selector(object, "selector")?;
        let namespaces = selector(object, "namespaceSelector")?;
        let account_selector = selector(accounts, "selector")?;
        let account_names: Vec<String> = document::texts(accounts, "names")?
            .into_iter()
            .map(str::to_owned)
            .collect();
        // In a namespaced policy any of these limits the side to the policy's own pods, even a
        // selector that only excludes; in a global one that alone leaves the side open.
        let means_pods = own.is_some()
            || namespaces.is_some()
            || account_selector.is_some()
            || !account_names.is_empty()
            || (namespace.is_some() && not_selector.is_some());
        let pods = means_pods.then(|| Pods {
            namespaces: match (namespaces, namespace) {
                (Some(selector), _) => Namespaces::Labelled(selector),
                (None, Some(own)) => Namespaces::One(own.to_owned()),
                (None, None) => Namespaces::All,
            },
            selector: own.unwrap_or(Selector::All),
            account_names,
            account_selector: account_selector.unwrap_or(Selector::All),
        });
        Ok(Self {
            pods,
            not_selector,
            nets: nets(object, "nets")?,
            not_nets: nets(object, "notNets")?,
            ports: ports(object, "ports")?,
            not_ports: ports(object, "notPorts")?,
        })
    }

    fn names_ports(&self) -> bool {
        !self.ports.is_empty() || !self.not_ports.is_empty()
    }

    fn matches(&self, address: IpAddr, port: Option<u16>, flow: Flow<'_>) -> bool {
        let inventory = flow.inventory;
        let inside = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        let admitted = |pod: &Pod| self.pods.as_ref().is_none_or(|p| p.admit(pod, inventory));
        let mut holders = inventory.holders(address);
        (self.pods.is_none() || holders.any(admitted))
            && !self.not_selector.as_ref().is_some_and(|excluded| {
                inventory
                    .holders(address)
                    .any(|pod| excluded.matches(&endpoint_labels(pod)))
            })
            && (self.nets.is_empty() || inside(&self.nets))
            && !inside(&self.not_nets)
            && (self.ports.is_empty() || has_port(&self.ports, address, port, flow, admitted))
            && !has_port(&self.not_ports, address, port, flow, |_| true)
    }
}

/// Whether the port is in the list. A name is looked up on the pods that hold the address.
fn has_port(
    ports: &[Port],
    address: IpAddr,
    number: Option<u16>,
    flow: Flow<'_>,
    admitted: impl Fn(&Pod) -> bool,
) -> bool {
    let Some(number) = number else { return false };
    ports.iter().any(|port| match port {
        Port::Range(first, last) => (*first..=*last).contains(&number),
        Port::Named(name) => flow
            .inventory
            .holders(address)
            .any(|pod| admitted(pod) && pod.has_port(name, flow.protocol, number)),
    })
}

/// A selector in a field; missing and empty are the same.
pub(crate) fn selector(object: &Object, key: &str) -> Result<Option<Selector>, String> {
    document::text(object, key)?
        .filter(|text| !text.trim().is_empty())
        .map(|text| Selector::parse(text).map_err(|complaint| format!("{key}: {complaint}")))
        .transpose()
}

fn nets(object: &Object, key: &str) -> Result<Vec<IpNet>, String> {
    document::texts(object, key)?
        .into_iter()
        .map(block::range_or_address)
        .collect()
}

fn ports(object: &Object, key: &str) -> Result<Vec<Port>, String> {
    document::list(object, key)?
        .iter()
        .map(|value| match value.as_str() {
            None => document::port_number(value, key).map(|number| Port::Range(number, number)),
            Some(text) => port_of(text).ok_or_else(|| format!("{key} has {text:?}")),
        })
        .collect()
}

/// "80", "80:90" or a name.
fn port_of(text: &str) -> Option<Port> {
    let number = |text: &str| text.parse::<u16>().ok().filter(|number| *number > 0);
    if let Some((first, last)) = text.split_once(':') {
        let (first, last) = (number(first)?, number(last)?);
        return (first <= last).then_some(Port::Range(first, last));
    }
    if text.chars().all(|c| c.is_ascii_digit()) {
        let number = number(text)?;
        return Some(Port::Range(number, number));
    }
    Some(Port::Named(text.to_owned()))
}

impl Pods {
    /// Whether the pod is meant.
    pub(crate) fn admit(&self, pod: &Pod, inventory: &Inventory) -> bool {
        let here = match &self.namespaces {
            Namespaces::All => true,
            Namespaces::One(namespace) => *namespace == pod.namespace,
            Namespaces::Labelled(selector) => inventory
                .namespace_labels(pod)
                .is_some_and(|labels| selector.matches(&named(labels, &pod.namespace))),
        };
        here && self.selector.matches(&endpoint_labels(pod)) && self.admits_account(pod, inventory)
    }

    fn admits_account(&self, pod: &Pod, inventory: &Inventory) -> bool {
        let named =
            self.account_names.is_empty() || self.account_names.contains(&pod.service_account);
        named
            && (self.account_selector == Selector::All
                || inventory.service_account_labels(pod).is_some_and(|labels| {
                    self.account_selector
                        .matches(&self::named(labels, &pod.service_account))
                }))
    }
}

/// Labels with Calico's own one, the name of what bears them.
fn named(labels: &Labels, name: &str) -> Labels {
    let mut labels = labels.clone();
    labels.insert("projectcalico.org/name".to_owned(), name.to_owned());
    labels
}

/// A pod's labels with those that Calico adds.
fn endpoint_labels(pod: &Pod) -> Labels {
    let mut labels = pod.labels.clone();
    for (key, value) in [
        ("projectcalico.org/namespace", pod.namespace.as_str()),
        ("projectcalico.org/orchestrator", "k8s"),
        ("projectcalico.org/serviceaccount", &pod.service_account),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}
