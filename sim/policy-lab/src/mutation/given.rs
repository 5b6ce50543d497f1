//! Mistakes in reading, planted on documents and events.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use policy_core::object::{Event, Object, ObjectKey, Pod};
use policy_core::policy::{
    Action, Block, NamespaceScope, Peer, Peers, Policy, PolicyKind, Port, Ports, Rule, Tier,
};
use policy_core::selector::Selector;
use serde_json::{Value, json};
use types::pod::PodKey;

use crate::mutation::Mistake;
use crate::random::probes::is_kind;

/// The event as somebody reads it who makes the mistake.
pub fn event(mistake: Mistake, event: Event) -> Event {
    let Event::Upsert(mut object) = event else {
        return event;
    };
    match &mut object {
        Object::Pod(pod) => {
            pod.finished &= mistake != Mistake::FinishedKept;
            pod.host_network &= mistake != Mistake::HostNetworkIsPeer;
        }
        Object::Policy(policy) => self::policy(mistake, policy),
        Object::Namespace(_) | Object::Node(_) | Object::ServiceAccount(_) => {}
    }
    Event::Upsert(object)
}

fn policy(mistake: Mistake, policy: &mut Policy) {
    let kubernetes = policy.id.kind == PolicyKind::NetworkPolicy;
    if mistake == Mistake::BaselineIgnored && policy.tier == Tier::Baseline {
        policy.ingress = None;
        policy.egress = None;
    }
    for rules in [&mut policy.ingress, &mut policy.egress]
        .into_iter()
        .flatten()
    {
        if mistake == Mistake::EmptyRulesAllow && kubernetes && rules.is_empty() {
            rules.push(Rule {
                name: "0".into(),
                action: Action::Accept,
                peers: Peers::Anybody,
                ports: Ports::Every,
            });
        }
        if mistake == Mistake::ExceptDenies && kubernetes {
            let denials: Vec<Rule> = rules.iter().filter_map(denial).collect();
            rules.splice(0..0, denials);
        }
        for rule in rules.iter_mut() {
            rule_of(mistake, kubernetes, rule);
        }
    }
}

/// A rule that denies what the blocks of a rule except.
fn denial(rule: &Rule) -> Option<Rule> {
    let Peers::OneOf(peers) = &rule.peers else {
        return None;
    };
    let excepted: Vec<Peer> = peers
        .iter()
        .filter_map(|peer| match peer {
            Peer::Block(block) => Some(&block.except),
            Peer::Pods(_) | Peer::Nodes(_) | Peer::Meet { .. } => None,
        })
        .flatten()
        .map(|cidr| {
            Peer::Block(Block {
                cidr: *cidr,
                except: Vec::new(),
            })
        })
        .collect();
    (!excepted.is_empty()).then(|| Rule {
        name: Arc::clone(&rule.name),
        action: Action::Deny,
        peers: Peers::OneOf(excepted),
        ports: rule.ports.clone(),
    })
}

fn rule_of(mistake: Mistake, kubernetes: bool, rule: &mut Rule) {
    if mistake == Mistake::PassAccepts && rule.action == Action::Pass {
        rule.action = Action::Accept;
    }
    if let Peers::OneOf(peers) = &mut rule.peers {
        for peer in peers {
            match peer {
                Peer::Block(block) if mistake == Mistake::ExceptIgnored => block.except.clear(),
                Peer::Pods(scope)
                    if mistake == Mistake::MissingNamespaceSelectorIsAll
                        && matches!(scope.namespaces, NamespaceScope::Own(_)) =>
                {
                    scope.namespaces = NamespaceScope::Matching(Arc::new(Selector::Everything));
                }
                Peer::Block(_) | Peer::Pods(_) | Peer::Nodes(_) | Peer::Meet { .. } => {}
            }
        }
    }
    let Ports::OneOf(ports) = &mut rule.ports else {
        return;
    };
    if mistake == Mistake::ProtocolIgnoredWithoutPort
        && kubernetes
        && ports.iter().any(|port| matches!(port, Port::All(_)))
    {
        rule.ports = Ports::Every;
        return;
    }
    if mistake == Mistake::EndPortOffByOne {
        for port in ports {
            if let Port::Range(_, first, last) = port
                && first < last
            {
                *last -= 1;
            }
        }
    }
}

/// What pods hold which addresses, as far as events said.
#[derive(Debug, Clone, Default)]
pub struct Pods(BTreeMap<PodKey, Pod>);

impl Pods {
    /// When a pod loses an address that another one has as well, the other one loses it too.
    pub fn off_by_one(&mut self, event: Event) -> Vec<Event> {
        let (key, now) = match &event {
            Event::Upsert(Object::Pod(pod)) => (pod.key.clone(), Some(pod.clone())),
            Event::Delete(ObjectKey::Pod(key)) => (key.clone(), None),
            Event::Upsert(_) | Event::Delete(_) => return vec![event],
        };
        let counts = |pod: &Pod| !pod.finished && !pod.host_network;
        let kept: Vec<IpAddr> = now
            .iter()
            .filter(|pod| counts(pod))
            .flat_map(|pod| pod.ips.iter().copied())
            .collect();
        let before = self.0.remove(&key).filter(counts);
        let lost: Vec<IpAddr> = before
            .into_iter()
            .flat_map(|pod| pod.ips)
            .filter(|ip| !kept.contains(ip))
            .collect();
        if let Some(pod) = now {
            self.0.insert(key, pod);
        }
        let mut out = vec![event];
        for pod in self.0.values_mut() {
            if counts(pod) && pod.ips.iter().any(|ip| lost.contains(ip)) {
                pod.ips.retain(|ip| !lost.contains(ip));
                out.push(Event::Upsert(Object::Pod(pod.clone())));
            }
        }
        out
    }
}

/// Named ports by name: protocol and number, of every pod.
fn names(documents: &[Value]) -> BTreeMap<String, Vec<(String, Value)>> {
    let mut out: BTreeMap<String, Vec<(String, Value)>> = BTreeMap::new();
    for pod in documents.iter().filter(|d| is_kind(d, "Pod")) {
        let containers = pod.pointer("/spec/containers").and_then(Value::as_array);
        for port in containers
            .into_iter()
            .flatten()
            .filter_map(|c| c.get("ports")?.as_array())
            .flatten()
        {
            let (Some(name), Some(number)) = (
                port.get("name").and_then(Value::as_str),
                port.get("containerPort"),
            ) else {
                continue;
            };
            let protocol = port
                .get("protocol")
                .and_then(Value::as_str)
                .unwrap_or("TCP");
            out.entry(name.to_owned())
                .or_default()
                .push((protocol.to_owned(), number.clone()));
        }
    }
    out
}

/// Every pod that has a name opens all numbers of that name.
pub fn cross_product(documents: &mut [Value]) {
    let names = names(documents);
    for pod in documents.iter_mut().filter(|d| is_kind(d, "Pod")) {
        let containers = pod
            .pointer_mut("/spec/containers")
            .and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let Some(ports) = container.get_mut("ports").and_then(Value::as_array_mut) else {
                continue;
            };
            let mine: Vec<String> = ports
                .iter()
                .filter_map(|port| port.get("name")?.as_str().map(str::to_owned))
                .collect();
            for name in mine {
                for (protocol, number) in names.get(&name).into_iter().flatten() {
                    ports
                        .push(json!({"name": name, "protocol": protocol, "containerPort": number}));
                }
            }
        }
    }
}

/// Names in egress rules become the numbers that pods of the policy's own namespace have for them.
pub fn name_at_subject(documents: &mut [Value]) {
    let all = documents.to_vec();
    for policy in documents.iter_mut().filter(|d| is_kind(d, "NetworkPolicy")) {
        let space = policy.pointer("/metadata/namespace").cloned();
        let own: Vec<Value> = all
            .iter()
            .filter(|d| d.pointer("/metadata/namespace") == space.as_ref())
            .cloned()
            .collect();
        let names = names(&own);
        let rules = policy
            .pointer_mut("/spec/egress")
            .and_then(Value::as_array_mut);
        for rule in rules.into_iter().flatten() {
            let Some(ports) = rule.get_mut("ports").and_then(Value::as_array_mut) else {
                continue;
            };
            for port in ports {
                let Some(name) = port.get("port").and_then(Value::as_str) else {
                    continue;
                };
                if let Some((_, number)) = names.get(name).and_then(|list| list.first()) {
                    port["port"] = number.clone();
                }
            }
        }
    }
}
